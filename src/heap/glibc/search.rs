//! Looking for segments where nothing says that they start.

use std::collections::BTreeSet;

use super::arena::Arena;
use super::chunks::{End, Segment, Walk};
use super::layout::PAGE;
use crate::addr::{Addr, AddrRange};
use crate::memory::{Memory, Width, Window};

/// Headers that walks which lead nowhere may read, whatever the size of the memory.
const SLACK: u64 = 1 << 16;

/// Tries places at which a segment may start.
///
/// Memory can be such that a walk from each place is long and leads nowhere. All those walks
/// together read no more headers than the memory has room for, and then the search is over.
pub(super) struct Search<'a> {
    /// For the words that are looked at one after the other.
    ahead: Window<'a>,
    /// For walks from one of them.
    aside: Window<'a>,
    /// The free chunks in the arena's bins.
    binned: BTreeSet<Addr>,
    /// The headers that walks which lead nowhere may still read.
    left: u64,
}

impl<'a> Search<'a> {
    /// A search for segments of `arena` in `bytes` of `memory`.
    pub(super) fn new(memory: &'a dyn Memory, arena: &Arena, bytes: u64) -> Self {
        let headers = bytes.checked_div(arena.layout.chunks.min_chunk());
        Self {
            ahead: Window::new(memory),
            aside: Window::small(memory),
            binned: arena.binned(memory),
            left: headers.unwrap_or(0).saturating_add(SLACK),
        }
    }

    /// Says whether the word at `start` is zero, or cannot be read.
    pub(super) fn is_fresh(&mut self, start: Addr, width: Width) -> bool {
        self.ahead.pointer(start, width).unwrap_or(0) == 0
    }

    /// The walk of `segment`, if it is one: its first chunk says that nothing free lies before it,
    /// it ends as segments do, and its free chunks are those that the bins have there.
    pub(super) fn walk(&mut self, segment: Segment) -> Option<Walk> {
        let chunks = segment.chunks;
        let header = segment.start.checked_add(chunks.word())?;
        let header = self.ahead.pointer(header, chunks.width)?;
        if self.left == 0 || !segment.may_begin_with(header) {
            return None;
        }
        let walk = segment.walk_through(&mut self.aside);
        let is_segment = match walk.end {
            End::Top(end) => self.has_bins_of(&walk, segment.start, end),
            End::Fence(end) if end.is_aligned(PAGE) => self.has_bins_of(&walk, segment.start, end),
            End::Fence(_) | End::Broken(_) => false,
        };
        if !is_segment {
            self.reject(&walk);
        }
        is_segment.then_some(walk)
    }

    fn has_bins_of(&self, walk: &Walk, start: Addr, end: Addr) -> bool {
        start <= end && self.binned.range(start..end).eq(&walk.free)
    }

    /// Counts `walk` as one that led nowhere.
    pub(super) fn reject(&mut self, walk: &Walk) {
        self.left = self.left.saturating_sub(walk.headers);
    }
}

/// The bytes of `parts`.
pub(super) fn bytes(parts: &[AddrRange]) -> u64 {
    let sizes = parts.iter().map(AddrRange::size);
    sizes.fold(0, u64::saturating_add)
}

/// The multiples of `step` in `part` from `from` on.
pub(super) fn places(part: AddrRange, from: Addr, step: u64) -> impl Iterator<Item = Addr> {
    let first = part.start.max(from).align_up(step).unwrap_or(part.end);
    std::iter::successors(Some(first), move |place| place.checked_add(step))
        .take_while(move |place| *place < part.end)
}
