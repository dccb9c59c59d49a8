//! Finding `main_arena` and the arenas that hang on it, without symbols.
//!
//! An empty bin is a pair of words that point to where the bin's chunk would start: the size of a
//! header below. Bin 127 is always empty, so the last such pair of a row is bin 127 and leads to the
//! others.

use std::collections::BTreeSet;
use std::ops::Range;

use super::layout::{
    ArenaLayout, BINS, PAGE, arenas, bins_to_next, heap_info_sizes, smallest_heap_max,
};
use crate::addr::{Addr, AddrRange};
use crate::memory::{Memory, Width};
use crate::snapshot::{Module, Snapshot};

/// More arenas than any machine has (`8 * cores` by default).
const MAX_ARENAS: usize = 1 << 16;
/// Places in one module that look like the last bin of an arena, and those in all modules.
const MAX_CANDIDATES: usize = 4096;
const MAX_ALL_CANDIDATES: usize = 1 << 16;
/// Links that are followed from all candidates together. A candidate that is none may lead into a
/// long row of others' arenas, each time anew.
const MAX_LINKS: u64 = 1 << 22;
/// A thread that stands inside malloc can leave this many bins half-linked.
const MAX_BROKEN_BINS: u64 = 2;
/// More copies of malloc than a process can load: the loader has 16 namespaces.
const MAX_MALLOCS: usize = 64;

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
        let width = layout.chunks.width;
        let word = |offset| memory.pointer(addr.checked_add(offset)?, width);
        let flags = memory.word32(addr.checked_add(4)?)?;
        let system_mem = word(layout.system_mem())?;
        let is_sane = flags <= 3 && system_mem <= word(layout.max_system_mem())?;
        is_sane.then_some(())?;
        Some(Self {
            addr,
            layout,
            top: Addr(word(layout.top())?),
            system_mem,
            is_noncontiguous: flags & 2 != 0,
            broken_bins: broken_bins(memory, width, addr.checked_add(layout.bins)?)?,
        })
    }

    /// The address that `top` has before the first allocation: that of an empty bin.
    fn initial_top(&self) -> Addr {
        self.addr.saturating_add(self.layout.top())
    }

    /// Says whether anything was ever allocated from the arena.
    pub(super) fn is_used(&self) -> bool {
        self.top != self.initial_top() && self.top != Addr(0)
    }

    /// The free chunks in the bins, as far as the bins are linked.
    pub(super) fn binned(&self, memory: &dyn Memory) -> BTreeSet<Addr> {
        let chunks = self.layout.chunks;
        let header = chunks.header();
        let mut binned = BTreeSet::new();
        for index in 0..BINS {
            let bin = self
                .initial_top()
                .saturating_add(header.saturating_mul(index));
            let mut chunk = bin;
            while let Some(next) = memory.pointer(chunk.saturating_add(header), chunks.width) {
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
    let width = snapshot.width;
    let mut links = 0..MAX_LINKS;
    let modules = snapshot.modules.iter().enumerate();
    modules
        .flat_map(|(index, module)| {
            let candidates = bins_candidates(memory, width, module).into_iter();
            candidates.map(move |bins| (index, bins))
        })
        .take(MAX_ALL_CANDIDATES)
        // A non-main arena lies in no module, so each ring is found once: from its main arena.
        .filter_map(|(module, bins)| arenas_at(memory, width, module, bins, &mut links))
        .take(MAX_MALLOCS)
        .collect()
}

/// Where the bins of a main arena may start in the writable segments of `module`.
fn bins_candidates(memory: &dyn Memory, width: Width, module: &Module) -> Vec<Addr> {
    let size = width.bytes();
    let to_last = (BINS - 1).saturating_mul(2).saturating_mul(size);
    let mut candidates = Vec::new();
    for segment in module.segments.iter().filter(|segment| segment.writable) {
        for range in memory.resident(segment.range) {
            super::for_each_window(memory, width, range, |start, words| {
                for (pair, words) in (start.0..).step_by(width.size()).zip(words.array_windows()) {
                    let is_last = is_last_empty_bin(pair, size, *words);
                    if is_last && candidates.len() < MAX_CANDIDATES {
                        candidates.push(Addr(pair).saturating_sub(to_last));
                    }
                }
            });
        }
    }
    // Windows overlap.
    candidates.sort_unstable();
    candidates.dedup();
    candidates
}

/// Says whether the first two of `words`, which are at `pair`, are an empty bin, and the next two
/// are none. `size` is that of a word.
fn is_last_empty_bin(pair: u64, size: u64, words: [u64; 4]) -> bool {
    let [first, last, next_first, next_last] = words;
    // An empty bin's words point a header below the bin.
    let is_empty = first == pair.wrapping_sub(size.wrapping_mul(2)) && first == last;
    is_empty && !(next_first == pair && next_first == next_last)
}

/// The main arena whose bins are at `bins`, and its ring, if there is one.
fn arenas_at(
    memory: &dyn Memory,
    width: Width,
    module: usize,
    bins: Addr,
    links: &mut Range<u64>,
) -> Option<Arenas> {
    if broken_bins(memory, width, bins)? > MAX_BROKEN_BINS {
        return None;
    }
    let mut closing = arenas(width)
        .into_iter()
        .filter_map(|layout| ring(memory, bins, layout, links));
    let (layout, others) = closing.next()?;
    let main = Arena::read(memory, bins.saturating_sub(layout.bins), layout)?;
    let heap_info = others
        .first()
        .and_then(|arena| heap_info_size(memory, width, *arena));
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
/// does, and the other arenas. Takes one of `links` for each that it follows.
fn ring(
    memory: &dyn Memory,
    bins: Addr,
    layout: ArenaLayout,
    links: &mut Range<u64>,
) -> Option<(ArenaLayout, Vec<Addr>)> {
    let width = layout.chunks.width;
    let main = Addr(bins.0.checked_sub(layout.bins)?);
    let mut others = Vec::new();
    let mut arena = main;
    loop {
        let next = Addr(memory.pointer(arena.checked_add(layout.next())?, width)?);
        if next == main {
            break;
        }
        if others.len() >= MAX_ARENAS || heap_info_size(memory, width, next).is_none() {
            return None;
        }
        links.next()?;
        others.push(next);
        arena = next;
    }
    // After `next` and `next_free` comes a count of threads, or the size of the arena.
    let after = bins_to_next(width).checked_add(layout.chunks.header())?;
    let after = memory.pointer(bins.checked_add(after)?, width)?;
    let layout = ArenaLayout {
        counts_threads: !layout.may_not_count || after < PAGE,
        ..layout
    };
    Some((layout, others))
}

/// `sizeof (heap_info)`, seen from an arena that follows it in its first heap.
fn heap_info_size(memory: &dyn Memory, width: Width, arena: Addr) -> Option<u64> {
    let heap = arena.align_down(smallest_heap_max(width));
    let offset = AddrRange::new(heap, arena).size();
    let is_first_heap =
        heap_info_sizes(width).contains(&offset) && memory.pointer(heap, width) == Some(arena.0);
    is_first_heap.then_some(offset)
}

/// The number of bins whose links do not fit together; `None` if they cannot be read.
fn broken_bins(memory: &dyn Memory, width: Width, bins: Addr) -> Option<u64> {
    let size = width.bytes();
    let header = size.checked_mul(2)?;
    if !bins.is_aligned(size) {
        return None;
    }
    let mut broken = 0_u64;
    for index in 0..BINS {
        let pair = bins.checked_add(header.checked_mul(index)?)?;
        let bin = pair.0.wrapping_sub(header);
        let first = memory.pointer(pair, width)?;
        let last = memory.pointer(pair.checked_add(size)?, width)?;
        let is_linked = |chunk: u64, offset: u64| {
            chunk == bin
                || (chunk.is_multiple_of(header)
                    && memory.pointer(Addr(chunk.wrapping_add(offset)), width) == Some(bin))
        };
        if !is_linked(first, header.wrapping_add(size)) || !is_linked(last, header) {
            broken = broken.saturating_add(1);
        }
    }
    Some(broken)
}
