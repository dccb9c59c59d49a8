//! Waiting for signals, instead of handling them.
#![expect(unsafe_code, reason = "waiting for signals with a time limit")]

use std::mem::MaybeUninit;
use std::time::Duration;

use nix::libc;
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{Pid, getsid};

/// Waits for one of the blocked `signals`, for less than a second; says whether a terminal sent it to the
/// whole job, as it does for its keys.
pub(super) fn next_signal(signals: &SigSet, patience: Duration) -> Option<(Signal, bool)> {
    let timeout = libc::timespec {
        tv_sec: 0,
        tv_nsec: i64::from(patience.subsec_nanos()),
    };
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    // SAFETY: the three pointers are to values that outlive the call.
    let signal =
        unsafe { libc::sigtimedwait(signals.as_ref(), info.as_mut_ptr(), &raw const timeout) };
    let signal = Signal::try_from(signal).ok()?;
    // SAFETY: the call succeeded, so the kernel filled it; it was zeroed before.
    let info = unsafe { info.assume_init() };
    // That the terminal is gone is told to the first process of its session alone.
    let is_for_the_leader = signal == Signal::SIGHUP && getsid(None) == Ok(Pid::this());
    Some((
        signal,
        info.si_code == libc::SI_KERNEL && !is_for_the_leader,
    ))
}
