//! The segments of each arena.

use std::collections::BTreeSet;

use super::arena::{Arena, Arenas};
use super::chunks::{End, Fence, Segment, Walk};
use super::layout::{ALIGNMENT, HEAP_MAX_SIZES, PAGE, PREV_INUSE};
use super::mapped::{is_malloc_memory, joined_end};
use super::params::Params;
use super::problem::Problem;
use crate::addr::{Addr, AddrRange, RangeSet};
use crate::memory::{Memory, Window};
use crate::snapshot::{Region, Snapshot};

/// More heaps than an arena can have in the address space.
const MAX_HEAPS: usize = 1 << 20;

/// The memory of one arena, and the chunks in it.
#[derive(Clone, Debug, Default)]
pub(super) struct ArenaMemory {
    /// Memory that the arena owns: chunks, headers, and what it has reserved.
    pub(super) owned: Vec<AddrRange>,
    /// One walk for each segment, in no order.
    pub(super) walks: Vec<Walk>,
    pub(super) problems: Vec<Problem>,
}

impl ArenaMemory {
    fn add(&mut self, start: Addr, walk: Walk) {
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
    fn read(memory: &dyn Memory, base: Addr) -> Option<Self> {
        let word = |offset| memory.word(base.checked_add(offset)?);
        Some(Self {
            base,
            previous: Addr(word(8)?),
            size: word(16)?,
            writable: word(24)?.max(word(16)?),
        })
    }
}

/// Walks all heaps of a non-main arena.
pub(super) fn of_other_arena(memory: &dyn Memory, arena: &Arena, heap_info: u64) -> ArenaMemory {
    let mut found = ArenaMemory::default();
    let first = Addr(arena.addr.0 - heap_info);
    let heaps = heaps(memory, arena, first).unwrap_or_else(|| {
        found.problems.push(Problem::NoHeapForArena(arena.addr));
        HeapInfo::read(memory, first).into_iter().collect()
    });
    let mut size = 0;
    for heap in heaps {
        size += heap.size;
        let header = if heap.base == first {
            heap_info + arena.layout.size()
        } else {
            heap_info
        };
        let Some(start) = heap.base.saturating_add(header).align_up(ALIGNMENT) else {
            continue;
        };
        let segment = Segment {
            start,
            limit: heap.base.saturating_add(heap.size),
            top: arena.top,
            fence: Fence::Zero,
        };
        let walk = segment.walk(memory);
        if walk.is_complete() {
            let reserved = heap.base.saturating_add(heap.writable);
            found.owned.push(AddrRange::new(segment.limit, reserved));
        }
        found.owned.push(AddrRange::new(heap.base, start));
        found.add(start, walk);
    }
    found.expect_size(arena, size);
    found
}

/// The heaps of a non-main arena, from the one that `top` lies in back to the first.
fn heaps(memory: &dyn Memory, arena: &Arena, first: Addr) -> Option<Vec<HeapInfo>> {
    HEAP_MAX_SIZES
        .iter()
        .find_map(|max_size| heaps_of_size(memory, arena, first, *max_size))
}

fn heaps_of_size(
    memory: &dyn Memory,
    arena: &Arena,
    first: Addr,
    max_size: u64,
) -> Option<Vec<HeapInfo>> {
    let mut heaps = Vec::new();
    let mut base = arena.top.align_down(max_size);
    loop {
        let heap = HeapInfo::read(memory, base)?;
        let is_its_heap = memory.word(base) == Some(arena.addr.0)
            && heap.writable <= max_size
            && heap.size.is_multiple_of(PAGE)
            && heaps.len() < MAX_HEAPS;
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

/// Walks all segments of a main arena. `taken` is memory that other arenas own.
pub(super) fn of_main_arena(
    snapshot: &Snapshot,
    arenas: &Arenas,
    params: &Params,
    taken: &RangeSet,
) -> ArenaMemory {
    let arena = &arenas.main;
    let mut found = ArenaMemory::default();
    let brk = brk_memory(snapshot, params.sbrk_base);
    let mut size = 0;
    if let Some(start) = brk.start.align_up(ALIGNMENT).filter(|_| !brk.is_empty()) {
        let end = walk_brk(snapshot, arena, AddrRange::new(start, brk.end), &mut found);
        size = end.0 - brk.start.0;
    }
    let has_top = found
        .walks
        .iter()
        .any(|walk| matches!(walk.end, End::Top(_)));
    if !has_top || arena.is_noncontiguous {
        // What the program got from `brk` lies in it too, and may look like a segment.
        let brk = AddrRange::with_size(brk.start, size);
        let taken = taken.ranges().iter().copied().chain([brk]).collect();
        size += walk_elsewhere(snapshot, arena, &taken, size, &mut found);
    }
    found.expect_size(arena, size);
    found
}

/// The memory from where `brk` started to its end now. Its mapping has no name everywhere, and may
/// be split where the program changed the protection of a part.
fn brk_memory(snapshot: &Snapshot, base: Addr) -> AddrRange {
    let mut end = base;
    while let Some(region) = snapshot.region_at(end).filter(|region| is_data(region)) {
        end = region.range.end;
    }
    AddrRange::new(base, end)
}

fn is_data(region: &Region) -> bool {
    !region.shared && region.is_anonymous()
}

/// Walks the segments in the memory of `brk`: one, or several with memory between them for which
/// the program itself called `brk`. Returns the end of the last.
fn walk_brk(snapshot: &Snapshot, arena: &Arena, brk: AddrRange, found: &mut ArenaMemory) -> Addr {
    let memory = &*snapshot.memory;
    let segment_at = |start| Segment {
        start,
        limit: brk.end,
        top: arena.top,
        fence: Fence::Double,
    };
    let mut finder = None;
    let mut start = brk.start;
    loop {
        let walk = segment_at(start).walk(memory);
        let end = walk.range(start).end;
        let is_fenced = matches!(walk.end, End::Fence(_));
        found.add(start, walk);
        if !is_fenced {
            return end;
        }
        let finder = finder.get_or_insert_with(|| Finder::new(memory, arena));
        match finder.next_segment(segment_at(end)) {
            Some(next) => start = next,
            None => return end,
        }
    }
}

/// Tells segments whose place is not known from memory that only looks like one.
struct Finder<'a> {
    memory: &'a dyn Memory,
    top: Addr,
    /// The free chunks in the arena's bins.
    binned: BTreeSet<Addr>,
}

impl<'a> Finder<'a> {
    fn new(memory: &'a dyn Memory, arena: &Arena) -> Self {
        Self {
            memory,
            top: arena.top,
            binned: arena.binned(memory),
        }
    }

    /// Where the next segment starts: nothing marks the place, so each is tried. Before it lies
    /// memory of the program's, which may look like chunks; it is fresh itself, and malloc never
    /// writes its first word, which is a part of the chunk before.
    fn next_segment(&self, segment: Segment) -> Option<Addr> {
        self.next_start(segment, |before| before == 0)
            .or_else(|| self.next_start(segment, |before| before != 0))
    }

    fn next_start(&self, mut segment: Segment, may_precede: impl Fn(u64) -> bool) -> Option<Addr> {
        let range = AddrRange::new(segment.start, segment.limit);
        let mut window = Window::new(self.memory);
        for part in self.memory.resident(range) {
            segment.start = part.start.align_up(ALIGNMENT)?;
            while segment.start < part.end {
                let before = window.word(segment.start).unwrap_or(0);
                let header = window.word(segment.start.saturating_add(8)).unwrap_or(0);
                if header & PREV_INUSE != 0 && may_precede(before) && self.walk(segment).is_some() {
                    return Some(segment.start);
                }
                segment.start = segment.start.saturating_add(ALIGNMENT);
            }
        }
        None
    }

    /// The chunks of `segment`, if it is one: it begins as segments do, ends as they do, and its
    /// free chunks are those that the bins have there.
    fn walk(&self, segment: Segment) -> Option<Walk> {
        let walk = segment.walk(self.memory);
        let end = match walk.end {
            End::Top(end) => end,
            End::Fence(end) if end.is_aligned(PAGE) => end,
            End::Fence(_) | End::Broken(_) => return None,
        };
        let binned = self.binned.range(segment.start..end);
        (walk.starts_well && binned.eq(&walk.free)).then_some(walk)
    }

    /// The segment that starts at `page`, if one does.
    fn mapped_segment(&self, page: Addr, limit: Addr) -> Option<Walk> {
        let header = self.memory.word(page.saturating_add(8))?;
        if header & PREV_INUSE == 0 {
            return None;
        }
        self.walk(Segment {
            start: page,
            limit,
            top: self.top,
            fence: Fence::Double,
        })
    }
}

/// Walks the segments that the main arena mapped where `brk` failed. No list of them exists, so
/// each page of anonymous memory is tried until their sizes add up. Returns the sum.
fn walk_elsewhere(
    snapshot: &Snapshot,
    arena: &Arena,
    taken: &RangeSet,
    brk_size: u64,
    found: &mut ArenaMemory,
) -> u64 {
    let memory = &*snapshot.memory;
    let finder = Finder::new(memory, arena);
    let mut size = 0;
    let mut end = Addr(0);
    for region in snapshot
        .regions
        .iter()
        .filter(|region| is_malloc_memory(region))
    {
        for gap in taken.gaps(region.range) {
            let limit = if gap.end == region.range.end {
                joined_end(snapshot, region)
            } else {
                gap.end
            };
            for part in memory.resident(gap) {
                let mut page = part.start.max(end).align_up(PAGE).unwrap_or(part.end);
                while page < part.end && brk_size + size < arena.system_mem {
                    let missing = arena.system_mem - brk_size - size;
                    let limit = limit.min(page.saturating_add(missing));
                    let Some(walk) = finder.mapped_segment(page, limit) else {
                        page = page.saturating_add(PAGE);
                        continue;
                    };
                    let range = walk.range(page);
                    size += range.size();
                    end = range.end;
                    page = end.align_up(PAGE).unwrap_or(part.end);
                    found.add(range.start, walk);
                }
            }
        }
    }
    size
}
