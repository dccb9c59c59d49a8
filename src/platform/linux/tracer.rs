//! The thread that traces a target.
//!
//! ptrace ties a traced thread to the thread that traces it, and detaches when that one ends. So a
//! stop has a thread of its own: it seizes (`PTRACE_SEIZE`) and interrupts (`PTRACE_INTERRUPT`)
//! every thread of the target, reads their registers, waits until it is told to let go, detaches,
//! and ends. No signal is sent: the target can neither see nor miss one.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender};
use std::time::{Duration, Instant};

use nix::libc;

use super::priority::run_before_others;
use super::procfs;
use super::ptrace::{self, Wait};
use super::registers;
use super::suspend::SuspendError;
use super::watchdog::Armed;
use crate::snapshot::Thread;
use crate::warning::{Bias, Warning};

/// How long a thread may take to stop, counted from when the last of the others did. One that
/// takes longer sleeps where nothing wakes it; the others stand still meanwhile.
const PATIENCE: Duration = Duration::from_millis(100);
/// For a thread that merely is not given a processor.
const LONG_PATIENCE: Duration = Duration::from_secs(1);
/// From one look at a thread that is stopping to the next.
const SHORT_NAP: Duration = Duration::from_micros(20);
const LONG_NAP: Duration = Duration::from_micros(500);

/// What a stop found.
#[derive(Debug)]
pub(super) struct Standstill {
    /// The threads with their registers, the main thread first.
    pub(super) threads: Vec<Thread>,
    pub(super) warnings: Vec<Warning>,
}

/// A thread of the target that is traced.
#[derive(Clone, Copy, Debug, Default)]
struct Traced {
    stopped: bool,
    /// A signal that was on its way to the thread when it stopped; it is passed on.
    signal: i32,
}

/// Stops process `pid`, sends what it found, waits until `release` is dropped, and lets go. Returns
/// how long the target stood still, or a part of it. If that is longer than `limit`, the watchdog
/// ends rleaks.
pub(super) fn trace(
    pid: u32,
    limit: Duration,
    interrupted: &AtomicBool,
    found: &SyncSender<Result<Standstill, SuspendError>>,
    release: &Receiver<()>,
) -> Duration {
    run_before_others();
    let start = Instant::now();
    let watchdog = Armed::new(limit);
    let mut tracer = Tracer {
        pid,
        interrupted,
        threads: BTreeMap::new(),
    };
    let result = tracer.stop_all();
    let is_stopped = result.is_ok();
    // Where nobody listens any more, the target is let go at once.
    if found.send(result).is_ok() && is_stopped {
        let _ = release.recv();
    }
    tracer.detach_all();
    drop(watchdog);
    // Threads that did not stop are let go when this one ends, which is now.
    start.elapsed()
}

struct Tracer<'a> {
    pid: u32,
    interrupted: &'a AtomicBool,
    threads: BTreeMap<u32, Traced>,
}

impl Tracer<'_> {
    /// Stops all threads, again until no new one appears, and reads their registers.
    fn stop_all(&mut self) -> Result<Standstill, SuspendError> {
        while self.seize_new_threads()? {
            self.wait_for_stops()?;
        }
        self.read_registers()
    }

    /// Seizes the threads that are not traced yet; says whether there were any.
    fn seize_new_threads(&mut self) -> Result<bool, SuspendError> {
        let mut seized = false;
        let threads = procfs::threads(self.pid).map_err(|error| match error.raw_os_error() {
            Some(libc::ENOENT | libc::ESRCH) => SuspendError::NoSuchProcess(self.pid),
            _ => SuspendError::Other(self.pid, error),
        })?;
        // The main thread last: while it is traced, the kernel queues signals to the process that
        // are ignored otherwise, and they may wake a thread that is not stopped yet.
        let pid = self.pid;
        let main = threads.contains(&pid).then_some(pid);
        let others = threads.into_iter().filter(|tid| *tid != pid);
        for tid in others.chain(main) {
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
                Some(libc::EPERM) => SuspendError::explain_refusal(self.pid, tid),
                _ => Err(SuspendError::Other(self.pid, error)),
            };
        }
        self.threads.insert(tid, Traced::default());
        match ptrace::interrupt(tid) {
            Err(error) if error.raw_os_error() != Some(libc::ESRCH) => {
                Err(SuspendError::Other(self.pid, error))
            }
            _ => Ok(true),
        }
    }

    /// Waits until every thread has stopped, has ended, or is known to sleep where nothing wakes
    /// it.
    fn wait_for_stops(&mut self) -> Result<(), SuspendError> {
        let mut last_progress = Instant::now();
        let mut nap = SHORT_NAP;
        loop {
            let waiting = self.poll_all()?;
            if waiting.is_empty() {
                return Ok(());
            }
            if self.interrupted.load(Ordering::Relaxed) {
                return Err(SuspendError::Interrupted);
            }
            if waiting.progress {
                last_progress = Instant::now();
                nap = SHORT_NAP;
            }
            let waited = last_progress.elapsed();
            if waited > PATIENCE && waiting.threads.iter().all(|tid| self.is_asleep(*tid)) {
                return Ok(());
            }
            if waited > LONG_PATIENCE {
                let tid = waiting.threads[0];
                return Err(SuspendError::DoesNotStop(self.pid, tid, self.state(tid)));
            }
            std::thread::sleep(nap);
            nap = (nap * 2).min(LONG_NAP);
        }
    }

    /// Takes notice of the threads that stopped or ended, and says which did neither yet.
    fn poll_all(&mut self) -> Result<Waiting, SuspendError> {
        let mut waiting = Waiting::default();
        let running: Vec<u32> = self
            .threads
            .iter()
            .filter_map(|(tid, traced)| (!traced.stopped).then_some(*tid))
            .collect();
        for tid in running {
            match ptrace::poll(tid) {
                Ok(Wait::Running) => waiting.threads.push(tid),
                Ok(Wait::Stopped { signal }) => {
                    waiting.progress = true;
                    self.threads.insert(
                        tid,
                        Traced {
                            stopped: true,
                            signal,
                        },
                    );
                    // ESRCH: it was killed at this moment.
                    let _ = registers::restart_system_call(tid);
                }
                Ok(Wait::Ended) => {
                    waiting.progress = true;
                    self.threads.remove(&tid);
                }
                Err(error) => return Err(SuspendError::Other(self.pid, error)),
            }
        }
        Ok(waiting)
    }

    /// Says whether the thread sleeps in the kernel where no signal and no tracer wakes it: a
    /// parent in `vfork`, a wait for a disk or for a network file system.
    fn is_asleep(&self, tid: u32) -> bool {
        self.state(tid) == 'D'
    }

    fn state(&self, tid: u32) -> char {
        procfs::Status::read(self.pid, tid).map_or('?', |status| status.state)
    }

    /// Reads the registers of all threads, as far as they are known.
    fn read_registers(&mut self) -> Result<Standstill, SuspendError> {
        let mut standstill = Standstill {
            threads: Vec::new(),
            warnings: Vec::new(),
        };
        let main = self.threads.get_key_value(&self.pid);
        let others = self.threads.iter().filter(|(tid, _)| **tid != self.pid);
        for (tid, traced) in main.into_iter().chain(others) {
            let thread = if traced.stopped {
                registers::read(self.pid, *tid)
            } else {
                standstill.warnings.push(asleep(*tid));
                procfs::sleeping_thread(self.pid, *tid)
            };
            match thread {
                Ok(thread) => standstill.threads.push(thread),
                Err(error) if has_ended(&error) => {}
                Err(error) => return Err(SuspendError::Other(self.pid, error)),
            }
        }
        if standstill.threads.is_empty() {
            return Err(SuspendError::Ended(self.pid));
        }
        Ok(standstill)
    }

    /// Detaches, from the main thread first, for the reason that it is seized last.
    fn detach_all(&mut self) {
        let mut threads = std::mem::take(&mut self.threads);
        let main = threads.remove_entry(&self.pid);
        for (tid, traced) in main.into_iter().chain(threads) {
            if traced.stopped {
                // ESRCH: the thread was killed while it stood still.
                let _ = ptrace::detach(tid, traced.signal);
            }
        }
    }
}

/// Threads that have not stopped yet.
#[derive(Debug, Default)]
struct Waiting {
    threads: Vec<u32>,
    /// Others have stopped or ended since the last look.
    progress: bool,
}

impl Waiting {
    fn is_empty(&self) -> bool {
        self.threads.is_empty()
    }
}

fn has_ended(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ESRCH) || error.kind() == io::ErrorKind::NotFound
}

pub(super) fn asleep(tid: u32) -> Warning {
    Warning::new(
        "thread_asleep",
        format!(
            "thread {tid} sleeps in the kernel and could not be stopped there (a parent in vfork, or \
             a wait for a device): of its registers only the arguments of its system call are known"
        ),
        Bias::FalseLeaks,
    )
}
