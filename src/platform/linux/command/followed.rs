//! A command that was started, and what becomes of it.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use super::follower::{Follower, awaited_signals, wake};
use super::inherited::Disposition;
use super::spawn::CommandLine;
use crate::platform::linux::capture::Stopped;
use crate::platform::linux::capture_error::CaptureError;
use crate::platform::linux::survey::{Survey, Target};
use crate::platform::linux::suspend::Suspended;
use crate::platform::linux::tracer::Standstill;
use crate::platform::linux::watchdog::Armed;

/// How long the survey of a process that stands at its end may take: nobody waits for the process.
const SURVEY_LIMIT: Duration = Duration::from_secs(60);

/// Processes that, before they end, wait until somebody follows them.
pub trait Waiters: Debug + Send + Sync {
    /// From now on only process `pid` waits, by its number in its own pid namespace.
    fn expect(&self, pid: u32);

    /// Blocks until the number of processes that have begun to wait is no longer `seen`, for a second
    /// at most, and returns it.
    fn ring(&self, seen: u32) -> u32;

    /// The processes that wait now.
    fn waiting(&self) -> Vec<Waiter>;

    /// Lets the one at `slot` go on.
    fn go_on(&self, slot: usize);

    /// The inode number of the file by which they wait.
    fn inode(&self) -> u64;
}

/// A process that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiter {
    /// Where it waits.
    pub slot: usize,
    /// Its process id, in its own pid namespace. It is what the process says.
    pub pid: u32,
}

/// How a command is followed.
#[derive(Debug)]
pub struct Follow {
    /// The command.
    pub command: CommandLine,
    /// Who tells that a process is about to end, so that it is traced from then on.
    pub waiters: Option<Arc<dyn Waiters>>,
    /// Trace the command from its start.
    pub from_start: bool,
    /// Not only the command, but each process that waits is followed.
    pub children: bool,
}

/// What became of a command, or of a process that it started.
#[derive(Debug)]
pub enum FollowEvent {
    /// A process stands at its end.
    Ending(Ending),
    /// A process cannot be followed, and runs on.
    Refused(u32, CaptureError),
    /// The command has ended; there are no more events.
    Ended(CommandEnd),
}

/// How a command ended.
#[derive(Debug)]
pub struct CommandEnd {
    /// Its exit status as a shell shows it.
    pub status: u8,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Why it could not be started.
    pub failure: Option<io::Error>,
}

/// A command that runs.
#[derive(Debug)]
pub struct Followed {
    /// Its process id.
    pub pid: u32,
    events: Receiver<FollowEvent>,
    disposition: Disposition,
}

impl Followed {
    /// Starts a command. The calling process has one thread, and stays alive until the command has ended.
    ///
    /// # Errors
    /// Says so where no process can be had. That there is no such program is told by its end.
    pub fn start(follow: Follow) -> io::Result<Self> {
        let disposition = Disposition::blocking(&awaited_signals())?;
        let command = follow.command.spawn(&disposition)?;
        let pid = command.pid;
        let (event, events) = channel();
        let (release, released) = channel();
        if let Some(waiters) = follow.waiters.clone() {
            if !follow.children {
                waiters.expect(pid);
            }
            start_thread("doorbell", move || listen(&*waiters))?;
        }
        let follower = Follower {
            command,
            waiters: follow.waiters,
            events: event,
            released,
            release,
            processes: BTreeMap::new(),
            ended: None,
            was_held: false,
        };
        start_thread("follower", move || follower.run(follow.from_start))?;
        Ok(Self {
            pid,
            events,
            disposition,
        })
    }

    /// The next thing that happens.
    ///
    /// # Errors
    /// The thread that follows the command has ended by a bug.
    pub fn next_event(&mut self) -> io::Result<FollowEvent> {
        let mut event = self.events.recv().map_err(io::Error::other)?;
        if let FollowEvent::Ending(ending) = &mut event {
            ending.watchdog = Some(Armed::new(SURVEY_LIMIT));
        }
        if matches!(event, FollowEvent::Ended(_)) {
            // There is no command any more for which signals could be.
            self.disposition.unblock();
        }
        Ok(event)
    }
}

fn start_thread(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let thread = std::thread::Builder::new().name(name.to_owned());
    thread.spawn(work).map(drop)
}

/// Wakes the follower whenever a process begins to wait, as long as this process lives.
fn listen(waiters: &dyn Waiters) {
    let mut seen = 0;
    loop {
        let count = waiters.ring(seen);
        if count != seen {
            seen = count;
            wake();
        }
    }
}

/// A process that stands at its end, all of its threads with their registers. It goes on to its end
/// when this is dropped.
#[derive(Debug)]
pub struct Ending {
    /// The process.
    pub pid: u32,
    /// The exit status that it will have, as a shell shows it.
    pub status: u8,
    standstill: Standstill,
    held: Held,
    /// Ends rleaks if the survey of the process hangs.
    watchdog: Option<Armed>,
}

impl Ending {
    pub(super) fn new(pid: u32, status: u8, standstill: Standstill, held: Held) -> Self {
        Self {
            pid,
            status,
            standstill,
            held,
            watchdog: None,
        }
    }

    /// The process as a target that was stopped. `target` and `survey` are of the same process, made
    /// while it stands here.
    ///
    /// # Errors
    /// Says so where its memory cannot be read.
    pub fn stopped(self, target: &Target, survey: &Survey) -> Result<Stopped, CaptureError> {
        drop(self.watchdog);
        let held = self.held;
        let limit = survey.limit_at_end();
        let deadline = Instant::now() + limit;
        let suspended = Suspended::at_its_end(move || held.let_go(), limit);
        target.stopped((suspended, self.standstill), deadline)
    }
}

/// Keeps a process at its end.
#[derive(Debug)]
pub(super) struct Held {
    pid: u32,
    release: Sender<u32>,
    since: Instant,
}

impl Held {
    pub(super) fn new(pid: u32, release: Sender<u32>) -> Self {
        Self {
            pid,
            release,
            since: Instant::now(),
        }
    }

    /// Lets the process end, and says for how long it was kept.
    fn let_go(self) -> Duration {
        self.since.elapsed()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // The follower has ended only where this process is about to.
        let _ = self.release.send(self.pid);
        wake();
    }
}
