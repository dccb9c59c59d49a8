//! Stacks and thread-local storage: which part of a thread's memory is alive.
//!
//! A stack is cut at the stack pointer only where it is certain that it is that thread's stack: the
//! kernel's `[stack]`, or one that glibc's `struct pthread` describes. A coroutine may run anywhere
//! else, and then nothing says what of its memory is dead.

use rustc_hash::FxHashSet;

use crate::addr::{Addr, AddrRange, RangeSet};
use crate::memory::{Memory, Window, words};
use crate::scan::RootKind;
use crate::scan::roots::{Claim, between};
use crate::snapshot::{Snapshot, Thread};

/// Below the stack pointer, a function that calls no other may keep this much: the System V ABI's
/// red zone on x86-64.
const RED_ZONE: u64 = 128;
const PAGE: u64 = 4096;

/// Offsets in `struct pthread` (`nptl/descr.h`), x86-64, all versions: the thread control block
/// with its own address and the vector of dynamic TLS, then the link into a list of stacks, then
/// the thread id.
const SELF: u64 = 0x10;
const DTV: u64 = 0x08;
const LIST: u64 = 0x2c0;
const TID: u64 = 0x2d0;
/// `stackblock` and `stackblock_size` lie in this part; the place differs between versions.
const STACK_BLOCK: (u64, u64) = (0x200, 0xa00);
/// More than `struct pthread` and what alignment may add behind it.
const MAX_PTHREAD: u64 = 0x4000;
/// `struct pthread` of the main thread is as large as this, or smaller.
const MAIN_PTHREAD: u64 = 0x900;
const SMALLEST_STACK: u64 = 16 * 1024;
/// More threads than a kernel allows.
const MAX_STACKS: usize = 1 << 22;

/// The memory of one thread, as its `struct pthread` describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct PthreadStack {
    thread_pointer: Addr,
    block: AddrRange,
}

/// What the memory of threads is: first what is dead, then thread-local storage, then stacks.
pub(super) fn claims(snapshot: &Snapshot) -> Vec<Claim> {
    let mut dead = Vec::new();
    let mut tls = Vec::new();
    let mut stacks = Vec::new();
    let tls_size = static_tls_size(snapshot);
    for thread in &snapshot.threads {
        let own = pthread_stack(&*snapshot.memory, thread.thread_pointer);
        tls.push(tls_claim(snapshot, thread, own, tls_size));
        let (below, live) = stack_of(snapshot, thread, own);
        dead.push(below);
        stacks.extend(live);
    }
    for ended in ended_stacks(snapshot).unwrap_or_default() {
        dead.push(between(ended.block.start, ended.thread_pointer));
    }
    for ended in cached_stacks(snapshot).unwrap_or_default() {
        dead.push(between(
            ended.block.start,
            ended.thread_pointer.saturating_add(DTV),
        ));
        let dtv = AddrRange::with_size(ended.thread_pointer.saturating_add(DTV), 8);
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

/// What is dead below the stack pointer of `thread`, and its live stacks: the one that it runs on,
/// and its own where that is another.
fn stack_of(
    snapshot: &Snapshot,
    thread: &Thread,
    own: Option<PthreadStack>,
) -> (AddrRange, Vec<Claim>) {
    let live = |range| Claim {
        range,
        kind: Some(RootKind::Stacks),
        name: format!("stack of thread {}", thread.tid),
    };
    let live_from = thread.stack_pointer.saturating_sub(RED_ZONE).align_down(8);
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

/// The thread control block of `thread` and the static TLS below it.
fn tls_claim(
    snapshot: &Snapshot,
    thread: &Thread,
    own: Option<PthreadStack>,
    tls_size: u64,
) -> Claim {
    let pointer = thread.thread_pointer;
    let region = snapshot.region_at(pointer).map(|region| region.range);
    let end = own.map_or(pointer.saturating_add(MAIN_PTHREAD), |own| own.block.end);
    let wanted = between(pointer.saturating_sub(tls_size), end);
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
    sum.min(1 << 20)
}

/// The stack that the `struct pthread` at `pointer` describes, if there is one: the struct lies at
/// the upper end of it.
fn pthread_stack(memory: &dyn Memory, pointer: Addr) -> Option<PthreadStack> {
    let is_own = |offset| memory.word(pointer.saturating_add(offset)) == Some(pointer.0);
    if pointer == Addr(0) || !is_own(0) || !is_own(SELF) {
        return None;
    }
    let (first, end) = STACK_BLOCK;
    let mut bytes = vec![0; usize::try_from(end.saturating_sub(first)).ok()?];
    let count = memory.read(pointer.saturating_add(first), &mut bytes);
    let words: Vec<u64> = words(&bytes).take(count / 8).collect();
    words
        .array_windows()
        .map(|[start, size]| AddrRange::with_size(Addr(*start), *size))
        .find(|block| {
            block.start.is_aligned(PAGE)
                && block.end.is_aligned(PAGE)
                && block.size() >= SMALLEST_STACK
                && block.contains(pointer)
                && AddrRange::new(pointer, block.end).size() <= MAX_PTHREAD
        })
        .map(|block| PthreadStack {
            thread_pointer: pointer,
            block,
        })
}

/// Stacks that glibc keeps for new threads after their threads have ended and were joined.
///
/// From 2.34 on the dynamic loader has three lists side by side: stacks in use, stacks that the
/// program supplied (with that of the main thread), and cached ones. The main thread leads to the
/// second, and so to the third. Where anything does not fit, none is returned: the stacks are
/// scanned like other memory.
fn cached_stacks(snapshot: &Snapshot) -> Option<Vec<PthreadStack>> {
    let cache = user_stacks(snapshot)?.checked_add(16)?;
    let stacks = stacks_in(snapshot, cache)?;
    let alive = thread_pointers(snapshot);
    stacks
        .iter()
        .all(|stack| has_ended(snapshot, &alive, stack))
        .then_some(stacks)
}

/// Stacks of threads that have ended, joined or not: those in any of glibc's lists whose thread is
/// no more. Up to 2.33 nothing tells the list of cached stacks from that of stacks in use. What
/// their `struct pthread` holds counts: the result of a thread may still be asked for.
fn ended_stacks(snapshot: &Snapshot) -> Option<Vec<PthreadStack>> {
    let module = snapshot.module_at(user_stacks(snapshot)?)?;
    let memory = &*snapshot.memory;
    let alive = thread_pointers(snapshot);
    let mut ended = Vec::new();
    for segment in module.segments.iter().filter(|segment| segment.writable) {
        for part in memory.resident(segment.range) {
            let mut window = Window::new(memory);
            let mut head = part.start.align_up(8)?;
            while head < part.end {
                if window
                    .word(head)
                    .is_some_and(|next| may_be_list(head, next))
                    && let Some(stacks) = stacks_in(snapshot, head)
                {
                    let stacks = stacks.into_iter();
                    ended.extend(stacks.filter(|stack| has_ended(snapshot, &alive, stack)));
                }
                head = head.saturating_add(8);
            }
        }
    }
    Some(ended)
}

/// Says whether the word `next` at `head` may lead to the list in a `struct pthread`, which starts
/// at a multiple of 64.
fn may_be_list(head: Addr, next: u64) -> bool {
    next > PAGE && next != head.0 && next.checked_sub(LIST).is_some_and(|tcb| tcb % 64 == 0)
}

/// The head of the list of stacks that the program supplied, in the dynamic loader, or up to 2.33
/// in libpthread: that of the main thread is in it.
fn user_stacks(snapshot: &Snapshot) -> Option<Addr> {
    let memory = &*snapshot.memory;
    let mut threads = snapshot.threads.iter();
    let main = threads.find(|thread| thread.tid == snapshot.process.pid)?;
    if !snapshot
        .threads
        .iter()
        .all(|thread| has_known_layout(memory, thread))
    {
        return None;
    }
    let segments = snapshot.modules.iter().flat_map(|module| &module.segments);
    let images: RangeSet = segments.map(|segment| segment.range).collect();
    ring(memory, main.thread_pointer.checked_add(LIST)?)?
        .into_iter()
        .find(|node| images.contains(*node))
}

/// The stacks in the list whose head is at `head`. `None` where it is no list of stacks.
fn stacks_in(snapshot: &Snapshot, head: Addr) -> Option<Vec<PthreadStack>> {
    let memory = &*snapshot.memory;
    let nodes = ring(memory, head)?.into_iter();
    nodes
        .filter(|node| *node != head)
        .map(|node| pthread_stack(memory, Addr(node.0.checked_sub(LIST)?)))
        .collect()
}

fn thread_pointers(snapshot: &Snapshot) -> FxHashSet<Addr> {
    let threads = snapshot.threads.iter();
    threads.map(|thread| thread.thread_pointer).collect()
}

/// Says whether no thread runs on `stack` any more; `alive` are the thread pointers of all threads.
fn has_ended(snapshot: &Snapshot, alive: &FxHashSet<Addr>, stack: &PthreadStack) -> bool {
    let tid = snapshot
        .memory
        .word32(stack.thread_pointer.saturating_add(TID));
    !alive.contains(&stack.thread_pointer) && tid.is_some_and(|tid| tid.cast_signed() <= 0)
}

/// Says whether `struct pthread` has its thread id where it is expected.
fn has_known_layout(memory: &dyn Memory, thread: &Thread) -> bool {
    memory.word32(thread.thread_pointer.saturating_add(TID)) == Some(thread.inner_tid)
}

/// The nodes of the doubly linked list that `start` is in, from `start` on. `None` where it is no
/// ring.
fn ring(memory: &dyn Memory, start: Addr) -> Option<Vec<Addr>> {
    let mut nodes = Vec::new();
    let mut node = start;
    loop {
        nodes.push(node);
        let next = Addr(memory.word(node)?);
        if nodes.len() > MAX_STACKS || memory.word(next.checked_add(8)?) != Some(node.0) {
            return None;
        }
        if next == start {
            return Some(nodes);
        }
        node = next;
    }
}
