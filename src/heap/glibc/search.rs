//! Looking for segments where nothing says that they start.

use super::chunks::{End, Segment, Walk};
use super::layout::{ChunkLayout, PAGE};
use crate::addr::{Addr, AddrRange};
use crate::memory::{Memory, Window};

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
    /// The headers that walks which lead nowhere may still read.
    left: u64,
}

impl<'a> Search<'a> {
    /// A search in `bytes` of `memory`.
    pub(super) fn new(memory: &'a dyn Memory, chunks: ChunkLayout, bytes: u64) -> Self {
        Self {
            ahead: Window::new(memory),
            aside: Window::small(memory),
            left: bytes
                .checked_div(chunks.min_chunk())
                .unwrap_or(0)
                .saturating_add(SLACK),
        }
    }

    /// The walk of `segment`, if it is one: its first chunk says that nothing free lies before it,
    /// and it ends as segments do.
    pub(super) fn walk(&mut self, segment: Segment) -> Option<Walk> {
        let chunks = segment.chunks;
        let header = segment.start.checked_add(chunks.word())?;
        let header = self.ahead.pointer(header, chunks.width)?;
        if self.left == 0 || !segment.may_begin_with(header) {
            return None;
        }
        let walk = segment.walk_through(&mut self.aside);
        let ends_well = match walk.end {
            End::Top(_) => true,
            End::Fence(end) => end.is_aligned(PAGE),
            End::Broken(_) => false,
        };
        if !ends_well {
            self.reject(&walk);
        }
        ends_well.then_some(walk)
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
