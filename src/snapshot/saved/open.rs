//! From a core file with our notes to the snapshot that it was made of.

use std::sync::Arc;

use super::elf_notes::{is_status, is_vector_state};
use super::memory::{SavedMemory, Stored};
use super::note::{BEGINNING, Beginning, END, End, FORMAT, HeapFacts, NOTE_OWNER};
use crate::addr::{AddrRange, RangeSet};
use crate::snapshot::core::FileBytes;
use crate::snapshot::{Capture, Module, Region, Snapshot, Source};

/// The most that a note of ours is believed to have. A process with 65,530 mappings and as many
/// threads needs a tenth of it.
const LARGEST_NOTE: u64 = 512 << 20;

/// The most that the parts of modules' files may have: they are copied.
const LARGEST_IMAGES: u64 = 256 << 20;

/// Why a file that rleaks has saved cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SavedError {
    /// It was written by a later version.
    #[error(
        "the snapshot has format {0}, which this rleaks cannot read: it was saved by rleaks {1}, \
         use that or a later one"
    )]
    Format(u32, String),
    /// A note is no JSON, or has not what it should.
    #[error("the snapshot's note at offset {0:#x} is damaged")]
    Note(u64, #[source] serde_json::Error),
    /// A note says that it is larger than it can be.
    #[error("the snapshot's note at offset {0:#x} is damaged: it has {1} bytes")]
    NoteSize(u64, u64),
    /// The last note is missing.
    #[error("the snapshot was cut short: the note that ends it is missing; save or copy it again")]
    CutShort,
    /// What the note says does not fit together.
    #[error("the snapshot's note is damaged: {0}")]
    Inconsistent(String),
}

/// A note of a core file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoreNote {
    /// Its owner, such as `CORE`.
    pub owner: String,
    /// Its type, which means what the owner says.
    pub kind: u32,
    /// Where its content begins in the file.
    pub offset: u64,
    /// The bytes of its content.
    pub size: u64,
}

/// A snapshot from a file.
#[derive(Debug)]
pub struct Saved {
    /// The snapshot as it was taken.
    pub snapshot: Snapshot,
    /// The snapshot's memory, and what of the modules' files the search for allocators needs.
    pub images: SavedMemory,
    /// Which memory it has beside the snapshot's.
    pub parts: Vec<AddrRange>,
    /// What else the walk of the heap needs.
    pub heap: HeapFacts,
}

/// Says whether `notes` are those of a core file that rleaks has saved.
#[must_use]
pub fn is_saved(notes: &[CoreNote]) -> bool {
    notes.iter().any(|note| is_own(note, BEGINNING))
}

fn is_own(note: &CoreNote, kind: u32) -> bool {
    (note.owner.as_str(), note.kind) == (NOTE_OWNER, kind)
}

/// Opens a snapshot in `file`, whose segments with memory are `stored` and whose notes are `notes`.
///
/// # Errors
/// Says what of it does not fit together.
pub fn open(
    file: &Arc<dyn FileBytes>,
    stored: &[Stored],
    notes: &[CoreNote],
) -> Result<Saved, SavedError> {
    let mut beginning: Beginning = parsed(&**file, notes, BEGINNING)?;
    if beginning.format != FORMAT {
        return Err(SavedError::Format(
            beginning.format,
            beginning.rleaks_version,
        ));
    }
    let end: End = parsed(&**file, notes, END)?;
    check(&beginning, stored)?;
    check_sizes(stored, file.size())?;
    read_vectors(&**file, notes, &mut beginning);
    let readable: RangeSet = beginning.readable.iter().copied().collect();
    let images = images(&beginning, stored)?;
    let own = stored
        .iter()
        .filter(|part| !images.contains(part.range.start));
    let memory = SavedMemory::new(file, own, readable.clone());
    let all = readable.ranges().iter().chain(images.ranges()).copied();
    let parts = images.ranges().to_vec();
    let images = SavedMemory::new(file, stored.iter(), all.collect());
    let mut snapshot = Snapshot {
        source: Source::Snapshot,
        process: beginning.process,
        width: beginning.width,
        capture: Capture {
            taken_at: beginning.taken_at,
            method: beginning.method,
            stops: 0,
            pause: end.pause,
            longest_pause: end.longest_pause,
            memory_bytes: beginning.memory_bytes,
            content: beginning.content,
        },
        regions: beginning.regions,
        modules: beginning.modules,
        threads: beginning.threads,
        kernel_values: beginning.kernel_values,
        auxv: beginning.auxv,
        memory: Box::new(memory),
        warnings: beginning.warnings,
    };
    end.enter(&mut snapshot);
    Ok(Saved {
        snapshot,
        parts,
        images,
        heap: beginning.heap,
    })
}

/// The content of our note of this type.
fn parsed<T: serde::de::DeserializeOwned>(
    file: &dyn FileBytes,
    notes: &[CoreNote],
    kind: u32,
) -> Result<T, SavedError> {
    let note = notes.iter().find(|note| is_own(note, kind));
    let note = note.ok_or(SavedError::CutShort)?;
    if note.size > LARGEST_NOTE.min(file.size()) {
        return Err(SavedError::NoteSize(note.offset, note.size));
    }
    let bytes = content(file, note).ok_or(SavedError::CutShort)?;
    serde_json::from_slice(&bytes).map_err(|error| SavedError::Note(note.offset, error))
}

fn content(file: &dyn FileBytes, note: &CoreNote) -> Option<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(note.size).ok()?];
    (file.read_at(note.offset, &mut bytes) == bytes.len()).then_some(bytes)
}

/// Fills in the threads' vector registers, which the standard notes have.
fn read_vectors(file: &dyn FileBytes, notes: &[CoreNote], beginning: &mut Beginning) {
    /// More than any processor's registers.
    const LARGEST_STATE: u64 = 64 << 10;
    let mut threads = beginning.threads.iter_mut();
    let mut thread = None;
    for note in notes {
        if is_status(&note.owner, note.kind) {
            thread = threads.next();
        } else if let Some(is_all) = is_vector_state(&note.owner, note.kind)
            && let Some(thread) = &mut thread
            && note.size <= LARGEST_STATE
            && (is_all || thread.vector.is_empty())
        {
            thread.vector = content(file, note).unwrap_or_default();
        }
    }
}

/// Where the parts of modules' files are: all of them in the file, and no more than is copied.
fn images(beginning: &Beginning, stored: &[Stored]) -> Result<RangeSet, SavedError> {
    let images: RangeSet = beginning.images.iter().copied().collect();
    let stored: RangeSet = stored.iter().map(|part| part.range).collect();
    let is_stored = images
        .ranges()
        .iter()
        .all(|range| stored.gaps(*range).is_empty());
    if !is_stored || images.size() > LARGEST_IMAGES {
        let what = "the parts of its modules are not in the file, or are too large";
        return Err(SavedError::Inconsistent(what.to_owned()));
    }
    Ok(images)
}

/// Everything that looks at regions and segments expects them in order.
fn check(beginning: &Beginning, stored: &[Stored]) -> Result<(), SavedError> {
    let damaged = |what: &str| Err(SavedError::Inconsistent(what.to_owned()));
    let regions = beginning.regions.iter().map(|region: &Region| region.range);
    if !is_ascending(regions) {
        return damaged("its mappings overlap or are not in order");
    }
    if !is_ascending(stored.iter().map(|part| part.range)) {
        return damaged("the file's segments overlap or are not in order");
    }
    let mut segments: Vec<AddrRange> = beginning
        .modules
        .iter()
        .flat_map(|module: &Module| &module.segments)
        .map(|segment| segment.range)
        .filter(|range| !range.is_empty())
        .collect();
    segments.sort_unstable();
    if !is_ascending(segments.into_iter()) {
        return damaged("segments of its modules overlap");
    }
    Ok(())
}

/// Segments that share bytes could stand for any amount of memory.
fn check_sizes(stored: &[Stored], file_size: u64) -> Result<(), SavedError> {
    let sizes = stored.iter().map(|part| part.range.size());
    if sizes.fold(0, u64::saturating_add) > file_size {
        let what = "its segments have more bytes than the file";
        return Err(SavedError::Inconsistent(what.to_owned()));
    }
    Ok(())
}

/// Says whether `ranges` are in ascending order, not empty and without overlaps.
fn is_ascending(ranges: impl Iterator<Item = AddrRange>) -> bool {
    let mut end = None;
    ranges.into_iter().all(|range| {
        let follows = end.is_none_or(|end| end <= range.start);
        end = Some(range.end);
        follows && !range.is_empty()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::Addr;
    use crate::memory::FakeMemory;

    #[test]
    fn parts_of_modules_are_only_what_the_file_has() {
        let snapshot = Snapshot::of_memory(Box::new(FakeMemory::zeroed(0, 0)));
        let mut beginning = Beginning::new(&snapshot, HeapFacts::default(), 0);
        let part = |start, size| AddrRange::with_size(Addr(start), size);
        let stored = [0x1000, 0x2000].map(|start| Stored {
            range: part(start, 0x1000),
            offset: 0,
        });
        for (range, is_good) in [
            (part(0x1000, 0x2000), true),
            (part(0x1000, 0x2001), false),
            (part(0, 1 << 47), false),
        ] {
            beginning.images = vec![range];
            assert_eq!(images(&beginning, &stored).is_ok(), is_good, "{range}");
        }
        assert!(check_sizes(&stored, 0x2000).is_ok());
        assert!(check_sizes(&stored, 0x1fff).is_err());
        let large = [Stored {
            range: part(0x1000, 1 << 40),
            offset: 0,
        }];
        beginning.images = vec![part(0x1000, 1 << 40)];
        assert!(images(&beginning, &large).is_err());
    }
}
