//! Walking the chunks of a segment: memory that one arena cut into chunks, without gaps.

use super::layout::{ChunkLayout, FLAGS, IS_MMAPPED, NON_MAIN_ARENA, PREV_INUSE};
use super::problem::Problem;
use crate::addr::{Addr, AddrRange};
use crate::heap::{Block, Run};
use crate::memory::{Width, Window};

/// What may end a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fence {
    /// In the main arena: two headers of the size of a header.
    Double,
    /// In a heap of another arena: a header of size 0, before which one more chunk is a fence.
    Zero,
}

/// A segment that is to be walked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) chunks: ChunkLayout,
    /// The first chunk.
    pub(super) start: Addr,
    /// The end of the memory that may belong to the segment.
    pub(super) limit: Addr,
    /// The arena's `top`, which ends the segment if it lies in it.
    pub(super) top: Addr,
    pub(super) fence: Fence,
}

/// How a walk ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// At `top`, whose end is given.
    Top(Addr),
    /// At the fence, whose end is given.
    Fence(Addr),
    /// At a header that is none: the chunks from there on are unknown.
    Broken(Addr),
}

/// The chunks of one segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Walk {
    /// The chunks in use, as the blocks that their users see. Chunks that caches hold are among
    /// them: they look like chunks in use.
    pub(super) blocks: Runs,
    /// The chunks that are free, and in a bin of their arena therefore.
    pub(super) free: Vec<Addr>,
    pub(super) end: End,
    /// The first header says that the chunk before it is in use, as that of a segment does.
    pub(super) starts_well: bool,
    pub(super) problems: Vec<Problem>,
    /// How many headers were read.
    pub(super) headers: u64,
}

/// Blocks in ascending order, in as many runs as parts were walked.
#[derive(Clone, Debug, Default)]
pub(super) struct Runs(pub(super) Vec<Run>);

impl Runs {
    #[inline]
    fn push(&mut self, block: Block) {
        match self.0.last_mut() {
            Some(run) => run.push(block),
            None => self.0.push(std::iter::once(block).collect()),
        }
    }

    fn append(&mut self, higher: Self) {
        self.0.extend(higher.0);
    }

    /// The end of the last block.
    fn end(&self) -> Option<Addr> {
        self.0.iter().rev().find_map(Run::end)
    }

    fn iter(&self) -> impl Iterator<Item = Block> + '_ {
        self.0.iter().flat_map(Run::iter)
    }
}

impl PartialEq for Runs {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for Runs {}

/// A chunk whose successor has not been seen: whether it is in use is written there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Chunk {
    addr: Addr,
    size: u64,
    flags: u64,
}

/// A walk on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Progress {
    walk: Walk,
    /// The last chunk, whose successor is at `addr`.
    previous: Option<Chunk>,
    /// The next chunk.
    pub(super) addr: Addr,
    end: Option<End>,
    pub(super) has_ended: bool,
}

impl Progress {
    /// A walk that is about to begin.
    pub(super) fn at(addr: Addr) -> Self {
        let walk = Walk {
            blocks: Runs::default(),
            free: Vec::new(),
            end: End::Broken(addr),
            starts_well: false,
            problems: Vec::new(),
            headers: 0,
        };
        Self {
            walk,
            previous: None,
            addr,
            end: None,
            has_ended: false,
        }
    }

    pub(super) fn finish(self) -> Walk {
        Walk {
            end: self.end.unwrap_or(End::Broken(self.addr)),
            ..self.walk
        }
    }
}

impl Segment {
    /// Walks the segment from its first chunk to its end, and reads it through `window`.
    pub(super) fn walk_through(&self, window: &mut Window<'_>) -> Walk {
        let mut progress = Progress::at(self.start);
        self.advance(&mut progress, window, Addr(u64::MAX));
        progress.finish()
    }

    /// Goes on with a walk, up to its end or to the first chunk at or above `until`.
    pub(super) fn advance(&self, progress: &mut Progress, window: &mut Window<'_>, until: Addr) {
        // The usual layout is a constant here: a walk is compiled for it.
        match self.chunks.width {
            Width::Four => self.advance_as(self.chunks, progress, window, until),
            Width::Eight => {
                let chunks = ChunkLayout {
                    width: Width::Eight,
                    alignment: 16,
                };
                self.advance_as(chunks, progress, window, until);
            }
        }
    }

    #[inline(always)]
    fn advance_as(
        &self,
        chunks: ChunkLayout,
        progress: &mut Progress,
        window: &mut Window<'_>,
        until: Addr,
    ) {
        let segment = Self { chunks, ..*self };
        while !progress.has_ended && progress.addr < until {
            segment.step(progress, window);
        }
    }

    /// Takes the chunk at which a walk stands.
    #[inline(always)]
    fn step(&self, progress: &mut Progress, window: &mut Window<'_>) {
        let Some(chunk) = self.chunk_at(window, progress.addr) else {
            progress.has_ended = true;
            return;
        };
        let walk = &mut progress.walk;
        walk.headers = walk.headers.saturating_add(1);
        match progress.previous {
            None => walk.starts_well = chunk.flags & PREV_INUSE != 0,
            Some(previous) => self.settle(walk, window, previous, chunk),
        }
        if let Some(end) = self.end_at(window, chunk) {
            progress.end = Some(end);
            progress.has_ended = true;
        } else if self.is_chunk(chunk) {
            progress.previous = Some(chunk);
            progress.addr = progress.addr.saturating_add(chunk.size);
        } else {
            progress.has_ended = true;
        }
    }

    /// Joins a walk with one that began at the chunk at which it stands.
    pub(super) fn join(&self, left: &mut Progress, window: &mut Window<'_>, right: Progress) {
        if let (Some(previous), Some(next)) = (left.previous, self.chunk_at(window, left.addr)) {
            self.settle(&mut left.walk, window, previous, next);
        }
        left.walk.blocks.append(right.walk.blocks);
        left.walk.free.extend(right.walk.free);
        left.walk.problems.extend(right.walk.problems);
        left.walk.headers = left.walk.headers.saturating_add(right.walk.headers);
        left.previous = right.previous.or(left.previous);
        left.addr = right.addr;
        left.end = right.end;
        left.has_ended = right.has_ended;
    }

    /// The size of what looks like a chunk at `addr`.
    pub(super) fn size_at(&self, window: &mut Window<'_>, addr: Addr) -> Option<u64> {
        let chunk = self.chunk_at(window, addr)?;
        self.is_chunk(chunk).then_some(chunk.size)
    }

    #[inline]
    fn chunk_at(&self, window: &mut Window<'_>, addr: Addr) -> Option<Chunk> {
        if addr.saturating_add(self.chunks.header()) > self.limit {
            return None;
        }
        let header = addr.checked_add(self.chunks.word())?;
        let header = window.pointer(header, self.chunks.width)?;
        Some(Chunk::new(addr, header))
    }

    /// Says whether a segment may begin with `header`: a quick test that sorts out most words.
    pub(super) fn may_begin_with(&self, header: u64) -> bool {
        let chunk = Chunk::new(self.start, header);
        // The size of `top` is what is left: on i386, not a multiple of the alignment.
        chunk.flags & PREV_INUSE != 0 && (chunk.addr == self.top || self.is_chunk(chunk))
    }

    /// The end of the segment, if `chunk` is what ends it.
    #[inline]
    fn end_at(&self, window: &mut Window<'_>, chunk: Chunk) -> Option<End> {
        let within_limit = |end: &Addr| *end <= self.limit;
        if chunk.addr == self.top {
            let end = chunk.addr.checked_add(chunk.size);
            return end.filter(within_limit).map(End::Top);
        }
        let size = self.chunks.header();
        match self.fence {
            Fence::Zero => (chunk.size == 0).then(|| End::Fence(chunk.addr.saturating_add(size))),
            Fence::Double if chunk.size == size => {
                let second = chunk.addr.checked_add(size)?;
                let next = second.checked_add(self.chunks.word())?;
                let next = window.pointer(next, self.chunks.width)?;
                // What alignment leaves of the segment is part of it.
                let end = second.checked_add(self.chunks.alignment);
                let end = end.filter(within_limit).map(End::Fence);
                end.filter(|_| next == size | PREV_INUSE)
            }
            Fence::Double => None,
        }
    }

    #[inline]
    fn is_chunk(&self, chunk: Chunk) -> bool {
        let end = chunk.addr.checked_add(chunk.size);
        let is_fence_before_zero = self.fence == Fence::Zero && chunk.size == self.chunks.header();
        let is_size = chunk.size >= self.chunks.min_chunk()
            && chunk.size & self.chunks.alignment.wrapping_sub(1) == 0;
        (is_size || is_fence_before_zero)
            && chunk.flags & IS_MMAPPED == 0
            && end.is_some_and(|end| end <= self.limit)
            && !(chunk.addr < self.top && end.is_some_and(|end| end > self.top))
    }

    /// Decides whether `chunk` is in use, now that its successor is known.
    #[inline]
    fn settle(&self, walk: &mut Walk, window: &mut Window<'_>, chunk: Chunk, next: Chunk) {
        let is_fence = self.fence == Fence::Zero && next.size == 0;
        if is_fence {
            return;
        }
        if next.flags & PREV_INUSE == 0 {
            if window.pointer(next.addr, self.chunks.width) != Some(chunk.size) {
                walk.problems.push(Problem::Footer(chunk.addr));
            }
            walk.free.push(chunk.addr);
            return;
        }
        if self.fence == Fence::Zero && chunk.flags & NON_MAIN_ARENA == 0 {
            walk.problems.push(Problem::ArenaFlag(chunk.addr));
        }
        walk.blocks.push(Block {
            start: chunk.addr.saturating_add(self.chunks.header()),
            // The user may use the first word of the chunk behind it, but not its own header.
            size: chunk.size.saturating_sub(self.chunks.word()),
        });
    }
}

impl Chunk {
    fn new(addr: Addr, header: u64) -> Self {
        Self {
            addr,
            size: header & !FLAGS,
            flags: header & FLAGS,
        }
    }
}

impl Walk {
    /// The memory that was walked: from `start` to the end, or to where the walk broke off.
    pub(super) fn range(&self, start: Addr) -> AddrRange {
        let (End::Top(end) | End::Fence(end) | End::Broken(end)) = self.end;
        // Where a walk breaks off, the last block reaches a word further.
        let last = self.blocks.end().unwrap_or(end);
        AddrRange::new(start, end.max(last))
    }

    /// Says whether the walk reached an end.
    pub(super) fn is_complete(&self) -> bool {
        !matches!(self.end, End::Broken(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::heap::glibc::layout::arenas;
    use crate::memory::FakeMemory;

    const BASE: u64 = 0x10000;

    /// Lays out chunks of the given sizes and flags from `BASE` on.
    fn memory(headers: &[(u64, u64)]) -> (FakeMemory, Vec<u64>) {
        let mut memory = FakeMemory::zeroed(BASE, 0x2000);
        let mut addr = BASE;
        let mut addrs = Vec::new();
        for (size, flags) in headers {
            memory.set_word(addr + 8, size | flags);
            if flags & PREV_INUSE == 0 && addr > BASE {
                let previous = addrs.last().copied().unwrap_or(BASE);
                memory.set_word(addr, addr - previous);
            }
            addrs.push(addr);
            addr += size;
        }
        (memory, addrs)
    }

    fn segment(top: u64, fence: Fence) -> Segment {
        Segment {
            chunks: ChunkLayout {
                width: Width::Eight,
                alignment: 16,
            },
            start: Addr(BASE),
            limit: Addr(BASE + 0x2000),
            top: Addr(top),
            fence,
        }
    }

    fn starts(walk: &Walk) -> Vec<u64> {
        walk.blocks
            .iter()
            .map(|block| block.start.0 - BASE)
            .collect()
    }

    #[test]
    fn chunks_in_use_end_at_top() {
        let (memory, addrs) = memory(&[(0x30, 1), (0x40, 1), (0x50, 0), (0x20, 1), (0x1000, 1)]);
        let walk = segment(addrs[4], Fence::Double).walk(&memory);
        // The second chunk is free: the header after it says so.
        assert_eq!(starts(&walk), [0x10, 0x80, 0xd0]);
        assert_eq!(walk.free, [Addr(addrs[1])]);
        assert_eq!(walk.blocks.iter().nth(1).map(|b| b.size), Some(0x48));
        assert_eq!(walk.end, End::Top(Addr(addrs[4] + 0x1000)));
        assert!(walk.starts_well && walk.problems.is_empty());
    }

    #[test]
    fn a_double_fence_ends_a_segment_of_the_main_arena() {
        let (memory, addrs) = memory(&[(0x30, 1), (0x10, 1), (0x10, 1)]);
        let walk = segment(0, Fence::Double).walk(&memory);
        assert_eq!(starts(&walk), [0x10]);
        assert_eq!(walk.end, End::Fence(Addr(addrs[2] + 0x10)));
    }

    #[test]
    fn the_chunk_before_a_zero_header_is_a_fence_whatever_its_size() {
        for fence_size in [0x10, 0x20] {
            let (memory, _) = memory(&[(0x30, 5), (fence_size, 1), (0, 1)]);
            let walk = segment(0, Fence::Zero).walk(&memory);
            assert_eq!(starts(&walk), [0x10]);
            assert!(walk.is_complete() && walk.problems.is_empty());
        }
    }

    #[test]
    fn a_segment_may_be_all_top() {
        let [.., layout, _] = arenas(Width::Four);
        let mut segment = segment(BASE + 8, Fence::Double);
        segment.chunks = layout.chunks;
        segment.start = Addr(BASE + 8);
        assert!(segment.may_begin_with(0xff8 | PREV_INUSE));
        segment.top = Addr(BASE + 0x18);
        assert!(!segment.may_begin_with(0xff8 | PREV_INUSE));
    }

    #[test]
    fn half_done_operations_are_told() {
        let (mut memory, addrs) = memory(&[(0x30, 1), (0x40, 1), (0x50, 0), (0x1000, 1)]);
        memory.set_word(addrs[2], 0);
        let walk = segment(addrs[3], Fence::Double).walk(&memory);
        assert_eq!(walk.problems, [Problem::Footer(Addr(addrs[1]))]);
        memory.set_word(addrs[1] + 8, 0xa5a5_a5a5_a5a5_a5a5);
        let walk = segment(addrs[3], Fence::Double).walk(&memory);
        assert_eq!(walk.end, End::Broken(Addr(addrs[1])));
        assert_eq!(starts(&walk), [0x10]);
    }

    #[test]
    fn impossible_headers_break_the_walk() {
        for header in [0x28, 0x18, 0x31 | 2, 0x4000, !15, 0] {
            let (mut memory, addrs) = memory(&[(0x30, 1), (0x40, 1), (0x1000, 1)]);
            memory.set_word(addrs[1] + 8, header);
            let walk = segment(addrs[2], Fence::Double).walk(&memory);
            assert_eq!(walk.end, End::Broken(Addr(addrs[1])), "{header:#x}");
        }
    }
}
