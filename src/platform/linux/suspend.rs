//! A process that stands still, and why one does not.

use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use super::fork::{ForkRefusal, Guarded};
use super::job_control::{JobControlHeld, interrupt_flag};
use super::priority::Hurry;
use super::procfs;
use super::tracer::{self, Released, Standstill};
use super::watchdog::Armed;

/// From one look at a tracing thread that is ending to the next.
const NAP: Duration = Duration::from_micros(20);

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
    /// There is no such process.
    #[error("no process has pid {0}")]
    NoSuchProcess(u32),
    /// It ended meanwhile.
    #[error("process {0} ended while it was being scanned")]
    Ended(u32),
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
    /// A thread does not stop, although it should.
    #[error(
        "thread {1} of process {0} does not stop (state {2}): try again when the system is less busy"
    )]
    DoesNotStop(u32, u32, char),
    /// The copy takes so long that the target has to be let go first.
    #[error(
        "the memory of process {0} could not be copied while it may stand still, because other \
         programs keep the processors busy: try again later, or with sudo, so that rleaks runs \
         before them"
    )]
    TooSlow(u32),
    /// It has no memory at the moment.
    #[error("process {0} has no memory: it is about to end, or to execute another program")]
    NoMemory(u32),
    /// A signal asked rleaks to end.
    #[error("interrupted")]
    Interrupted,
    /// No child can be made of it at this moment.
    #[error(transparent)]
    Fork(#[from] ForkRefusal),
    /// Anything else.
    #[error("cannot stop process {0}")]
    Other(u32, #[source] std::io::Error),
}

impl SuspendError {
    /// Why the kernel said `EPERM`. It says so for a thread that has ended, too: that is no error,
    /// and `false`.
    pub(super) fn explain_refusal(pid: u32, tid: u32) -> Result<bool, Self> {
        let Ok(status) = procfs::Status::read(pid, tid) else {
            return Ok(false);
        };
        match status.tracer {
            _ if matches!(status.state, 'Z' | 'X') => Ok(false),
            0 => Err(Self::Denied(pid)),
            tracer => Err(Self::AlreadyTraced(pid, tracer)),
        }
    }
}

/// A process all of whose threads stand still. Dropping it lets them go on.
pub(super) struct Suspended {
    /// Lets the target go on, and says for how long it stood still.
    let_go: Option<Box<dyn FnOnce() -> Duration>>,
    /// The main thread, where that is guarded: it is the first to go on.
    guarded_main: Option<Guarded>,
    /// These last until the target runs: fields are dropped after `drop` has run.
    _watchdog: Armed,
    _hurry: Option<Hurry>,
    _job_control: JobControlHeld,
}

impl Suspended {
    /// Stops all threads of process `pid`. If that lasts longer than `limit`, until the value is
    /// dropped, the watchdog ends rleaks. `hurry` lasts as long. A thread that is `guarded` is stopped and let
    /// go with the others.
    pub(super) fn stop(
        pid: u32,
        limit: Duration,
        hurry: Option<Hurry>,
        guarded: Option<Guarded>,
    ) -> Result<(Self, Standstill), SuspendError> {
        let (found, standstill) = sync_channel(1);
        let (release, released) = sync_channel::<()>(0);
        let interrupted = interrupt_flag();
        let mut suspended = Self::new(limit, hurry);
        let traced = guarded.clone();
        // The main thread goes on first, and others last: while it is traced and another thread runs, signals
        // that the process ignores would wake that one.
        let (main, other) = match guarded {
            Some(guarded) if guarded.tid == pid => (Some(guarded), None),
            other => (None, other),
        };
        suspended.guarded_main = main;
        let tracer = std::thread::Builder::new()
            .name("tracer".to_owned())
            .spawn(move || {
                let target = (pid, traced.as_ref());
                tracer::trace(target, limit, interrupted, &found, &released)
            });
        let tracer = tracer.map_err(|error| SuspendError::Other(pid, error))?;
        suspended.let_go = Some(Box::new(move || {
            let letting_go = Instant::now();
            drop(release);
            // If it panicked, the kernel lets go all the same; the panic is kept by the panic hook.
            let pause = tracer.join().map_or(Duration::ZERO, wait_for_its_end);
            let Some(other) = other else {
                return pause;
            };
            other.release();
            pause.saturating_add(letting_go.elapsed())
        }));
        match standstill.recv() {
            Ok(standstill) => Ok((suspended, standstill?)),
            Err(_) => unreachable!("the tracing thread sends what it found, or panics"),
        }
    }

    /// A process that stands at its end, until `let_go` is called. If that lasts longer than `limit`,
    /// the watchdog ends rleaks.
    pub(super) fn at_its_end(let_go: impl FnOnce() -> Duration + 'static, limit: Duration) -> Self {
        let mut suspended = Self::new(limit, None);
        suspended.let_go = Some(Box::new(let_go));
        suspended
    }

    fn new(limit: Duration, hurry: Option<Hurry>) -> Self {
        STOPPED_TARGETS.fetch_add(1, Ordering::Relaxed);
        Self {
            let_go: None,
            guarded_main: None,
            _watchdog: Armed::new(limit),
            _hurry: hurry,
            _job_control: JobControlHeld::new(),
        }
    }

    /// The main thread goes on as soon as its guardian has done what it was asked to; nothing more of the target may be
    /// read but what it has made by then.
    pub(super) fn begin_to_let_go(&self) {
        if let Some(guarded) = &self.guarded_main {
            guarded.begin_release();
        }
    }

    /// Lets the target go on and says for how long it stood still.
    pub(super) fn resume(mut self) -> Duration {
        self.let_go()
    }

    fn let_go(&mut self) -> Duration {
        if let Some(main) = self.guarded_main.take() {
            main.release();
        }
        let let_go = self.let_go.take();
        let_go.map_or(Duration::ZERO, |let_go| let_go())
    }
}

impl Drop for Suspended {
    fn drop(&mut self) {
        self.let_go();
        STOPPED_TARGETS.fetch_sub(1, Ordering::Relaxed);
    }
}

impl fmt::Debug for Suspended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Suspended").finish_non_exhaustive()
    }
}

/// Waits until the tracing thread is gone: the kernel lets go of the target after it has told whoever
/// joins the thread. Returns how long the target stood still.
fn wait_for_its_end(released: Released) -> Duration {
    let thread = format!("/proc/self/task/{}", released.tid);
    while Path::new(&thread).exists() {
        std::thread::sleep(NAP);
    }
    released.pause
}
