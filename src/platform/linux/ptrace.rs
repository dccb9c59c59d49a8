//! The ptrace requests that rleaks makes: ptrace(2).
//!
//! Raw calls, because a signal number that has no name (a real-time signal, as glibc itself uses)
//! must be passed on like any other.
#![expect(
    unsafe_code,
    reason = "ptrace and waitpid with real-time signals have no safe wrapper"
)]

use std::io;

use nix::libc;

/// What `waitpid` says of one traced thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// Nothing yet.
    Running,
    /// It stopped. A signal that was on its way to it has to be passed on; 0 if there was none.
    Stopped { signal: i32 },
    /// It ended.
    Ended,
}

/// What a traced thread, or a child of this process, did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// It ended, with this status in the form of `wait`.
    Ended { status: i32 },
    /// It stopped: a signal is on its way to it or, where it is not traced, has stopped it.
    Signal { signal: i32 },
    /// It stopped at one of `PTRACE_EVENT_…`; `signal` tells a stop by job control from others.
    Event { event: i32, signal: i32 },
    /// A child that is not traced goes on.
    Continued,
}

/// Becomes the tracer of thread `tid`, which runs on.
pub(super) fn seize(tid: u32) -> io::Result<()> {
    // SAFETY: the request takes no pointer of ours.
    check(unsafe { libc::ptrace(libc::PTRACE_SEIZE, tid, 0, 0) })
}

/// Becomes the tracer of thread `tid`, which runs on and stops when it ends. So do the threads that
/// it starts.
pub(super) fn seize_to_the_end(tid: u32) -> io::Result<()> {
    let options = libc::PTRACE_O_TRACEEXIT | libc::PTRACE_O_TRACECLONE | libc::PTRACE_O_TRACEEXEC;
    // SAFETY: the request takes no pointer of ours: the options are passed by value.
    check(unsafe { libc::ptrace(libc::PTRACE_SEIZE, tid, 0, libc::c_long::from(options)) })
}

/// Lets the stopped thread `tid` go on and stays its tracer; `signal` is delivered if it is not 0.
pub(super) fn go_on(tid: u32, signal: i32) -> io::Result<()> {
    // SAFETY: the request takes no pointer of ours: `signal` is passed by value.
    check(unsafe { libc::ptrace(libc::PTRACE_CONT, tid, 0, libc::c_long::from(signal)) })
}

/// Leaves the thread `tid` stopped, as job control wants it, until it is continued.
pub(super) fn stay_stopped(tid: u32) -> io::Result<()> {
    // SAFETY: the request takes no pointer of ours.
    check(unsafe { libc::ptrace(libc::PTRACE_LISTEN, tid, 0, 0) })
}

/// The value that comes with the event at which thread `tid` stopped: the status with which it
/// ends, the id of the thread that it started.
pub(super) fn event_message(tid: u32) -> io::Result<u64> {
    let mut message: libc::c_ulong = 0;
    // SAFETY: the kernel writes one word; `message` outlives the call.
    check(unsafe { libc::ptrace(libc::PTRACE_GETEVENTMSG, tid, 0, &raw mut message) })?;
    Ok(message)
}

/// What one of the threads did that the calling thread traces, without waiting. Children of other threads
/// are left alone.
pub(super) fn any_change() -> Option<(u32, Change)> {
    wait_for_change(-1, libc::__WALL | libc::__WNOTHREAD)
}

/// What the child `pid` did, without waiting, whether it is traced or not.
pub(super) fn change_of_child(pid: u32) -> Option<(u32, Change)> {
    wait_for_change(i32::try_from(pid).ok()?, libc::WUNTRACED | libc::WCONTINUED)
}

fn wait_for_change(whose: i32, options: i32) -> Option<(u32, Change)> {
    loop {
        let mut status = 0;
        // SAFETY: `status` outlives the call.
        let found = unsafe { libc::waitpid(whose, &raw mut status, options | libc::WNOHANG) };
        if found == -1 && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted {
            continue;
        }
        let tid = u32::try_from(found).ok().filter(|tid| *tid != 0)?;
        return Some((tid, change(status)));
    }
}

fn change(status: i32) -> Change {
    if libc::WIFCONTINUED(status) {
        return Change::Continued;
    }
    if !libc::WIFSTOPPED(status) {
        return Change::Ended { status };
    }
    let signal = libc::WSTOPSIG(status);
    match status >> 16 {
        0 => Change::Signal { signal },
        event => Change::Event { event, signal },
    }
}

/// Asks the seized thread `tid` to stop.
pub(super) fn interrupt(tid: u32) -> io::Result<()> {
    // SAFETY: the request takes no pointer of ours.
    check(unsafe { libc::ptrace(libc::PTRACE_INTERRUPT, tid, 0, 0) })
}

/// Lets the stopped thread `tid` go on, with `signal` if that is not 0.
pub(super) fn detach(tid: u32, signal: i32) -> io::Result<()> {
    // SAFETY: the request takes no pointer of ours: `signal` is passed by value.
    check(unsafe { libc::ptrace(libc::PTRACE_DETACH, tid, 0, libc::c_long::from(signal)) })
}

/// Asks what became of the traced thread `tid`, without waiting.
pub(super) fn poll(tid: u32) -> io::Result<Wait> {
    let mut status = 0;
    let tid = libc::pid_t::try_from(tid).map_err(io::Error::other)?;
    // SAFETY: `status` outlives the call.
    let found = unsafe { libc::waitpid(tid, &raw mut status, libc::__WALL | libc::WNOHANG) };
    match found {
        0 => Ok(Wait::Running),
        -1 => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ECHILD) => Ok(Wait::Ended),
            error if error.kind() == io::ErrorKind::Interrupted => Ok(Wait::Running),
            error => Err(error),
        },
        _ => Ok(decode(status)),
    }
}

/// A stop by `PTRACE_INTERRUPT` or by job control has an event number above the signal; without
/// one the thread is about to receive the signal.
fn decode(status: i32) -> Wait {
    if !libc::WIFSTOPPED(status) {
        return Wait::Ended;
    }
    let is_event = status >> 16 != 0;
    Wait::Stopped {
        signal: if is_event { 0 } else { libc::WSTOPSIG(status) },
    }
}

/// Reads a register set of the stopped thread `tid`; `note` is its type in `<elf.h>`.
pub(super) fn register_set(tid: u32, note: i32) -> io::Result<Vec<u8>> {
    // The extended state is below 3 KiB with AVX-512, about 11 KiB with AMX.
    let mut bytes = vec![0_u8; 32 * 1024];
    let mut iovec = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: `iovec` describes `bytes`, which outlives the call and which nothing else uses; the
    // kernel writes at most `iov_len` bytes and sets it to what it wrote.
    check(unsafe { libc::ptrace(libc::PTRACE_GETREGSET, tid, note, &raw mut iovec) })?;
    bytes.truncate(iovec.iov_len);
    bytes.shrink_to_fit();
    Ok(bytes)
}

/// Writes a register set of the stopped thread `tid`.
pub(super) fn set_register_set(tid: u32, note: i32, bytes: &mut [u8]) -> io::Result<()> {
    let mut iovec = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: `iovec` describes `bytes`, which outlives the call; the kernel only reads it.
    check(unsafe { libc::ptrace(libc::PTRACE_SETREGSET, tid, note, &raw mut iovec) })
}

/// The base address of the segment that entry `index` of the global descriptor table of the stopped
/// thread `tid` describes: its thread-local storage, in a 32-bit program.
pub(super) fn thread_area(tid: u32, index: u32) -> io::Result<u32> {
    const PTRACE_GET_THREAD_AREA: libc::c_uint = 25;
    // `struct user_desc`, <asm/ldt.h>: number, base, limit, flags.
    let mut area = [0_u32; 4];
    // SAFETY: the kernel writes one `struct user_desc`, which is as large as `area`; that outlives
    // the call and nothing else uses it.
    check(unsafe { libc::ptrace(PTRACE_GET_THREAD_AREA, tid, index, area.as_mut_ptr()) })?;
    Ok(area[1])
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_decoded_also_for_real_time_signals() {
        let stopped_by = |signal: i32, event: i32| event << 16 | signal << 8 | 0x7f;
        assert_eq!(
            decode(stopped_by(libc::SIGTRAP, 128)),
            Wait::Stopped { signal: 0 }
        );
        assert_eq!(
            decode(stopped_by(libc::SIGSTOP, 128)),
            Wait::Stopped { signal: 0 }
        );
        assert_eq!(
            decode(stopped_by(libc::SIGUSR1, 0)),
            Wait::Stopped {
                signal: libc::SIGUSR1
            }
        );
        assert_eq!(decode(stopped_by(34, 0)), Wait::Stopped { signal: 34 });
        let exit = stopped_by(libc::SIGTRAP, libc::PTRACE_EVENT_EXIT);
        let event = libc::PTRACE_EVENT_EXIT;
        let signal = libc::SIGTRAP;
        assert_eq!(change(exit), Change::Event { event, signal });
        let signal = 34;
        assert_eq!(change(stopped_by(34, 0)), Change::Signal { signal });
        assert_eq!(change(0xffff), Change::Continued);
        assert_eq!(change(3 << 8), Change::Ended { status: 3 << 8 });
        assert_eq!(decode(0), Wait::Ended);
        assert_eq!(decode(libc::SIGKILL), Wait::Ended);
    }
}
