//! The target's memory, and words and structs read through it.

use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::addr::{Addr, AddrRange, RangeSet};

/// The target's memory, wherever it is kept: a copy, a suspended process, a core file, a test's
/// byte array.
pub trait Memory: Sync {
    /// Copies bytes from `addr` into `buf` and returns how many were copied.
    ///
    /// The count is short when a later page cannot be read, and 0 when the first one cannot: an
    /// unreadable page is an answer, not an error. Pages that the target mapped and never touched
    /// read as zeros.
    fn read(&self, addr: Addr, buf: &mut [u8]) -> usize;

    /// The parts of `range` that may hold anything but zeros and can be read, in ascending order.
    ///
    /// Pages that the target never touched are left out, so that a scan costs what the target
    /// uses, not what it reserved.
    fn resident(&self, range: AddrRange) -> Vec<AddrRange> {
        vec![range]
    }

    /// The parts of `range` that can be read, in ascending order: those that read as zeros too.
    ///
    /// A memory that does not know it before it has tried says all.
    fn readable(&self, range: AddrRange) -> Vec<AddrRange> {
        vec![range]
    }

    /// The 64-bit little-endian word at `addr`, which need not be aligned; `None` when part of it
    /// cannot be read.
    fn word(&self, addr: Addr) -> Option<u64> {
        let mut bytes = [0; 8];
        (self.read(addr, &mut bytes) == bytes.len()).then(|| u64::from_le_bytes(bytes))
    }

    /// The pointer at `addr` in a target whose pointers have this width, as [`Memory::word`] has
    /// words.
    fn pointer(&self, addr: Addr, width: Width) -> Option<u64> {
        match width {
            Width::Four => self.word32(addr).map(u64::from),
            Width::Eight => self.word(addr),
        }
    }

    /// The 32-bit little-endian word at `addr`; `None` when part of it cannot be read.
    fn word32(&self, addr: Addr) -> Option<u32> {
        let mut bytes = [0; 4];
        (self.read(addr, &mut bytes) == bytes.len()).then(|| u32::from_le_bytes(bytes))
    }
}

/// The size of the target's pointers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Width {
    /// 32 bits: i386.
    Four,
    /// 64 bits.
    #[default]
    Eight,
}

impl Width {
    /// The bytes of a pointer.
    #[inline]
    #[must_use]
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Four => 4,
            Self::Eight => 8,
        }
    }

    /// The bytes of a pointer, as a size of ours.
    #[inline]
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            Self::Four => 4,
            Self::Eight => 8,
        }
    }

    /// The size of two pointers: of a pair in a table.
    #[inline]
    #[must_use]
    pub const fn pair_size(self) -> usize {
        2 * self.size()
    }

    /// The little-endian word that `bytes` start with; `None` when they are fewer.
    #[inline]
    #[must_use]
    pub fn word(self, bytes: &[u8]) -> Option<u64> {
        match self {
            Self::Four => Some(u32::from_le_bytes(*bytes.first_chunk()?).into()),
            Self::Eight => Some(u64::from_le_bytes(*bytes.first_chunk()?)),
        }
    }

    /// The words of `bytes`, which need not be aligned; a rest of less than a word is left out.
    pub fn words(self, bytes: &[u8]) -> impl DoubleEndedIterator<Item = u64> + '_ {
        let words = bytes.chunks_exact(self.size());
        words.map(move |word| self.word(word).unwrap_or(0))
    }
}

/// Words of a memory, most of them close to the one before: reads more than one, so that each word does not cost a call.
pub struct Window<'a> {
    memory: &'a dyn Memory,
    start: Addr,
    bytes: Vec<u8>,
    filled: usize,
    /// What a window begins at a multiple of.
    alignment: u64,
}

impl<'a> Window<'a> {
    /// How far a window reads ahead.
    const SIZE: usize = 64 * 1024;
    /// How far one does that is used for words which may lie far apart.
    const SMALL_SIZE: usize = 4096;
    /// How much one has that is used for words in any order.
    const AROUND: usize = 1024;

    /// A window on `memory` that has not read anything yet.
    #[must_use]
    pub fn new(memory: &'a dyn Memory) -> Self {
        Self::with_size(memory, Self::SIZE, 1)
    }

    /// A window that reads little at a time: for words that may lie far apart.
    #[must_use]
    pub fn small(memory: &'a dyn Memory) -> Self {
        Self::with_size(memory, Self::SMALL_SIZE, 1)
    }

    /// A window for words in any order, many of which are close to the one before: it has what lies around a
    /// word.
    #[must_use]
    pub fn around(memory: &'a dyn Memory) -> Self {
        Self::with_size(memory, Self::AROUND, Self::AROUND as u64)
    }

    fn with_size(memory: &'a dyn Memory, size: usize, alignment: u64) -> Self {
        Self {
            memory,
            start: Addr(0),
            bytes: vec![0; size],
            filled: 0,
            alignment,
        }
    }

    /// The pointer at `addr`, as [`Memory::pointer`] has it.
    #[inline]
    pub fn pointer(&mut self, addr: Addr, width: Width) -> Option<u64> {
        match self.buffered(addr, width) {
            Some(word) => Some(word),
            None => self.refill(addr, width),
        }
    }

    #[inline]
    fn buffered(&self, addr: Addr, width: Width) -> Option<u64> {
        let offset = usize::try_from(addr.0.wrapping_sub(self.start.0)).ok()?;
        width.word(self.bytes[..self.filled].get(offset..)?)
    }

    #[cold]
    fn refill(&mut self, addr: Addr, width: Width) -> Option<u64> {
        let start = addr.align_down(self.alignment);
        match self.read_from(start, addr, width) {
            // A word that a window would cut in two, or that has something unreadable before it, begins one.
            None if start != addr => self.read_from(addr, addr, width),
            word => word,
        }
    }

    fn read_from(&mut self, start: Addr, addr: Addr, width: Width) -> Option<u64> {
        self.start = start;
        self.filled = self.memory.read(start, &mut self.bytes);
        self.buffered(addr, width)
    }
}

impl std::fmt::Debug for Window<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Window")
            .field("start", &self.start)
            .field("filled", &self.filled)
            .finish_non_exhaustive()
    }
}

/// A memory that remembers what was read of it.
pub struct Reads<'a> {
    memory: &'a dyn Memory,
    ranges: Mutex<Vec<AddrRange>>,
}

impl<'a> Reads<'a> {
    /// `memory`, of which nothing was read yet.
    #[must_use]
    pub fn new(memory: &'a dyn Memory) -> Self {
        Self {
            memory,
            ranges: Mutex::default(),
        }
    }

    /// What was read.
    #[must_use]
    pub fn ranges(self) -> RangeSet {
        let ranges = self.ranges.into_inner();
        ranges
            .unwrap_or_else(PoisonError::into_inner)
            .into_iter()
            .collect()
    }
}

impl Memory for Reads<'_> {
    fn read(&self, addr: Addr, buf: &mut [u8]) -> usize {
        let count = self.memory.read(addr, buf);
        let range = AddrRange::with_size(addr, count as u64);
        // A panic of another thread leaves the list whole.
        let mut ranges = self.ranges.lock().unwrap_or_else(PoisonError::into_inner);
        ranges.push(range);
        count
    }

    fn resident(&self, range: AddrRange) -> Vec<AddrRange> {
        self.memory.resident(range)
    }

    fn readable(&self, range: AddrRange) -> Vec<AddrRange> {
        self.memory.readable(range)
    }
}

impl std::fmt::Debug for Reads<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reads").finish_non_exhaustive()
    }
}

/// Copies of some parts of a memory, for when the memory itself is gone.
#[derive(Clone, Debug, Default)]
pub struct Excerpt {
    /// Each part's range and where its bytes begin, in ascending order.
    parts: Vec<(AddrRange, usize)>,
    bytes: Vec<u8>,
}

impl Excerpt {
    /// Copies `ranges`, which are in ascending order, as far as they can be read, in parallel.
    pub fn copy(memory: &dyn Memory, ranges: impl Iterator<Item = AddrRange>) -> Self {
        let mut end = 0_usize;
        let mut parts: Vec<(AddrRange, usize)> = ranges
            .map(|range| {
                let start = end;
                end = end.saturating_add(to_size(range));
                (range, start)
            })
            .collect();
        let mut bytes = vec![0; end];
        let mut rest = bytes.as_mut_slice();
        let mut tasks = Vec::new();
        for part in parts.chunks_mut(COPIED_TOGETHER) {
            let size = part.iter().map(|(range, _)| to_size(*range)).sum();
            let (own, others) = rest.split_at_mut(size);
            rest = others;
            tasks.push((part, own));
        }
        let tasks = tasks.into_par_iter();
        tasks.for_each(|(part, bytes)| Self::copy_part(memory, part, bytes));
        Self { parts, bytes }
    }

    /// Copies `parts` to `bytes`, one after the other, and cuts those that cannot be read to their end.
    fn copy_part(memory: &dyn Memory, parts: &mut [(AddrRange, usize)], bytes: &mut [u8]) {
        let mut rest = bytes;
        for (range, _) in parts {
            let (own, others) = rest.split_at_mut(to_size(*range));
            rest = others;
            let count = memory.read(range.start, own);
            *range = AddrRange::with_size(range.start, count as u64);
        }
    }

    /// What was copied, in ascending order.
    pub fn ranges(&self) -> impl Iterator<Item = AddrRange> + '_ {
        self.parts.iter().map(|(range, _)| *range)
    }
}

fn to_size(range: AddrRange) -> usize {
    usize::try_from(range.size()).unwrap_or(0)
}

/// Ranges of an [`Excerpt`] that one task copies.
const COPIED_TOGETHER: usize = 1024;

impl Memory for Excerpt {
    fn read(&self, addr: Addr, buf: &mut [u8]) -> usize {
        let after = self.parts.partition_point(|(range, _)| range.start <= addr);
        let part = after.checked_sub(1).and_then(|index| self.parts.get(index));
        let Some((range, start)) = part.filter(|(range, _)| range.contains(addr)) else {
            return 0;
        };
        let to_usize = |range: AddrRange| usize::try_from(range.size()).unwrap_or(usize::MAX);
        let skipped = to_usize(AddrRange::new(range.start, addr));
        let available = to_usize(AddrRange::new(addr, range.end));
        let bytes = self.bytes.iter().skip(*start).skip(skipped);
        let copied = buf.iter_mut().zip(bytes.take(available));
        copied.map(|(to, from)| *to = *from).count()
    }
}

/// Bytes at one address, for tests: everything else is unreadable.
#[cfg(any(test, fuzzing))]
#[derive(Clone, Debug)]
pub(crate) struct FakeMemory {
    pub(crate) base: u64,
    pub(crate) bytes: Vec<u8>,
}

#[cfg(any(test, fuzzing))]
impl FakeMemory {
    /// `size` zero bytes at `base`.
    pub(crate) fn zeroed(base: u64, size: usize) -> Self {
        Self {
            base,
            bytes: vec![0; size],
        }
    }

    /// Stores `value` at the target address `addr`.
    pub(crate) fn set_word(&mut self, addr: u64, value: u64) {
        let at = usize::try_from(addr - self.base).expect("a small test memory");
        self.bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
}

#[cfg(any(test, fuzzing))]
impl Memory for FakeMemory {
    fn read(&self, addr: Addr, buf: &mut [u8]) -> usize {
        let Some(start) = addr.0.checked_sub(self.base) else {
            return 0;
        };
        let available = usize::try_from(start)
            .ok()
            .and_then(|s| self.bytes.get(s..));
        let available = available.unwrap_or_default();
        let count = available.len().min(buf.len());
        buf[..count].copy_from_slice(&available[..count]);
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_excerpt_holds_what_was_copied_and_nothing_else() {
        let memory = FakeMemory {
            base: 0x1000,
            bytes: (0..100).collect(),
        };
        let ranges = [(0x1008, 8), (0x1050, 0x40)];
        let ranges = ranges.map(|(start, size)| AddrRange::with_size(Addr(start), size));
        let excerpt = Excerpt::copy(&memory, ranges.into_iter());
        assert_eq!(excerpt.word(Addr(0x1008)), memory.word(Addr(0x1008)));
        assert_eq!(excerpt.word(Addr(0x1009)), None);
        let mut buf = [0; 100];
        assert_eq!(excerpt.read(Addr(0x1050), &mut buf), 20);
        assert_eq!(buf[19], 99);
        assert_eq!(excerpt.read(Addr(0x1000), &mut buf), 0);
    }

    #[test]
    fn a_window_has_the_words_of_its_memory_in_any_order() {
        let memory = FakeMemory {
            base: 0x1234,
            bytes: (0..=255).cycle().take(5000).collect(),
        };
        for window in [Window::new, Window::small, Window::around] {
            let mut window = window(&memory);
            for step in [8, 1, 1021, 5993] {
                for number in 0..6000 {
                    let addr = Addr(0x1000 + number * step % 6000);
                    let expected = memory.word(addr);
                    assert_eq!(
                        window.pointer(addr, Width::Eight),
                        expected,
                        "{addr} {step}"
                    );
                }
            }
        }
    }

    #[test]
    fn word_is_none_when_its_last_byte_is_unreadable() {
        let memory = FakeMemory {
            base: 0x1000,
            bytes: vec![1; 15],
        };
        assert_eq!(memory.word(Addr(0x1007)), Some(0x0101_0101_0101_0101));
        assert_eq!(memory.word(Addr(0x1008)), None);
    }
}
