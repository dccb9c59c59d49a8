//! What the recorder keeps for each thread: above all, the stack of its last allocation.

use core::cell::{Cell, UnsafeCell};
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, compiler_fence};

use crate::code::Code;
use crate::format::BLOCKS_PER_CHUNK;
use crate::log::Log;
use crate::readable::Readable;
use crate::settings::DEPTH_MAX;
use crate::unwind::UseOfPointer;
use crate::{arch, fork, next, sys};

/// What lies in a thread's own memory: little, since it takes from the thread's stack.
#[derive(Debug)]
pub(crate) struct Local {
    thread: Cell<usize>,
    /// The recorder is at work in this thread.
    is_busy: Cell<bool>,
    /// The thread's own [`Thread`] was given back.
    has_ended: Cell<bool>,
    id: Cell<u32>,
    /// The complement of the address that the last allocation of this thread gave: the address itself
    /// would be a reference to that block.
    pub(crate) last_block: Cell<usize>,
    /// Bytes until the next sample.
    pub(crate) until_sample: Cell<i64>,
    /// The state of the random numbers; 0 where there was none yet.
    pub(crate) random: Cell<u64>,
}

/// A frame of the stack of the last allocation, with the words that it was found by.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Frame {
    /// Where the frame's address lies.
    pub(crate) slot: usize,
    /// That word.
    pub(crate) address: usize,
    /// Where the frame pointer was saved, or the same slot where the frame inside of this one left
    /// it alone.
    pub(crate) saved_at: usize,
    /// That word.
    pub(crate) saved: usize,
    /// The frame pointer, when the code at the address runs on.
    pub(crate) frame_pointer: usize,
    /// The address, with its image.
    pub(crate) code: Code,
    /// Of this frame and all outside of it; see [`crate::nodes::hash`].
    pub(crate) hash: u64,
    pub(crate) use_of_pointer: UseOfPointer,
    /// The frames outside of this one are found by its frame pointer. Else that one is saved again
    /// before it is used.
    pub(crate) needs_frame_pointer: bool,
}

/// What a thread is lent while it lives. Threads that come later get it next. It is never unmapped.
#[repr(C)]
#[derive(Debug)]
struct Lent {
    thread: UnsafeCell<Thread>,
    /// The next one that nobody uses.
    next_free: AtomicUsize,
    /// The one that was made before.
    previous: AtomicUsize,
}

/// What the thread does with it.
#[derive(Debug)]
pub(crate) struct Thread {
    /// The number of times that the C library has told that the thread ends.
    endings: u32,
    /// The generation of the images in which the frames were found.
    pub(crate) generation: u16,
    /// The number of frames of the last stack; 0 where it is of no use for the next one.
    pub(crate) len: usize,
    /// The part of the stack that was read before.
    pub(crate) readable: Readable,
    pub(crate) supply: Supply,
    pub(crate) events: crate::history::Batch,
    /// The stack of the last allocation, outermost frame first. Before the outermost ones are
    /// dropped, there may be twice as many as are kept.
    pub(crate) frames: [Frame; 2 * DEPTH_MAX],
    /// Frames that were found just now, innermost first.
    pub(crate) fresh: [Frame; DEPTH_MAX],
}

/// Block indices that one thread may use.
#[derive(Debug, Default)]
pub(crate) struct Supply {
    next: u64,
    end: u64,
}

impl Supply {
    /// A block index that nobody else has. `None` when all are used or there is no memory.
    #[inline]
    pub(crate) fn next(&mut self, log: &Log) -> Option<u32> {
        const BATCH: u64 = 32;
        if self.next == self.end {
            self.next = log.header.blocks_end.fetch_add(BATCH, Relaxed);
            self.end = self.next + BATCH;
        }
        let index = u32::try_from(self.next).ok()?;
        log.block_chunks[index as usize / BLOCKS_PER_CHUNK].get_or_map(log)?;
        self.next += 1;
        Some(index)
    }
}

/// All threads' memory: the newest, and a list of what is free. The list's upper 16 bits change
/// with each take, so that a stale one is noticed.
static NEWEST: AtomicUsize = AtomicUsize::new(0);
static FREE: AtomicU64 = AtomicU64::new(0);
const TAG_SHIFT: u32 = 48;
const POINTER: u64 = (1 << TAG_SHIFT) - 1;

/// The key whose destructor tells that a thread ends, plus one. 0: not made.
static KEY: AtomicU32 = AtomicU32::new(0);

/// Proof that the recorder is at work in this thread, once.
#[derive(Debug)]
pub(crate) struct Busy {
    local: &'static Local,
}

impl Local {
    /// This thread's id, in the namespace of the process.
    #[inline]
    pub(crate) fn id(&self) -> u32 {
        if self.id.get() == 0 {
            self.id.set(sys::thread_id());
        }
        self.id.get()
    }

    /// Begins the recorder's work. `None` when it is at work already: a signal handler allocates.
    #[inline]
    pub(crate) fn begin(&'static self) -> Option<Busy> {
        if self.is_busy.replace(true) {
            return None;
        }
        // A signal handler of this thread must see the flag before anything else changes.
        compiler_fence(AcqRel);
        Some(Busy { local: self })
    }
}

impl Drop for Busy {
    #[inline]
    fn drop(&mut self) {
        compiler_fence(AcqRel);
        self.local.is_busy.set(false);
    }
}

impl Busy {
    /// Calls `work` with the thread's memory. `None` where there is none to be had.
    #[inline]
    pub(crate) fn with_thread<R>(
        &mut self,
        log: &Log,
        work: impl FnOnce(&mut Thread) -> R,
    ) -> Option<R> {
        let at = match self.local.thread.get() {
            0 => take(log)?,
            at => at,
        };
        let thread = lent(at).thread.get();
        // SAFETY: it was taken by this thread, which is busy only once at a time: there is no other
        // reference to it.
        let result = work(unsafe { &mut *thread });
        if self.local.has_ended.get() {
            give_back(at);
        } else if self.local.thread.get() == 0 {
            self.local.thread.set(at);
        }
        Some(result)
    }

    /// Whether the C library does not know yet that it has to tell when this thread ends.
    #[inline]
    fn is_unregistered(&self) -> bool {
        self.local.thread.get() == 0 && !self.local.has_ended.get()
    }
}

/// Has the C library tell when this thread ends. It may allocate for that: the recorder must not be
/// at work.
#[inline]
pub(crate) fn register(log: &Log, local: &'static Local) {
    let Some(busy) = local.begin() else { return };
    if !busy.is_unregistered() {
        return;
    }
    let Some(at) = take(log) else { return };
    local.thread.set(at);
    drop(busy);
    fork::thread_begins();
    tell_at_end(at);
}

#[cold]
fn tell_at_end(at: usize) {
    type Destructor = extern "C" fn(usize);
    static CREATE: Function = Function::new();
    let mut key = KEY.load(Acquire);
    if key == 0 {
        let Some(create) = CREATE.find(c"pthread_key_create") else {
            return;
        };
        // SAFETY: POSIX says that the function has this type.
        let create: extern "C" fn(*mut u32, Destructor) -> i32 =
            unsafe { core::mem::transmute(create) };
        let mut made = 0_u32;
        if create(&raw mut made, thread_ends) != 0 {
            return;
        }
        // Two threads may both make one: the second key is never used.
        key = match KEY.compare_exchange(0, made + 1, AcqRel, Acquire) {
            Ok(_) => made + 1,
            Err(first) => first,
        };
    }
    set_specific(key - 1, at);
}

/// A function of the C library, looked up once.
struct Function(AtomicUsize);

impl Function {
    const fn new() -> Self {
        Self(AtomicUsize::new(0))
    }

    fn find(&self, name: &core::ffi::CStr) -> Option<usize> {
        match self.0.load(Relaxed) {
            0 => next::anywhere(name).inspect(|found| self.0.store(*found, Relaxed)),
            found => Some(found),
        }
    }
}

fn set_specific(key: u32, at: usize) {
    static SET: Function = Function::new();
    let Some(set) = SET.find(c"pthread_setspecific") else {
        return;
    };
    // SAFETY: POSIX says that the function has this type.
    let set: extern "C" fn(u32, usize) -> i32 = unsafe { core::mem::transmute(set) };
    set(key, at);
}

/// Called by the C library when a thread ends. Destructors of others may allocate after it: it asks
/// to be called again as often as is promised (`PTHREAD_DESTRUCTOR_ITERATIONS` is at least 4).
extern "C" fn thread_ends(at: usize) {
    const ITERATIONS: u32 = 4;
    let local = arch::local();
    let Some(_busy) = local.begin() else { return };
    if local.thread.get() != at {
        return;
    }
    let thread = lent(at).thread.get();
    // SAFETY: it is this thread's, which is busy only once at a time.
    let thread = unsafe { &mut *thread };
    thread.endings += 1;
    if thread.endings < ITERATIONS {
        return set_specific(KEY.load(Acquire) - 1, at);
    }
    local.has_ended.set(true);
    local.thread.set(0);
    give_back(at);
    fork::thread_ends();
}

/// The memory of a thread that has ended, or a new one.
#[cold]
fn take(log: &Log) -> Option<usize> {
    let mut first = FREE.load(Acquire);
    while first & POINTER != 0 {
        let at = (first & POINTER) as usize;
        let next = lent(at).next_free.load(Relaxed);
        let tag = (first >> TAG_SHIFT).wrapping_add(1) << TAG_SHIFT;
        match FREE.compare_exchange_weak(first, next as u64 | tag, AcqRel, Acquire) {
            Ok(_) => return Some(prepare(at)),
            Err(newer) => first = newer,
        }
    }
    make(log)
}

/// What was mapped at `at` by [`make`].
fn lent(at: usize) -> &'static Lent {
    // SAFETY: all addresses that are kept here are of such, which are never unmapped. Of the thread
    // in it only one reference is made at a time.
    unsafe { &*(at as *const Lent) }
}

/// Makes what another thread used ready for this one.
fn prepare(at: usize) -> usize {
    let thread = lent(at).thread.get();
    // SAFETY: it was taken from the list: nobody else has a reference.
    let thread = unsafe { &mut *thread };
    thread.endings = 0;
    thread.len = 0;
    thread.readable = Readable::default();
    at
}

fn make(log: &Log) -> Option<usize> {
    let at = log.map(size_of::<Lent>())?;
    let mut previous = NEWEST.load(Relaxed);
    loop {
        lent(at).previous.store(previous, Relaxed);
        match NEWEST.compare_exchange_weak(previous, at, Release, Relaxed) {
            Ok(_) => return Some(at),
            Err(newer) => previous = newer,
        }
    }
}

fn give_back(at: usize) {
    let mut first = FREE.load(Relaxed);
    loop {
        lent(at)
            .next_free
            .store((first & POINTER) as usize, Relaxed);
        let newer = first & !POINTER | at as u64;
        match FREE.compare_exchange_weak(first, newer, AcqRel, Relaxed) {
            Ok(_) => return,
            Err(other) => first = other,
        }
    }
}

/// In the child of a fork: this thread is the only one, and has another id. What the others used is
/// free.
pub(crate) fn after_fork() {
    let local = arch::local();
    local.id.set(0);
    let own = local.thread.get();
    FREE.store(0, Relaxed);
    let mut at = NEWEST.load(Acquire);
    while at != 0 {
        if at != own {
            give_back(at);
        }
        at = lent(at).previous.load(Relaxed);
    }
}

#[cfg(test)]
impl Local {
    /// A thread's memory with a seed for its random numbers.
    pub(crate) fn for_tests(random: u64) -> Self {
        Self {
            thread: Cell::new(0),
            is_busy: Cell::new(false),
            has_ended: Cell::new(false),
            id: Cell::new(1),
            last_block: Cell::new(0),
            until_sample: Cell::new(0),
            random: Cell::new(random),
        }
    }
}
