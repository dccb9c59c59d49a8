//! From a core file with our notes to the snapshot that it was made of.

use std::sync::Arc;

use super::elf_notes::{is_status, is_vector_state};
use super::note::{BEGINNING, Beginning, END, End, FORMAT, HeapFacts, NOTE_OWNER};
use crate::addr::{AddrRange, RangeSet};
use crate::snapshot::core::{CoreFile, CoreMemory, CoreNote, Part};
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

/// A snapshot from a file.
#[derive(Debug)]
pub struct Saved {
    /// The snapshot as it was taken.
    pub snapshot: Snapshot,
    /// The snapshot's memory, and what of the modules' files the search for allocators needs.
    pub images: CoreMemory,
    /// Which memory it has beside the snapshot's.
    pub parts: Vec<AddrRange>,
    /// What else the walk of the heap needs.
    pub heap: HeapFacts,
}

/// Says whether rleaks has saved `core`.
#[must_use]
pub fn is_saved(core: &CoreFile) -> bool {
    core.notes.iter().any(|note| is_own(note, BEGINNING))
}

fn is_own(note: &CoreNote, kind: u32) -> bool {
    (note.owner, note.kind) == (NOTE_OWNER, kind)
}

/// Opens the snapshot that rleaks has saved in `core`.
///
/// # Errors
/// Says what of it does not fit together.
pub fn open(core: &CoreFile) -> Result<Saved, SavedError> {
    let mut beginning: Beginning = parsed(core, BEGINNING)?;
    if beginning.format != FORMAT {
        return Err(SavedError::Format(
            beginning.format,
            beginning.rleaks_version,
        ));
    }
    let end: End = parsed(core, END)?;
    check(&beginning)?;
    read_vectors(core, &mut beginning);
    let readable: RangeSet = beginning.readable.iter().copied().collect();
    let all = core.saved_parts();
    let images = images(&beginning, &all)?;
    let of_snapshot = |part: &&Part| !images.contains(part.range.start);
    let own: Vec<Part> = all.iter().filter(of_snapshot).copied().collect();
    let files: Arc<[_]> = Arc::from([Arc::clone(&core.bytes)]);
    let memory = CoreMemory::new(Arc::clone(&files), &own, &readable);
    let parts = images.ranges().to_vec();
    let images = CoreMemory::new(files, &all, &readable);
    let mut snapshot = Snapshot {
        source: Source::Snapshot,
        machine: core.machine,
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
fn parsed<T: serde::de::DeserializeOwned>(core: &CoreFile, kind: u32) -> Result<T, SavedError> {
    let note = core.notes.iter().find(|note| is_own(note, kind));
    let note = note.ok_or(SavedError::CutShort)?;
    if note.size > LARGEST_NOTE {
        return Err(SavedError::NoteSize(note.offset, note.size));
    }
    let content = core
        .content(note, LARGEST_NOTE)
        .ok_or(SavedError::CutShort)?;
    serde_json::from_slice(&content).map_err(|error| SavedError::Note(note.offset, error))
}

/// Fills in the threads' vector registers, which the standard notes have.
fn read_vectors(core: &CoreFile, beginning: &mut Beginning) {
    /// More than any processor's registers.
    const LARGEST_STATE: u64 = 64 << 10;
    let mut threads = beginning.threads.iter_mut();
    let mut thread = None;
    for note in &core.notes {
        if is_status(note.owner, note.kind) {
            thread = threads.next();
        } else if let Some(is_all) = is_vector_state(note.owner, note.kind)
            && let Some(thread) = &mut thread
            && (is_all || thread.vector.is_empty())
        {
            thread.vector = core.content(note, LARGEST_STATE).unwrap_or_default();
        }
    }
}

/// Where the parts of modules' files are, as far as they are in the file: pages of zeros are not. No more than
/// is copied.
fn images(beginning: &Beginning, stored: &[Part]) -> Result<RangeSet, SavedError> {
    let images: RangeSet = beginning.images.iter().copied().collect();
    let stored: RangeSet = stored.iter().map(|part| part.range).collect();
    let parts = images.ranges().iter();
    let images: RangeSet = parts.flat_map(|part| stored.within(*part)).collect();
    if images.size() > LARGEST_IMAGES {
        let what = "the parts of its modules are too large";
        return Err(SavedError::Inconsistent(what.to_owned()));
    }
    Ok(images)
}

/// Everything that looks at regions and segments expects them in order.
fn check(beginning: &Beginning) -> Result<(), SavedError> {
    let damaged = |what: &str| Err(SavedError::Inconsistent(what.to_owned()));
    let regions = beginning.regions.iter().map(|region: &Region| region.range);
    if !is_ascending(regions) {
        return damaged("its mappings overlap or are not in order");
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
        let stored = |start, size| Part {
            range: part(start, size),
            file: 0,
            offset: 0,
        };
        let two = [0x1000, 0x2000].map(|start| stored(start, 0x1000));
        for range in [part(0x1000, 0x2000), part(0x1000, 0x2001), part(0, 1 << 47)] {
            beginning.images = vec![range];
            let found = images(&beginning, &two).expect("parts that are small");
            assert_eq!(found.ranges(), [part(0x1000, 0x2000)], "{range}");
        }
        beginning.images = vec![part(0x1000, 1 << 40)];
        assert!(images(&beginning, &[stored(0x1000, 1 << 40)]).is_err());
    }
}
