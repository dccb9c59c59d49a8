//! The process that makes a child of the target.
//!
//! While a system call is injected, the registers of one thread are not its own: whoever traces it then
//! must live to give them back. rleaks may be killed at any time, so this is a process of its own, which is
//! small, does nothing else, and belongs to no terminal. It obeys rleaks; when rleaks is gone, it undoes
//! everything and ends. If it hangs, the kernel ends it by a timer, and lets the thread go.
//!
//! The child is traced by the guardian from its first moment on, with `PTRACE_O_EXITKILL`: it stands before its
//! first instruction, and is killed when the guardian ends. So is the target where the guardian is killed within the
//! milliseconds of an injection: a thread whose registers are not its own must not go on.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::SigSet;

use super::alarm::Alarm;
use super::injection;
use super::protocol::{Failure, NewProcess, Outcome, Reply, Request, receive, send};
use super::reap;
use super::requests::{self, Stop};
use super::vdso::Instruction;
use crate::platform::linux::registers::{self, General};
use crate::platform::linux::{priority, ptrace};

/// How long the thread may take to stop. The others stand still meanwhile.
const PATIENCE: Duration = Duration::from_millis(500);
/// How long it is waited for where it has not stopped in that time, to let it go.
pub(super) const LAST_PATIENCE: Duration = Duration::from_secs(5);
/// How often the child is looked at.
const PERIOD_MS: u16 = 50;
/// How long a child that was killed may take to end.
const LONGEST_END: Duration = Duration::from_secs(60);

/// Runs the guardian, which obeys what comes from standard input until its end.
pub fn guardian() -> ExitCode {
    // Nothing but SIGKILL ends it.
    let _ = SigSet::all().thread_block();
    let stream = io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .map(UnixStream::from);
    let (Ok(stream), Some(alarm)) = (stream, Alarm::new()) else {
        return ExitCode::from(2);
    };
    priority::run_before_others();
    let mut guardian = Guardian {
        alarm,
        held: None,
        child: None,
        outcome: None,
    };
    guardian.obey(stream);
    guardian.undo();
    ExitCode::SUCCESS
}

struct Guardian {
    alarm: Alarm,
    held: Option<Held>,
    child: Option<Child>,
    /// What became of the child before anybody asked.
    outcome: Option<Outcome>,
}

/// A thread that the guardian traces.
#[derive(Debug)]
struct Held {
    pid: u32,
    tid: u32,
    limit: Duration,
    /// Where it can make a system call.
    instruction: Instruction,
    /// A signal is on its way to it, or 0; `None` while it runs.
    stopped: Option<i32>,
}

/// The child of the target.
#[derive(Debug)]
struct Child {
    process: NewProcess,
    /// The process whose child it is, and the thread that made it.
    parent: (u32, u32),
    until: Instant,
}

impl Guardian {
    fn obey(&mut self, mut stream: UnixStream) {
        loop {
            if !has_input(&stream) {
                self.look_at_the_child();
                continue;
            }
            // An error is the end of rleaks.
            let Ok(request) = receive(&mut stream) else {
                return;
            };
            let reply = self.answer(&request);
            if send(&reply, &mut stream).is_err() {
                return;
            }
            if request == Request::Release {
                self.settle_the_child();
            }
        }
    }

    fn answer(&mut self, request: &Request) -> Reply {
        let answer = match *request {
            Request::Seize { pid, tid, limit } => self.seize(pid, tid, limit),
            Request::Stop => self.stop(),
            Request::Clone { lifetime } => self.make_child(lifetime),
            Request::Release => {
                self.release();
                Ok(Reply::Done)
            }
            Request::End => Ok(Reply::Ended(self.end())),
            Request::Forget { pid, child } => {
                Ok(Reply::Ended(self.forget((pid, pid), child.inner_pid)))
            }
        };
        answer.unwrap_or_else(Reply::Failed)
    }

    fn seize(&mut self, pid: u32, tid: u32, limit: Duration) -> Result<Reply, Failure> {
        self.release();
        let instruction = Instruction::of_thread(tid).ok_or(Failure::Vdso)?;
        ptrace::seize(tid)?;
        self.held = Some(Held {
            pid,
            tid,
            limit,
            instruction,
            stopped: None,
        });
        Ok(Reply::Done)
    }

    fn stop(&mut self) -> Result<Reply, Failure> {
        let held = self.held.as_mut().ok_or(Failure::Ended)?;
        self.alarm.set(held.limit);
        let stop = stop(held.tid, PATIENCE)?.ok_or(Failure::DoesNotStop)?;
        held.stopped = Some(0);
        match stop {
            Stop::Asked {
                by_job_control: true,
            } => Err(Failure::JobControl),
            Stop::Signal(signal) => {
                held.stopped = Some(signal);
                Err(Failure::Disturbed)
            }
            Stop::Ended => {
                self.held = None;
                Err(Failure::Ended)
            }
            _ => {
                let general = General::read(held.tid)?;
                if !injection::is_in_system_call(&general) {
                    return Err(Failure::NotInSystemCall);
                }
                Ok(Reply::Stopped {
                    general: general.bytes,
                    vector: registers::vector(held.tid)?,
                })
            }
        }
    }

    fn make_child(&mut self, lifetime: Duration) -> Result<Reply, Failure> {
        let held = self.held.as_mut().ok_or(Failure::Ended)?;
        if held.stopped != Some(0) || !held.instruction.is_there() {
            return Err(Failure::Disturbed);
        }
        let (process, signal) = injection::clone(held.tid, held.instruction.at);
        held.stopped = Some(signal);
        let process = process?;
        self.child = Some(Child {
            process,
            parent: (held.pid, held.tid),
            until: Instant::now() + lifetime,
        });
        Ok(Reply::Child(process))
    }

    /// Lets the thread go on, if there is one.
    fn release(&mut self) {
        if let Some(held) = self.held.take() {
            release(held.tid, held.stopped);
        }
        self.alarm.clear();
    }

    /// The child keeps nobody waiting, and is the first to go where memory runs out.
    fn settle_the_child(&self) {
        if let Some(child) = &self.child {
            let pid = child.process.pid;
            priority::run_like_others(pid);
            // Where that is refused the child is as likely to be ended as the target.
            let _ = std::fs::write(format!("/proc/{pid}/oom_score_adj"), "1000");
        }
    }

    /// Ends a child that has lived for long enough. Takes note of one that was ended by others: a pid namespace
    /// that ends waits for that.
    fn look_at_the_child(&mut self) {
        let Some(child) = &self.child else {
            return;
        };
        let has_ended = matches!(
            requests::wait(child.process.pid, false),
            Ok(Some(Stop::Ended))
        );
        if has_ended || Instant::now() > child.until {
            let outcome = self.end();
            self.outcome = Some(Outcome {
                was_whole: false,
                ..outcome
            });
        }
    }

    /// Ends the child, if there is one, and makes the target forget it.
    fn end(&mut self) -> Outcome {
        let Some(child) = self.child.take() else {
            return self.outcome.take().unwrap_or_default();
        };
        let pid = child.process.pid;
        let was_whole = !matches!(requests::wait(pid, false), Ok(Some(Stop::Ended)));
        kill(pid);
        Outcome {
            was_whole,
            ..self.forget(child.parent, child.process.inner_pid)
        }
    }

    fn forget(&mut self, parent: (u32, u32), inner_pid: u32) -> Outcome {
        let (pause, is_left) = reap::reap(parent, inner_pid, &mut self.alarm);
        Outcome {
            was_whole: false,
            pause,
            is_left,
        }
    }

    fn undo(&mut self) {
        self.release();
        self.end();
    }
}

/// Waits for a while; says whether something has come, be it the end.
fn has_input(stream: &UnixStream) -> bool {
    let mut wanted = [PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
    !matches!(
        poll(&mut wanted, PollTimeout::from(PERIOD_MS)),
        Ok(0) | Err(_)
    )
}

/// Stops the seized thread `tid`; `None` where it does not stop in time.
pub(super) fn stop(tid: u32, patience: Duration) -> io::Result<Option<Stop>> {
    ptrace::interrupt(tid)?;
    let stop = requests::wait_within(tid, patience)?;
    match stop {
        Some(Stop::Ended) => requests::collect(tid),
        Some(_) => registers::restart_system_call(tid)?,
        None => {}
    }
    Ok(stop)
}

/// Lets the thread `tid` go on, with the signal in `stopped` if that is not 0; one that runs (`None`) has to be
/// stopped first.
pub(super) fn release(tid: u32, stopped: Option<i32>) {
    let signal = stopped.or_else(|| match stop(tid, LAST_PATIENCE) {
        Ok(Some(Stop::Signal(signal))) => Some(signal),
        Ok(Some(_)) => Some(0),
        Ok(None) | Err(_) => None,
    });
    if let Some(signal) = signal {
        // ESRCH: it was killed while it stood still.
        let _ = ptrace::detach(tid, signal);
    }
}

/// Ends the traced process `pid`, which then is its parent's to be waited for.
fn kill(pid: u32) {
    let Ok(raw) = i32::try_from(pid) else { return };
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(raw), nix::sys::signal::SIGKILL);
    // Where it does not end the kernel keeps it busy: its memory is being freed.
    let _ = requests::wait_within(pid, LONGEST_END);
    requests::collect(pid);
}
