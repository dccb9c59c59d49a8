//! Forks: the child has a copy of everything, but of the threads only the one that forked.
//!
//! A lock that another thread held stays locked in the child for ever. The C library frees its own
//! locks there, but for that of the dynamic loader's list of images (glibc, seen in 2.36). So the
//! recorder holds it in no thread while another one forks; and as the program may hold it, a child
//! of a program with threads never asks for it.

use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicBool, AtomicU32};

use crate::format::FLAG_FORKED;
use crate::{elf, images, log, next, sys, thread};

/// How the loaded images can be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WayToImages {
    /// By the loader's function, which takes its lock.
    Loader,
    /// By the loader's list, without a lock: there is only this thread.
    List,
    /// Not at all.
    None,
}

/// The loader's lock may be held for ever.
static IS_LOCK_LOST: AtomicBool = AtomicBool::new(false);
/// Threads that have allocated and have not ended.
static THREADS: AtomicU32 = AtomicU32::new(0);

/// Takes note of a thread.
pub(crate) fn thread_begins() {
    THREADS.fetch_add(1, Relaxed);
}

/// Takes note of the end of a thread.
pub(crate) fn thread_ends() {
    THREADS.fetch_sub(1, Relaxed);
}

/// How the loaded images can be found now.
pub(crate) fn way_to_images() -> WayToImages {
    if !IS_LOCK_LOST.load(Acquire) {
        WayToImages::Loader
    } else if THREADS.load(Relaxed) <= 1 {
        WayToImages::List
    } else {
        WayToImages::None
    }
}

type Handler = Option<extern "C" fn()>;

/// Has the C library call the handlers at each fork.
pub(crate) fn register() {
    elf::find_list();
    if let Some(at) = next::anywhere(c"__register_atfork") {
        // SAFETY: the function of glibc of that name has this type.
        let register: extern "C" fn(Handler, Handler, Handler, usize) -> i32 =
            unsafe { core::mem::transmute(at) };
        register(Some(before), Some(after_in_parent), Some(after_in_child), 0);
    } else if let Some(at) = next::anywhere(c"pthread_atfork") {
        // SAFETY: POSIX says that it has this type.
        let register: extern "C" fn(Handler, Handler, Handler) -> i32 =
            unsafe { core::mem::transmute(at) };
        register(Some(before), Some(after_in_parent), Some(after_in_child));
    }
}

extern "C" fn before() {
    images::hold();
}

extern "C" fn after_in_parent() {
    images::let_go();
}

/// The log of the child is the copy that it has in its own memory.
extern "C" fn after_in_child() {
    images::let_go();
    if THREADS.load(Relaxed) > 1 {
        IS_LOCK_LOST.store(true, Release);
    }
    THREADS.store(1, Relaxed);
    let Some(log) = log::get() else { return };
    log.header.pid.store(sys::process_id(), Relaxed);
    log.header.flags.fetch_or(FLAG_FORKED, Relaxed);
    thread::after_fork();
    if let Some(history) = &log.history {
        history.after_fork();
    }
}
