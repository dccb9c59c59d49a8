//! What happens at each call of the allocator.
//!
//! `stack_pointer` is where the caller's return address lies, `frame_pointer` the caller's frame
//! pointer: [`crate::exports`] passes both behind the arguments of the function.

use core::sync::atomic::Ordering::Relaxed;

use crate::blocks::{self, Allocation, Removed};
use crate::format::{EVENT_ALLOCATED, EVENT_FREED, MODE_OFF};
use crate::history::Event;
use crate::log::{self, Log};
use crate::{arch, images, sampling, thread, unwind};

const SCRIBBLE_ALLOCATED: u8 = 0xaa;
const SCRIBBLE_FREED: u8 = 0x55;

/// Where a call came from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Caller {
    pub(crate) stack_pointer: usize,
    pub(crate) frame_pointer: usize,
}

impl Caller {
    /// The address that the call returns to.
    fn return_address(self) -> usize {
        // SAFETY: the call left it there, and has not returned.
        unsafe { (self.stack_pointer as *const usize).read() }
    }
}

macro_rules! caller {
    ($stack_pointer:ident, $frame_pointer:ident) => {
        Caller {
            stack_pointer: $stack_pointer,
            frame_pointer: $frame_pointer,
        }
    };
}

pub(crate) extern "C" fn malloc(size: usize, stack_pointer: usize, frame_pointer: usize) -> usize {
    let Some(log) = log::get() else { return 0 };
    let block = (log.next.malloc)(size);
    scribble(log, block, size);
    allocated(log, block, size, caller!(stack_pointer, frame_pointer));
    block
}

pub(crate) extern "C" fn calloc(
    count: usize,
    size: usize,
    stack_pointer: usize,
    frame_pointer: usize,
) -> usize {
    let Some(log) = log::get() else { return 0 };
    let block = (log.next.calloc)(count, size);
    allocated(
        log,
        block,
        count.wrapping_mul(size),
        caller!(stack_pointer, frame_pointer),
    );
    block
}

pub(crate) extern "C" fn free(block: usize, stack_pointer: usize, frame_pointer: usize) {
    let Some(log) = log::get() else { return };
    if block != 0 {
        freed(log, block, caller!(stack_pointer, frame_pointer));
        if log.settings.scribble
            && let Some(usable_size) = log.next.usable_size
        {
            fill(block, usable_size(block), SCRIBBLE_FREED);
        }
    }
    (log.next.free)(block);
}

pub(crate) extern "C" fn realloc(
    block: usize,
    size: usize,
    stack_pointer: usize,
    frame_pointer: usize,
) -> usize {
    let Some(log) = log::get() else { return 0 };
    let caller = caller!(stack_pointer, frame_pointer);
    let removed = if block == 0 {
        None
    } else {
        freed(log, block, caller)
    };
    let moved = (log.next.realloc)(block, size);
    if moved == 0 && size != 0 {
        still_there(log, removed);
    }
    allocated(log, moved, size, caller);
    moved
}

/// The C library's `reallocarray` calls its `realloc`, not that of the program.
pub(crate) extern "C" fn reallocarray(
    block: usize,
    count: usize,
    size: usize,
    stack_pointer: usize,
    frame_pointer: usize,
) -> usize {
    // A product that does not fit is more than any allocator has: it fails, with its error.
    let bytes = count.saturating_mul(size);
    realloc(block, bytes, stack_pointer, frame_pointer)
}

pub(crate) extern "C" fn memalign(
    alignment: usize,
    size: usize,
    stack_pointer: usize,
    frame_pointer: usize,
) -> usize {
    let next = |log: &Log| log.next.memalign.map(|next| next(alignment, size));
    aligned(next, size, caller!(stack_pointer, frame_pointer))
}

pub(crate) extern "C" fn aligned_alloc(
    alignment: usize,
    size: usize,
    stack_pointer: usize,
    frame_pointer: usize,
) -> usize {
    let next = |log: &Log| log.next.aligned_alloc.map(|next| next(alignment, size));
    aligned(next, size, caller!(stack_pointer, frame_pointer))
}

pub(crate) extern "C" fn valloc(size: usize, stack_pointer: usize, frame_pointer: usize) -> usize {
    let next = |log: &Log| log.next.valloc.map(|next| next(size));
    aligned(next, size, caller!(stack_pointer, frame_pointer))
}

pub(crate) extern "C" fn pvalloc(size: usize, stack_pointer: usize, frame_pointer: usize) -> usize {
    let next = |log: &Log| log.next.pvalloc.map(|next| next(size));
    aligned(next, size, caller!(stack_pointer, frame_pointer))
}

fn aligned(next: impl FnOnce(&Log) -> Option<usize>, size: usize, caller: Caller) -> usize {
    let Some(log) = log::get() else { return 0 };
    // An allocator without the function has none to call: what the program sees is a failure.
    let block = next(log).unwrap_or(0);
    scribble(log, block, size);
    allocated(log, block, size, caller);
    block
}

pub(crate) extern "C" fn posix_memalign(
    block: *mut usize,
    alignment: usize,
    size: usize,
    stack_pointer: usize,
    frame_pointer: usize,
) -> i32 {
    const ENOMEM: usize = 12;
    let Some(log) = log::get() else {
        return ENOMEM as i32;
    };
    let Some(next) = log.next.posix_memalign else {
        return ENOMEM as i32;
    };
    let error = next(block as usize, alignment, size) as i32;
    if error == 0 {
        // SAFETY: the next allocator has just written the address there.
        let block = unsafe { block.read() };
        scribble(log, block, size);
        allocated(log, block, size, caller!(stack_pointer, frame_pointer));
    }
    error
}

/// An `operator new` where there is no other one to call.
pub(crate) extern "C" fn plain_new(size: usize, _: usize) -> usize {
    log::get().map_or(0, |log| (log.next.malloc)(size))
}

/// The same, with an alignment.
pub(crate) extern "C" fn aligned_new(size: usize, alignment: usize) -> usize {
    let next = |log: &Log| log.next.memalign.map(|next| next(alignment, size));
    log::get().and_then(next).unwrap_or(0)
}

/// An `operator delete` where there is no other one to call.
pub(crate) extern "C" fn plain_delete(block: usize) {
    if let Some(log) = log::get() {
        (log.next.free)(block);
    }
}

/// An `operator new` begins: what its thread allocated before is not its block.
pub(crate) fn new_called() {
    arch::local().last_block.set(0);
}

/// Records a block that an `operator new` gave. Where that one called malloc, it is recorded.
pub(crate) extern "C" fn new_returned(
    block: usize,
    size: usize,
    stack_pointer: usize,
    frame_pointer: usize,
) {
    let Some(log) = log::get() else { return };
    if arch::local().last_block.get() != !block {
        allocated(log, block, size, caller!(stack_pointer, frame_pointer));
    }
}

/// Records that `operator delete` will free a block. Where that one calls free, the second time
/// finds nothing to do.
pub(crate) extern "C" fn delete_called(block: usize, stack_pointer: usize, frame_pointer: usize) {
    if let Some(log) = log::get()
        && block != 0
    {
        freed(log, block, caller!(stack_pointer, frame_pointer));
    }
}

#[inline(always)]
fn allocated(log: &'static Log, block: usize, size: usize, caller: Caller) {
    if block == 0 || log.settings.mode == MODE_OFF {
        return;
    }
    images::note_caller(caller.return_address());
    let local = arch::local();
    local.last_block.set(!block);
    let mean = log.settings.sample_bytes;
    if mean == 0 || sampling::takes(local, size, mean) {
        record(log, local, block, size, caller);
    }
}

/// What is done for a block that is recorded. It is not part of its callers: those have less to save
/// and restore where most blocks are not.
#[inline(never)]
fn record(
    log: &'static Log,
    local: &'static thread::Local,
    block: usize,
    size: usize,
    caller: Caller,
) {
    thread::register(log, local);
    let Some(mut busy) = local.begin() else {
        log.header.dropped_nested.fetch_add(1, Relaxed);
        return;
    };
    blocks::prefetch(log, block);
    let thread = local.id();
    let tick = log.tick();
    let is_recorded = busy.with_thread(log, |own| {
        let stack = unwind::stack(log, own, caller.stack_pointer, caller.frame_pointer);
        if let Some(history) = &log.history {
            let event = Event {
                kind: EVENT_ALLOCATED,
                address: block,
                size,
                stack,
                thread,
                tick,
            };
            history.write(&mut own.events, event);
        }
        blocks::insert(
            log,
            &mut own.supply,
            block,
            Allocation {
                size,
                stack,
                thread,
                tick,
            },
        )
    });
    if is_recorded != Some(true) {
        log.header.dropped_full.fetch_add(1, Relaxed);
    }
}

/// Records that a block will be freed.
#[inline]
fn freed(log: &'static Log, block: usize, caller: Caller) -> Option<Removed> {
    if log.settings.mode == MODE_OFF {
        return None;
    }
    images::note_caller(caller.return_address());
    let removed = blocks::remove(log, block);
    if removed.is_some() && log.history.as_ref().is_some_and(|history| history.is_own()) {
        write_freed(log, arch::local(), block, caller);
    }
    removed
}

#[cold]
fn write_freed(log: &'static Log, local: &'static thread::Local, block: usize, caller: Caller) {
    thread::register(log, local);
    let (Some(history), Some(mut busy)) = (&log.history, local.begin()) else {
        return;
    };
    let (thread, tick) = (local.id(), log.tick());
    busy.with_thread(log, |own| {
        let stack = unwind::stack(log, own, caller.stack_pointer, caller.frame_pointer);
        let event = Event {
            kind: EVENT_FREED,
            address: block,
            size: 0,
            stack,
            thread,
            tick,
        };
        history.write(&mut own.events, event);
    });
}

/// A block was not freed after all: `realloc` had no memory.
#[cold]
fn still_there(log: &Log, removed: Option<Removed>) {
    if let Some(removed) = removed
        && !blocks::restore(removed)
    {
        log.header.dropped_full.fetch_add(1, Relaxed);
    }
}

#[inline]
fn scribble(log: &Log, block: usize, size: usize) {
    if log.settings.scribble && block != 0 {
        fill(block, size, SCRIBBLE_ALLOCATED);
    }
}

#[cold]
fn fill(block: usize, size: usize, byte: u8) {
    // SAFETY: the block has so many bytes, and nobody uses it now: it was just allocated, or is
    // about to be freed.
    unsafe { core::ptr::write_bytes(block as *mut u8, byte, size) };
}
