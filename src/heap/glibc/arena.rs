//! Finding `main_arena` and the arenas that hang on it, without symbols.
//!
//! An empty bin is a pair of words that point to where the bin's chunk would start: 16 bytes
//! below. Bin 127 is always empty, so the last such pair of a row is bin 127 and leads to the
//! others.

use std::collections::BTreeSet;

use super::layout::{
    ALIGNMENT, ArenaLayout, BINS, BINS_OFFSETS, BINS_TO_NEXT, HEADER, HEAP_INFO_SIZES, PAGE,
};
use crate::addr::{Addr, AddrRange};
use crate::memory::Memory;
use crate::snapshot::{Module, Snapshot};

/// More arenas than any machine has (`8 * cores` by default).
const MAX_ARENAS: usize = 1 << 16;
/// Places in one module that look like the last bin of an arena.
const MAX_CANDIDATES: usize = 4096;
/// A thread that stands inside malloc can leave this many bins half-linked.
const MAX_BROKEN_BINS: u64 = 2;

/// One arena: `struct malloc_state`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Arena {
    pub(super) addr: Addr,
    pub(super) layout: ArenaLayout,
    pub(super) top: Addr,
    pub(super) system_mem: u64,
    /// Memory of the main arena is not one piece that `brk` extends.
    pub(super) is_noncontiguous: bool,
    /// Bins whose links do not fit together.
    pub(super) broken_bins: u64,
}

/// The arenas of one copy of malloc: those of a libc, or of a library with a malloc of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Arenas {
    /// The index of the module that has the main arena.
    pub(super) module: usize,
    pub(super) main: Arena,
    pub(super) others: Vec<Arena>,
    /// `sizeof (heap_info)`, known from where the other arenas lie.
    pub(super) heap_info: Option<u64>,
}

impl Arena {
    /// Reads the arena at `addr`. `None` where its fields make no sense.
    fn read(memory: &dyn Memory, addr: Addr, layout: ArenaLayout) -> Option<Self> {
        let word = |offset| memory.word(addr.checked_add(offset)?);
        let flags = memory.word32(addr.checked_add(4)?)?;
        let system_mem = word(layout.system_mem())?;
        let is_sane = flags <= 3 && system_mem <= word(layout.system_mem() + 8)?;
        is_sane.then_some(())?;
        Some(Self {
            addr,
            layout,
            top: Addr(word(layout.top())?),
            system_mem,
            is_noncontiguous: flags & 2 != 0,
            broken_bins: broken_bins(memory, addr.checked_add(layout.bins)?)?,
        })
    }

    /// The address that `top` has before the first allocation: that of an empty bin.
    fn initial_top(&self) -> Addr {
        self.addr.saturating_add(self.layout.bins - HEADER)
    }

    /// Says whether anything was ever allocated from the arena.
    pub(super) fn is_used(&self) -> bool {
        self.top != self.initial_top() && self.top != Addr(0)
    }

    /// The free chunks in the bins, as far as the bins are linked.
    pub(super) fn binned(&self, memory: &dyn Memory) -> BTreeSet<Addr> {
        let mut binned = BTreeSet::new();
        for index in 0..BINS {
            let bin = self.initial_top().saturating_add(index * 16);
            let mut chunk = bin;
            while let Some(next) = memory.word(chunk.saturating_add(HEADER)) {
                chunk = Addr(next);
                if chunk == bin || !binned.insert(chunk) {
                    break;
                }
            }
        }
        binned
    }

    /// Where the struct itself lies.
    pub(super) fn range(&self) -> AddrRange {
        AddrRange::with_size(self.addr, self.layout.size())
    }
}

/// Finds the arenas of every module's malloc.
pub(super) fn find(snapshot: &Snapshot) -> Vec<Arenas> {
    let memory = &*snapshot.memory;
    let mut found: Vec<Arenas> = Vec::new();
    for (index, module) in snapshot.modules.iter().enumerate() {
        for bins in bins_candidates(memory, module) {
            if let Some(arenas) = arenas_at(memory, index, bins) {
                found.push(arenas);
            }
        }
    }
    // A non-main arena lies in no module, so each ring is found once: from its main arena.
    found.dedup_by_key(|arenas| arenas.main.addr);
    found
}

/// Where the bins of a main arena may start in the writable segments of `module`.
fn bins_candidates(memory: &dyn Memory, module: &Module) -> Vec<Addr> {
    let mut candidates = Vec::new();
    for segment in module.segments.iter().filter(|segment| segment.writable) {
        for range in memory.resident(segment.range) {
            super::for_each_window(memory, range, |start, words| {
                for index in 0..words.len().saturating_sub(3) {
                    let pair = start.0.wrapping_add(8 * index as u64);
                    let is_empty_bin = |at: usize, pair: u64| {
                        words[at] == pair.wrapping_sub(HEADER) && words[at + 1] == words[at]
                    };
                    if is_empty_bin(index, pair)
                        && !is_empty_bin(index + 2, pair.wrapping_add(16))
                        && candidates.len() < MAX_CANDIDATES
                    {
                        candidates.push(Addr(pair).saturating_sub((BINS - 1) * 16));
                    }
                }
            });
        }
    }
    candidates
}

/// The main arena whose bins are at `bins`, and its ring, if there is one.
fn arenas_at(memory: &dyn Memory, module: usize, bins: Addr) -> Option<Arenas> {
    if broken_bins(memory, bins)? > MAX_BROKEN_BINS {
        return None;
    }
    let mut closing = BINS_OFFSETS
        .iter()
        .filter_map(|offset| ring(memory, bins, *offset));
    let (layout, others) = closing.next()?;
    let main = Arena::read(memory, bins.saturating_sub(layout.bins), layout)?;
    let heap_info = others
        .first()
        .and_then(|arena| heap_info_size(memory, *arena));
    let others = others
        .into_iter()
        .map(|addr| Arena::read(memory, addr, layout))
        .collect::<Option<Vec<_>>>()?;
    Some(Arenas {
        module,
        main,
        others,
        heap_info,
    })
}

/// Follows `next` from the main arena until it comes back to it; returns the layout for which it
/// does, and the other arenas.
fn ring(memory: &dyn Memory, bins: Addr, offset: u64) -> Option<(ArenaLayout, Vec<Addr>)> {
    let main = Addr(bins.0.checked_sub(offset)?);
    let mut others = Vec::new();
    let mut arena = main;
    loop {
        let next = Addr(memory.word(arena.checked_add(offset + BINS_TO_NEXT)?)?);
        if next == main {
            break;
        }
        if others.len() >= MAX_ARENAS || heap_info_size(memory, next).is_none() {
            return None;
        }
        others.push(next);
        arena = next;
    }
    // After `next` and `next_free` comes a count of threads, or the size of the arena.
    let after = memory.word(bins.checked_add(BINS_TO_NEXT + 16)?)?;
    let layout = ArenaLayout {
        bins: offset,
        counts_threads: offset != 0x68 || after < PAGE,
    };
    Some((layout, others))
}

/// `sizeof (heap_info)`, seen from an arena that follows it in its first heap.
fn heap_info_size(memory: &dyn Memory, arena: Addr) -> Option<u64> {
    let offset = arena.0 % PAGE;
    let heap = Addr(arena.0 - offset);
    let is_first_heap = HEAP_INFO_SIZES.contains(&offset) && memory.word(heap) == Some(arena.0);
    is_first_heap.then_some(offset)
}

/// The number of bins whose links do not fit together; `None` if they cannot be read.
fn broken_bins(memory: &dyn Memory, bins: Addr) -> Option<u64> {
    if !bins.is_aligned(8) {
        return None;
    }
    let mut broken = 0;
    for index in 0..BINS {
        let pair = bins.checked_add(index * 16)?;
        let bin = pair.0.wrapping_sub(HEADER);
        let first = memory.word(pair)?;
        let last = memory.word(pair.checked_add(8)?)?;
        let is_linked = |chunk: u64, offset: u64| {
            chunk == bin
                || (chunk.is_multiple_of(ALIGNMENT)
                    && memory.word(Addr(chunk.wrapping_add(offset))) == Some(bin))
        };
        if !is_linked(first, 24) || !is_linked(last, 16) {
            broken += 1;
        }
    }
    Some(broken)
}
