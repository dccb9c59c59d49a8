//! Stopping all threads of a process, and letting them go on, whatever happens.
//!
//! A thread is seized (`PTRACE_SEIZE`) and interrupted (`PTRACE_INTERRUPT`): no signal is sent, so
//! the target can neither see nor miss one. When rleaks dies, the kernel itself detaches.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::libc;

use super::job_control::JobControlHeld;
use super::procfs;
use super::ptrace::{self, Wait};

/// How long a thread may take to stop. A thread that takes longer is in an uninterruptible system
/// call, and meanwhile the others stand still.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);
/// How long to wait for a stop without giving up the processor for long.
const SPIN_TIME: Duration = Duration::from_millis(2);

/// Targets that this process holds stopped.
static STOPPED_TARGETS: AtomicUsize = AtomicUsize::new(0);

/// Says whether this process holds a target stopped now. Meanwhile nothing may be printed: a full
/// pipe that the target itself should drain would freeze both.
#[must_use]
pub fn holds_a_stopped_target() -> bool {
    STOPPED_TARGETS.load(Ordering::Relaxed) > 0
}

/// Why a process could not be stopped. In each case it runs on.
#[derive(Debug, thiserror::Error)]
pub enum SuspendError {
    /// There is no such process, or it ended.
    #[error("no process has pid {0}")]
    NoSuchProcess(u32),
    /// The kernel refused.
    #[error(
        "not allowed to trace process {0}: run rleaks as the same user or with sudo, or give it \
         the capability cap_sys_ptrace"
    )]
    Denied(u32),
    /// A debugger has it.
    #[error(
        "process {0} is already being traced by process {1}: end that debugger or tracer first"
    )]
    AlreadyTraced(u32, u32),
    /// A thread is in the kernel and does not come back.
    #[error(
        "thread {1} of process {0} does not stop (state {2}): it is in an uninterruptible system \
         call; try again when that has ended"
    )]
    DoesNotStop(u32, u32, char),
    /// It is a kernel thread, or it has ended and its parent has not noticed yet.
    #[error("process {0} has no memory: it is a kernel thread or a zombie")]
    NoMemory(u32),
    /// A signal asked rleaks to end.
    #[error("interrupted")]
    Interrupted,
    /// Anything else.
    #[error("cannot stop process {0}")]
    Other(u32, #[source] std::io::Error),
}

/// A thread that rleaks holds.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    stopped: bool,
    /// A signal that was on its way to the thread when it stopped; it is passed on.
    signal: i32,
}

/// A process all of whose threads stand still. Dropping it lets them go on.
///
/// The kernel ties a traced thread to the thread that seized it, so the guard cannot leave the
/// thread it was made on.
#[derive(Debug)]
pub(super) struct Suspended {
    pid: u32,
    threads: BTreeMap<u32, Held>,
    since: Instant,
    /// Released after the threads: fields are dropped after `drop` has run.
    _job_control: JobControlHeld,
    not_send: PhantomData<*const ()>,
}

impl Suspended {
    /// Stops all threads of process `pid`, again until no new thread appears.
    pub(super) fn stop(pid: u32, interrupted: &AtomicBool) -> Result<Self, SuspendError> {
        STOPPED_TARGETS.fetch_add(1, Ordering::Relaxed);
        let mut suspended = Self {
            pid,
            threads: BTreeMap::new(),
            since: Instant::now(),
            _job_control: JobControlHeld::new(),
            not_send: PhantomData,
        };
        while suspended.seize_new_threads()? {
            suspended.wait_for_stops(interrupted)?;
        }
        if suspended.threads.is_empty() {
            return Err(SuspendError::NoSuchProcess(pid));
        }
        Ok(suspended)
    }

    /// The threads that stand still, the main thread first.
    pub(super) fn threads(&self) -> impl Iterator<Item = u32> + '_ {
        let main = self.threads.contains_key(&self.pid).then_some(self.pid);
        let others = self.threads.keys().copied().filter(|tid| *tid != self.pid);
        main.into_iter().chain(others)
    }

    /// Lets the target go on and says for how long it stood still.
    pub(super) fn resume(mut self) -> Duration {
        self.detach_all();
        self.since.elapsed()
    }

    /// Seizes the threads that are not held yet; says whether there were any.
    fn seize_new_threads(&mut self) -> Result<bool, SuspendError> {
        let mut seized = false;
        let threads = procfs::threads(self.pid).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => SuspendError::NoSuchProcess(self.pid),
            _ => SuspendError::Other(self.pid, error),
        })?;
        for tid in threads {
            if !self.threads.contains_key(&tid) && self.seize(tid)? {
                seized = true;
            }
        }
        Ok(seized)
    }

    /// Seizes and interrupts one thread. `false` if it ended meanwhile.
    fn seize(&mut self, tid: u32) -> Result<bool, SuspendError> {
        if let Err(error) = ptrace::seize(tid) {
            return match error.raw_os_error() {
                Some(libc::ESRCH) => Ok(false),
                Some(libc::EPERM) => self.explain_refusal(tid),
                _ => Err(SuspendError::Other(self.pid, error)),
            };
        }
        self.threads.insert(tid, Held::default());
        match ptrace::interrupt(tid) {
            Err(error) if error.raw_os_error() != Some(libc::ESRCH) => {
                Err(SuspendError::Other(self.pid, error))
            }
            _ => Ok(true),
        }
    }

    /// The kernel says `EPERM` for a thread that has ended, too.
    fn explain_refusal(&self, tid: u32) -> Result<bool, SuspendError> {
        let Ok(status) = procfs::Status::read(self.pid, tid) else {
            return Ok(false);
        };
        match status.tracer {
            _ if matches!(status.state, 'Z' | 'X') => Ok(false),
            0 => Err(SuspendError::Denied(self.pid)),
            tracer => Err(SuspendError::AlreadyTraced(self.pid, tracer)),
        }
    }

    fn wait_for_stops(&mut self, interrupted: &AtomicBool) -> Result<(), SuspendError> {
        let waiting: Vec<u32> = self
            .threads
            .iter()
            .filter_map(|(tid, held)| (!held.stopped).then_some(*tid))
            .collect();
        let start = Instant::now();
        for tid in waiting {
            while !self.poll(tid)? {
                if interrupted.load(Ordering::Relaxed) {
                    return Err(SuspendError::Interrupted);
                }
                if start.elapsed() > STOP_TIMEOUT {
                    let state = procfs::Status::read(self.pid, tid).map_or('?', |s| s.state);
                    return Err(SuspendError::DoesNotStop(self.pid, tid, state));
                }
                if start.elapsed() < SPIN_TIME {
                    std::thread::yield_now();
                } else {
                    std::thread::sleep(Duration::from_micros(100));
                }
            }
        }
        Ok(())
    }

    /// Takes notice if thread `tid` stopped or ended; `false` if it did neither yet.
    fn poll(&mut self, tid: u32) -> Result<bool, SuspendError> {
        match ptrace::poll(tid) {
            Ok(Wait::Running) => return Ok(false),
            Ok(Wait::Stopped { signal }) => {
                let held = Held {
                    stopped: true,
                    signal,
                };
                self.threads.insert(tid, held);
            }
            Ok(Wait::Ended) => {
                self.threads.remove(&tid);
            }
            Err(error) => return Err(SuspendError::Other(self.pid, error)),
        }
        Ok(true)
    }

    /// Detaches from every thread. A thread that has not stopped yet must stop first: the kernel
    /// detaches only from stopped ones.
    fn detach_all(&mut self) {
        let late = self.threads.extract_if(.., |_, held| !held.stopped);
        let late: Vec<u32> = late.map(|(tid, _)| tid).collect();
        for (tid, held) in std::mem::take(&mut self.threads) {
            // ESRCH: the thread was killed while it stood still.
            let _ = ptrace::detach(tid, held.signal);
        }
        for tid in late {
            self.detach_late(tid);
        }
    }

    /// Waits a moment for a thread that was seized and did not stop. Where it stays in the kernel,
    /// it is let go at the latest when rleaks ends.
    fn detach_late(&mut self, tid: u32) {
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(100) {
            match self.poll(tid) {
                Ok(false) => std::thread::sleep(Duration::from_micros(100)),
                _ => break,
            }
        }
        if let Some(held) = self.threads.remove(&tid) {
            let _ = ptrace::detach(tid, held.signal);
        }
    }
}

impl Drop for Suspended {
    fn drop(&mut self) {
        self.detach_all();
        STOPPED_TARGETS.fetch_sub(1, Ordering::Relaxed);
    }
}
