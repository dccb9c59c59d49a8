//! The table of live blocks: by region of the address space, without locks.
//!
//! A block belongs to one thread from the moment that the allocator hands it out until it is given
//! back, so nobody else writes its record meanwhile. A record of a freed block stays in the chain
//! of its region and is taken, by compare-and-exchange, for the next block there: chains only ever
//! grow, to the number of blocks that lived in their region at the same time.

use core::mem::offset_of;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicU32, AtomicU64};

use crate::format::{
    AREA_SHIFT, AREAS, BLOCKS_PER_CHUNK, BlockRecord, HEADS_PER_AREA, OFFSET_MASK, OFFSET_SHIFT,
    REGION_SHIFT, SIZE_MAX, SIZE_SHIFT, STATE_BUSY, STATE_DEAD, STATE_LIVE, STATE_MASK,
};
use crate::log::Log;
use crate::thread::Supply;

/// [`BlockRecord`], as it is written.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Record {
    key: AtomicU64,
    next: AtomicU32,
    stack: AtomicU32,
    thread: AtomicU32,
    tick: AtomicU32,
}

const _: () = {
    assert!(size_of::<Record>() == size_of::<BlockRecord>());
    assert!(offset_of!(Record, tick) == offset_of!(BlockRecord, tick));
};

/// What is recorded of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Allocation {
    pub(crate) size: usize,
    pub(crate) stack: u32,
    pub(crate) thread: u32,
    pub(crate) tick: u32,
}

/// The bits of a key that say which block it is, in which state.
const IDENTITY: u64 = STATE_MASK | OFFSET_MASK << OFFSET_SHIFT;

fn identity(address: usize, state: u64) -> u64 {
    (address as u64 & OFFSET_MASK) << OFFSET_SHIFT | state
}

/// The head of the chain of `address`' region. It makes none.
#[inline]
fn head(log: &Log, address: usize) -> Option<&'static AtomicU32> {
    let area = log.areas.get(address >> AREA_SHIFT)?.get()?;
    Some(&area[(address >> REGION_SHIFT) % HEADS_PER_AREA])
}

#[inline]
fn record(log: &Log, index: u32) -> Option<&'static Record> {
    let index = index as usize;
    let chunk = log.block_chunks[index / BLOCKS_PER_CHUNK].get()?;
    Some(&chunk[index % BLOCKS_PER_CHUNK])
}

/// Where the record of `address` will be written, so that the processor has it near by then.
#[inline]
pub(crate) fn prefetch(log: &Log, address: usize) {
    if let Some(head) = head(log, address) {
        crate::arch::prefetch(head.as_ptr() as usize);
    }
}

/// Records that the block at `address` is alive. It says `false` where there is no memory for that.
#[inline]
pub(crate) fn insert(log: &Log, supply: &mut Supply, address: usize, what: Allocation) -> bool {
    if address >> AREA_SHIFT >= AREAS {
        return false;
    }
    let Some(area) = log.areas[address >> AREA_SHIFT].get_or_map(log) else {
        return false;
    };
    let head = &area[(address >> REGION_SHIFT) % HEADS_PER_AREA];
    match claim(log, head, address) {
        Some(record) => record.complete(address, what),
        None => match supply
            .next(log)
            .and_then(|index| Some((index, record(log, index)?)))
        {
            Some((index, record)) => {
                record.complete(address, what);
                push(head, index, record);
            }
            None => return false,
        },
    }
    true
}

/// A record of the chain that is now `address`' own: the one that it had, or one that is free.
#[inline]
fn claim(log: &Log, head: &AtomicU32, address: usize) -> Option<&'static Record> {
    let busy = identity(address, STATE_BUSY);
    let live = identity(address, STATE_LIVE);
    let dead = identity(address, STATE_DEAD);
    let mut index = head.load(Acquire);
    let mut free = None;
    while let Some(record) = (index != 0).then(|| record(log, index)).flatten() {
        let key = record.key.load(Relaxed);
        if key & IDENTITY == live {
            // A free of it went unseen.
            record.key.store(busy, Relaxed);
            return Some(record);
        }
        if key & IDENTITY == dead {
            // Its own from the last time: there is no other one with this address.
            free = Some((record, key));
            break;
        }
        if key & STATE_MASK == STATE_DEAD && free.is_none() {
            free = Some((record, key));
        }
        index = record.next.load(Relaxed);
    }
    let (record, key) = free?;
    let claimed = record
        .key
        .compare_exchange(key, busy, AcqRel, Relaxed)
        .is_ok();
    // Another thread may take it for a block nearby. Then a new one is added.
    claimed.then_some(record)
}

fn push(head: &AtomicU32, index: u32, record: &Record) {
    let mut first = head.load(Relaxed);
    loop {
        record.next.store(first, Relaxed);
        match head.compare_exchange_weak(first, index, Release, Relaxed) {
            Ok(_) => return,
            Err(other) => first = other,
        }
    }
}

impl Record {
    #[inline]
    fn complete(&self, address: usize, what: Allocation) {
        self.stack.store(what.stack, Relaxed);
        self.thread.store(what.thread, Relaxed);
        self.tick.store(what.tick, Relaxed);
        let size = (what.size as u64).min(SIZE_MAX) << SIZE_SHIFT;
        self.key
            .store(size | identity(address, STATE_LIVE), Release);
    }
}

/// A block whose record was marked as dead, and may yet live.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Removed {
    record: &'static Record,
    key: u64,
}

/// Records that the block at `address` is free. Call it before the allocator knows.
#[inline]
pub(crate) fn remove(log: &Log, address: usize) -> Option<Removed> {
    let head = head(log, address)?;
    let live = identity(address, STATE_LIVE);
    let mut index = head.load(Acquire);
    while let Some(record) = (index != 0).then(|| record(log, index)).flatten() {
        let key = record.key.load(Relaxed);
        if key & IDENTITY == live {
            record.key.store(key & !STATE_MASK | STATE_DEAD, Release);
            return Some(Removed { record, key });
        }
        index = record.next.load(Relaxed);
    }
    None
}

/// Takes a [`remove`] back, whose block was not freed after all. Where another block has taken the
/// record meanwhile, the block stays without one, and it says `false`.
pub(crate) fn restore(removed: Removed) -> bool {
    let dead = removed.key & !STATE_MASK | STATE_DEAD;
    let record = removed.record;
    record
        .key
        .compare_exchange(dead, removed.key, AcqRel, Relaxed)
        .is_ok()
}
