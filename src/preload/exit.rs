//! The end of the process: `rleaks --at-exit` is told, and waited for, so that it can watch the
//! process end.

use core::ffi::{CStr, c_char};
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize};

use crate::format::{
    EXIT_CLAIMED, EXIT_FREE, EXIT_GO_ON, EXIT_PAGE_VARIABLE, EXIT_SLOTS, EXIT_WAITING, ExitPage,
    ExitSlot, MAGIC, VERSION,
};
use crate::log::rleaks_stack_log;
use crate::sys;

/// [`ExitPage`], as it is used.
#[repr(C)]
struct Page {
    magic: AtomicU64,
    version: AtomicU32,
    tracer: AtomicU32,
    doorbell: AtomicU32,
    only: AtomicU32,
    slots: [Slot; EXIT_SLOTS],
    present: AtomicU32,
    padding: AtomicU32,
}

/// [`ExitSlot`], as it is used.
#[repr(C)]
struct Slot {
    state: AtomicU32,
    pid: AtomicU32,
}

const _: () = {
    assert!(size_of::<Page>() == size_of::<ExitPage>());
    assert!(size_of::<Slot>() == size_of::<ExitSlot>());
};

/// The address of the page, or 0.
static PAGE: AtomicUsize = AtomicUsize::new(0);

unsafe extern "C" {
    fn getenv(name: *const c_char) -> *const c_char;
}

/// Opens the page that the environment names. It is mapped from the start: a program may change its
/// root or close all files later.
pub(crate) fn begin() {
    let mut name = [0_u8; 32];
    name[..EXIT_PAGE_VARIABLE.len()].copy_from_slice(EXIT_PAGE_VARIABLE.as_bytes());
    // SAFETY: the name ends with a zero.
    let path = unsafe { getenv(name.as_ptr().cast()) };
    if path.is_null() {
        return;
    }
    // SAFETY: a string of the environment.
    let path = unsafe { CStr::from_ptr(path) };
    let Some(descriptor) = sys::open(path.to_bytes_with_nul(), false) else {
        return;
    };
    let at = sys::map_file(descriptor, size_of::<Page>());
    sys::close(descriptor);
    PAGE.store(at.unwrap_or(0), Release);
    if let Some(page) = page()
        && page.only.load(Relaxed) == sys::process_id()
    {
        page.present.store(1, Release);
    }
}

fn page() -> Option<&'static Page> {
    let at = PAGE.load(Acquire) as *const Page;
    // SAFETY: it is null, or the address of a mapping of that size that is never unmapped.
    let page = unsafe { at.as_ref() }?;
    let is_valid = page.magic.load(Acquire) == u64::from_le_bytes(MAGIC)
        && page.version.load(Relaxed) == VERSION;
    is_valid.then_some(page)
}

/// The process that has waited: it does so once, though several ways out may lead through here.
static WAITED: AtomicU32 = AtomicU32::new(0);

/// Says whether it is to wait, which it does once. A child of `vfork` is not: its memory is that of its
/// parent, as the process id there tells.
fn is_due(page: &Page) -> bool {
    let pid = sys::process_id();
    let only = page.only.load(Acquire);
    (only == 0 || only == pid)
        && rleaks_stack_log.pid.load(Relaxed) == pid
        && WAITED.swap(pid, Relaxed) != pid
}

/// Tells that this process ends, and waits until whoever wants to see that is ready.
pub(crate) fn before_exit() {
    if let Some(page) = page().filter(|page| is_due(page)) {
        let claim = |slot: &&Slot| {
            slot.state
                .compare_exchange(EXIT_FREE, EXIT_CLAIMED, AcqRel, Relaxed)
                .is_ok()
        };
        if let Some(slot) = page.slots.iter().find(claim) {
            wait(page, slot);
        }
    }
}

fn wait(page: &Page, slot: &Slot) {
    const PATIENCE_MILLISECONDS: i64 = 10_000;
    const STEP_MILLISECONDS: i64 = 100;
    slot.pid.store(sys::process_id(), Relaxed);
    slot.state.store(EXIT_WAITING, Release);
    page.doorbell.fetch_add(1, Release);
    sys::futex_wake(&page.doorbell);
    let tracer = page.tracer.load(Relaxed);
    for _ in 0..PATIENCE_MILLISECONDS / STEP_MILLISECONDS {
        if slot.state.load(Acquire) == EXIT_GO_ON || !sys::process_exists(tracer) {
            break;
        }
        sys::futex_wait(&slot.state, EXIT_WAITING, STEP_MILLISECONDS);
    }
    slot.state.store(EXIT_FREE, Release);
}

/// Leaves the process by the C library's way out of that number: `_exit`, `_Exit`, `quick_exit`.
pub(crate) fn leave(way: usize, status: i32) {
    const NAMES: [&CStr; 3] = [c"_exit", c"_Exit", c"quick_exit"];
    before_exit();
    if let Some(at) = crate::next::after_recorder(NAMES[way]) {
        // SAFETY: the C library's function of that name has this type.
        let leave: extern "C" fn(i32) = unsafe { core::mem::transmute(at) };
        leave(status);
    }
    sys::exit_group(status)
}
