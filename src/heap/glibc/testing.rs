//! Heaps as glibc lays them out, for tests.

use super::Found;
use super::layout::{
    ArenaLayout, BINS, IS_MMAPPED, NON_MAIN_ARENA, PAGE, PREV_INUSE, ParamsLayout, TcacheLayout,
    arenas, params, tcaches,
};
use crate::addr::{Addr, AddrRange, RangeSet};
use crate::heap::Block;
use crate::memory::{FakeMemory, Memory, Width};
use crate::snapshot::{Module, Region, Segment, Snapshot, Thread};

pub(super) const HEADER: u64 = 16;
pub(super) const MODULE: u64 = 0x7f00_0000_0000;
pub(super) const MAIN_ARENA: u64 = MODULE + 0x100;
pub(super) const PARAMS_AT: u64 = MODULE + 0x2000;
pub(super) const BRK: u64 = 0x5555_0000_0000;
pub(super) const MAPPED: u64 = 0x7e00_0000_0000;
pub(super) const OTHER_HEAP: u64 = 0x7d00_0000_0000;
const TLS: u64 = 0x7c00_0000_0000;
const THREAD_POINTER: u64 = TLS + 0x3000;
const TCACHE_VARIABLE: u64 = THREAD_POINTER - 0x48;
const TCACHE_COUNT: u64 = 7;

/// Some ranges of memory; what lies between them is unreadable.
#[derive(Clone, Debug, Default)]
pub(crate) struct Patchwork(pub(crate) Vec<FakeMemory>);

impl Patchwork {
    /// Adds `size` zero bytes at `base`.
    pub(crate) fn add(&mut self, base: u64, size: u64) {
        let size = usize::try_from(size).expect("a small test memory");
        self.0.push(FakeMemory::zeroed(base, size));
    }

    pub(crate) fn set_word(&mut self, addr: u64, value: u64) {
        self.part_mut(addr).set_word(addr, value);
    }

    fn part_mut(&mut self, addr: u64) -> &mut FakeMemory {
        let mut parts = self.0.iter_mut();
        let part = parts.find(|part| Self::range(part).contains(Addr(addr)));
        part.expect("readable memory")
    }

    fn range(part: &FakeMemory) -> AddrRange {
        AddrRange::with_size(Addr(part.base), part.bytes.len() as u64)
    }
}

impl Memory for Patchwork {
    fn read(&self, addr: Addr, buf: &mut [u8]) -> usize {
        let part = self.0.iter().find(|part| Self::range(part).contains(addr));
        part.map_or(0, |part| part.read(addr, buf))
    }

    fn resident(&self, range: AddrRange) -> Vec<AddrRange> {
        let parts = self
            .0
            .iter()
            .map(|part| Self::range(part).intersection(&range));
        parts.filter(|part| !part.is_empty()).collect()
    }
}

/// How some releases lay out a heap.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Release {
    pub(super) arena: ArenaLayout,
    pub(super) params: ParamsLayout,
    tcache: Option<TcacheLayout>,
    pub(super) heap_info: u64,
    mangled: bool,
}

/// One of each kind: 2.17, 2.23, 2.26, 2.27, 2.32, 2.35, 2.42 and 2.43.
pub(crate) fn releases() -> Vec<Release> {
    let release = |arena: usize,
                   counts_threads,
                   params_index: usize,
                   tcache: Option<usize>,
                   heap_info,
                   mangled| Release {
        arena: ArenaLayout {
            counts_threads,
            ..arenas(Width::Eight)[arena]
        },
        params: params(Width::Eight)[params_index],
        tcache: tcache.map(|index| tcaches(Width::Eight)[index]),
        heap_info,
        mangled,
    };
    vec![
        release(0, false, 0, None, 0x20, false),
        release(0, true, 0, None, 0x20, false),
        release(0, true, 2, Some(0), 0x20, false),
        release(2, true, 2, Some(0), 0x20, false),
        release(2, true, 2, Some(1), 0x20, true),
        release(2, true, 3, Some(1), 0x30, true),
        release(2, true, 3, Some(2), 0x30, true),
        release(3, true, 4, Some(2), 0x30, true),
    ]
}

/// What becomes of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Used,
    Free,
    InTcache,
    InFastbin,
}

/// What a heap holds. Sizes are those of chunks, in units of 16 bytes above the smallest.
#[derive(Clone, Debug)]
pub(crate) struct Contents {
    pub(crate) main: Vec<(u64, Fate)>,
    pub(crate) other: Vec<(u64, Fate)>,
    /// The pages of each mapping, and the page-size power of two that its user asked for, if any.
    pub(crate) mapped: Vec<(u64, Option<u32>)>,
}

/// A heap and what a walk has to find in it.
#[derive(Clone, Debug)]
pub(crate) struct Built {
    pub(crate) memory: Patchwork,
    pub(crate) live: Vec<Block>,
    release: Release,
    /// The heads of the lists of each tcache and fastbin, and their lengths.
    tcache: Option<u64>,
}

/// The bytes that `brk` and the heap of the other arena have.
pub(super) const HEAP_SIZE: u64 = 0x2_1000;
const MAPPED_SIZE: u64 = 0x4_0000;

impl Built {
    pub(crate) fn new(release: Release, contents: &Contents) -> Self {
        let mut memory = Patchwork::default();
        for (base, size) in [
            (BRK, HEAP_SIZE),
            (TLS, 0x4000),
            (OTHER_HEAP, HEAP_SIZE),
            (MAPPED, MAPPED_SIZE),
            (MODULE, 0x4000),
        ] {
            memory.add(base, size);
        }
        let mut built = Self {
            memory,
            live: Vec::new(),
            release,
            tcache: None,
        };
        let other = OTHER_HEAP + release.heap_info;
        built.arena(MAIN_ARENA, other);
        built.arena(other, MAIN_ARENA);
        for (offset, word) in [(0, other), (8, 0), (16, HEAP_SIZE), (24, HEAP_SIZE)] {
            built.memory.set_word(OTHER_HEAP + offset, word);
        }
        built.tcache(BRK);
        let start = BRK + release.tcache.map_or(0, TcacheLayout::chunk);
        built.chunks(MAIN_ARENA, start, BRK + HEAP_SIZE, &contents.main);
        let start = (other + release.arena.size()).next_multiple_of(16);
        // What a thread allocates first is its cache, and a block of zeros of that size in that
        // place is taken for one: here stands a smaller block.
        let chunks = [&[(0, Fate::Used)], contents.other.as_slice()].concat();
        built.chunks(other, start, OTHER_HEAP + HEAP_SIZE, &chunks);
        built.params();
        built.mapped(&contents.mapped);
        built.live.sort_unstable();
        built
    }

    /// An arena with empty bins.
    fn arena(&mut self, at: u64, next: u64) {
        let layout = self.release.arena;
        for bin in 0..BINS {
            let pair = at + layout.bins + bin * 16;
            self.memory.set_word(pair, pair - HEADER);
            self.memory.set_word(pair + 8, pair - HEADER);
        }
        self.memory.set_word(at + layout.next(), next);
        if layout.counts_threads {
            self.memory.set_word(at + layout.next() + 16, 1);
        }
        self.memory.set_word(at + layout.system_mem(), HEAP_SIZE);
        self.memory
            .set_word(at + layout.max_system_mem(), HEAP_SIZE);
    }

    /// The cache of the only thread, which is the first chunk at `at`.
    fn tcache(&mut self, at: u64) {
        let Some(layout) = self.release.tcache else {
            return;
        };
        self.memory.set_word(at + 8, layout.chunk() | PREV_INUSE);
        self.memory.set_word(TCACHE_VARIABLE, at + HEADER);
        self.tcache = Some(at + HEADER);
        for bin in 0..layout.bins {
            self.set_count(layout, bin, 0);
        }
    }

    fn set_count(&mut self, layout: TcacheLayout, bin: u64, length: u64) {
        let Some(tcache) = self.tcache else { return };
        let count = if layout.counts_down {
            TCACHE_COUNT - length
        } else {
            length
        };
        let at = tcache + bin * layout.count_size;
        let part = self.memory.part_mut(at);
        let offset = usize::try_from(at - part.base).expect("a small test memory");
        for index in 0..usize::try_from(layout.count_size).expect("one or two") {
            part.bytes[offset + index] = count.to_le_bytes()[index];
        }
    }

    /// Fills the arena at `arena` with chunks from `start` on, and what is left up to `end` with
    /// its top.
    fn chunks(&mut self, arena: u64, start: u64, end: u64, chunks: &[(u64, Fate)]) {
        let flag = if arena == MAIN_ARENA {
            0
        } else {
            NON_MAIN_ARENA
        };
        let mut at = start;
        let mut previous = PREV_INUSE;
        for (units, fate) in chunks {
            let size = 0x20 + units * 16;
            self.memory.set_word(at + 8, size | flag | previous);
            previous = PREV_INUSE;
            match fate {
                Fate::Free => {
                    self.memory.set_word(at + size, size);
                    previous = 0;
                }
                Fate::InTcache if self.put_in_tcache(at, *units) => {}
                Fate::InFastbin if self.put_in_fastbin(arena, at, *units) => {}
                _ => self.live.push(Block {
                    start: Addr(at + HEADER),
                    size: size - 8,
                }),
            }
            at += size;
        }
        self.memory.set_word(at + 8, (end - at) | previous);
        let top = arena + self.release.arena.top();
        self.memory.set_word(top, at);
    }

    fn link(&mut self, at: u64, next: u64) {
        let key = if self.release.mangled { at >> 12 } else { 0 };
        self.memory.set_word(at, next ^ key);
    }

    fn put_in_tcache(&mut self, chunk: u64, bin: u64) -> bool {
        let (Some(layout), Some(tcache)) = (self.release.tcache, self.tcache) else {
            return false;
        };
        let entry = tcache + layout.entries() + bin * 8;
        let mut length = 0;
        let mut next = self.memory.word(Addr(entry)).unwrap_or(0);
        let head = next;
        while next != 0 {
            length += 1;
            let key = if self.release.mangled { next >> 12 } else { 0 };
            next = self.memory.word(Addr(next)).unwrap_or(0) ^ key;
        }
        if bin >= 64 || length == TCACHE_COUNT {
            return false;
        }
        self.link(chunk + HEADER, head);
        self.memory.set_word(entry, chunk + HEADER);
        self.set_count(layout, bin, length + 1);
        true
    }

    fn put_in_fastbin(&mut self, arena: u64, chunk: u64, bin: u64) -> bool {
        let Some((offset, bins)) = self.release.arena.fastbins else {
            return false;
        };
        let entry = arena + offset + bin * 8;
        if bin < bins {
            let head = self.memory.word(Addr(entry)).unwrap_or(0);
            self.link(chunk + HEADER, head);
            self.memory.set_word(entry, chunk);
        }
        bin < bins
    }

    fn params(&mut self) {
        let layout = self.release.params;
        let mut set = |offset: u64, value| self.memory.set_word(PARAMS_AT + offset, value);
        for offset in [0x00, 0x08, 0x10] {
            set(offset, 0x2_0000);
        }
        set(0x18, 8);
        set(layout.sbrk_base, BRK);
        if let Some(tcache) = layout.tcache_bins() {
            set(tcache, 64);
            set(tcache + 8, 1032);
            set(tcache + 16, TCACHE_COUNT);
        }
        self.set_half(layout.n_mmaps_max(), 65536);
    }

    fn set_half(&mut self, offset: u64, value: u64) {
        let at = PARAMS_AT + offset;
        let above = self.memory.word(Addr(at)).unwrap_or(0) >> 32 << 32;
        self.memory.set_word(at, above | value);
    }

    fn mapped(&mut self, mappings: &[(u64, Option<u32>)]) {
        let like_normal = self.release.arena.bins == 0x18;
        let mut at = MAPPED;
        for (pages, power) in mappings {
            let size = pages * PAGE;
            let (behind, overhead) = if like_normal {
                (HEADER, 8)
            } else {
                (0, HEADER)
            };
            let moved = power.map_or(0, |power| (1 << power) - HEADER);
            for offset in [0, moved] {
                let header = at + offset;
                self.memory.set_word(header, offset);
                let chunk = size - offset - behind;
                self.memory.set_word(header + 8, chunk | IS_MMAPPED);
            }
            self.live.push(Block {
                start: Addr(at + moved + HEADER),
                size: size - moved - behind - overhead,
            });
            at += size;
        }
        let layout = self.release.params;
        let count = mappings.len() as u64;
        self.set_half(layout.n_mmaps, count | 65536 << 32);
        self.set_half(layout.n_mmaps, count);
        self.set_half(layout.max_n_mmaps(), count);
        for offset in [layout.mmapped_mem, layout.max_mmapped_mem()] {
            self.memory.set_word(PARAMS_AT + offset, at - MAPPED);
        }
    }

    /// The process that has this heap.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot::of_memory(Box::new(self.memory.clone()));
        snapshot.regions = self.memory.0.iter().map(region).collect();
        snapshot.regions.sort_by_key(|region| region.range);
        snapshot.modules = vec![Module {
            path: "/usr/lib/libc.so.6".to_owned(),
            base: Addr(MODULE),
            segments: vec![Segment {
                range: AddrRange::with_size(Addr(MODULE), 0x4000),
                writable: true,
                executable: false,
            }],
            ..Module::default()
        }];
        snapshot.threads = vec![Thread {
            thread_pointer: Addr(THREAD_POINTER),
            stack_pointer: Addr(THREAD_POINTER + 0x800),
            ..Thread::default()
        }];
        snapshot
    }
}

fn region(part: &FakeMemory) -> Region {
    let (name, inode) = match part.base {
        BRK => ("[heap]", 0),
        MODULE => ("/usr/lib/libc.so.6", 1),
        _ => ("", 0),
    };
    Region {
        range: Patchwork::range(part),
        readable: true,
        writable: true,
        file: (0, 0, inode),
        name: name.to_owned(),
        ..Region::default()
    }
}

/// A word of `memory` that is overwritten, chosen by a number.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mutation {
    pub(crate) part: usize,
    pub(crate) word: u64,
    pub(crate) change: Change,
}

/// What is done to a word.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Change {
    Set(u64),
    Flip(u32),
    Add(i64),
    /// The word at another place, or its address.
    Copy(u64),
    PointTo(u64),
}

impl Patchwork {
    fn place(&self, part: usize, word: u64) -> u64 {
        let part = &self.0[part % self.0.len()];
        part.base + word % (part.bytes.len() as u64 / 8) * 8
    }

    pub(crate) fn mutate(&mut self, mutation: Mutation) {
        let at = self.place(mutation.part, mutation.word);
        let old = self.word(Addr(at)).unwrap_or(0);
        let other = |number: u64| self.place(usize::from(number.to_le_bytes()[7]), number >> 8);
        let new = match mutation.change {
            Change::Set(value) => value,
            Change::Flip(bit) => old ^ 1 << bit,
            Change::Add(value) => old.wrapping_add_signed(value),
            Change::Copy(number) => self.word(Addr(other(number))).unwrap_or(0),
            Change::PointTo(number) => other(number),
        };
        self.set_word(at, new);
    }
}

/// Checks what is true of each walk, however damaged the heap.
pub(super) fn check_promises(found: &Found) {
    let heap = &found.heap;
    let pairs = heap.blocks.iter().zip(heap.blocks.iter().skip(1));
    for (block, next) in pairs {
        assert!(block.range().end <= next.start, "{block:x?} {next:x?}");
    }
    for pair in heap.zone_ranges.windows(2) {
        assert!(pair[0].0.end <= pair[1].0.start, "{pair:x?}");
    }
    let zones: RangeSet = heap.zone_ranges.iter().map(|(range, _)| *range).collect();
    for block in &heap.blocks {
        let range = block.range();
        let owned = heap.owned.containing(block.start);
        assert!(
            owned.is_some_and(|owned| owned.covers(&range)),
            "{block:x?}"
        );
        assert!(zones.contains(block.start), "{block:x?}");
    }
}
