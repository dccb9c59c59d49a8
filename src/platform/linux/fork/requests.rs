//! The ptrace requests that an injected system call needs beside those of a stop: ptrace(2).
#![expect(unsafe_code, reason = "ptrace has no safe wrapper")]

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::time::{Duration, Instant};

use nix::libc;

use crate::platform::linux::ptrace::check;

/// What a traced thread stopped for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// A system call begins or has ended.
    SystemCall,
    /// It has started a process.
    Clone,
    /// The tracer asked for it, or job control: then the process stands still on its own.
    Asked { by_job_control: bool },
    /// A signal is on its way to the thread.
    Signal(i32),
    /// There is no such thread any more.
    Ended,
}

impl Stop {
    /// Says whether the kernel will look at the registers, and restart a system call, when the thread
    /// goes on from here.
    pub(super) fn is_before_restart(self) -> bool {
        matches!(self, Self::Asked { .. } | Self::Signal(_))
    }

    /// The stop behind what `waitid` calls the status: an event above a signal.
    fn of(status: i32) -> Self {
        const SYSTEM_CALL: i32 = libc::SIGTRAP | 0x80;
        match (status >> 8, status & 0xff) {
            (0, SYSTEM_CALL) => Self::SystemCall,
            (0, signal) => Self::Signal(signal),
            (libc::PTRACE_EVENT_CLONE | libc::PTRACE_EVENT_FORK, _) => Self::Clone,
            (_, signal) => Self::Asked {
                by_job_control: signal != libc::SIGTRAP,
            },
        }
    }
}

/// Waits until thread `tid` stops or ends; with `is_patient` false, says `None` where it does neither
/// now.
///
/// What it stopped for stays with the kernel: a signal is delivered even if this process is killed.
pub(super) fn wait(tid: u32, is_patient: bool) -> io::Result<Option<Stop>> {
    let mut options = libc::WEXITED | libc::WSTOPPED | libc::WNOWAIT | libc::__WALL;
    if !is_patient {
        options |= libc::WNOHANG;
    }
    loop {
        let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
        // SAFETY: `info` outlives the call.
        let result = unsafe { libc::waitid(libc::P_PID, tid, info.as_mut_ptr(), options) };
        if result == -1 {
            match io::Error::last_os_error() {
                error if error.raw_os_error() == Some(libc::ECHILD) => {
                    return Ok(Some(Stop::Ended));
                }
                error if error.kind() == io::ErrorKind::Interrupted => continue,
                error => return Err(error),
            }
        }
        // SAFETY: it was zeroed, which is a value of the type, and the kernel may have filled it.
        let info = unsafe { info.assume_init() };
        // SAFETY: after a successful `waitid` the field is the child's pid, or 0 if there was nothing.
        let found = unsafe { info.si_pid() };
        // SAFETY: after a successful `waitid` the field is the child's status, or 0.
        let status = unsafe { info.si_status() };
        return Ok(match info.si_code {
            _ if found == 0 => None,
            libc::CLD_EXITED | libc::CLD_KILLED | libc::CLD_DUMPED => Some(Stop::Ended),
            _ => Some(Stop::of(status)),
        });
    }
}

/// From one look at a thread to the next: what it did may be told by no signal, where rleaks was started with
/// `SIGCHLD` ignored.
const NAP: Duration = Duration::from_micros(200);

/// The same, as long as `patience`; `None` where the thread neither stops nor ends in that time.
///
/// The calling thread must block `SIGCHLD`.
pub(super) fn wait_within(tid: u32, patience: Duration) -> io::Result<Option<Stop>> {
    let start = Instant::now();
    loop {
        let stop = wait(tid, false)?;
        if stop.is_some() || start.elapsed() > patience {
            return Ok(stop);
        }
        wait_for_news(NAP);
    }
}

/// Waits until a traced thread does something, for a nap at the longest.
fn wait_for_news(nap: Duration) {
    let mut child = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: it makes the set, which outlives the call, an empty one.
    unsafe { libc::sigemptyset(child.as_mut_ptr()) };
    // SAFETY: the set is an empty one, and outlives the call.
    unsafe { libc::sigaddset(child.as_mut_ptr(), libc::SIGCHLD) };
    let nap = libc::timespec {
        tv_sec: 0,
        tv_nsec: nap.subsec_nanos().into(),
    };
    // SAFETY: set and time outlive the call; of the signal nothing more is asked.
    unsafe { libc::sigtimedwait(child.as_ptr(), std::ptr::null_mut(), &raw const nap) };
}

/// Takes note of the end of the traced process `pid`: its real parent gets to know of it now.
pub(super) fn collect(pid: u32) {
    let pid = i32::try_from(pid).unwrap_or(i32::MAX);
    // SAFETY: no status is asked for.
    unsafe { libc::waitpid(pid, std::ptr::null_mut(), libc::__WALL | libc::WNOHANG) };
}

/// Lets thread `tid` go on until the next beginning or end of a system call.
pub(super) fn go_on_to_system_call(tid: u32) -> io::Result<()> {
    // SAFETY: the request takes no pointer of ours.
    check(unsafe { libc::ptrace(libc::PTRACE_SYSCALL, tid, 0, 0) })
}

/// Sets what thread `tid`, which is stopped, tells its tracer of.
pub(super) fn set_options(tid: u32, options: i32) -> io::Result<()> {
    let options = libc::c_long::from(options);
    // SAFETY: the request takes no pointer of ours: the options are passed by value.
    check(unsafe { libc::ptrace(libc::PTRACE_SETOPTIONS, tid, 0, options) })
}

/// The signals that thread `tid` blocks.
pub(super) fn signal_mask(tid: u32) -> io::Result<u64> {
    let mut mask = 0_u64;
    let size = size_of::<u64>();
    // SAFETY: the kernel writes `size` bytes; `mask` has as many and outlives the call.
    check(unsafe { libc::ptrace(libc::PTRACE_GETSIGMASK, tid, size, &raw mut mask) })?;
    Ok(mask)
}

/// Makes thread `tid` block the signals of `mask`.
pub(super) fn set_signal_mask(tid: u32, mask: u64) -> io::Result<()> {
    let size = size_of::<u64>();
    // SAFETY: the kernel reads `size` bytes; `mask` has as many and outlives the call.
    check(unsafe { libc::ptrace(libc::PTRACE_SETSIGMASK, tid, size, &raw const mask) })
}

/// Says whether system calls of thread `tid` are handed to the program itself instead of the kernel
/// (`PR_SET_SYSCALL_USER_DISPATCH`). `false` also where the kernel cannot tell.
pub(super) fn dispatches_system_calls(tid: u32) -> bool {
    const PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG: libc::c_uint = 0x4211;
    // `struct ptrace_sud_config`: mode, selector, offset, length.
    let mut settings = [0_u64; 4];
    let size = size_of::<[u64; 4]>();
    let request = PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG;
    // SAFETY: the kernel writes `size` bytes; `settings` has as many and outlives the call.
    let result = unsafe { libc::ptrace(request, tid, size, settings.as_mut_ptr()) };
    result != -1 && settings[0] != 0
}

/// Where thread `tid` has registered its restartable sequences; 0 where it has not.
pub(super) fn restartable_sequences(tid: u32) -> io::Result<u64> {
    const PTRACE_GET_RSEQ_CONFIGURATION: libc::c_uint = 0x420f;
    // `struct ptrace_rseq_configuration`: address; size and signature; flags and padding.
    let mut settings = [0_u64; 3];
    let size = size_of::<[u64; 3]>();
    let request = PTRACE_GET_RSEQ_CONFIGURATION;
    // SAFETY: the kernel writes at most `size` bytes; `settings` has as many and outlives the call.
    check(unsafe { libc::ptrace(request, tid, size, settings.as_mut_ptr()) })?;
    Ok(settings[0])
}

/// How the signal came about that is on its way to thread `tid`: above 0, the kernel itself made it.
pub(super) fn signal_code(tid: u32) -> io::Result<i32> {
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    // SAFETY: the kernel writes one `siginfo_t`; `info` outlives the call.
    check(unsafe { libc::ptrace(libc::PTRACE_GETSIGINFO, tid, 0, info.as_mut_ptr()) })?;
    // SAFETY: it was zeroed, which is a value of the type, and the kernel has filled it.
    Ok(unsafe { info.assume_init() }.si_code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_thread_stopped_for_is_in_its_status() {
        const STOP_EVENT: i32 = 128;
        for (status, stop) in [
            (libc::SIGTRAP | 0x80, Stop::SystemCall),
            (libc::SIGUSR1, Stop::Signal(libc::SIGUSR1)),
            (libc::PTRACE_EVENT_CLONE << 8 | libc::SIGTRAP, Stop::Clone),
            (
                STOP_EVENT << 8 | libc::SIGTRAP,
                Stop::Asked {
                    by_job_control: false,
                },
            ),
            (
                STOP_EVENT << 8 | libc::SIGTSTP,
                Stop::Asked {
                    by_job_control: true,
                },
            ),
        ] {
            assert_eq!(Stop::of(status), stop, "{status:#x}");
        }
        assert!(Stop::Signal(1).is_before_restart() && !Stop::SystemCall.is_before_restart());
    }
}
