//! Finding `mp_`, malloc's parameters and counters, without symbols.

use super::arena::Arenas;
use super::layout::{ParamsLayout, params};
use crate::addr::{Addr, AddrRange};
use crate::memory::Memory;
use crate::snapshot::Snapshot;

/// A place that scores less is not `mp_`: the real one has at least this even where every tunable
/// differs from its default.
const LOWEST_SCORE: u32 = 8;
/// What `mp_` scores more if its `sbrk_base` is in `[heap]`.
const HEAP_SCORE: u32 = 5;
/// malloc caps `tcache_count` at this: the counts of a cache have 16 bits.
const MAX_TCACHE_COUNT: u64 = u16::MAX as u64;

/// What rleaks needs of `mp_`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Params {
    pub(super) addr: Addr,
    pub(super) layout: ParamsLayout,
    /// The number of mmapped chunks.
    pub(super) n_mmaps: u64,
    /// The sum of their mappings.
    pub(super) mmapped_mem: u64,
    /// Requests from this size on get a mapping.
    pub(super) mmap_threshold: u64,
    /// Where the memory that `brk` extends starts; 0 if malloc never called it.
    pub(super) sbrk_base: Addr,
    /// How many chunks a bin of a tcache takes.
    pub(super) tcache_count: u64,
}

impl Params {
    /// Where the struct itself lies.
    pub(super) fn range(&self) -> AddrRange {
        AddrRange::with_size(self.addr, self.layout.size())
    }

    fn read(memory: &dyn Memory, addr: Addr, layout: ParamsLayout) -> Option<Self> {
        let word = |offset| memory.pointer(addr.checked_add(offset)?, layout.width);
        Some(Self {
            addr,
            layout,
            n_mmaps: memory.word32(addr.checked_add(layout.n_mmaps)?)?.into(),
            mmapped_mem: word(layout.mmapped_mem)?,
            mmap_threshold: word(layout.mmap_threshold())?,
            sbrk_base: Addr(word(layout.sbrk_base)?),
            tcache_count: match layout.tcache_count() {
                Some(offset) => word(offset)?.min(MAX_TCACHE_COUNT),
                None => 0,
            },
        })
    }
}

/// Finds the `mp_` that belongs to `arenas`: the place in the same module that looks most like it,
/// among equals the one closest to the main arena.
pub(super) fn find(snapshot: &Snapshot, arenas: &Arenas) -> Option<Params> {
    let memory = &*snapshot.memory;
    let module = snapshot.modules.get(arenas.module)?;
    let bins = arenas.main.layout.bins;
    let width = snapshot.width;
    let layouts: Vec<ParamsLayout> = params(width)
        .into_iter()
        .filter(|layout| layout.arena_bins.contains(&bins))
        .collect();
    let mut best: Option<(u32, u64, Addr, ParamsLayout)> = None;
    for segment in module.segments.iter().filter(|segment| segment.writable) {
        for range in memory.resident(segment.range) {
            super::for_each_window(memory, width, range, |start, words| {
                let addresses = (start.0..).step_by(width.size()).map(Addr);
                for (addr, words) in addresses.zip(tails(words)) {
                    for layout in &layouts {
                        let Some(score) = score(snapshot, words, layout) else {
                            continue;
                        };
                        let distance = addr.0.abs_diff(arenas.main.addr.0);
                        let is_better = best.is_none_or(|(best_score, best_distance, ..)| {
                            (score, best_distance) > (best_score, distance)
                        });
                        if score >= LOWEST_SCORE && is_better {
                            best = Some((score, distance, addr, *layout));
                        }
                    }
                }
            });
        }
    }
    let (_, _, addr, layout) = best?;
    Params::read(memory, addr, layout)
}

/// `words`, then all but the first of them, and so on.
fn tails(words: &[u64]) -> impl Iterator<Item = &[u64]> {
    std::iter::successors(Some(words), |words| words.get(1..))
}

/// How much `words` look like an `mp_` of this layout; `None` where they cannot be one.
fn score(snapshot: &Snapshot, words: &[u64], layout: &ParamsLayout) -> Option<u32> {
    let size = layout.width.bytes();
    let word = |offset: u64| {
        let index = offset.checked_div(size)?;
        words.get(usize::try_from(index).ok()?).copied()
    };
    let half = |offset: u64| {
        let word = word(offset)?;
        Some(if offset.is_multiple_of(size) {
            word & 0xffff_ffff
        } else {
            word >> 32
        })
    };
    let points = |points: u32, holds: bool| if holds { points } else { 0 };
    let threshold = word(layout.mmap_threshold())?;
    let (arena_test, tcache_max_bytes) = layout.defaults();
    let trim_threshold = word(0)?;
    let defaults = [
        points(3, half(layout.n_mmaps_max())? == 65536),
        points(2, word(layout.top_pad())? == 0x2_0000),
        points(2, word(layout.arena_test())? == arena_test),
        points(1, threshold == 0x2_0000),
        points(
            1,
            trim_threshold == 0x2_0000 || trim_threshold == threshold.wrapping_mul(2),
        ),
    ];
    let tcache = match layout.tcache_bins() {
        Some(bins) => [
            points(2, word(bins)? == 64),
            points(
                2,
                tcache_max_bytes.contains(&word(layout.tcache_max_bytes()?)?),
            ),
            points(1, matches!(word(layout.tcache_count()?)?, 7 | 16)),
        ],
        None => [0; 3],
    };
    let score: u32 = defaults.iter().chain(&tcache).sum();
    let n_mmaps = half(layout.n_mmaps)?;
    let mmapped = word(layout.mmapped_mem)?;
    let is_possible = n_mmaps <= half(layout.max_n_mmaps())?
        && half(layout.no_dyn_threshold())? <= 1
        && mmapped <= word(layout.max_mmapped_mem())?
        && mmapped.is_multiple_of(size);
    if !is_possible || score.saturating_add(HEAP_SCORE) < LOWEST_SCORE {
        return None;
    }
    let base = Addr(word(layout.sbrk_base)?);
    let region = snapshot.region_at(base);
    let is_brk = region.is_some_and(|region| region.name == "[heap]");
    let place = points(if is_brk { HEAP_SCORE } else { 1 }, region.is_some());
    Some(score.saturating_add(place))
}
