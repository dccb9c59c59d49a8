//! The stacks: each frame once, with the frames outside of it, without locks.

use core::mem::offset_of;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicU32, AtomicU64};

use crate::code::Code;
use crate::format::{NODE_CHUNKS, NODE_CUT, NODE_EXACT, NODE_NONE, NODES_PER_CHUNK, NodeRecord};
use crate::log::Log;
use crate::thread::Frame;

/// [`NodeRecord`], as it is written.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Node {
    code: AtomicU64,
    parent: AtomicU32,
    next: AtomicU32,
}

const _: () = {
    assert!(size_of::<Node>() == size_of::<NodeRecord>());
    assert!(offset_of!(Node, next) == offset_of!(NodeRecord, next));
};

/// The chains of nodes with the same hash: two to the power of this.
pub(crate) const HEAD_BITS: u32 = 20;
/// The number of sets of whole stacks that are found without a look at their frames. They should
/// stay near the processor.
pub(crate) const STACK_SETS: usize = 1 << STACK_SET_BITS;
const STACK_SET_BITS: u32 = 14;

/// An odd number whose bits look random.
const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

/// The hash of a stack: of that of its outer frames, and its innermost frame, number `index` from
/// the outermost.
///
/// It is a sum of numbers that do not depend on each other: the processor computes several at a
/// time.
#[inline]
pub(crate) fn hash(outer: u64, index: usize, code: Code) -> u64 {
    outer.wrapping_add(mix(
        code.0 ^ (index as u64).wrapping_mul(0xd1b5_4a32_d192_ed03)
    ))
}

/// The hash of no frames: of the outer end of a stack that is complete, or of one that is cut.
#[inline]
pub(crate) fn hash_of_end(is_cut: bool) -> u64 {
    if is_cut { 0x8ebc_6af0_9c88_c6e3 } else { 0 }
}

#[inline]
fn mix(number: u64) -> u64 {
    let product = u128::from(number) * u128::from(MULTIPLIER);
    (product >> 64) as u64 ^ product as u64
}

/// The node of the stack `frames`, outermost first, whose hash is `hash`. [`NODE_NONE`] where there is no memory for it.
#[inline]
pub(crate) fn intern(log: &Log, hash: u64, frames: &[Frame], is_cut: bool) -> u32 {
    let set = &log.stack_cache[(hash >> (64 - STACK_SET_BITS)) as usize];
    // Which one of them it is cannot be foreseen: without a branch for that, the processor goes on
    // with other work until the cache line is there.
    let node = set
        .0
        .iter()
        .fold(NODE_NONE, |found, known| found | known.get(hash));
    if node != NODE_NONE {
        return node;
    }
    let node = intern_frames(log, frames, is_cut);
    if node != NODE_NONE {
        set.keep(hash, node);
    }
    node
}

/// Whole stacks that are found without a look at their frames: those of one cache line.
#[repr(C, align(64))]
#[derive(Debug)]
pub(crate) struct StackSet([KnownStack; 4]);

/// A node, and the hash of its stack, one mixed into the other: where two threads wrote one word
/// each, no hash is found. That two stacks have the same 64 bits is not to be expected in the life
/// of a process.
#[repr(C)]
#[derive(Debug)]
struct KnownStack {
    check: AtomicU64,
    node: AtomicU64,
}

impl KnownStack {
    /// The node, if it is that of `hash`.
    #[inline]
    fn get(&self, hash: u64) -> u32 {
        let node = self.node.load(Relaxed);
        let is_known = self.check.load(Relaxed) ^ node.rotate_left(32) == hash;
        core::hint::select_unpredictable(is_known, node as u32, NODE_NONE)
    }
}

impl StackSet {
    /// Keeps a stack: where there is room, or else in the place of one that its hash chooses.
    fn keep(&self, hash: u64, node: u32) {
        let is_free = |known: &&KnownStack| known.node.load(Relaxed) == 0;
        let place = self
            .0
            .iter()
            .find(is_free)
            .unwrap_or(&self.0[hash as usize % self.0.len()]);
        let node = u64::from(node);
        place.check.store(hash ^ node.rotate_left(32), Relaxed);
        place.node.store(node, Relaxed);
    }
}

#[cold]
fn intern_frames(log: &Log, frames: &[Frame], is_cut: bool) -> u32 {
    let outermost = if is_cut { NODE_CUT } else { NODE_NONE };
    let mut node = outermost;
    for frame in frames {
        match child(log, node, frame.code) {
            Some(inner) => node = inner,
            None => return NODE_NONE,
        }
    }
    if is_cut {
        log.header.cut_stacks.fetch_add(1, Relaxed);
    }
    node
}

fn record(log: &Log, index: u32) -> Option<&'static Node> {
    let index = index as usize;
    let chunk = log.node_chunks.get(index / NODES_PER_CHUNK)?.get()?;
    Some(&chunk[index % NODES_PER_CHUNK])
}

/// The node of the frame `code` inside of `parent`.
fn child(log: &Log, parent: u32, code: Code) -> Option<u32> {
    let mixed = mix(code.0 ^ u64::from(parent).wrapping_mul(MULTIPLIER));
    let head = &log.node_heads[(mixed >> (64 - HEAD_BITS)) as usize];
    let mut first = head.load(Acquire);
    if let Some(found) = find(log, first, 0, parent, code) {
        return Some(found);
    }
    let (index, node) = new(log)?;
    node.code.store(code.address_and_image(), Relaxed);
    node.parent.store(parent, Relaxed);
    loop {
        let exact = if code.is_exact() { NODE_EXACT } else { 0 };
        node.next.store(first | exact, Relaxed);
        match head.compare_exchange(first, index, Release, Acquire) {
            Ok(_) => return Some(index),
            Err(newer) => {
                // Another thread may have added the same: then this one stays without a name.
                if let Some(found) = find(log, newer, first, parent, code) {
                    return Some(found);
                }
                first = newer;
            }
        }
    }
}

/// Looks through a chain from `first` to before `end`.
fn find(log: &Log, first: u32, end: u32, parent: u32, code: Code) -> Option<u32> {
    let exact = if code.is_exact() { NODE_EXACT } else { 0 };
    let mut index = first;
    while index != end {
        let node = record(log, index)?;
        let next = node.next.load(Relaxed);
        if node.code.load(Relaxed) == code.address_and_image()
            && node.parent.load(Relaxed) == parent
            && next & NODE_EXACT == exact
        {
            return Some(index);
        }
        index = next & !NODE_EXACT;
    }
    None
}

fn new(log: &Log) -> Option<(u32, &'static Node)> {
    let index = log.header.nodes_end.fetch_add(1, Relaxed) as usize;
    let Some(chunk) = log.node_chunks.get(index / NODES_PER_CHUNK) else {
        log.header.nodes_end.fetch_sub(1, Relaxed);
        return None;
    };
    let node = &chunk.get_or_map(log)?[index % NODES_PER_CHUNK];
    Some((index as u32, node))
}

const _: () = assert!(NODE_CHUNKS * NODES_PER_CHUNK <= NODE_EXACT as usize);
