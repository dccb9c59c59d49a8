//! What the processor has to do with it (x86-64): the memory of a thread, and the entries of the
//! exported functions, which see the registers of their caller.

use core::arch::{asm, global_asm};

use crate::thread::Local;

// Part of the static TLS of each thread: it exists, zeroed, before the first call, and reaching it
// takes two instructions and no function of the C library.
global_asm!(
    ".pushsection .tbss,\"awT\",@nobits",
    ".balign 16",
    ".hidden rleaks_thread_local",
    ".globl rleaks_thread_local",
    ".type rleaks_thread_local,@object",
    ".size rleaks_thread_local,{size}",
    "rleaks_thread_local:",
    ".zero {size}",
    ".popsection",
    size = const size_of::<Local>(),
);

/// What the recorder keeps in this thread's own memory.
#[inline]
pub(crate) fn local() -> &'static Local {
    let at: *const Local;
    // SAFETY: reads the thread pointer and the variable's distance from it, which the dynamic
    // loader has set.
    unsafe {
        asm!(
            "mov {at}, qword ptr [rip + rleaks_thread_local@GOTTPOFF]",
            "add {at}, qword ptr fs:[0]",
            at = out(reg) at,
            options(pure, readonly, nostack),
        );
    }
    // SAFETY: the variable has the size and the alignment of `Local`, for which zeros are valid. It
    // lives as long as the thread, which alone can reach it: `Local` is not `Sync`.
    unsafe { &*at }
}

/// Asks the processor to have the memory at `at` near soon. Any address will do.
#[inline]
pub(crate) fn prefetch(at: usize) {
    // SAFETY: a prefetch never faults.
    unsafe { core::arch::x86_64::_mm_prefetch::<0>(at as *const i8) };
}

/// `number`, of which the compiler does not know that it is equal to another one: the processor need
/// not wait for that other one.
#[inline]
pub(crate) fn opaque(mut number: usize) -> usize {
    // SAFETY: no instruction at all.
    unsafe { asm!("/* {0} */", inout(reg) number, options(pure, nomem, nostack, preserves_flags)) };
    number
}
