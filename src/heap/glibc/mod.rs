//! glibc's malloc: the live blocks of every arena, and of chunks with a mapping of their own.
//!
//! Nothing depends on symbols or on a version string: structures are found by their shape, and
//! checked against each other and against malloc's own counters on every run. What does not fit is
//! a [`Problem`].

mod arena;
mod cache;
mod chunks;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod layout;
mod mapped;
mod metadata;
mod params;
mod parts;
mod problem;
mod search;
mod segments;
#[cfg(test)]
pub(crate) mod strategies;
#[cfg(any(test, fuzzing))]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use metadata::metadata;
pub use problem::Problem;

use rayon::prelude::*;

use arena::{Arena, Arenas};
use layout::ChunkLayout;
use mapped::MappedChunk;
use params::Params;
use segments::{ArenaMemory, Heaps, Space};

use super::block::{Block, Heap, Zone};
use super::blocks::{Blocks, Run};
use crate::addr::{Addr, AddrRange, RangeSet};
use crate::memory::{Memory, Width};
use crate::snapshot::Snapshot;

/// What was found of glibc's malloc in a target.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// Its live blocks.
    pub heap: Heap,
    /// What does not fit together.
    pub problems: Vec<Problem>,
}

/// One malloc with its parameters.
struct Malloc {
    arenas: Arenas,
    params: Params,
}

/// What there is of glibc's malloc in a target, before its caches are known.
struct Parts {
    mallocs: Vec<Malloc>,
    /// In the order of `zone_names`.
    memories: Vec<ArenaMemory>,
    mapped: Vec<MappedChunk>,
    chunks: ChunkLayout,
    problems: Vec<Problem>,
}

impl Parts {
    fn find(snapshot: &Snapshot) -> Option<Self> {
        let mut problems = Vec::new();
        let mut mallocs = Vec::new();
        for arenas in arena::find(snapshot) {
            let is_used = arenas.main.is_used() || !arenas.others.is_empty();
            match params::find(snapshot, &arenas) {
                Some(params) if is_used || params.n_mmaps > 0 => {
                    mallocs.push(Malloc { arenas, params })
                }
                None if is_used => problems.push(Problem::NoParams),
                _ => {}
            }
        }
        if mallocs.is_empty() && problems.is_empty() {
            return None;
        }
        let memories = arena_memories(snapshot, &mallocs);
        let mut found = Self {
            chunks: chunk_layout(snapshot, &mallocs),
            mallocs,
            memories,
            mapped: Vec::new(),
            problems,
        };
        found.problems.extend(broken_bins(&found.arenas()));
        let taken = owned(&found.memories);
        let (mapped, problems) = mapped::find(snapshot, &found.params(), found.chunks, &taken);
        found.mapped = mapped;
        found.problems.extend(problems);
        Some(found)
    }

    fn arenas(&self) -> Vec<Arena> {
        let arenas = self.mallocs.iter().flat_map(|malloc| malloc.arenas.all());
        arenas.collect()
    }

    fn params(&self) -> Vec<Params> {
        self.mallocs.iter().map(|malloc| malloc.params).collect()
    }
}

/// Walks every glibc malloc that the target has used. `None` where there is none.
#[must_use]
pub fn walk(snapshot: &Snapshot) -> Option<Found> {
    let parts = Parts::find(snapshot)?;
    let (arenas, params) = (parts.arenas(), parts.params());
    let Parts {
        mallocs,
        memories,
        mapped,
        chunks,
        mut problems,
    } = parts;
    let zones = zone_names(&mallocs);
    let mut heap = Heap {
        owned: owned_by_all(&memories, &mapped, &arenas, &params),
        zone_ranges: zone_ranges(&memories, &mapped),
        ..Heap::default()
    };
    heap.blocks = joined_blocks(memories, &mapped, &mut problems);
    let cached = cache::find(snapshot, &arenas, &params, chunks, &heap.blocks);
    problems.extend(cached.problems);
    let removed = cached.free.iter().chain(&cached.caches);
    heap.blocks.remove(removed.copied().map(Addr));
    heap.zones = zones;
    count_zones(&mut heap);
    Some(Found { heap, problems })
}

/// How the chunks of all mallocs are laid out: copies of malloc in one process are of one release,
/// or of two that differ in nothing of this.
fn chunk_layout(snapshot: &Snapshot, mallocs: &[Malloc]) -> ChunkLayout {
    let first = mallocs.first().map(|malloc| malloc.arenas.main.layout);
    let [.., newest] = layout::arenas(snapshot.width);
    first.unwrap_or(newest).chunks
}

impl Malloc {
    fn heap_info(&self) -> u64 {
        self.arenas.heap_info.unwrap_or(0)
    }

    /// The heaps of each non-main arena.
    fn heaps(&self, memory: &dyn Memory) -> Vec<Heaps> {
        let arenas = self.arenas.others.par_iter();
        arenas
            .map(|arena| Heaps::find(memory, arena, self.heap_info()))
            .collect()
    }

    /// Walks the non-main arenas, which have `heaps`.
    fn other_memories(
        &self,
        memory: &dyn Memory,
        heaps: &[Heaps],
        space: &Space,
    ) -> Vec<ArenaMemory> {
        let arenas = self.arenas.others.par_iter().zip(heaps);
        arenas
            .map(|(arena, heaps)| {
                segments::of_other_arena(memory, arena, heaps, self.heap_info(), space)
            })
            .collect()
    }
}

impl Arenas {
    /// The main arena, then the others.
    fn all(&self) -> impl Iterator<Item = Arena> + '_ {
        std::iter::once(self.main).chain(self.others.iter().copied())
    }
}

/// Walks all arenas of all mallocs: the main arenas last, since they look for memory that no other
/// arena owns. In the order of `zone_names`.
fn arena_memories(snapshot: &Snapshot, mallocs: &[Malloc]) -> Vec<ArenaMemory> {
    let memory = &*snapshot.memory;
    let heaps: Vec<Vec<Heaps>> = mallocs.iter().map(|malloc| malloc.heaps(memory)).collect();
    let space = Space::new(snapshot, heaps.iter().flatten());
    let others: Vec<Vec<ArenaMemory>> = mallocs
        .iter()
        .zip(&heaps)
        .map(|(malloc, heaps)| malloc.other_memories(memory, heaps, &space))
        .collect();
    let mut taken: RangeSet = owned(others.iter().flatten());
    let mut memories = Vec::new();
    for (malloc, others) in mallocs.iter().zip(others) {
        let main = if malloc.arenas.main.is_used() {
            segments::of_main_arena(snapshot, &malloc.arenas, &malloc.params, &space, &taken)
        } else {
            ArenaMemory::default()
        };
        taken = taken.ranges().iter().chain(&main.owned).copied().collect();
        memories.push(main);
        memories.extend(others);
    }
    memories
}

fn owned<'a>(memories: impl IntoIterator<Item = &'a ArenaMemory>) -> RangeSet {
    let ranges = memories.into_iter().flat_map(|memory| &memory.owned);
    ranges.copied().collect()
}

/// All memory that is no root: what the arenas own, and malloc's own variables.
fn owned_by_all(
    memories: &[ArenaMemory],
    mapped: &[MappedChunk],
    arenas: &[Arena],
    params: &[Params],
) -> RangeSet {
    let memories = memories
        .iter()
        .flat_map(|memory| memory.owned.iter().copied());
    memories
        .chain(mapped.iter().map(|chunk| chunk.mapping))
        .chain(arenas.iter().map(Arena::range))
        .chain(params.iter().map(Params::range))
        .collect()
}

fn broken_bins(arenas: &[Arena]) -> impl Iterator<Item = Problem> + '_ {
    arenas
        .iter()
        .filter(|arena| arena.broken_bins > 0)
        .map(|arena| Problem::Bins(arena.addr, arena.broken_bins))
}

/// A zone for each arena, in the order of their memories, and one for the mmapped chunks.
fn zone_names(mallocs: &[Malloc]) -> Vec<Zone> {
    let zone = |name: String| Zone {
        name,
        allocator: "glibc".to_owned(),
        blocks: 0,
        bytes: 0,
    };
    let mut zones = Vec::new();
    for (index, malloc) in mallocs.iter().enumerate() {
        let which = if index == 0 {
            String::new()
        } else {
            format!(" (copy {})", index.saturating_add(1))
        };
        zones.push(zone(format!("glibc main arena{which}")));
        let others = 1..=malloc.arenas.others.len();
        zones.extend(others.map(|number| zone(format!("glibc arena {number}{which}"))));
    }
    zones.push(zone("glibc mmapped".to_owned()));
    zones
}

fn zone_ranges(memories: &[ArenaMemory], mapped: &[MappedChunk]) -> Vec<(AddrRange, u32)> {
    let mut ranges = Vec::new();
    for (zone, memory) in (0..).zip(memories) {
        let owned = memory.owned.iter().filter(|range| !range.is_empty());
        ranges.extend(owned.map(|range| (*range, zone)));
    }
    let zone = u32::try_from(memories.len()).unwrap_or(u32::MAX);
    ranges.extend(mapped.iter().map(|chunk| (chunk.mapping, zone)));
    ranges.sort_unstable();
    // What two zones claim belongs to the one that starts first.
    let mut end = Addr(0);
    for (range, _) in &mut ranges {
        range.start = range.start.max(end);
        end = end.max(range.end);
    }
    ranges.retain(|(range, _)| !range.is_empty());
    ranges
}

/// Joins the blocks of all walks and of the mmapped chunks.
fn joined_blocks(
    memories: Vec<ArenaMemory>,
    mapped: &[MappedChunk],
    problems: &mut Vec<Problem>,
) -> Blocks {
    let mut runs: Vec<Run> = Vec::new();
    for memory in memories {
        problems.extend(memory.problems);
        for walk in memory.walks {
            problems.extend(walk.problems);
            runs.extend(walk.blocks.0);
        }
    }
    runs.extend(mapped_runs(mapped, &runs));
    runs.retain(|run| run.end().is_some());
    runs.sort_unstable_by_key(Run::start);
    if runs.is_sorted_by(|run, next| run.end() <= next.start()) {
        return Blocks::joined(runs);
    }
    let (blocks, first) = without_overlaps(&runs);
    problems.extend(first.map(Problem::Overlap));
    blocks
}

/// The blocks of `mapped`, which are in ascending order, in as few runs as can be put between `others`: a run takes
/// some kibibytes, and there may be tens of thousands of such blocks.
fn mapped_runs(mapped: &[MappedChunk], others: &[Run]) -> Vec<Run> {
    let mut starts: Vec<Addr> = others.iter().filter_map(Run::start).collect();
    starts.sort_unstable();
    let between = |chunk: &MappedChunk| starts.partition_point(|start| *start < chunk.block.start);
    let same = mapped.chunk_by(|chunk, next| between(chunk) == between(next));
    same.map(|chunks| chunks.iter().map(|chunk| chunk.block).collect())
        .collect()
}

/// Drops each block that starts inside the one before: two arenas claim the same memory. Says which
/// one was dropped first.
fn without_overlaps(runs: &[Run]) -> (Blocks, Option<Addr>) {
    let mut blocks: Vec<Block> = runs.iter().flat_map(Run::iter).collect();
    blocks.par_sort_unstable();
    let mut end = Addr(0);
    let mut first = None;
    blocks.retain(|block| {
        let is_free = block.start >= end;
        if is_free {
            end = block.range().end;
        } else {
            first.get_or_insert(block.start);
        }
        is_free
    });
    (blocks.into_iter().collect(), first)
}

fn count_zones(heap: &mut Heap) {
    for (range, zone) in &heap.zone_ranges {
        let Some(zone) = usize::try_from(*zone)
            .ok()
            .and_then(|z| heap.zones.get_mut(z))
        else {
            continue;
        };
        let numbers =
            heap.blocks.starting_below(range.start)..heap.blocks.starting_below(range.end);
        zone.blocks = zone.blocks.saturating_add(numbers.len() as u64);
        zone.bytes = zone.bytes.saturating_add(heap.blocks.bytes(numbers));
    }
}

/// Calls `each` with the aligned words of `range`, which have this width, a window at a time. A struct of up to
/// `OVERLAP` bytes lies in one window at least.
fn for_each_window(
    memory: &dyn Memory,
    width: Width,
    range: AddrRange,
    mut each: impl FnMut(Addr, &[u64]),
) {
    const SIZE: u64 = 1 << 20;
    const OVERLAP: u64 = 512;
    let Some(mut start) = range.start.align_up(width.bytes()) else {
        return;
    };
    let mut bytes = vec![0; usize::try_from(SIZE.min(range.size())).unwrap_or(0)];
    while start < range.end {
        let wanted = range.end.0.saturating_sub(start.0);
        bytes.truncate(usize::try_from(wanted).unwrap_or(usize::MAX));
        let count = memory.read(start, &mut bytes);
        let read = bytes.get(..count).unwrap_or_default();
        let words: Vec<u64> = width.words(read).collect();
        each(start, &words);
        if count < bytes.len() || start.saturating_add(count as u64) >= range.end {
            return;
        }
        start = start.saturating_add(SIZE - OVERLAP);
    }
}
