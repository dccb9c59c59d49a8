//! Free chunks that look like chunks in use: those in fastbins and in thread caches.
//!
//! More than half of the chunks that look in use in an ordinary process are really in such a
//! cache. From 2.32 on their links are mangled (`PROTECT_PTR`): the address of the link, shifted
//! right by 12, is combined with it by exclusive or. The heads are not.

use std::cmp::Reverse;
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;
use rustc_hash::{FxHashMap, FxHashSet};

use super::arena::Arena;
use super::layout::{ChunkLayout, PAGE, SMALL_TCACHE_BINS, TcacheLayout, tcaches};
use super::params::Params;
use super::problem::Problem;
use crate::addr::{Addr, AddrRange};
use crate::heap::{Block, Blocks};
use crate::memory::{Memory, Width, Window};
use crate::snapshot::{Machine, Snapshot, Thread};

/// How far from a thread pointer its `tcache` variable may lie: the static TLS of the C library
/// is among the first. It is below the pointer, on aarch64 above it.
const TLS_REACH: usize = 0x4000;
/// Links that are followed, for each block: a list is looked at a few times, to find the layout.
const LINKS_PER_BLOCK: u64 = 16;
const MIN_LINKS: u64 = 1 << 20;
const PAGE_SIZE: usize = 4096;

/// The cached blocks, by address, and the blocks that are caches themselves.
#[derive(Clone, Debug, Default)]
pub(super) struct Cached {
    /// Blocks that are free.
    pub(super) free: FxHashSet<u64>,
    /// Blocks that are a `tcache_perthread_struct`.
    pub(super) caches: FxHashSet<u64>,
    pub(super) problems: Vec<Problem>,
}

/// What the lists are looked up in.
pub(super) struct Lists<'a> {
    memory: &'a dyn Memory,
    chunks: ChunkLayout,
    /// Static TLS lies above thread pointers.
    tls_above: bool,
    /// All blocks that look in use.
    blocks: &'a Blocks,
    /// How many chunks a bin of a thread cache takes.
    tcache_count: u64,
    mangled: bool,
    /// How many links may still be followed: lists that are none can share chunks, and then each
    /// of them would lead through all of these anew.
    links_left: AtomicU64,
}

/// Follows links for one thread.
struct Links<'a> {
    lists: &'a Lists<'a>,
    window: Window<'a>,
    /// How many it may follow before it takes more of those that are left.
    left: u64,
}

impl<'a> Links<'a> {
    /// How many are taken at once.
    const TAKEN: u64 = 1 << 10;

    fn of(lists: &'a Lists<'a>) -> Self {
        Self {
            lists,
            window: Window::around(lists.memory),
            left: 0,
        }
    }

    fn link(&mut self, addr: u64) -> Option<u64> {
        if self.left == 0 {
            let left = &self.lists.links_left;
            let take = |left: u64| left.checked_sub(Self::TAKEN);
            left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
                .ok()?;
            self.left = Self::TAKEN;
        }
        self.left = self.left.saturating_sub(1);
        let link = self.window.pointer(Addr(addr), self.lists.chunks.width)?;
        Some(if self.lists.mangled {
            link ^ (addr >> 12)
        } else {
            link
        })
    }
}

impl Drop for Links<'_> {
    fn drop(&mut self) {
        self.lists
            .links_left
            .fetch_add(self.left, Ordering::Relaxed);
    }
}

/// One thread cache: where it is, and the blocks on its lists.
struct Tcache {
    free: Vec<u64>,
    /// Lists that are one longer or shorter than their count.
    miscounts: u64,
    /// Nothing was ever put in, and its counts say so: it is not just a block of zeros.
    is_fresh: bool,
}

impl Lists<'_> {
    fn pointer(&self, addr: Addr) -> Option<u64> {
        self.memory.pointer(addr, self.chunks.width)
    }

    /// Where the thread-local variable of `thread` is that lies at this distance from the thread pointer.
    fn thread_variable(&self, thread: &Thread, distance: u64) -> Addr {
        match self.tls_above {
            true => thread.thread_pointer.saturating_add(distance),
            false => thread.thread_pointer.saturating_sub(distance),
        }
    }

    /// The words of static TLS at thread pointer `pointer`, with their distances.
    fn thread_words(&self, pointer: Addr) -> Vec<(u64, u64)> {
        match self.tls_above {
            true => words_above(self.memory, self.chunks.width, pointer),
            false => words_below(self.memory, self.chunks.width, pointer),
        }
    }

    /// The size of the chunk of a block.
    fn chunk_size(&self, block: Block) -> u64 {
        block.size.saturating_add(self.chunks.word())
    }

    /// Says whether a chunk of `size` bytes may be in `bin` of a thread cache.
    fn fits_bin(&self, bin: u64, size: u64) -> bool {
        if bin < SMALL_TCACHE_BINS {
            size == self.chunks.tcache_size(bin)
        } else {
            size >= self.chunks.tcache_size(SMALL_TCACHE_BINS)
        }
    }

    fn block(&self, start: u64) -> Option<Block> {
        self.blocks.starting_at(Addr(start))
    }

    /// The blocks of the list that starts at block `head`, all of whose chunks have a size that
    /// `fits`. `None` where it leads to anything else, or in a circle.
    fn follow(&self, head: u64, longest: u64, fits: impl Fn(u64) -> bool) -> Option<Vec<u64>> {
        let mut list = Vec::new();
        let mut links = Links::of(self);
        let mut next = head;
        while next != 0 {
            if list.len() as u64 >= longest || !fits(self.chunk_size(self.block(next)?)) {
                return None;
            }
            list.push(next);
            next = links.link(next)?;
        }
        Some(list)
    }

    /// The thread cache at block `start`, if there is one: all its lists lead to chunks of their
    /// sizes, and are as long as their counts.
    fn tcache(&self, start: Addr, layout: TcacheLayout) -> Option<Tcache> {
        let mut bytes = vec![0; usize::try_from(layout.size()).ok()?];
        if self.memory.read(start, &mut bytes) < bytes.len() {
            return None;
        }
        let (counts, entries) = bytes.split_at(usize::try_from(layout.entries()).ok()?);
        let counts = counts.chunks_exact(usize::try_from(layout.count_size).ok()?);
        let mut tcache = Tcache {
            free: Vec::new(),
            miscounts: 0,
            is_fresh: layout.counts_down && self.tcache_count > 0,
        };
        for (bin, (count, entry)) in
            (0..).zip(counts.zip(entries.chunks_exact(layout.width.size())))
        {
            let count = count
                .iter()
                .rev()
                .fold(0, |n, byte| n << 8 | u64::from(*byte));
            let head = layout.width.word(entry)?;
            tcache.is_fresh &= head == 0 && count == self.tcache_count;
            let count = match (layout.counts_down, head) {
                (false, _) => count,
                // A bin that was never used counts 0 in the struct of all zeros that a thread
                // which is about to exit leaves, and the whole count otherwise.
                (true, 0) if count == 0 => 0,
                (true, _) => self.tcache_count.checked_sub(count)?,
            };
            let longest = count.saturating_add(1);
            let list = self.follow(head, longest, |size| self.fits_bin(bin, size))?;
            match (list.len() as u64).abs_diff(count) {
                0 => {}
                1 => tcache.miscounts = tcache.miscounts.saturating_add(1),
                _ => return None,
            }
            tcache.free.extend(list);
        }
        Some(tcache)
    }

    /// The blocks in the fastbins of `arena`, or `None` where a list leads to something else.
    fn fastbins(&self, arena: &Arena) -> Option<Vec<u64>> {
        let Some((offset, bins)) = arena.layout.fastbins else {
            return Some(Vec::new());
        };
        let first = arena.addr.checked_add(offset)?;
        let lists: Option<Vec<Vec<u64>>> = (0..bins)
            .into_par_iter()
            .map(|bin| {
                let offset = bin.checked_mul(self.chunks.width.bytes())?;
                let head = self.pointer(first.checked_add(offset)?)?;
                self.fastbin(head, self.chunks.fastbin_size(bin))
            })
            .collect();
        Some(lists?.concat())
    }

    /// Fastbins link chunks, not blocks: the link is at the start of the block.
    fn fastbin(&self, head: u64, size: u64) -> Option<Vec<u64>> {
        let mut list = Vec::new();
        let mut links = Links::of(self);
        let mut chunk = head;
        while chunk != 0 {
            let start = chunk.checked_add(self.chunks.header())?;
            if list.len() >= self.blocks.len() || self.chunk_size(self.block(start)?) != size {
                return None;
            }
            list.push(start);
            chunk = links.link(start)?;
        }
        Some(list)
    }
}

/// Finds the cached blocks among `blocks`.
pub(super) fn find(
    snapshot: &Snapshot,
    arenas: &[Arena],
    params: &[Params],
    chunks: ChunkLayout,
    blocks: &Blocks,
) -> Cached {
    let firsts = first_blocks(arenas, params, chunks);
    let with = |mangled| {
        let lists = Lists {
            memory: &*snapshot.memory,
            chunks,
            tls_above: snapshot.machine == Machine::Aarch64,
            blocks,
            tcache_count: params.iter().map(|p| p.tcache_count).max().unwrap_or(0),
            mangled,
            links_left: AtomicU64::new(
                LINKS_PER_BLOCK
                    .saturating_mul(blocks.len() as u64)
                    .saturating_add(MIN_LINKS),
            ),
        };
        let has_tcache = params.iter().any(|params| params.layout.has_tcache);
        let mut cached = Cached::default();
        add_fastbins(&lists, arenas, &mut cached);
        if has_tcache {
            add_tcaches_of_threads(&lists, &snapshot.threads, &mut cached);
            add_orphans(&lists, &firsts, &mut cached);
        }
        cached
    };
    // The wrong way to read links validates no list that has an element.
    let mangled = with(true);
    if mangled.problems.is_empty() && !mangled.free.is_empty() {
        return mangled;
    }
    let plain = with(false);
    let key = |cached: &Cached| (!cached.problems.is_empty(), Reverse(cached.free.len()));
    if key(&plain) < key(&mangled) {
        plain
    } else {
        mangled
    }
}

/// The first block of each arena. The first thing that a thread gets from an arena which was made
/// for it is its thread cache, and that of the main thread is the first of all.
fn first_blocks(arenas: &[Arena], params: &[Params], chunks: ChunkLayout) -> FxHashSet<u64> {
    let behind_arenas = arenas.iter().map(|arena| arena.range().end);
    let starts = behind_arenas.chain(params.iter().map(|params| params.sbrk_base));
    starts
        .filter_map(|start| chunks.first_chunk(start))
        .map(|chunk| chunk.saturating_add(chunks.header()).0)
        .collect()
}

fn add_fastbins(lists: &Lists<'_>, arenas: &[Arena], cached: &mut Cached) {
    let found: Vec<_> = arenas
        .par_iter()
        .map(|arena| lists.fastbins(arena))
        .collect();
    for (arena, found) in arenas.iter().zip(found) {
        match found {
            Some(free) => cached.free.extend(free),
            None => cached.problems.push(Problem::CacheList(arena.addr)),
        }
    }
}

/// Thread caches that a thread's `tcache` variable points to. It lies at the same distance from
/// the thread pointer in every thread.
fn add_tcaches_of_threads(lists: &Lists<'_>, threads: &[Thread], cached: &mut Cached) {
    let Some((distance, layout)) = tcache_variable(lists, threads) else {
        return;
    };
    let caches = threads.par_iter().filter_map(|thread| {
        let variable = lists.thread_variable(thread, distance);
        let start = lists.pointer(variable).unwrap_or(0);
        // A thread that has not allocated yet, or is about to end, has none.
        let block = lists.block(start)?;
        Some((block, lists.tcache(block.start, layout)))
    });
    for (block, tcache) in caches.collect::<Vec<_>>() {
        match tcache {
            Some(tcache) => add(cached, block, tcache),
            None => cached.problems.push(Problem::CacheList(block.start)),
        }
    }
}

/// The distance of the `tcache` variable from the thread pointer, and the layout of what it
/// points to: what fits most threads, then what holds most blocks.
fn tcache_variable(lists: &Lists<'_>, threads: &[Thread]) -> Option<(u64, TcacheLayout)> {
    let mut votes: FxHashMap<(u64, TcacheLayout), (u64, u64)> = FxHashMap::default();
    let candidates: Vec<_> = threads
        .par_iter()
        .filter(|thread| thread.thread_pointer != Addr(0))
        .flat_map_iter(|thread| tcache_candidates(lists, thread))
        .collect();
    for (distance, layout, cached) in candidates {
        let (threads, blocks) = votes.entry((distance, layout)).or_default();
        *threads = threads.saturating_add(1);
        *blocks = blocks.saturating_add(cached);
    }
    // All other things being equal, the nearest one, so that the answer is always the same.
    let best = votes
        .into_iter()
        .max_by_key(|((distance, layout), votes)| (*votes, Reverse((*distance, layout.chunk()))));
    best.map(|(variable, _)| variable)
}

/// Words beside the thread pointer of `thread` that point to a thread cache: their distance, the
/// layout, and how many blocks it holds.
fn tcache_candidates(lists: &Lists<'_>, thread: &Thread) -> Vec<(u64, TcacheLayout, u64)> {
    let mut candidates = Vec::new();
    for (distance, word) in lists.thread_words(thread.thread_pointer) {
        let Some(block) = lists.block(word) else {
            continue;
        };
        for layout in tcaches(lists.chunks.width) {
            if layout.fits(lists.chunk_size(block))
                && let Some(tcache) = lists.tcache(block.start, layout)
            {
                candidates.push((distance, layout, tcache.free.len() as u64));
            }
        }
    }
    candidates
}

/// The words below `pointer`, the nearest first, with their distances: up to one that cannot be
/// read.
fn words_below(memory: &dyn Memory, width: Width, pointer: Addr) -> Vec<(u64, u64)> {
    // A page at a time, since a read ends at the first page that is missing.
    let words = TLS_REACH.checked_div(width.size()).unwrap_or(0);
    let mut found = Vec::new();
    let mut buffer = [0; PAGE_SIZE];
    let mut end = pointer;
    while found.len() < words {
        let start = end.saturating_sub(1).align_down(PAGE);
        let page = AddrRange::new(start, end);
        let size = usize::try_from(page.size()).unwrap_or(0);
        let Some(bytes) = buffer.get_mut(..size).filter(|bytes| !bytes.is_empty()) else {
            break;
        };
        if memory.read(start, bytes) < size {
            break;
        }
        // From the upper end down: the words are as far from `pointer` as a multiple of their size.
        for word in bytes.rchunks_exact(width.size()) {
            let number = (found.len() as u64).saturating_add(1);
            let distance = number.saturating_mul(width.bytes());
            found.push((distance, width.word(word).unwrap_or(0)));
        }
        end = start;
    }
    found.truncate(words);
    found
}

/// The words from `pointer` on, with their distances: up to one that cannot be read.
fn words_above(memory: &dyn Memory, width: Width, pointer: Addr) -> Vec<(u64, u64)> {
    let mut bytes = vec![0; TLS_REACH];
    let count = memory.read(pointer, &mut bytes);
    let words = width.words(bytes.get(..count).unwrap_or_default());
    (0..).step_by(width.size()).zip(words).collect()
}

/// Thread caches that no thread has any more: those of a parent's threads after `fork`, and of
/// threads that were killed. What holds no blocks can be told from a block of zeros only by its
/// place, or by counts that go down.
fn add_orphans(lists: &Lists<'_>, firsts: &FxHashSet<u64>, cached: &mut Cached) {
    for layout in tcaches(lists.chunks.width) {
        let (smallest, largest) = layout.chunks().into_inner();
        let word = lists.chunks.word();
        let sizes = smallest.saturating_sub(word)..=largest.saturating_sub(word);
        let blocks: Vec<Block> = lists.blocks.of_size(&sizes).collect();
        let orphans = blocks.into_par_iter().filter_map(|block| {
            let is_known = cached.caches.contains(&block.start.0);
            let tcache = (!is_known).then(|| lists.tcache(block.start, layout))??;
            let is_one = tcache.miscounts == 0
                && (!tcache.free.is_empty() || tcache.is_fresh || firsts.contains(&block.start.0));
            is_one.then_some((block, tcache))
        });
        for (block, tcache) in orphans.collect::<Vec<_>>() {
            add(cached, block, tcache);
        }
    }
}

fn add(cached: &mut Cached, block: Block, tcache: Tcache) {
    if tcache.miscounts > 0 {
        cached.problems.push(Problem::CacheCount(block.start));
    }
    cached.caches.insert(block.start.0);
    cached.free.extend(tcache.free);
}
