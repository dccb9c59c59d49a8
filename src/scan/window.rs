//! Windows of memory, read through one buffer, with holes where pages cannot be read.

use std::ops::Range;

use crate::addr::{Addr, AddrRange, RangeSet};
use crate::memory::Memory;

/// The size of a window, such that its buffer stays in the processor's cache.
pub(super) const WINDOW: u64 = 256 << 10;
/// The smallest unit that is readable or not.
const PAGE: u64 = 4096;

/// Memory that is read at once.
#[derive(Debug)]
pub(super) struct Window {
    /// The rows whose memory is in it.
    pub(super) rows: Range<usize>,
    /// The window; words begin here.
    pub(super) range: AddrRange,
    /// The end of the words that begin in it.
    pub(super) end: Addr,
}

/// Bytes without a hole.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment<'a> {
    pub(super) range: AddrRange,
    pub(super) bytes: &'a [u8],
}

/// Reads windows, one at a time.
pub(super) struct Reader<'a> {
    memory: &'a dyn Memory,
    /// How many bytes around resident memory are read, for the words that are partly in it.
    reach: u64,
    /// The start of the window.
    start: Addr,
    /// The bytes of the window; stale where they were not read.
    buffer: Vec<u8>,
    readable: Vec<AddrRange>,
    /// The parts of the window that could not be read.
    pub(super) unreadable: Vec<AddrRange>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(memory: &'a dyn Memory, reach: u64) -> Self {
        Self {
            memory,
            reach,
            start: Addr(0),
            buffer: Vec::new(),
            readable: Vec::new(),
            unreadable: Vec::new(),
        }
    }

    /// Reads `window`, except for what the target never touched.
    pub(super) fn read(&mut self, window: &Window) {
        let all = AddrRange::new(window.range.start, window.end);
        self.start = all.start;
        self.readable.clear();
        self.unreadable.clear();
        if self.buffer.len() < size(all.size()) {
            self.buffer.resize(size(all.size()), 0);
        }
        let resident = self.memory.resident(all).into_iter();
        let near: RangeSet = resident
            .map(|range| widened(range, self.reach).intersection(&all))
            .collect();
        for range in near.ranges() {
            self.read_range(*range);
        }
        for hole in &mut self.unreadable {
            *hole = hole.intersection(&window.range);
        }
    }

    /// The parts of the window that were read.
    pub(super) fn segments(&self) -> impl Iterator<Item = Segment<'_>> {
        self.readable.iter().map(|range| Segment {
            range: *range,
            bytes: &self.buffer[size(range.start.0 - self.start.0)..][..size(range.size())],
        })
    }

    fn read_range(&mut self, range: AddrRange) {
        let mut start = range.start;
        while start < range.end {
            let rest = AddrRange::new(start, range.end);
            let buffer = &mut self.buffer[size(start.0 - self.start.0)..][..size(rest.size())];
            let count = self.memory.read(start, buffer);
            let next = match count {
                0 => start.align_down(PAGE).saturating_add(PAGE).min(range.end),
                _ => start.saturating_add(count as u64).min(range.end),
            };
            let list = if count == 0 {
                &mut self.unreadable
            } else {
                &mut self.readable
            };
            extend(list, AddrRange::new(start, next));
            start = next;
        }
    }
}

/// Adds `range` to `list`, joined with the last one if they touch.
fn extend(list: &mut Vec<AddrRange>, range: AddrRange) {
    match list.last_mut() {
        Some(last) if last.end == range.start => last.end = range.end,
        _ => list.push(range),
    }
}

/// `range` and `by` bytes on each side of it.
pub(super) fn widened(range: AddrRange, by: u64) -> AddrRange {
    AddrRange::new(range.start.saturating_sub(by), range.end.saturating_add(by))
}

/// Our size for a distance in a window.
#[expect(
    clippy::cast_possible_truncation,
    reason = "a window is not much larger than WINDOW"
)]
fn size(distance: u64) -> usize {
    distance as usize
}
