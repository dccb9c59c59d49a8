//! A process that is traced until its end.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::time::{Duration, Instant};

use nix::libc;

use super::cause::{Cause, cause, executes};
use crate::memory::Width;
use crate::platform::linux::procfs;
use crate::platform::linux::ptrace;
use crate::platform::linux::registers;
use crate::platform::linux::suspend::SuspendError;
use crate::platform::linux::tracer::{Standstill, asleep};

/// How long threads of a process may take to reach their ends after others have, where all of them sleep
/// in the kernel, and where they do not.
const PATIENCE: Duration = Duration::from_millis(100);
const LONG_PATIENCE: Duration = Duration::from_secs(2);
/// How long a thread is held that ends for a reason that only another thread can tell.
const DOUBT: Duration = Duration::from_secs(5);

/// What is known of a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Running,
    /// It stands at its end.
    AtEnd(Cause),
    /// It has gone on from there.
    Gone,
}

/// What is known of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Running,
    /// It ends: its threads come to stand one by one, the last one at this time.
    Gathering(Instant),
    /// All of them stand.
    Held,
    /// They were let go.
    Released,
}

/// A process whose threads stop at their ends. They are let go when this thread ends, at the latest.
#[derive(Debug)]
pub(super) struct Traced {
    pub(super) pid: u32,
    threads: BTreeMap<u32, State>,
    phase: Phase,
    width: Width,
    /// Since when a thread stands at its end without a known cause.
    in_doubt: Option<Instant>,
    /// What the process ends with, in the form of `wait`.
    pub(super) status: i32,
    /// Job control has stopped it.
    pub(super) is_stopped: bool,
}

impl Traced {
    /// Process `pid`, of which no thread is traced yet.
    pub(super) fn new(pid: u32) -> Self {
        Self {
            pid,
            threads: BTreeMap::new(),
            phase: Phase::Running,
            width: Width::default(),
            in_doubt: None,
            status: 0,
            is_stopped: false,
        }
    }

    /// Becomes the tracer of all threads, which run on. Where that fails, it may be the tracer of some:
    /// they are let go when they stop.
    pub(super) fn seize(&mut self) -> Result<(), SuspendError> {
        let seized = self.seize_all();
        if seized.is_err() {
            self.release();
        }
        seized
    }

    fn seize_all(&mut self) -> Result<(), SuspendError> {
        while self.seize_new_threads()? {}
        if self.threads.is_empty() {
            return Err(SuspendError::Ended(self.pid));
        }
        Ok(())
    }

    fn seize_new_threads(&mut self) -> Result<bool, SuspendError> {
        let other = |error| SuspendError::Other(self.pid, error);
        let mut seized = false;
        for tid in procfs::threads(self.pid).map_err(other)? {
            if self.threads.contains_key(&tid) {
                continue;
            }
            match ptrace::seize_to_the_end(tid) {
                Ok(()) => {
                    self.threads.insert(tid, State::Running);
                    seized = true;
                }
                Err(error) => match error.raw_os_error() {
                    Some(libc::ESRCH) => {}
                    // Also for a thread that a seized one has just started: it is traced already.
                    Some(libc::EPERM) => {
                        if self.refused(tid)? {
                            self.threads.insert(tid, State::Running);
                        }
                    }
                    _ => return Err(SuspendError::Other(self.pid, error)),
                },
            }
        }
        Ok(seized)
    }

    /// Says whether thread `tid`, which could not be seized, is traced by this thread already; `false`
    /// where it has ended.
    fn refused(&self, tid: u32) -> Result<bool, SuspendError> {
        let status = procfs::Status::read(self.pid, tid).unwrap_or_default();
        if status.tracer == own_tid() {
            return Ok(true);
        }
        SuspendError::explain_refusal(self.pid, tid)
    }

    /// Says whether `tid` is known as one of its threads.
    pub(super) fn has(&self, tid: u32) -> bool {
        self.threads.contains_key(&tid)
    }

    /// Thread `tid`, which this process has started, is traced.
    pub(super) fn add(&mut self, tid: u32) {
        self.threads.entry(tid).or_insert(State::Running);
    }

    /// Thread `tid` exists no more.
    pub(super) fn remove(&mut self, tid: u32) {
        self.threads.remove(&tid);
    }

    /// The process runs another program, in one thread.
    pub(super) fn executed(&mut self) {
        let pid = self.pid;
        self.threads.retain(|tid, _| *tid == pid);
        self.threads.insert(pid, State::Running);
        self.phase = Phase::Running;
        self.in_doubt = None;
    }

    /// Thread `tid` stands at its end. Where the process goes on without it, so does the thread.
    pub(super) fn at_end(&mut self, tid: u32) {
        let Ok((width, number)) = registers::system_call_of(tid) else {
            return self.let_go(tid);
        };
        let status = ptrace::event_message(tid).unwrap_or(0);
        let status = i32::try_from(status).unwrap_or(0);
        let cause = cause(width, number, status);
        self.threads.insert(tid, State::AtEnd(cause));
        self.width = width;
        match (self.phase, cause) {
            (Phase::Released, _) => self.let_go(tid),
            (Phase::Gathering(_), _) => self.phase = Phase::Gathering(Instant::now()),
            (Phase::Held, _) => {}
            (Phase::Running, Cause::Process) => self.begin_to_gather(status),
            (Phase::Running, Cause::Thread) if self.is_last(tid) => self.begin_to_gather(status),
            (Phase::Running, Cause::Thread) => self.let_go(tid),
            (Phase::Running, Cause::Other) => {
                self.in_doubt.get_or_insert_with(Instant::now);
            }
        }
    }

    fn begin_to_gather(&mut self, status: i32) {
        self.status = status;
        self.phase = Phase::Gathering(Instant::now());
    }

    /// Says whether all other threads have ended.
    fn is_last(&self, tid: u32) -> bool {
        let threads = procfs::threads(self.pid).unwrap_or_default();
        let mut others = threads.into_iter().filter(|other| *other != tid);
        others.all(|other| self.has_ended(other))
    }

    fn has_ended(&self, tid: u32) -> bool {
        self.threads.get(&tid) == Some(&State::Gone)
            || procfs::Status::read(self.pid, tid)
                .map_or(true, |status| matches!(status.state, 'Z' | 'X'))
    }

    fn let_go(&mut self, tid: u32) {
        let _ = if self.phase == Phase::Released {
            ptrace::detach(tid, 0)
        } else {
            // Stays traced, for what it does not do any more: that is how its tracer hears of its end.
            ptrace::go_on(tid, 0)
        };
        self.threads.insert(tid, State::Gone);
    }

    /// Lets threads go whose process runs on, and says whether the process has come to stand at its
    /// end.
    pub(super) fn settle(&mut self) -> bool {
        if let Some(since) = self.in_doubt
            && self.phase == Phase::Running
            && (since.elapsed() > DOUBT || self.is_executing())
        {
            self.in_doubt = None;
            for tid in self.standing() {
                self.let_go(tid);
            }
        }
        let Phase::Gathering(since) = self.phase else {
            return false;
        };
        let is_complete = self.is_complete(since.elapsed());
        if is_complete {
            self.phase = Phase::Held;
        }
        is_complete
    }

    /// Says whether all threads stand that will come to; the last one did so `waited` ago.
    fn is_complete(&self, waited: Duration) -> bool {
        let is_one_on_its_way = self.threads.values().any(|state| *state == State::Running);
        if is_one_on_its_way && waited < PATIENCE {
            return false;
        }
        let missing = self.missing();
        let is_asleep = |tid: &u32| {
            let status = procfs::Status::read(self.pid, *tid);
            status.is_ok_and(|status| status.state == 'D')
        };
        missing.is_empty()
            || waited > PATIENCE && missing.iter().all(is_asleep)
            || waited > LONG_PATIENCE
    }

    /// Says whether another look is due before anything new happens.
    pub(super) fn is_settling(&self) -> bool {
        match self.phase {
            Phase::Running => self.in_doubt.is_some(),
            Phase::Gathering(_) => true,
            Phase::Held | Phase::Released => false,
        }
    }

    /// Says whether it stands at its end, or is about to.
    pub(super) fn is_ending(&self) -> bool {
        matches!(self.phase, Phase::Gathering(_) | Phase::Held)
    }

    /// Says whether none of its threads is traced any more.
    pub(super) fn is_over(&self) -> bool {
        let mut states = self.threads.values();
        self.phase == Phase::Released && states.all(|state| *state == State::Gone)
    }

    fn is_executing(&self) -> bool {
        let threads = procfs::threads(self.pid).unwrap_or_default();
        threads.iter().any(|tid| {
            let path = format!("/proc/{}/task/{tid}/syscall", self.pid);
            let text = fs::read_to_string(path).unwrap_or_default();
            !matches!(self.threads.get(tid), Some(State::AtEnd(_))) && executes(self.width, &text)
        })
    }

    /// The threads that stand at their ends.
    fn standing(&self) -> Vec<u32> {
        let threads = self.threads.iter();
        threads
            .filter_map(|(tid, state)| matches!(state, State::AtEnd(_)).then_some(*tid))
            .collect()
    }

    /// The threads that have neither ended nor come to stand.
    fn missing(&self) -> Vec<u32> {
        let threads = procfs::threads(self.pid).unwrap_or_default();
        threads
            .into_iter()
            .filter(|tid| !matches!(self.threads.get(tid), Some(State::AtEnd(_))))
            .filter(|tid| !self.has_ended(*tid))
            .collect()
    }

    /// The registers of all threads, the main thread first.
    pub(super) fn standstill(&self) -> Result<Standstill, SuspendError> {
        let mut standstill = Standstill {
            threads: Vec::new(),
            warnings: Vec::new(),
        };
        let mut standing = self.standing();
        standing.sort_by_key(|tid| *tid != self.pid);
        for tid in standing {
            match registers::read(tid) {
                Ok(mut thread) => {
                    thread.inner_tid = procfs::inner_tid(self.pid, tid);
                    standstill.threads.push(thread);
                }
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                Err(error) => return Err(SuspendError::Other(self.pid, error)),
            }
        }
        for tid in self.missing() {
            standstill.warnings.push(asleep(tid));
            if let Ok(mut thread) = procfs::sleeping_thread(self.pid, tid) {
                thread.inner_tid = procfs::inner_tid(self.pid, tid);
                standstill.threads.push(thread);
            }
        }
        if standstill.threads.is_empty() {
            return Err(SuspendError::Ended(self.pid));
        }
        Ok(standstill)
    }

    /// Lets the threads end that stand at their ends, and from now on each that gets there.
    pub(super) fn release(&mut self) {
        self.phase = Phase::Released;
        for tid in self.standing() {
            self.let_go(tid);
        }
    }
}

fn own_tid() -> u32 {
    u32::try_from(nix::unistd::gettid().as_raw()).unwrap_or(0)
}

/// The process that thread `tid` belongs to.
pub(super) fn process_of(tid: u32) -> io::Result<Option<u32>> {
    let status = fs::read(format!("/proc/{tid}/status"))?;
    let field = crate::platform::linux::processes::field(&status, "Tgid:");
    Ok(field.and_then(|pid| pid.parse().ok()))
}
