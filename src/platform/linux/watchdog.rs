//! A process that watches the one that stops targets.
//!
//! rleaks runs as two processes: one does the work, the other waits for it and ends it where it
//! keeps a target stopped for too long, whatever the reason. The kernel then lets the target go on.
//! They share one word of memory, the time by which the current stop must be over.
#![expect(unsafe_code, reason = "fork, and memory that two processes share")]

use std::io::Write;
use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, raise, sigprocmask};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{ForkResult, Pid, fork, getppid};

use super::command::keep_statuses_of_children;
use super::signals::next_signal;

/// How often the watching process looks at the clock.
const PERIOD: Duration = Duration::from_millis(100);

/// The word that both processes see, in the one that does the work: the time in nanoseconds of
/// `CLOCK_MONOTONIC` by which the target must go on; 0 while no target is stopped.
static DEADLINE: OnceLock<Shared> = OnceLock::new();

/// A word of memory that the two processes share; it is never unmapped.
#[derive(Clone, Copy)]
struct Shared(&'static AtomicU64);

impl Shared {
    fn new() -> nix::Result<Self> {
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let length = NonZeroUsize::MIN.saturating_add(size_of::<AtomicU64>());
        // SAFETY: the kernel chooses the place, so no other mapping is replaced.
        let page = unsafe { mmap_anonymous(None, length, protection, MapFlags::MAP_SHARED) }?;
        // SAFETY: the page is zeroed, aligned, larger than the word, never unmapped, and both
        // processes only ever access it as this atomic word.
        Ok(Self(unsafe { AtomicU64::from_ptr(page.as_ptr().cast()) }))
    }
}

/// Runs `work` in a process of its own, and ends that process if it keeps a target stopped for
/// longer than it said. Returns the exit status for the caller to end with.
///
/// Must be called before any thread is started. Where there can be no second process, `work` runs
/// in this one, unwatched.
pub fn watched(work: impl FnOnce() -> ExitCode) -> ExitCode {
    watched_as(Work::Scan, work)
}

/// The same for work that starts a command: signals are passed on for it, and job control stops rleaks
/// when the command has stopped, not before.
pub fn watched_command(work: impl FnOnce() -> ExitCode) -> ExitCode {
    watched_as(Work::Command, work)
}

/// What is being watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    Scan,
    Command,
}

impl Work {
    /// The signals that the watching process answers itself.
    fn signals(self) -> SigSet {
        let scan = [
            Signal::SIGCHLD,
            Signal::SIGINT,
            Signal::SIGTERM,
            Signal::SIGHUP,
            Signal::SIGTSTP,
        ];
        let command = [
            Signal::SIGCONT,
            Signal::SIGQUIT,
            Signal::SIGUSR1,
            Signal::SIGUSR2,
        ];
        let more = (self == Self::Command).then_some(command);
        scan.into_iter().chain(more.into_iter().flatten()).collect()
    }
}

fn watched_as(kind: Work, work: impl FnOnce() -> ExitCode) -> ExitCode {
    let Ok(shared) = Shared::new() else {
        return work();
    };
    keep_statuses_of_children();
    let signals = kind.signals();
    let mut previous = SigSet::empty();
    // Blocked before the fork, so that no signal falls between it and the first wait.
    if sigprocmask(SigmaskHow::SIG_BLOCK, Some(&signals), Some(&mut previous)).is_err() {
        return work();
    }
    let own_pid = Pid::this();
    // SAFETY: this process has one thread, so nothing that another thread holds is cut off.
    let forked = unsafe { fork() };
    match forked {
        Ok(ForkResult::Parent { child }) => watch(child, kind, shared),
        Ok(ForkResult::Child) => {
            die_with(own_pid);
            let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&previous), None);
            let _ = DEADLINE.set(shared);
            work()
        }
        Err(_) => {
            let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&previous), None);
            work()
        }
    }
}

/// The process id by which rleaks was started and is known: that of the watching process, where
/// there is one.
#[must_use]
pub fn visible_pid() -> u32 {
    let parent = DEADLINE.get().map(|_| std::os::unix::process::parent_id());
    parent.unwrap_or_else(std::process::id)
}

/// While it lives, the watching process ends this one at its deadline.
#[derive(Debug)]
pub(super) struct Armed(());

impl Armed {
    /// The target that is about to be stopped goes on within `limit`.
    pub(super) fn new(limit: Duration) -> Self {
        let limit = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
        set_deadline(now().saturating_add(limit));
        Self(())
    }
}

/// The target goes on, all of it or but for single threads: rleaks has at least `time` more for these.
pub(super) fn postpone(time: Duration) {
    let time = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    set_deadline(now().saturating_add(time.saturating_mul(2)));
}

impl Drop for Armed {
    fn drop(&mut self) {
        set_deadline(0);
    }
}

fn set_deadline(deadline: u64) {
    if let Some(shared) = DEADLINE.get() {
        shared.0.store(deadline, Ordering::Release);
    }
}

/// When the watching process ends, however that is, this one ends too.
fn die_with(parent: Pid) {
    let _ = prctl::set_pdeathsig(Signal::SIGKILL);
    if getppid() != parent {
        // It has ended already.
        std::process::exit(2);
    }
}

fn watch(worker: Pid, kind: Work, shared: Shared) -> ExitCode {
    let signals = kind.signals();
    let mut is_suspending = false;
    loop {
        match waitpid(worker, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(nix::errno::Errno::EINTR) => {}
            Ok(status) => return mirror(status),
            Err(_) => return ExitCode::from(2),
        }
        let deadline = shared.0.load(Ordering::Acquire);
        if deadline != 0 && now() > deadline {
            return end(worker);
        }
        if is_suspending && deadline == 0 {
            is_suspending = false;
            let _ = raise(Signal::SIGSTOP);
        }
        match next_signal(&signals, PERIOD) {
            // The terminal has sent it to the worker as well.
            Some((Signal::SIGTSTP, from_terminal)) if kind == Work::Scan => {
                is_suspending = true;
                forward(worker, Signal::SIGTSTP, from_terminal);
            }
            Some((Signal::SIGCHLD, _)) | None => {}
            Some((signal, from_terminal)) => forward(worker, signal, from_terminal),
        }
    }
}

fn forward(worker: Pid, signal: Signal, from_terminal: bool) {
    if !from_terminal {
        let _ = kill(worker, signal);
    }
}

/// Ends the worker, which frees its target, and says so.
fn end(worker: Pid) -> ExitCode {
    let _ = kill(worker, Signal::SIGKILL);
    let _ = waitpid(worker, None);
    // There is nowhere to say that it could not be said.
    let _ = std::io::stderr().write_all(
        b"rleaks: the target was stopped for too long, so it was let go, without a result: try again, \
          or with --snapshot=copy\n",
    );
    ExitCode::from(2)
}

/// Ends as the worker did.
fn mirror(status: WaitStatus) -> ExitCode {
    match status {
        WaitStatus::Exited(_, code) => ExitCode::from(u8::try_from(code).unwrap_or(2)),
        WaitStatus::Signaled(_, signal, _) => {
            let _ = std::io::stderr().write_all(format!("rleaks: ended by {signal}\n").as_bytes());
            ExitCode::from(2)
        }
        _ => ExitCode::from(2),
    }
}

fn now() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from);
    u64::try_from(now.unwrap_or_default().as_nanos()).unwrap_or(u64::MAX)
}
