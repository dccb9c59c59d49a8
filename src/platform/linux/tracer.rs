//! The thread that traces a target.
//!
//! ptrace ties a traced thread to the thread that traces it, and lets go of it when that one ends. So
//! a stop has a thread of its own: it seizes (`PTRACE_SEIZE`) every thread of the target, interrupts
//! them (`PTRACE_INTERRUPT`), reads their registers, waits until it is told to let go, and ends. No
//! signal is sent: the target can neither see nor miss one.
//!
//! Two things keep threads that are not traced from noticing those that are. A signal that a process
//! ignores is dropped when it is sent, but not while the thread that it is meant for is traced
//! (`sig_ignored` in the kernel's `kernel/signal.c`): then it is queued, and where that thread stands
//! still, another one is woken for it, whose system call may end with `EINTR`.
//!
//! - All threads are seized before the first is interrupted: while none stands still, a thread takes
//!   its own signals, and is traced when it does. The main thread is the last, since most signals to a
//!   process are meant for it.
//! - None is detached by itself, but where a stop is given up. When this thread ends, the kernel lets go of all of them at once,
//!   while no child of the target can end and no signal be sent for it (`exit_ptrace`, which holds the
//!   lock of the list of tasks).

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender};
use std::time::{Duration, Instant};

use nix::libc;
use nix::unistd::gettid;

use super::fork::Guarded;
use super::priority::run_before_others;
use super::procfs;
use super::ptrace::{self, Wait};
use super::registers;
use super::suspend::SuspendError;
use super::watchdog::postpone;
use crate::snapshot::Thread;
use crate::warning::{Bias, Warning};

/// How long a thread may take to stop, counted from when the last of the others did. One that
/// takes longer sleeps where nothing wakes it; the others stand still meanwhile.
const PATIENCE: Duration = Duration::from_millis(100);
/// For a thread that merely is not given a processor. The target is let go then, and stopped again.
const LONG_PATIENCE: Duration = Duration::from_millis(500);
/// For one that has not stopped when a stop was given up: it alone waits.
const LAST_PATIENCE: Duration = Duration::from_secs(5);
/// From one look at a thread that is stopping to the next.
const SHORT_NAP: Duration = Duration::from_micros(20);
const LONG_NAP: Duration = Duration::from_micros(500);
/// How many threads that have not stopped yet are looked at each time: the others need the processors
/// to stop.
const LOOKED_AT: usize = 16;
/// How often the threads are listed before the first is interrupted: some programs start threads
/// all the time.
const MAX_LISTINGS: usize = 3;

/// What a stop found.
#[derive(Debug)]
pub(super) struct Standstill {
    /// The threads with their registers, the main thread first.
    pub(super) threads: Vec<Thread>,
    pub(super) warnings: Vec<Warning>,
}

/// What is left of a tracing thread.
#[derive(Clone, Copy, Debug)]
pub(super) struct Released {
    /// Its own thread id: the target goes on once there is no such thread any more.
    pub(super) tid: u32,
    /// How long the target stood still, from the first interruption on.
    pub(super) pause: Duration,
}

/// A thread of the target that is traced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Traced {
    /// Its id in the innermost pid namespace.
    inner_tid: u32,
    progress: Progress,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    Seized,
    Interrupted,
    /// With a signal that was on its way to the thread; 0 if there was none.
    Stopped(i32),
}

impl Progress {
    fn is_stopped(self) -> bool {
        matches!(self, Self::Stopped(_))
    }
}

/// Stops process `pid`, sends what it found, and waits until `release` is dropped. When the calling
/// thread ends, the target goes on, but for the thread that is `guarded`. The stop must not take longer
/// than `limit`.
pub(super) fn trace(
    (pid, guarded): (u32, Option<&Guarded>),
    limit: Duration,
    interrupted: &AtomicBool,
    found: &SyncSender<Result<Standstill, SuspendError>>,
    release: &Receiver<()>,
) -> Released {
    run_before_others();
    let mut tracer = Tracer {
        pid,
        limit,
        interrupted,
        is_nested: procfs::Status::read(pid, pid).is_ok_and(|status| status.inner_tid != pid),
        stopped_at: None,
        threads: BTreeMap::new(),
        guarded,
        guarded_thread: None,
    };
    let result = tracer.stop_all();
    if result.is_err() {
        tracer.give_up();
    }
    let is_stopped = result.is_ok();
    // Where nobody listens any more, the target is let go at once.
    if found.send(result).is_ok() && is_stopped {
        let _ = release.recv();
    }
    Released {
        tid: u32::try_from(gettid().as_raw()).unwrap_or(0),
        pause: tracer.pause(),
    }
}

struct Tracer<'a> {
    pid: u32,
    limit: Duration,
    interrupted: &'a AtomicBool,
    /// The target is in a pid namespace of its own, in which its threads have other ids.
    is_nested: bool,
    stopped_at: Option<Instant>,
    threads: BTreeMap<u32, Traced>,
    /// A thread that another process has seized.
    guarded: Option<&'a Guarded>,
    /// That one, once it stands still.
    guarded_thread: Option<Thread>,
}

impl Tracer<'_> {
    /// Stops all threads, again until no new one appears, and reads their registers.
    fn stop_all(&mut self) -> Result<Standstill, SuspendError> {
        let mut is_new = self.seize_all()?;
        // While none stands still yet, and before the others are waited for.
        if let Some(guarded) = self.guarded {
            self.stopped_at.get_or_insert_with(Instant::now);
            guarded.begin_stop()?;
        }
        loop {
            while is_new {
                self.interrupt_all()?;
                self.wait_for_stops()?;
                is_new = self.seize_all()?;
            }
            // It may have started threads until it stopped.
            if !self.is_guarded_stopped()? {
                return self.read_registers();
            }
            is_new = self.seize_all()?;
        }
    }

    /// Waits until the thread stands still that another process has seized; `false` where there is none, or it
    /// has stopped before.
    fn is_guarded_stopped(&mut self) -> Result<bool, SuspendError> {
        let Some(guarded) = self.guarded.filter(|_| self.guarded_thread.is_none()) else {
            return Ok(false);
        };
        let mut thread = guarded.finish_stop()?;
        if self.is_nested {
            thread.inner_tid = procfs::inner_tid(self.pid, thread.tid);
        }
        self.guarded_thread = Some(thread);
        Ok(true)
    }

    /// Seizes all threads that are not traced yet; says whether there were any.
    fn seize_all(&mut self) -> Result<bool, SuspendError> {
        let mut seized = false;
        for _ in 0..MAX_LISTINGS {
            if !self.seize_new_threads()? {
                break;
            }
            seized = true;
        }
        Ok(seized)
    }

    fn seize_new_threads(&mut self) -> Result<bool, SuspendError> {
        let mut seized = false;
        let threads = procfs::threads(self.pid).map_err(|error| match error.raw_os_error() {
            Some(libc::ENOENT | libc::ESRCH) => SuspendError::NoSuchProcess(self.pid),
            _ => SuspendError::Other(self.pid, error),
        })?;
        let pid = self.pid;
        let main = threads.contains(&pid).then_some(pid);
        let others = threads.into_iter().filter(|tid| *tid != pid);
        for tid in others.chain(main) {
            let is_guarded = self.guarded.is_some_and(|guarded| guarded.tid == tid);
            if !is_guarded && !self.threads.contains_key(&tid) && self.seize(tid)? {
                seized = true;
            }
        }
        Ok(seized)
    }

    /// Seizes one thread, which runs on. `false` if it ended meanwhile.
    fn seize(&mut self, tid: u32) -> Result<bool, SuspendError> {
        let inner_tid = if self.is_nested {
            procfs::inner_tid(self.pid, tid)
        } else {
            tid
        };
        if let Err(error) = ptrace::seize(tid) {
            return match error.raw_os_error() {
                Some(libc::ESRCH) => Ok(false),
                Some(libc::EPERM) => SuspendError::explain_refusal(self.pid, tid),
                _ => Err(SuspendError::Other(self.pid, error)),
            };
        }
        let progress = Progress::Seized;
        self.threads.insert(
            tid,
            Traced {
                inner_tid,
                progress,
            },
        );
        Ok(true)
    }

    /// Asks all threads that were seized to stop.
    fn interrupt_all(&mut self) -> Result<(), SuspendError> {
        self.stopped_at.get_or_insert_with(Instant::now);
        for (tid, traced) in &mut self.threads {
            if traced.progress != Progress::Seized {
                continue;
            }
            traced.progress = Progress::Interrupted;
            match ptrace::interrupt(*tid) {
                // It has ended, which is noticed when it is waited for.
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                Err(error) => return Err(SuspendError::Other(self.pid, error)),
                Ok(()) => {}
            }
        }
        Ok(())
    }

    /// Waits until every thread has stopped, has ended, or is known to sleep where nothing wakes
    /// it.
    fn wait_for_stops(&mut self) -> Result<(), SuspendError> {
        let mut last_progress = Instant::now();
        let mut nap = SHORT_NAP;
        loop {
            let look = Instant::now();
            let waiting = self.poll(LOOKED_AT)?;
            if waiting.threads.is_empty() {
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
            if waited > PATIENCE && self.are_asleep(&waiting) {
                return Ok(());
            }
            if waited > LONG_PATIENCE || self.pause() > self.limit / 2 {
                let tid = waiting.threads[0];
                return Err(SuspendError::DoesNotStop(self.pid, tid, self.state(tid)));
            }
            // The threads that stop need the processors, too.
            std::thread::sleep(nap.max(look.elapsed()));
            nap = (nap * 2).min(LONG_NAP);
        }
    }

    /// Says whether all threads that have not stopped sleep where nothing wakes them; `waiting` are
    /// the first of these.
    fn are_asleep(&mut self, waiting: &Waiting) -> bool {
        let is_asleep = |tracer: &Self, waiting: &Waiting| {
            let mut threads = waiting.threads.iter();
            threads.all(|tid| tracer.is_asleep(*tid))
        };
        is_asleep(self, waiting)
            && self
                .poll(usize::MAX)
                .is_ok_and(|waiting| !waiting.progress && is_asleep(self, &waiting))
    }

    fn pause(&self) -> Duration {
        self.stopped_at
            .map_or(Duration::ZERO, |start| start.elapsed())
    }

    /// Takes notice of the threads that stopped or ended, and says which did neither yet. It looks no
    /// further once there are `enough` of these.
    fn poll(&mut self, enough: usize) -> Result<Waiting, SuspendError> {
        let mut waiting = Waiting::default();
        let running: Vec<u32> = self
            .threads
            .iter()
            .filter_map(|(tid, traced)| (!traced.progress.is_stopped()).then_some(*tid))
            .collect();
        for tid in running {
            if waiting.threads.len() >= enough {
                break;
            }
            match ptrace::poll(tid) {
                Ok(Wait::Running) => {
                    waiting.threads.push(tid);
                    continue;
                }
                Ok(Wait::Stopped { signal }) => {
                    if let Some(traced) = self.threads.get_mut(&tid) {
                        traced.progress = Progress::Stopped(signal);
                    }
                    // ESRCH: it was killed at this moment.
                    let _ = registers::restart_system_call(tid);
                }
                Ok(Wait::Ended) => {
                    self.threads.remove(&tid);
                }
                Err(error) => return Err(SuspendError::Other(self.pid, error)),
            }
            waiting.progress = true;
        }
        Ok(waiting)
    }

    /// Lets the threads go that have stopped, and waits for the others, each of which goes on when it
    /// has stopped: the system call of one that is let go on its way to the stop would end, and nobody
    /// would restart it. The target runs meanwhile.
    fn give_up(&mut self) {
        let start = Instant::now();
        postpone(LAST_PATIENCE);
        loop {
            // What can be done for the others is done, whatever became of one.
            let _ = self.poll(usize::MAX);
            self.detach_stopped();
            let mut rest = self.threads.values();
            let is_over = rest.all(|traced| traced.progress == Progress::Seized);
            if is_over || start.elapsed() > LAST_PATIENCE {
                return;
            }
            std::thread::sleep(LONG_NAP);
        }
    }

    fn detach_stopped(&mut self) {
        self.threads.retain(|tid, traced| {
            let Progress::Stopped(signal) = traced.progress else {
                return true;
            };
            // ESRCH: the thread was killed while it stood still.
            let _ = ptrace::detach(*tid, signal);
            false
        });
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
            threads: Vec::with_capacity(self.threads.len()),
            warnings: Vec::new(),
        };
        let main = self.threads.get_key_value(&self.pid);
        let others = self.threads.iter().filter(|(tid, _)| **tid != self.pid);
        for (tid, traced) in main.into_iter().chain(others) {
            let thread = if traced.progress.is_stopped() {
                registers::read(*tid)
            } else {
                standstill.warnings.push(asleep(*tid));
                procfs::sleeping_thread(self.pid, *tid)
            };
            match thread {
                Ok(mut thread) => {
                    thread.inner_tid = traced.inner_tid;
                    standstill.threads.push(thread);
                }
                Err(error) if has_ended(&error) => {}
                Err(error) => return Err(SuspendError::Other(self.pid, error)),
            }
        }
        if let Some(guarded) = self.guarded_thread.take() {
            let is_first = guarded.tid == self.pid;
            let at = if is_first {
                0
            } else {
                standstill.threads.len()
            };
            standstill.threads.insert(at, guarded);
        }
        if standstill.threads.is_empty() {
            return Err(SuspendError::Ended(self.pid));
        }
        Ok(standstill)
    }
}

/// Threads that have not stopped yet.
#[derive(Debug, Default)]
struct Waiting {
    threads: Vec<u32>,
    /// Others have stopped or ended since the last look.
    progress: bool,
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
