//! The segments of each arena.

use rustc_hash::FxHashSet;

use super::arena::{Arena, Arenas};
use super::chunks::{End, Fence, Segment, Walk};
use super::layout::{PAGE, heap_max_sizes};
use super::mapped::is_malloc_memory;
use super::params::Params;
use super::problem::Problem;
use super::search::{Search, bytes, places};
use crate::addr::{Addr, AddrRange, RangeSet};
use crate::memory::{Memory, Width};
use crate::snapshot::Snapshot;

/// The memory that heaps of non-main arenas may take.
#[derive(Clone, Debug)]
pub(super) struct Space {
    /// Private memory without a file, whatever its protection.
    private: RangeSet,
    /// Where the heaps of all non-main arenas start, sorted.
    bases: Vec<Addr>,
}

impl Space {
    /// The memory that `arenas`, which are all that there are, can have.
    pub(super) fn new<'a>(snapshot: &Snapshot, arenas: impl Iterator<Item = &'a Heaps>) -> Self {
        let regions = snapshot.regions.iter();
        let private = regions.filter(|region| !region.shared && region.is_anonymous());
        let heaps = arenas.flat_map(|arena| &arena.heaps);
        let mut bases: Vec<Addr> = heaps.map(|heap| heap.base).collect();
        bases.sort_unstable();
        Self {
            private: private.map(|region| region.range).collect(),
            bases,
        }
    }

    /// The memory from `base` on that mappings without a gap give.
    fn from(&self, base: Addr) -> AddrRange {
        let end = self
            .private
            .containing(base)
            .map_or(base, |range| range.end);
        AddrRange::new(base, end)
    }

    /// The most that a heap at `base` can take: up to the next heap.
    fn heap_at(&self, base: Addr) -> AddrRange {
        let next = self.bases.partition_point(|other| *other <= base);
        let end = self.bases.get(next).copied().unwrap_or(Addr(u64::MAX));
        let mapped = self.from(base);
        AddrRange::new(base, mapped.end.min(end))
    }
}

/// The memory of one arena, and the chunks in it.
#[derive(Clone, Debug, Default)]
pub(super) struct ArenaMemory {
    /// Memory that the arena owns: chunks, headers, and what it has reserved.
    pub(super) owned: Vec<AddrRange>,
    /// One walk for each segment, in no order.
    pub(super) walks: Vec<Walk>,
    pub(super) problems: Vec<Problem>,
    /// What was walked, and how far.
    pub(super) segments: Vec<(Segment, AddrRange)>,
    /// What lies in front of the first chunk of a heap: its `heap_info`, and the arena in the first.
    pub(super) headers: Vec<AddrRange>,
}

impl ArenaMemory {
    fn add(&mut self, segment: Segment, walk: Walk) {
        self.add_from(segment.start, segment, walk);
    }

    /// Adds a segment of which memory from `start` on is the arena's: what alignment takes is in
    /// front of the first chunk.
    fn add_from(&mut self, start: Addr, segment: Segment, walk: Walk) {
        self.segments.push((segment, walk.range(segment.start)));
        if let End::Broken(at) = walk.end {
            self.problems.push(Problem::Header(at));
        }
        self.owned.push(walk.range(start));
        self.walks.push(walk);
    }

    fn expect_size(&mut self, arena: &Arena, found: u64) {
        let is_unwalked = self.problems.iter().any(Problem::hides_blocks);
        if found != arena.system_mem && !is_unwalked {
            let problem = Problem::SystemMemory(arena.addr, arena.system_mem, found);
            self.problems.push(problem);
        }
    }
}

/// One `heap_info` of a non-main arena.
#[derive(Clone, Copy, Debug)]
struct HeapInfo {
    base: Addr,
    previous: Addr,
    /// The bytes from `base` that are in use.
    size: u64,
    /// The bytes from `base` that were ever made writable: the rest of them is stale.
    writable: u64,
}

impl HeapInfo {
    fn read(memory: &dyn Memory, base: Addr, width: Width) -> Option<Self> {
        let word = |index: u64| {
            let offset = width.bytes().checked_mul(index)?;
            memory.pointer(base.checked_add(offset)?, width)
        };
        Some(Self {
            base,
            previous: Addr(word(1)?),
            size: word(2)?,
            writable: word(3)?.max(word(2)?),
        })
    }
}

/// The heaps of a non-main arena.
#[derive(Clone, Debug)]
pub(super) struct Heaps {
    /// The heap that holds the arena itself.
    first: Addr,
    /// From the newest back to the first.
    heaps: Vec<HeapInfo>,
    /// The newest is known.
    is_complete: bool,
}

impl Heaps {
    /// Finds the heaps of `arena`, from the one that its `top` lies in back to the first.
    pub(super) fn find(memory: &dyn Memory, arena: &Arena, heap_info: u64) -> Self {
        let first = arena.addr.saturating_sub(heap_info);
        let width = arena.layout.chunks.width;
        let heaps = heap_max_sizes(width)
            .iter()
            .find_map(|max_size| heaps_of_size(memory, arena, first, *max_size));
        Self {
            first,
            is_complete: heaps.is_some(),
            heaps: heaps
                .unwrap_or_else(|| HeapInfo::read(memory, first, width).into_iter().collect()),
        }
    }
}

fn heaps_of_size(
    memory: &dyn Memory,
    arena: &Arena,
    first: Addr,
    max_size: u64,
) -> Option<Vec<HeapInfo>> {
    let width = arena.layout.chunks.width;
    let mut heaps = Vec::new();
    let mut seen = FxHashSet::default();
    let mut base = arena.top.align_down(max_size);
    loop {
        let heap = HeapInfo::read(memory, base, width)?;
        // Each arena needs heaps of its own, so that the links of all of them are no more than
        // there is memory.
        let is_its_heap = memory.pointer(base, width) == Some(arena.addr.0)
            && heap.writable <= max_size
            && heap.size.is_multiple_of(PAGE)
            && base.is_aligned(max_size)
            && seen.insert(base);
        if !is_its_heap {
            return None;
        }
        heaps.push(heap);
        if base == first {
            return Some(heaps);
        }
        base = heap.previous;
    }
}

/// Walks all heaps of a non-main arena, as far as `space` goes.
pub(super) fn of_other_arena(
    memory: &dyn Memory,
    arena: &Arena,
    heaps: &Heaps,
    heap_info: u64,
    space: &Space,
) -> ArenaMemory {
    let mut found = ArenaMemory::default();
    if !heaps.is_complete {
        found.problems.push(Problem::NoHeapForArena(arena.addr));
    }
    let mut size = 0_u64;
    for heap in &heaps.heaps {
        size = size.saturating_add(heap.size);
        let room = space.heap_at(heap.base);
        let header = if heap.base == heaps.first {
            heap_info.saturating_add(arena.layout.size())
        } else {
            heap_info
        };
        let chunks = arena.layout.chunks;
        let Some(start) = chunks.first_chunk(heap.base.saturating_add(header)) else {
            continue;
        };
        let segment = Segment {
            chunks,
            start,
            limit: heap.base.saturating_add(heap.size).min(room.end),
            top: arena.top,
            fence: Fence::Zero,
        };
        let walk = segment.walk(memory);
        if walk.is_complete() {
            let reserved = heap.base.saturating_add(heap.writable).min(room.end);
            found.owned.push(AddrRange::new(segment.limit, reserved));
        }
        found.owned.push(AddrRange::new(heap.base, start));
        found.headers.push(AddrRange::new(heap.base, start));
        found.add(segment, walk);
    }
    found.expect_size(arena, size);
    found
}

/// Walks all segments of a main arena. `taken` is memory that other arenas own.
pub(super) fn of_main_arena(
    snapshot: &Snapshot,
    arenas: &Arenas,
    params: &Params,
    space: &Space,
    taken: &RangeSet,
) -> ArenaMemory {
    let arena = &arenas.main;
    let mut found = ArenaMemory::default();
    let brk = brk_of(snapshot, params, space);
    let mut size = 0_u64;
    let first = arena.layout.chunks.first_chunk(brk.start);
    if let Some(start) = first.filter(|_| !brk.is_empty()) {
        let end = walk_brk(snapshot, arena, AddrRange::new(start, brk.end), &mut found);
        size = AddrRange::new(brk.start, end).size();
    }
    let has_top = found
        .walks
        .iter()
        .any(|walk| matches!(walk.end, End::Top(_)));
    if !has_top || arena.is_noncontiguous {
        // What the program got from `brk` lies in it too, and may look like a segment.
        let brk = AddrRange::with_size(brk.start, size);
        let taken = taken.ranges().iter().copied().chain([brk]).collect();
        let missing = arena.system_mem.saturating_sub(size);
        let elsewhere = walk_elsewhere(snapshot, arena, &taken, missing, &mut found);
        size = size.saturating_add(elsewhere);
    }
    found.expect_size(arena, size);
    found
}

/// The memory that `brk` gave from the first segment on; empty where that was mapped because `brk`
/// failed, as for the malloc of a second libc.
///
/// The mapping has no name everywhere, and may be split where the program changed the protection of
/// a part.
fn brk_of(snapshot: &Snapshot, params: &Params, space: &Space) -> AddrRange {
    let base = params.sbrk_base;
    let mut named = snapshot.regions.iter().filter(|r| r.name == "[heap]");
    let is_elsewhere =
        named.clone().next().is_some() && !named.any(|region| region.range.contains(base));
    if is_elsewhere {
        return AddrRange::new(base, base);
    }
    space.from(base)
}

/// Walks the segments in the memory of `brk`: one, or several with memory between them for which
/// the program itself called `brk`. Returns the end of the last.
fn walk_brk(snapshot: &Snapshot, arena: &Arena, brk: AddrRange, found: &mut ArenaMemory) -> Addr {
    let memory = &*snapshot.memory;
    let first = Segment {
        chunks: arena.layout.chunks,
        start: brk.start,
        limit: brk.end,
        top: arena.top,
        fence: Fence::Double,
    };
    let walk = first.walk(memory);
    let mut end = walk.range(brk.start).end;
    let mut is_fenced = matches!(walk.end, End::Fence(_));
    found.add(first, walk);
    if !is_fenced {
        return end;
    }
    let parts = memory.resident(AddrRange::new(end, brk.end));
    let mut search = Search::new(memory, arena, bytes(&parts));
    while is_fenced {
        let Some((start, walk)) = next_segment(&mut search, first, &parts, end) else {
            break;
        };
        end = walk.range(start).end;
        is_fenced = matches!(walk.end, End::Fence(_));
        found.add(Segment { start, ..first }, walk);
    }
    end
}

/// The next segment that starts in `parts`, at or above `from`, and is like `segment`.
///
/// Nothing marks the place, so each is tried. Before it lies memory of the program's, which may look
/// like chunks; the segment is fresh itself, and malloc never writes its first word, which is a part
/// of the chunk before. So places with a word of zeros are tried first.
fn next_segment(
    search: &mut Search<'_>,
    segment: Segment,
    parts: &[AddrRange],
    from: Addr,
) -> Option<(Addr, Walk)> {
    let chunks = segment.chunks;
    [true, false].into_iter().find_map(|is_fresh| {
        let places = parts
            .iter()
            .flat_map(|part| places(*part, from, chunks.alignment));
        places
            .filter_map(|place| place.checked_add(chunks.lead()))
            .filter(|start| *start >= from)
            .find_map(|start| segment_at(search, Segment { start, ..segment }, is_fresh))
    })
}

fn segment_at(search: &mut Search<'_>, segment: Segment, is_fresh: bool) -> Option<(Addr, Walk)> {
    if search.is_fresh(segment.start, segment.chunks.width) != is_fresh {
        return None;
    }
    let walk = search.walk(segment)?;
    if walk.problems.is_empty() {
        return Some((segment.start, walk));
    }
    search.reject(&walk);
    None
}

/// Walks the segments that the main arena mapped where `brk` failed. No list of them exists, so
/// each page of anonymous memory is tried until they add up to `missing`. Returns the sum.
fn walk_elsewhere(
    snapshot: &Snapshot,
    arena: &Arena,
    taken: &RangeSet,
    missing: u64,
    found: &mut ArenaMemory,
) -> u64 {
    let memory = &*snapshot.memory;
    let own = found.owned.iter().chain(taken.ranges());
    let own: RangeSet = own.copied().collect();
    let regions = snapshot.regions.iter();
    let malloc_memory: Vec<AddrRange> = regions
        .filter(|region| is_malloc_memory(region))
        .map(|region| region.range)
        .collect();
    // The kernel does not join all neighbours: not those of before and after a `fork`.
    let joined: RangeSet = malloc_memory.iter().copied().collect();
    let gaps: Vec<AddrRange> = joined.ranges().iter().flat_map(|r| own.gaps(*r)).collect();
    let mut search = Search::new(memory, arena, bytes(&gaps));
    let mut size = 0_u64;
    let mut from = Addr(0);
    for gap in gaps {
        for part in memory.resident(gap) {
            while size < missing {
                let left = missing.saturating_sub(size);
                let found_one = mapped_segment(&mut search, arena, part, from, gap.end, left);
                let Some((start, segment, walk)) = found_one else {
                    break;
                };
                let range = walk.range(start);
                size = size.saturating_add(range.size());
                from = range.end;
                found.add_from(start, segment, walk);
            }
        }
    }
    size
}

/// The first segment that starts at a page of `part` from `from` on, ends at or before `limit`, and
/// has `missing` bytes at most.
fn mapped_segment(
    search: &mut Search<'_>,
    arena: &Arena,
    part: AddrRange,
    from: Addr,
    limit: Addr,
    missing: u64,
) -> Option<(Addr, Segment, Walk)> {
    let chunks = arena.layout.chunks;
    places(part, from, PAGE).find_map(|start| {
        let segment = Segment {
            chunks,
            start: start.checked_add(chunks.lead())?,
            limit: limit.min(start.saturating_add(missing)),
            top: arena.top,
            fence: Fence::Double,
        };
        Some((start, segment, search.walk(segment)?))
    })
}
