//! A memory of which only that is left which finds leaks.

use super::kept::Kept;
use crate::addr::{Addr, AddrRange};
use crate::heap::{Block, Blocks};
use crate::memory::{Memory, Width};

/// Another memory, in which everything reads as zeros that is neither a reference nor kept.
pub struct ReducedMemory<'a> {
    memory: &'a dyn Memory,
    width: Width,
    blocks: &'a Blocks,
    kept: &'a Kept,
}

impl<'a> ReducedMemory<'a> {
    /// What is left of `memory`, whose live blocks are `blocks`.
    #[must_use]
    pub fn new(memory: &'a dyn Memory, width: Width, blocks: &'a Blocks, kept: &'a Kept) -> Self {
        Self {
            memory,
            width,
            blocks,
            kept,
        }
    }

    /// Says whether the word `value` is kept wherever it is: it is a reference to a live block, or
    /// leads to what is kept.
    #[must_use]
    pub fn is_kept(&self, value: u64) -> bool {
        self.blocks.find(value).is_some() || self.kept.values.binary_search(&value).is_ok()
    }

    /// What is left of `bytes`, which are at `range`, whose start is aligned.
    fn reduce(&self, range: AddrRange, bytes: &[u8]) -> Vec<u8> {
        let mut left = Left {
            from: bytes,
            to: vec![0; bytes.len()],
            start: range.start,
            width: self.width,
        };
        left.keep_words(range, |value| self.is_kept(value));
        self.clear_free_memory(range, &mut left);
        for part in self.kept.whole.within(range) {
            left.keep(part);
        }
        for word in words_in(&self.kept.words, range) {
            left.keep(AddrRange::with_size(*word, self.width.bytes()));
        }
        self.keep_types(range, &mut left);
        for part in self.kept.stack_tops.within(range) {
            left.keep_words(part, |value| self.kept.code.contains(Addr(value)));
        }
        left.to
    }

    /// What allocators own is theirs, but for the live blocks: a word in it that looks like a
    /// reference is left over.
    fn clear_free_memory(&self, range: AddrRange, left: &mut Left<'_>) {
        for owned in self.kept.owned.within(range) {
            let mut start = owned.start;
            for block in self.blocks_in(owned) {
                // The word that a block ends in is its own.
                let end = block.range().end;
                let end = end.align_up(self.width.bytes()).unwrap_or(end);
                left.clear(AddrRange::new(
                    start,
                    block.start.align_down(self.width.bytes()),
                ));
                start = start.max(end);
            }
            left.clear(AddrRange::new(start, owned.end));
        }
    }

    /// Keeps the first word of each block that points into a module: a vtable, for example.
    fn keep_types(&self, range: AddrRange, left: &mut Left<'_>) {
        for block in self.blocks_in(range) {
            let word = AddrRange::with_size(block.start, self.width.bytes());
            left.keep_words(word, |value| self.kept.modules.contains(Addr(value)));
        }
    }

    /// The live blocks that have an address in `range`.
    fn blocks_in(&self, range: AddrRange) -> impl Iterator<Item = Block> + '_ {
        self.blocks.within(range)
    }
}

/// The bytes of a part of memory, and what is left of them.
struct Left<'a> {
    from: &'a [u8],
    to: Vec<u8>,
    start: Addr,
    width: Width,
}

impl Left<'_> {
    /// The indices of `range`.
    fn indices(&self, range: AddrRange) -> std::ops::Range<usize> {
        let index = |addr: Addr| {
            let offset = AddrRange::new(self.start, addr).size();
            usize::try_from(offset)
                .unwrap_or(usize::MAX)
                .min(self.from.len())
        };
        index(range.start)..index(range.end).max(index(range.start))
    }

    fn keep(&mut self, range: AddrRange) {
        let indices = self.indices(range);
        if let (Some(to), Some(from)) = (self.to.get_mut(indices.clone()), self.from.get(indices)) {
            to.copy_from_slice(from);
        }
    }

    fn clear(&mut self, range: AddrRange) {
        let indices = self.indices(range);
        self.to.get_mut(indices).unwrap_or_default().fill(0);
    }

    /// Keeps the aligned words of `range` of which `is_kept` says so.
    fn keep_words(&mut self, range: AddrRange, is_kept: impl Fn(u64) -> bool) {
        let size = self.width.size();
        let start = range
            .start
            .align_up(self.width.bytes())
            .unwrap_or(range.end);
        let indices = self.indices(AddrRange::new(start, range.end));
        let from = self.from.get(indices.clone()).unwrap_or_default();
        let to = self.to.get_mut(indices).unwrap_or_default();
        for (to, from) in to.chunks_exact_mut(size).zip(from.chunks_exact(size)) {
            let value = self.width.word(from).unwrap_or(0);
            if value != 0 && is_kept(value) {
                to.copy_from_slice(from);
            }
        }
    }
}

fn words_in(words: &[Addr], range: AddrRange) -> &[Addr] {
    let first = words.partition_point(|word| *word < range.start);
    let rest = words.get(first..).unwrap_or_default();
    let count = rest.partition_point(|word| *word < range.end);
    rest.get(..count).unwrap_or_default()
}

impl Memory for ReducedMemory<'_> {
    fn read(&self, addr: Addr, buf: &mut [u8]) -> usize {
        // Whole words, also where the caller asks for a part of one.
        let size = self.width.bytes();
        let start = addr.align_down(size);
        let end = addr.saturating_add(buf.len() as u64);
        let range = AddrRange::new(start, end.align_up(size).unwrap_or(end));
        let mut bytes = vec![0; usize::try_from(range.size()).unwrap_or(0)];
        let count = self.memory.read(start, &mut bytes);
        bytes.truncate(count);
        let left = self.reduce(AddrRange::with_size(start, count as u64), &bytes);
        let skipped = usize::try_from(AddrRange::new(start, addr).size()).unwrap_or(0);
        let left = left.get(skipped..).unwrap_or_default();
        let copied = left.len().min(buf.len());
        if let (Some(to), Some(from)) = (buf.get_mut(..copied), left.get(..copied)) {
            to.copy_from_slice(from);
        }
        copied
    }

    fn resident(&self, range: AddrRange) -> Vec<AddrRange> {
        self.memory.resident(range)
    }

    fn readable(&self, range: AddrRange) -> Vec<AddrRange> {
        self.memory.readable(range)
    }
}

impl std::fmt::Debug for ReducedMemory<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReducedMemory").finish_non_exhaustive()
    }
}
