//! Stacks and thread-local storage: which part of a thread's memory is alive.
//!
//! A stack is cut at the stack pointer only where it is certain that it is that thread's stack: the
//! kernel's `[stack]`, or one that glibc's `struct pthread` describes. A coroutine may run anywhere
//! else, and then nothing says what of its memory is dead.

use rustc_hash::FxHashSet;

use crate::addr::{Addr, AddrRange, RangeSet};
use crate::memory::{Memory, Width, Window};
use crate::scan::RootKind;
use crate::scan::roots::{Claim, between};
use crate::snapshot::{Machine, Module, Snapshot, Thread};

const PAGE: u64 = 4096;
/// More than `struct pthread` and what alignment may add behind it.
const MAX_PTHREAD: u64 = 0x4000;
/// More static TLS than any program has.
const MAX_TLS: u64 = 1 << 20;
const SMALLEST_STACK: u64 = 16 * 1024;
/// More threads than a kernel allows.
const MAX_STACKS: usize = 1 << 22;

/// Where `struct pthread` (`nptl/descr.h`) has what, in all versions: the thread control block with
/// the vector of dynamic TLS and its own address, then the link into a list of stacks, then the
/// thread id. On aarch64 the control block and static TLS are behind the struct instead.
#[derive(Clone, Copy, Debug)]
struct Layout {
    width: Width,
    /// Where static TLS is, seen from the thread pointer.
    tls: TlsSide,
    /// How far below the thread pointer the struct starts.
    below_pointer: u64,
    /// Below the stack pointer, a function that calls no other may keep this much: the red zone of
    /// the System V ABI.
    red_zone: u64,
    /// From the thread pointer on; the others are offsets in the struct.
    dtv: u64,
    own_address: Option<u64>,
    list: u64,
    tid: u64,
    /// `stackblock` and `stackblock_size` lie in this part; the place differs between versions.
    stack_block: (u64, u64),
    /// The struct of the main thread is as large as this, or smaller.
    main_size: u64,
    /// From the start of the struct to the end of the stack's memory there is not more than this.
    max_size: u64,
    /// The struct starts at a multiple of this.
    alignment: u64,
}

/// The variants of thread-local storage that the ELF specification for it knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TlsSide {
    /// Variant II.
    Below,
    /// Variant I.
    Above,
}

const LAYOUT_32: Layout = Layout {
    width: Width::Four,
    tls: TlsSide::Below,
    below_pointer: 0,
    red_zone: 0,
    dtv: 0x04,
    own_address: Some(0x08),
    list: 0x60,
    tid: 0x68,
    stack_block: (0x60, 0x600),
    main_size: 0x600,
    max_size: MAX_PTHREAD,
    alignment: 16,
};
const LAYOUT_64: Layout = Layout {
    width: Width::Eight,
    tls: TlsSide::Below,
    below_pointer: 0,
    red_zone: 128,
    dtv: 0x08,
    own_address: Some(0x10),
    list: 0x2c0,
    tid: 0x2d0,
    stack_block: (0x200, 0xa00),
    main_size: 0x900,
    max_size: MAX_PTHREAD,
    alignment: 64,
};
/// The struct's size differs between versions: `below_pointer` is found in each target.
const LAYOUT_AARCH64: Layout = Layout {
    width: Width::Eight,
    tls: TlsSide::Above,
    below_pointer: 0,
    red_zone: 0,
    dtv: 0,
    own_address: None,
    list: 0xc0,
    tid: 0xd0,
    stack_block: (0xd0, 0x700),
    main_size: 0x1000,
    max_size: MAX_PTHREAD + MAX_TLS,
    alignment: 16,
};

impl Layout {
    fn of(snapshot: &Snapshot) -> Self {
        match snapshot.machine {
            Machine::I386 => LAYOUT_32,
            Machine::X86_64 => LAYOUT_64,
            Machine::Aarch64 => LAYOUT_AARCH64.placed(snapshot),
        }
    }

    /// The same with the place of the struct: where a thread's own id is, and its link in a list.
    fn placed(self, snapshot: &Snapshot) -> Self {
        const DISTANCES: (u64, u64) = (0x400, 0x1800);
        const TRIED_THREADS: usize = 16;
        let memory = &*snapshot.memory;
        let threads = snapshot.threads.iter();
        let mut threads = threads
            .filter(|thread| thread.thread_pointer != Addr(0))
            .take(TRIED_THREADS);
        let found = threads.find_map(|thread| {
            let (first, last) = DISTANCES;
            let mut layouts = (first..=last).step_by(16).map(|below_pointer| Self {
                below_pointer,
                ..self
            });
            layouts.find(|layout| {
                has_known_layout(memory, *layout, thread)
                    && layout.is_linked(memory, layout.descriptor(thread.thread_pointer))
            })
        });
        found.unwrap_or(self)
    }

    /// Where the `struct pthread` is of the thread with this thread pointer.
    fn descriptor(self, pointer: Addr) -> Addr {
        pointer.saturating_sub(self.below_pointer)
    }

    /// Says whether the struct at `descriptor` is in a list.
    fn is_linked(self, memory: &dyn Memory, descriptor: Addr) -> bool {
        let node = descriptor.saturating_add(self.list);
        let next = memory.pointer(node, self.width).map(Addr);
        let back = next.and_then(|next| next.checked_add(self.width.bytes()));
        back.and_then(|back| memory.pointer(back, self.width)) == Some(node.0)
    }

    /// Says whether a `struct pthread` may be at `descriptor`.
    fn is_possible(self, memory: &dyn Memory, descriptor: Addr) -> bool {
        let is_own = |offset| {
            let word = memory.pointer(descriptor.saturating_add(offset), self.width);
            word == Some(descriptor.0)
        };
        match self.own_address {
            Some(own_address) => is_own(0) && is_own(own_address),
            None => self.is_linked(memory, descriptor),
        }
    }
}

/// The memory of one thread, as its `struct pthread` describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct PthreadStack {
    thread_pointer: Addr,
    /// Where the struct is.
    descriptor: Addr,
    block: AddrRange,
    /// The words that say where the block is and how large.
    described_at: [Addr; 2],
}

/// What the memory of threads is: first what is dead, then thread-local storage, then stacks.
pub(super) fn claims(snapshot: &Snapshot) -> Vec<Claim> {
    let mut dead = Vec::new();
    let mut tls = Vec::new();
    let mut stacks = Vec::new();
    let tls_size = static_tls_size(snapshot);
    let layout = Layout::of(snapshot);
    for thread in &snapshot.threads {
        let descriptor = layout.descriptor(thread.thread_pointer);
        let own = pthread_stack(&*snapshot.memory, layout, descriptor);
        tls.push(tls_claim(snapshot, layout, (thread, own), tls_size));
        let (below, live) = stack_of(snapshot, layout, (thread, own));
        dead.push(below);
        stacks.extend(live);
    }
    for ended in ended_stacks(snapshot, layout).unwrap_or_default() {
        dead.push(between(ended.block.start, ended.descriptor));
    }
    for ended in cached_stacks(snapshot, layout).unwrap_or_default() {
        dead.push(between(
            ended.block.start,
            ended.thread_pointer.saturating_add(layout.dtv),
        ));
        let dtv = ended.thread_pointer.saturating_add(layout.dtv);
        let dtv = AddrRange::with_size(dtv, layout.width.bytes());
        dead.push(between(dtv.end, ended.block.end));
        tls.push(Claim {
            range: dtv,
            kind: Some(RootKind::Tls),
            name: "dynamic TLS of a thread that has ended".to_owned(),
        });
    }
    let mut claims: Vec<Claim> = dead
        .into_iter()
        .filter(|range| !range.is_empty())
        .map(|range| Claim {
            range,
            kind: None,
            name: String::new(),
        })
        .collect();
    claims.extend(tls);
    claims.extend(stacks);
    claims
}

/// What of the memory of threads `claims` depends on.
#[derive(Clone, Debug, Default)]
pub struct ThreadWords {
    /// Words that are no addresses: thread ids, and where stacks are.
    pub words: Vec<Addr>,
    /// Addresses of control blocks and of what is in lists of stacks.
    pub addresses: Vec<Addr>,
}

/// The words by which the stacks of threads are found, of those too that have ended.
#[must_use]
pub fn thread_words(snapshot: &Snapshot) -> ThreadWords {
    let memory = &*snapshot.memory;
    let layout = Layout::of(snapshot);
    let ended = ended_stacks(snapshot, layout)
        .unwrap_or_default()
        .into_iter();
    let cached = cached_stacks(snapshot, layout)
        .unwrap_or_default()
        .into_iter();
    let ended = ended.chain(cached).map(|stack| stack.thread_pointer);
    let alive = snapshot.threads.iter().map(|thread| thread.thread_pointer);
    let mut found = ThreadWords::default();
    let mut seen: FxHashSet<Addr> = FxHashSet::default();
    for pointer in alive.chain(ended).filter(|pointer| *pointer != Addr(0)) {
        found.addresses.push(pointer);
        let descriptor = layout.descriptor(pointer);
        found.words.push(descriptor.saturating_add(layout.tid));
        let stack = pthread_stack(memory, layout, descriptor);
        found
            .words
            .extend(stack.iter().flat_map(|stack| stack.described_at));
        let node = descriptor.saturating_add(layout.list);
        if !seen.contains(&node) {
            let nodes = ring(memory, layout.width, node).unwrap_or_default();
            seen.extend(&nodes);
            found.addresses.extend(nodes);
        }
    }
    found
}

/// What is dead below the stack pointer of `thread`, and its live stacks: the one that it runs on,
/// and its own where that is another.
fn stack_of(
    snapshot: &Snapshot,
    layout: Layout,
    (thread, own): (&Thread, Option<PthreadStack>),
) -> (AddrRange, Vec<Claim>) {
    let live = |range| Claim {
        range,
        kind: Some(RootKind::Stacks),
        name: format!("stack of thread {}", thread.tid),
    };
    let live_from = thread.stack_pointer.saturating_sub(layout.red_zone);
    let live_from = live_from.align_down(layout.width.bytes());
    let nothing = AddrRange::default();
    let own = own
        .map(|own| own.block)
        .or_else(|| main_stack(snapshot, thread));
    match (own, snapshot.region_at(thread.stack_pointer)) {
        (Some(own), _) if own.contains(thread.stack_pointer) => {
            let below = between(own.start, live_from);
            (
                below,
                vec![live(between(live_from.max(own.start), own.end))],
            )
        }
        (own, Some(region)) => {
            let elsewhere = live(between(live_from, region.range.end));
            let own = own.map(live);
            (nothing, own.into_iter().chain([elsewhere]).collect())
        }
        (own, None) => (nothing, own.map(live).into_iter().collect()),
    }
}

/// The kernel's `[stack]`, if `thread` is the one that it was made for.
fn main_stack(snapshot: &Snapshot, thread: &Thread) -> Option<AddrRange> {
    if thread.tid != snapshot.process.pid {
        return None;
    }
    let mut regions = snapshot.regions.iter();
    regions
        .find(|region| region.name == "[stack]")
        .map(|region| region.range)
}

/// The thread control block of `thread` and the static TLS beside it.
fn tls_claim(
    snapshot: &Snapshot,
    layout: Layout,
    (thread, own): (&Thread, Option<PthreadStack>),
    tls_size: u64,
) -> Claim {
    let pointer = thread.thread_pointer;
    let region = snapshot.region_at(pointer).map(|region| region.range);
    let (start, end) = match layout.tls {
        TlsSide::Below => (pointer.saturating_sub(tls_size), pointer),
        TlsSide::Above => (layout.descriptor(pointer), pointer.saturating_add(tls_size)),
    };
    let end = own.map_or(end.saturating_add(layout.main_size), |own| own.block.end);
    let wanted = between(start, end);
    Claim {
        range: region.unwrap_or_default().intersection(&wanted),
        kind: Some(RootKind::Tls),
        name: format!("thread-local storage of thread {}", thread.tid),
    }
}

/// An upper bound of the static TLS of a thread: that of all modules, each aligned.
fn static_tls_size(snapshot: &Snapshot) -> u64 {
    let sizes = snapshot.modules.iter().map(|module| module.tls_size);
    let sum = sizes.filter(|size| *size > 0).fold(0_u64, |sum, size| {
        sum.saturating_add(size).saturating_add(63) & !63
    });
    sum.min(MAX_TLS)
}

/// The stack that the `struct pthread` at `descriptor` describes, if there is one: the struct lies at
/// the upper end of it.
fn pthread_stack(memory: &dyn Memory, layout: Layout, descriptor: Addr) -> Option<PthreadStack> {
    let width = layout.width;
    if descriptor == Addr(0) || !layout.is_possible(memory, descriptor) {
        return None;
    }
    let (first, end) = layout.stack_block;
    let mut bytes = vec![0; usize::try_from(end.saturating_sub(first)).ok()?];
    let count = memory.read(descriptor.saturating_add(first), &mut bytes);
    let words: Vec<u64> = width.words(bytes.get(..count)?).collect();
    let blocks = words
        .array_windows()
        .map(|[start, size]| AddrRange::with_size(Addr(*start), *size));
    (0_u64..)
        .zip(blocks)
        .find(|(_, block)| {
            block.start.is_aligned(PAGE)
                && block.end.is_aligned(PAGE)
                && block.size() >= SMALLEST_STACK
                && block.contains(descriptor)
                && AddrRange::new(descriptor, block.end).size() <= layout.max_size
        })
        .map(|(index, block)| {
            let offset = first.saturating_add(index.saturating_mul(width.bytes()));
            let place = descriptor.saturating_add(offset);
            PthreadStack {
                thread_pointer: descriptor.saturating_add(layout.below_pointer),
                descriptor,
                block,
                described_at: [place, place.saturating_add(width.bytes())],
            }
        })
}

/// Stacks that glibc keeps for new threads after their threads have ended and were joined.
///
/// From 2.34 on the dynamic loader has three lists side by side: stacks in use, stacks that the
/// program supplied (with that of the main thread), and cached ones. The main thread leads to the
/// second, and so to the third. Where anything does not fit, none is returned: the stacks are
/// scanned like other memory.
fn cached_stacks(snapshot: &Snapshot, layout: Layout) -> Option<Vec<PthreadStack>> {
    let user = user_stacks(snapshot, layout)?;
    let size = 2 * layout.width.bytes();
    let (above, below) = (user.checked_add(size)?, Addr(user.0.checked_sub(size)?));
    // Static programs have the lists as variables, which lie the other way round.
    let neighbours: &[Addr] = if is_in_program(snapshot, user) {
        &[below, above]
    } else {
        &[above]
    };
    let alive = thread_pointers(snapshot);
    neighbours.iter().find_map(|cache| {
        let stacks = stacks_in(snapshot, layout, *cache)?;
        let mut all = stacks.iter();
        all.all(|stack| has_ended(snapshot, layout, (&alive, stack)))
            .then_some(stacks)
    })
}

/// Says whether `addr` is in the image of the program itself.
fn is_in_program(snapshot: &Snapshot, addr: Addr) -> bool {
    const AT_ENTRY: u64 = 9;
    let entry = snapshot.aux_value(AT_ENTRY).map(Addr);
    let module = snapshot.module_at(addr);
    entry
        .zip(module)
        .is_some_and(|(entry, module)| module.contains(entry))
}

/// Stacks of threads that have ended, joined or not: those in any of glibc's lists whose thread is
/// no more. Up to 2.33 nothing tells the list of cached stacks from that of stacks in use. What
/// their `struct pthread` holds counts: the result of a thread may still be asked for.
fn ended_stacks(snapshot: &Snapshot, layout: Layout) -> Option<Vec<PthreadStack>> {
    let module = snapshot.module_at(user_stacks(snapshot, layout)?)?;
    let memory = &*snapshot.memory;
    let alive = thread_pointers(snapshot);
    let word = layout.width.bytes();
    let mut ended = Vec::new();
    // A list can have as many nodes as there are places where one may begin: each is walked once.
    let mut walked = FxHashSet::default();
    for segment in module.segments.iter().filter(|segment| segment.writable) {
        for part in memory.resident(segment.range) {
            let mut window = Window::new(memory);
            let mut head = part.start.align_up(word)?;
            while head < part.end {
                let next = window.pointer(head, layout.width);
                if next.is_some_and(|next| may_be_list(layout, head, next))
                    && !walked.contains(&head)
                {
                    let list = List::walk(memory, layout.width, head);
                    let stacks = list
                        .stacks(snapshot, layout, module)
                        .unwrap_or_default()
                        .into_iter();
                    ended.extend(
                        stacks.filter(|stack| has_ended(snapshot, layout, (&alive, stack))),
                    );
                    walked.extend(list.nodes);
                }
                head = head.saturating_add(word);
            }
        }
    }
    Some(ended)
}

/// Says whether the word `next` at `head` may lead to the list in a `struct pthread`.
fn may_be_list(layout: Layout, head: Addr, next: u64) -> bool {
    let is_aligned = |tcb: u64| tcb.is_multiple_of(layout.alignment);
    next > PAGE && next != head.0 && next.checked_sub(layout.list).is_some_and(is_aligned)
}

/// The head of the list of stacks that the program supplied, in the dynamic loader, or up to 2.33
/// in libpthread: that of the main thread is in it.
fn user_stacks(snapshot: &Snapshot, layout: Layout) -> Option<Addr> {
    let memory = &*snapshot.memory;
    let mut threads = snapshot.threads.iter();
    let main = threads.find(|thread| thread.tid == snapshot.process.pid)?;
    if !snapshot
        .threads
        .iter()
        .all(|thread| has_known_layout(memory, layout, thread))
    {
        return None;
    }
    let segments = snapshot.modules.iter().flat_map(|module| &module.segments);
    let images: RangeSet = segments.map(|segment| segment.range).collect();
    ring(
        memory,
        layout.width,
        layout
            .descriptor(main.thread_pointer)
            .checked_add(layout.list)?,
    )?
    .into_iter()
    .find(|node| images.contains(*node))
}

/// The stacks in the list whose head is at `head`. `None` where it is no list of stacks.
fn stacks_in(snapshot: &Snapshot, layout: Layout, head: Addr) -> Option<Vec<PthreadStack>> {
    let memory = &*snapshot.memory;
    let nodes = ring(memory, layout.width, head)?.into_iter();
    nodes
        .filter(|node| *node != head)
        .map(|node| stack_at(memory, layout, node))
        .collect()
}

/// The stack whose `struct pthread` has `node` for its link.
fn stack_at(memory: &dyn Memory, layout: Layout, node: Addr) -> Option<PthreadStack> {
    pthread_stack(memory, layout, Addr(node.0.checked_sub(layout.list)?))
}

fn thread_pointers(snapshot: &Snapshot) -> FxHashSet<Addr> {
    let threads = snapshot.threads.iter();
    threads.map(|thread| thread.thread_pointer).collect()
}

/// Says whether no thread runs on `stack` any more; `alive` are the thread pointers of all threads.
fn has_ended(
    snapshot: &Snapshot,
    layout: Layout,
    (alive, stack): (&FxHashSet<Addr>, &PthreadStack),
) -> bool {
    let tid = stack.descriptor.saturating_add(layout.tid);
    let tid = snapshot.memory.word32(tid);
    !alive.contains(&stack.thread_pointer) && tid.is_some_and(|tid| tid.cast_signed() <= 0)
}

/// Says whether `struct pthread` has its thread id where it is expected.
fn has_known_layout(memory: &dyn Memory, layout: Layout, thread: &Thread) -> bool {
    let descriptor = layout.descriptor(thread.thread_pointer);
    memory.word32(descriptor.saturating_add(layout.tid)) == Some(thread.inner_tid)
}

/// The nodes of the doubly linked list that `start` is in, from `start` on. `None` where it is no
/// ring.
fn ring(memory: &dyn Memory, width: Width, start: Addr) -> Option<Vec<Addr>> {
    let list = List::walk(memory, width, start);
    list.is_ring.then_some(list.nodes)
}

/// A doubly linked list from one of its nodes on.
struct List {
    nodes: Vec<Addr>,
    /// It leads back to the first of them.
    is_ring: bool,
}

impl List {
    fn walk(memory: &dyn Memory, width: Width, start: Addr) -> Self {
        let next = |node: Addr| {
            let next = Addr(memory.pointer(node, width)?);
            let back = memory.pointer(next.checked_add(width.bytes())?, width);
            (back == Some(node.0)).then_some(next)
        };
        let mut nodes = vec![start];
        let mut node = next(start);
        while let Some(at) = node.filter(|at| *at != start && nodes.len() < MAX_STACKS) {
            nodes.push(at);
            node = next(at);
        }
        let is_ring = node == Some(start);
        Self { nodes, is_ring }
    }

    /// The stacks in it, if all of its nodes but the head are stacks, and the head is in `module`.
    fn stacks(
        &self,
        snapshot: &Snapshot,
        layout: Layout,
        module: &Module,
    ) -> Option<Vec<PthreadStack>> {
        let (mut stacks, mut heads) = (Vec::new(), 0);
        for node in self.nodes.iter().filter(|_| self.is_ring) {
            match stack_at(&*snapshot.memory, layout, *node) {
                Some(stack) => stacks.push(stack),
                None if heads > 0 || !module.contains(*node) => return None,
                None => heads = 1,
            }
        }
        (heads == 1).then_some(stacks)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::memory::FakeMemory;
    use crate::snapshot::Segment;

    const MODULE: u64 = 0x7f00_0000_0000;
    const SIZE: u64 = 1 << 20;
    const THREAD: u64 = MODULE + SIZE;
    const NODES: u64 = SIZE / 64;

    /// Counts how often it is read.
    struct Counted(FakeMemory, Arc<AtomicU64>);

    impl Memory for Counted {
        fn read(&self, addr: Addr, buf: &mut [u8]) -> usize {
            self.1.fetch_add(1, Ordering::Relaxed);
            self.0.read(addr, buf)
        }
    }

    /// A process whose loader has nothing but the nodes of a list, which the main thread is in.
    fn process() -> (Snapshot, Arc<AtomicU64>) {
        let mut memory = FakeMemory::zeroed(MODULE, usize::try_from(SIZE).expect("small") + 0x1000);
        let main = THREAD + LAYOUT_64.list;
        let nodes = (0..NODES).map(|node| MODULE + 64 * node);
        let nodes: Vec<u64> = [main].into_iter().chain(nodes).collect();
        for pair in nodes.windows(2) {
            memory.set_word(pair[0], pair[1]);
            memory.set_word(pair[1] + 8, pair[0]);
        }
        memory.set_word(nodes[nodes.len() - 1], main);
        memory.set_word(main + 8, nodes[nodes.len() - 1]);
        memory.set_word(THREAD + LAYOUT_64.tid, 42);
        let reads = Arc::new(AtomicU64::new(0));
        let mut snapshot = Snapshot::of_memory(Box::new(Counted(memory, Arc::clone(&reads))));
        snapshot.process.pid = 42;
        snapshot.threads = vec![Thread {
            tid: 42,
            inner_tid: 42,
            thread_pointer: Addr(THREAD),
            ..Thread::default()
        }];
        snapshot.modules = vec![Module {
            segments: vec![Segment {
                range: AddrRange::with_size(Addr(MODULE), SIZE),
                writable: true,
                executable: false,
            }],
            ..Module::default()
        }];
        (snapshot, reads)
    }

    #[test]
    fn list_is_not_walked_from_each_of_its_nodes() {
        let (snapshot, reads) = process();
        assert_eq!(
            ended_stacks(&snapshot, Layout::of(&snapshot)).expect("a loader"),
            []
        );
        let reads = reads.load(Ordering::Relaxed);
        assert!((NODES..10 * NODES).contains(&reads), "{reads} reads");
    }
}
