//! The ptrace requests that rleaks makes: ptrace(2).
//!
//! Threads are seldom detached one by one: the kernel does that when the tracing thread ends.
#![expect(
    unsafe_code,
    reason = "ptrace, and waitid with real-time signals, have no safe wrapper"
)]

use std::io;

use nix::libc;

/// What became of one traced thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// Nothing yet.
    Running,
    /// It stopped; with a signal that was on its way to it, or 0.
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

/// Says whether the kernel itself answers such a request, and not a seccomp filter: it says that there
/// is no such thread, for there is none.
pub(super) fn is_answered_by_the_kernel() -> bool {
    const NO_THREAD: u32 = i32::MAX.cast_unsigned();
    let answer = seize(NO_THREAD).map_err(|error| error.raw_os_error());
    answer == Err(Some(libc::ESRCH))
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
///
/// A signal that was on its way to the thread when it stopped stays there (`WNOWAIT`): it is
/// delivered when the tracing thread ends, also where that one is killed.
pub(super) fn poll(tid: u32) -> io::Result<Wait> {
    let mut info = std::mem::MaybeUninit::<libc::siginfo_t>::zeroed();
    let options = libc::WEXITED | libc::WSTOPPED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL;
    // SAFETY: `info` outlives the call.
    let result = unsafe { libc::waitid(libc::P_PID, tid, info.as_mut_ptr(), options) };
    if result == -1 {
        return match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ECHILD) => Ok(Wait::Ended),
            error if error.kind() == io::ErrorKind::Interrupted => Ok(Wait::Running),
            error => Err(error),
        };
    }
    // SAFETY: it was zeroed, which is a value of the type, and the kernel may have filled it.
    let info = unsafe { info.assume_init() };
    // SAFETY: after a successful `waitid` the field is the child's pid, or 0 if there was nothing.
    let found = unsafe { info.si_pid() };
    match info.si_code {
        _ if found == 0 => Ok(Wait::Running),
        libc::CLD_EXITED | libc::CLD_KILLED | libc::CLD_DUMPED => {
            collect(tid);
            Ok(Wait::Ended)
        }
        _ => {
            // SAFETY: after a successful `waitid` the field is the child's status.
            let status = unsafe { info.si_status() };
            Ok(Wait::Stopped {
                signal: signal_of(status),
            })
        }
    }
}

/// A stop by `PTRACE_INTERRUPT` or by job control has an event number above the signal; without
/// one the thread is about to receive the signal.
fn signal_of(status: i32) -> i32 {
    if status >> 8 == 0 { status } else { 0 }
}

/// Lets the kernel forget a traced thread that has ended: a program that executes another waits for
/// that.
fn collect(tid: u32) {
    let Ok(tid) = libc::pid_t::try_from(tid) else {
        return;
    };
    // SAFETY: no status is asked for.
    unsafe { libc::waitpid(tid, std::ptr::null_mut(), libc::__WALL | libc::WNOHANG) };
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

/// Gives the error of a call that has returned -1.
pub(super) fn check(result: libc::c_long) -> io::Result<()> {
    if result == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::process::{Command, Stdio};

    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;

    use super::*;

    #[test]
    fn a_stop_by_an_event_has_no_signal() {
        const STOP_EVENT: i32 = 128;
        assert_eq!(signal_of(STOP_EVENT << 8 | libc::SIGTRAP), 0);
        assert_eq!(signal_of(STOP_EVENT << 8 | libc::SIGSTOP), 0);
        assert_eq!(signal_of(libc::SIGUSR1), libc::SIGUSR1);
        assert_eq!(signal_of(34), 34);
    }

    /// A tracer that is killed ends as this thread does.
    #[test]
    fn a_signal_is_delivered_after_the_end_of_the_tracer_that_saw_it() {
        const SCRIPT: &str = "trap 'exit 42' USR1; echo r; i=0; \
                              while [ $i -lt 1000 ]; do sleep 0.01; i=$((i+1)); done";
        let mut shell = Command::new("sh")
            .args(["-c", SCRIPT])
            .stdout(Stdio::piped())
            .spawn()
            .expect("sh");
        let mut ready = [0];
        let mut output = shell.stdout.take().expect("a pipe");
        output.read_exact(&mut ready).expect("it says so");
        let pid = shell.id();
        let tracer = std::thread::spawn(move || {
            seize(pid).expect("a child may be traced");
            let signalled = Pid::from_raw(i32::try_from(pid).expect("a pid"));
            kill(signalled, Signal::SIGUSR1).expect("a child may be signalled");
            let signal = nix::libc::SIGUSR1;
            while poll(pid).expect("it is traced") != (Wait::Stopped { signal }) {
                std::thread::yield_now();
            }
        });
        tracer.join().expect("the tracer does not panic");
        assert_eq!(shell.wait().expect("it ends").code(), Some(42));
    }

    #[test]
    fn a_status_is_decoded_also_for_real_time_signals() {
        let stopped_by = |signal: i32, event: i32| event << 16 | signal << 8 | 0x7f;
        let exit = stopped_by(libc::SIGTRAP, libc::PTRACE_EVENT_EXIT);
        let event = libc::PTRACE_EVENT_EXIT;
        let signal = libc::SIGTRAP;
        assert_eq!(change(exit), Change::Event { event, signal });
        let signal = 34;
        assert_eq!(change(stopped_by(34, 0)), Change::Signal { signal });
        assert_eq!(change(0xffff), Change::Continued);
        assert_eq!(change(3 << 8), Change::Ended { status: 3 << 8 });
    }
}
