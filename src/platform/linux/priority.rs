//! Running before others while a target is being stopped.
#![expect(
    unsafe_code,
    reason = "changing the scheduling policy has no safe wrapper"
)]

use nix::libc;

/// Makes the calling thread run before all normal ones, as far as that is allowed (root, or
/// `CAP_SYS_NICE`): it has to be served between the many threads of a busy target that it stops
/// one by one. What the thread starts does not inherit it.
///
/// There is no way back: a thread that asks for this ends when its work is done. It must sleep
/// where it waits, since nothing else may run on its processor meanwhile.
pub(super) fn run_before_others() {
    let lowest = libc::sched_param { sched_priority: 1 };
    // SAFETY: `lowest` outlives the call; 0 is the calling thread. Where the call is refused the
    // thread goes on as it is.
    unsafe {
        libc::sched_setscheduler(
            0,
            libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK,
            &raw const lowest,
        );
    }
}
