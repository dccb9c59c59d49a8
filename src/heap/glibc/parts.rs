//! Walking a large segment in parallel.
//!
//! Chunks are a chain: where one begins is known from the one before. So each part of a segment is
//! walked from a place that looks like a chunk, and counts only if the walk of the part before comes
//! to that very place: from there on the two are the same. If it does not, it goes on through the
//! part itself. The result is that of one walk from the first chunk to the last.

use rayon::prelude::*;

use super::chunks::{Progress, Segment, Walk};
use crate::addr::{Addr, AddrRange};
use crate::memory::{Memory, Window};

/// The resident bytes of a part.
const PART: u64 = 16 << 20;
/// How far from its start a part is searched for a chunk.
const SEARCHED: u64 = 64 << 10;
/// What looks like a chunk is followed by as many more.
const CHAIN: usize = 64;
/// Chunks of a chain are no larger: larger ones are rare, and wrong sizes often large.
const LARGEST: u64 = 16 << 10;

/// One part: where it begins, and the walk from the chunk that was found there.
struct Part {
    start: Addr,
    /// Where the walk began.
    guess: Option<Addr>,
    progress: Progress,
}

impl Segment {
    /// Walks the segment from its first chunk to its end.
    pub(super) fn walk(&self, memory: &dyn Memory) -> Walk {
        self.walk_in_parts(memory, PART)
    }

    fn walk_in_parts(&self, memory: &dyn Memory, size: u64) -> Walk {
        let starts = self.part_starts(memory, size);
        let ends = starts.iter().skip(1).copied().chain([Addr(u64::MAX)]);
        let parts: Vec<(Addr, Addr)> = starts.iter().copied().zip(ends).collect();
        let parts: Vec<(Part, Addr)> = parts
            .into_par_iter()
            .map(|(start, end)| (self.walk_part(memory, start, end), end))
            .collect();
        let mut window = Window::new(memory);
        let mut all = Progress::at(self.start);
        for (part, end) in parts {
            if part.start == self.start {
                all = part.progress;
                continue;
            }
            // Most often a step or two; after a part that was of no use, all of it.
            self.advance(&mut all, &mut window, part.guess.unwrap_or(part.start));
            if all.has_ended {
                break;
            }
            if part.guess == Some(all.addr) {
                self.join(&mut all, &mut window, part.progress);
            } else {
                self.advance(&mut all, &mut window, end);
            }
        }
        all.finish()
    }

    /// Where the parts begin: after each `size` bytes that the target uses.
    fn part_starts(&self, memory: &dyn Memory, size: u64) -> Vec<Addr> {
        let mut starts = vec![self.start];
        let end = if self.top > self.start {
            self.limit.min(self.top)
        } else {
            self.limit
        };
        let mut left = size;
        for range in memory.resident(AddrRange::new(self.start, end)) {
            let mut at = range.start;
            while range.end.0.saturating_sub(at.0) > left {
                at = at.saturating_add(left);
                starts.push(at);
                left = size;
            }
            left = left.saturating_sub(range.end.0.saturating_sub(at.0));
        }
        starts
    }

    fn walk_part(&self, memory: &dyn Memory, start: Addr, end: Addr) -> Part {
        let mut window = Window::new(memory);
        let guess = if start == self.start {
            Some(start)
        } else {
            // A walk that takes no step cannot be joined to another.
            self.chunk_from(&mut window, start)
                .filter(|guess| *guess < end)
        };
        let mut progress = Progress::at(guess.unwrap_or(start));
        if guess.is_some() {
            self.advance(&mut progress, &mut window, end);
        }
        Part {
            start,
            guess,
            progress,
        }
    }

    /// A place from `start` on to which the first chain of what looks like chunks leads. Where the
    /// chain began inside a chunk, it has most often come to where the next chunks begin by then.
    fn chunk_from(&self, window: &mut Window<'_>, start: Addr) -> Option<Addr> {
        let alignment = self.chunks.alignment;
        let into = start.0.wrapping_sub(self.start.0).checked_rem(alignment)?;
        let first = start.checked_add(alignment.checked_sub(into)?)?;
        let places = first.0..first.0.checked_add(SEARCHED)?;
        let mut places = places.step_by(usize::try_from(alignment).ok()?).map(Addr);
        places.find_map(|place| self.end_of_chain(window, place))
    }

    fn end_of_chain(&self, window: &mut Window<'_>, first: Addr) -> Option<Addr> {
        (0..CHAIN).try_fold(first, |addr, _| {
            let size = self.size_at(window, addr);
            Some(addr.saturating_add(size.filter(|size| *size <= LARGEST)?))
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::heap::glibc::chunks::Fence;
    use crate::heap::glibc::layout::ChunkLayout;
    use crate::memory::{FakeMemory, Width};

    const BASE: u64 = 0x10000;

    /// Chunks of the given sizes in units of 16 bytes, and a large `top` behind them. What lies in
    /// the chunks looks like other chunks.
    fn heap(chunks: &[(u64, bool)]) -> (FakeMemory, Segment) {
        let bytes: u64 = chunks.iter().map(|(units, _)| units * 16).sum();
        let mut memory = FakeMemory::zeroed(BASE, usize::try_from(bytes + 0x1000).expect("small"));
        let mut addr = BASE;
        let mut previous = None;
        for (units, in_use) in chunks.iter().copied().chain([(0x100, true)]) {
            if let Some((size, false)) = previous {
                memory.set_word(addr, size);
            }
            let flag = previous.is_none_or(|(_, in_use)| in_use);
            memory.set_word(addr + 8, (units * 16) | u64::from(flag));
            for inside in 1..units {
                memory.set_word(addr + inside * 16 + 8, 0x21);
            }
            previous = Some((units * 16, in_use));
            addr += units * 16;
        }
        let segment = Segment {
            chunks: ChunkLayout {
                width: Width::Eight,
                alignment: 16,
            },
            start: Addr(BASE),
            limit: Addr(BASE + bytes + 0x1000),
            top: Addr(BASE + bytes),
            fence: Fence::Double,
        };
        (memory, segment)
    }

    proptest! {
        #[test]
        fn a_walk_in_parts_is_the_walk(
            chunks in prop::collection::vec((2u64..40, prop::bool::weighted(0.8)), 1..600),
            large in prop::collection::vec((0usize..600, 500u64..3000), 0..4),
            damage in prop::option::of((0u64..100_000, any::<u64>())),
            size in 64u64..20_000,
        ) {
            let mut chunks = chunks;
            for (at, units) in large {
                let at = at % chunks.len();
                chunks[at].0 = units;
            }
            let (mut memory, segment) = heap(&chunks);
            if let Some((at, word)) = damage {
                let words = memory.bytes.len() as u64 / 8;
                memory.set_word(BASE + at % words * 8, word);
            }
            let whole = segment.walk_through(&mut Window::new(&memory));
            prop_assert_eq!(segment.walk_in_parts(&memory, size), whole);
        }
    }

    #[test]
    fn parts_begin_at_chunks_and_are_used() {
        let (memory, segment) = heap(&vec![(3, true); 10_000]);
        let starts = segment.part_starts(&memory, 50_000);
        assert_eq!(starts.len(), 10);
        for start in &starts[1..] {
            let part = segment.walk_part(&memory, *start, segment.limit);
            let guess = part.guess.expect("a chunk near the start of the part");
            assert_eq!((guess.0 - BASE) % 48, 0, "{guess:?} for {start:?}");
            assert!(part.progress.has_ended);
        }
    }
}
