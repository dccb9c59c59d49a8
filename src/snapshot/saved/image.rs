//! The bytes of a core file of a snapshot, before they are anywhere.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use super::elf_notes::{self, Bytes};
use super::layout::{Holds, Layout, loads};
use super::note::{BEGINNING, Beginning, END, End, HeapFacts, NOTE_OWNER};
use super::write::NewBytes;
use crate::addr::{Addr, AddrRange, RangeSet};
use crate::memory::Memory;
use crate::snapshot::core::FileBytes;
use crate::snapshot::{Capture, Snapshot};

const PAGE: u64 = 4096;
/// The room for the last note. How long the target stood still may not be known before all else
/// is written.
const TAIL: usize = 256;

/// A core file of a snapshot without the note that ends it: headers, notes and memory. The memory
/// is read when its bytes are asked for.
pub struct CoreImage<'a> {
    layout: Layout,
    memory: &'a dyn Memory,
    images: &'a dyn Memory,
    unread: AtomicU64,
}

impl<'a> CoreImage<'a> {
    /// The file of `snapshot`, whose memory is read through `memory`. Of its warnings, those of the
    /// capture are the first `warnings`.
    ///
    /// `images` has the parts of modules' files, in whole pages in ascending order, which lie where
    /// `image_ranges` says.
    ///
    /// `None` where there is more memory than a file of its class can hold.
    #[must_use]
    pub fn new(
        snapshot: &Snapshot,
        memory: &'a dyn Memory,
        (images, image_ranges): (&'a dyn Memory, &[AddrRange]),
        (heap, warnings): (HeapFacts, usize),
    ) -> Option<Self> {
        let whole = snapshot.regions.iter().map(|region| region.range);
        let readable: RangeSet = whole.flat_map(|range| memory.readable(range)).collect();
        // What the snapshot has comes from there.
        let resident = readable.ranges().iter();
        let resident: RangeSet = resident.flat_map(|range| memory.resident(*range)).collect();
        let mapped: RangeSet = snapshot.regions.iter().map(|region| region.range).collect();
        let image_ranges: RangeSet = image_ranges
            .iter()
            .flat_map(|range| mapped.within(*range).collect::<Vec<_>>())
            .flat_map(|range| resident.gaps(range))
            .collect();
        let loads = loads(&snapshot.regions, memory, image_ranges.ranges());
        let mut beginning = Beginning::new(snapshot, heap, warnings);
        beginning.readable = readable.ranges().to_vec();
        beginning.images = image_ranges.ranges().to_vec();
        let mut notes = elf_notes::standard(snapshot);
        elf_notes::note(&mut notes, NOTE_OWNER, BEGINNING, &json(&beginning));
        let tail_size = note_size(TAIL);
        Some(Self {
            layout: Layout::new(snapshot.width, &loads, &notes.0, tail_size)?,
            memory,
            images,
            unread: AtomicU64::new(0),
        })
    }

    /// The last note of the file, which comes behind these bytes.
    #[must_use]
    pub fn tail(&self, capture: &Capture) -> Vec<u8> {
        let end = End::new(capture, self.unread.load(Ordering::Relaxed));
        let mut content = json(&end);
        // JSON may end with blanks.
        content.resize(TAIL.max(content.len()), b' ');
        let mut note = Bytes::default();
        elf_notes::note(&mut note, NOTE_OWNER, END, &content);
        note.0
    }

    /// Writes `tail`, the last note, where it belongs in a plain file.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write_tail(&self, tail: &[u8], out: &dyn NewBytes) -> io::Result<()> {
        out.write_at(self.layout.tail, tail)
    }

    /// Fills `buf` with what is at `offset` of the file's memory; returns how much of it that is.
    fn read_memory(&self, offset: u64, buf: &mut [u8]) -> usize {
        let after = self
            .layout
            .data
            .partition_point(|(start, _)| *start <= offset);
        let found = after.checked_sub(1).and_then(|i| self.layout.data.get(i));
        let Some((start, load)) = found else { return 0 };
        let from = load
            .range
            .start
            .saturating_add(offset.saturating_sub(*start));
        let available = AddrRange::new(from, load.range.end).size();
        let size = usize::try_from(available)
            .unwrap_or(usize::MAX)
            .min(buf.len());
        let buf = buf.get_mut(..size).unwrap_or_default();
        let memory = match load.holds {
            Holds::Image => self.images,
            Holds::Memory | Holds::Nothing => self.memory,
        };
        self.read_all(memory, from, buf);
        buf.len()
    }

    /// Fills `buf`. What cannot be read is zeros, and counted.
    fn read_all(&self, memory: &dyn Memory, from: Addr, buf: &mut [u8]) {
        let mut done = 0_usize;
        while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let at = from.saturating_add(done as u64);
            let count = memory.read(at, rest);
            done = done.saturating_add(count);
            if count > 0 {
                continue;
            }
            let page_end = at
                .saturating_add(1)
                .align_up(PAGE)
                .unwrap_or(Addr(u64::MAX));
            let page = usize::try_from(AddrRange::new(at, page_end).size()).unwrap_or(1);
            let size = page.min(rest.len());
            rest.get_mut(..size).unwrap_or_default().fill(0);
            self.unread.fetch_add(size as u64, Ordering::Relaxed);
            done = done.saturating_add(size);
        }
    }
}

impl FileBytes for CoreImage<'_> {
    fn size(&self) -> u64 {
        self.layout.tail
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> usize {
        let mut done = 0_usize;
        while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let at = offset.saturating_add(done as u64);
            let head = usize::try_from(at)
                .ok()
                .and_then(|at| self.layout.head.get(at..));
            let count = match head {
                Some(head) if !head.is_empty() => head.read_at(0, rest),
                _ if at < self.layout.tail => self.read_memory(at, rest),
                _ => 0,
            };
            if count == 0 {
                break;
            }
            done = done.saturating_add(count);
        }
        done
    }
}

impl std::fmt::Debug for CoreImage<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CoreImage")
            .field("size", &self.size())
            .finish_non_exhaustive()
    }
}

fn json(value: &impl serde::Serialize) -> Vec<u8> {
    // The types have no map whose keys are no strings, and nothing else can fail in memory.
    serde_json::to_vec(value).unwrap_or_default()
}

/// The size of a note of ours with content of this size, which is a multiple of 4.
fn note_size(content: usize) -> u64 {
    let mut note = Bytes::default();
    elf_notes::note(&mut note, NOTE_OWNER, END, &vec![0; content]);
    note.0.len() as u64
}
