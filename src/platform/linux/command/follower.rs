//! The thread that follows a command, and processes that it starts, to their ends.
//!
//! It is their tracer, and the one place where this process takes notice of signals. It never
//! sleeps where a signal does not wake it.

use std::collections::BTreeMap;
use std::process;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender};
use std::time::Duration;

use nix::libc;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;

use super::cause::shell_status;
use super::followed::{CommandEnd, Ending, FollowEvent, Held, Waiters};
use super::spawn::Spawned;
use super::traced::{Traced, process_of};
use crate::platform::linux::capture_error::explained;
use crate::platform::linux::job_control::interrupt_flag;
use crate::platform::linux::procfs;
use crate::platform::linux::ptrace::{self, Change};
use crate::platform::linux::registers;
use crate::platform::linux::signals::next_signal;
use crate::platform::linux::suspend::SuspendError;
use crate::platform::linux::watchdog::visible_pid;

/// From one look to the next where nothing has to be waited for but signals, and where something has.
const LONG_NAP: Duration = Duration::from_millis(900);
const SHORT_NAP: Duration = Duration::from_micros(200);

/// The signals that are waited for. None of them ends or stops this process: they are for the
/// command.
pub(super) fn awaited_signals() -> SigSet {
    [
        Signal::SIGCHLD,
        Signal::SIGCONT,
        Signal::SIGHUP,
        Signal::SIGINT,
        Signal::SIGQUIT,
        Signal::SIGTERM,
        Signal::SIGTSTP,
        Signal::SIGTTIN,
        Signal::SIGTTOU,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
    ]
    .into_iter()
    .collect()
}

pub(super) struct Follower {
    pub(super) command: Spawned,
    /// Who tells that a process is about to end; without it, the command is traced from its start.
    pub(super) waiters: Option<Arc<dyn Waiters>>,
    pub(super) events: Sender<FollowEvent>,
    /// Processes that may go on from their ends.
    pub(super) released: Receiver<u32>,
    pub(super) release: Sender<u32>,
    pub(super) processes: BTreeMap<u32, Traced>,
    /// The status of the command, in the form of `wait`, once it has ended.
    pub(super) ended: Option<i32>,
    /// The command was held at its end, so signals are not for it any more.
    pub(super) was_held: bool,
}

impl Follower {
    /// Follows the command until it has ended and every process that stands at its end was let go.
    pub(super) fn run(mut self, from_start: bool) {
        if from_start {
            self.seize(self.command.pid);
        }
        self.command.go();
        let signals = awaited_signals();
        loop {
            self.let_go();
            while let Some((tid, change)) = self.next_change() {
                self.take_notice(tid, change);
            }
            self.seize_waiters();
            let is_settling = self.settle();
            if let Some(status) = self.ended
                && !self.processes.values().any(Traced::is_ending)
            {
                while next_signal(&signals, Duration::ZERO).is_some() {}
                return self.report_end(status);
            }
            let nap = if is_settling { SHORT_NAP } else { LONG_NAP };
            self.answer_next(&signals, nap);
        }
    }

    /// Answers a signal, if one comes in time.
    fn answer_next(&mut self, signals: &SigSet, patience: Duration) -> bool {
        let next = next_signal(signals, patience);
        if let Some((signal, from_terminal)) = next {
            self.answer(signal, from_terminal);
        }
        next.is_some()
    }

    fn send(&self, event: FollowEvent) {
        // Where nobody listens any more, rleaks is about to end.
        let _ = self.events.send(event);
    }

    fn report_end(mut self, status: i32) {
        let end = CommandEnd {
            status: shell_status(status),
            signal: Some(libc::WTERMSIG(status)).filter(|_| libc::WIFSIGNALED(status)),
            failure: self.command.failure(),
        };
        self.send(FollowEvent::Ended(end));
    }

    fn next_change(&self) -> Option<(u32, Change)> {
        let of_command = || ptrace::change_of_child(self.command.pid);
        ptrace::any_change().or_else(|| self.ended.is_none().then(of_command)?)
    }

    fn seize(&mut self, pid: u32) {
        let mut traced = Traced::new(pid);
        match traced.seize() {
            // What ends before it is seized is told by its status.
            Ok(()) | Err(SuspendError::Ended(_)) => {}
            Err(error) => self.refuse(pid, error),
        }
        if !traced.is_over() {
            self.processes.insert(pid, traced);
        }
    }

    fn refuse(&self, pid: u32, error: SuspendError) {
        self.send(FollowEvent::Refused(pid, explained(error)));
    }

    /// Seizes the processes that wait for it before they end.
    fn seize_waiters(&mut self) {
        let Some(waiters) = self.waiters.clone() else {
            return;
        };
        for waiter in waiters.waiting() {
            let Some(pid) = self.find(waiter.pid, waiters.inode()) else {
                waiters.go_on(waiter.slot);
                continue;
            };
            if !self.processes.contains_key(&pid) {
                self.seize(pid);
            }
            waiters.go_on(waiter.slot);
        }
    }

    /// The process that calls itself `inner` in its own pid namespace, and has the page mapped by
    /// which it waits: the word of a process is not trusted.
    fn find(&self, inner: u32, inode: u64) -> Option<u32> {
        let is_named = |pid: u32| {
            let status = procfs::Status::read(pid, pid);
            status.is_ok_and(|status| status.inner_tid == inner)
        };
        // Its mappings may be hidden: why it cannot be seized is told later.
        if is_named(self.command.pid) {
            return Some(self.command.pid);
        }
        let is_meant = |pid: &u32| is_named(*pid) && maps(*pid, inode);
        Some(inner)
            .filter(is_meant)
            .or_else(|| procfs::pids().into_iter().find(is_meant))
    }

    fn take_notice(&mut self, tid: u32, change: Change) {
        let owner = self.processes.values().find(|traced| traced.has(tid));
        let owner = owner.map(|traced| traced.pid);
        match (owner, change) {
            (None, _) if tid == self.command.pid => self.command_changed(change),
            (None, Change::Signal { .. } | Change::Event { .. }) => self.meet(tid, change),
            (None, _) => {}
            (Some(pid), change) => self.thread_changed(pid, tid, change),
        }
    }

    /// The command, which is not traced, did something.
    fn command_changed(&mut self, change: Change) {
        match change {
            Change::Ended { status } => self.ended = Some(status),
            Change::Continued => tell_shell(Signal::SIGCONT),
            Change::Signal { .. } => tell_shell(Signal::SIGSTOP),
            // It was let go after it had got there.
            Change::Event { .. } => {
                let _ = ptrace::detach(self.command.pid, 0);
            }
        }
    }

    /// A thread that was not known stopped: a new one may do so before the stop of the thread that has
    /// started it is noticed.
    fn meet(&mut self, tid: u32, change: Change) {
        let pid = process_of(tid).ok().flatten();
        match pid.and_then(|pid| self.processes.get_mut(&pid)) {
            Some(traced) => {
                traced.add(tid);
                let pid = traced.pid;
                self.thread_changed(pid, tid, change);
            }
            None => {
                let signal = match change {
                    Change::Signal { signal } => signal,
                    _ => 0,
                };
                let _ = ptrace::detach(tid, signal);
            }
        }
    }

    fn thread_changed(&mut self, pid: u32, tid: u32, change: Change) {
        let Some(traced) = self.processes.get_mut(&pid) else {
            return;
        };
        // ESRCH throughout: it was killed at this moment, which is told next.
        match change {
            Change::Ended { status } => {
                traced.remove(tid);
                if tid == pid {
                    self.processes.remove(&pid);
                    if pid == self.command.pid {
                        self.ended = Some(status);
                    }
                }
            }
            Change::Signal { signal } => {
                let _ = registers::restart_system_call(tid);
                let _ = ptrace::go_on(tid, signal);
            }
            Change::Continued => {}
            Change::Event { event, signal } => {
                let told = at_event(traced, tid, event, signal);
                if let Some(told) = told.filter(|_| tid == self.command.pid) {
                    tell_shell(told);
                }
            }
        }
    }

    /// Hands over the processes that have come to stand; says whether others are about to.
    fn settle(&mut self) -> bool {
        let standing = self.processes.values_mut().filter_map(|traced| {
            let stands = traced.settle();
            stands.then_some(traced.pid)
        });
        for pid in standing.collect::<Vec<_>>() {
            if pid == self.command.pid {
                // What was sent until now was for it, though it can have come to its end sooner than
                // this thread to the signal.
                while self.answer_next(&awaited_signals(), Duration::ZERO) {}
                self.was_held = true;
            }
            self.hand_over(pid);
        }
        self.processes.values().any(Traced::is_settling)
    }

    fn hand_over(&mut self, pid: u32) {
        let Some(traced) = self.processes.get_mut(&pid) else {
            return;
        };
        let event = match traced.standstill() {
            Ok(standstill) => FollowEvent::Ending(Ending::new(
                pid,
                shell_status(traced.status),
                standstill,
                Held::new(pid, self.release.clone()),
            )),
            Err(error) => {
                traced.release();
                FollowEvent::Refused(pid, explained(error))
            }
        };
        self.send(event);
    }

    /// Lets processes end that were handed over and given back.
    fn let_go(&mut self) {
        while let Ok(pid) = self.released.try_recv() {
            if let Some(traced) = self.processes.get_mut(&pid) {
                traced.release();
            }
        }
        // Another process may get the same number.
        self.processes.retain(|_, traced| !traced.is_over());
    }

    /// Signals are for the command, to which the terminal sends its own. Once that stands at its end,
    /// they are for rleaks.
    fn answer(&mut self, signal: Signal, from_terminal: bool) {
        let command = i32::try_from(self.command.pid).map(Pid::from_raw);
        let Ok(command) = command else { return };
        match signal {
            Signal::SIGCHLD | Signal::SIGTTIN | Signal::SIGTTOU => {}
            Signal::SIGINT | Signal::SIGTERM | Signal::SIGHUP if self.was_held => {
                if interrupt_flag().swap(true, Ordering::Relaxed) {
                    process::exit(2);
                }
            }
            _ if self.was_held => {}
            Signal::SIGCONT => {
                // It is sent to a whole job as a rule, but it can be sent to rleaks alone.
                if self.is_command_stopped() {
                    let _ = kill(command, Signal::SIGCONT);
                }
            }
            _ if from_terminal => {}
            _ => {
                let _ = kill(command, signal);
            }
        }
    }

    fn is_command_stopped(&self) -> bool {
        let pid = self.command.pid;
        let status = procfs::Status::read(pid, pid);
        let is_held = self.processes.get(&pid).is_some_and(|p| p.is_stopped);
        is_held || status.is_ok_and(|status| status.state == 'T')
    }
}

/// Thread `tid` has stopped at an event. Gives the signal by which job control has stopped or continued the
/// process, where it is the main thread and that is what the event was.
fn at_event(traced: &mut Traced, tid: u32, event: i32, signal: i32) -> Option<Signal> {
    let is_main = tid == traced.pid;
    match event {
        libc::PTRACE_EVENT_EXIT => {
            traced.at_end(tid);
            return None;
        }
        libc::PTRACE_EVENT_STOP if is_stop(signal) => {
            let _ = ptrace::stay_stopped(tid);
            traced.is_stopped |= is_main;
            return is_main.then_some(Signal::SIGSTOP);
        }
        libc::PTRACE_EVENT_EXEC => traced.executed(),
        libc::PTRACE_EVENT_CLONE => add_new(traced, tid),
        _ => {}
    }
    let _ = ptrace::go_on(tid, 0);
    let was_stopped = is_main && std::mem::take(&mut traced.is_stopped);
    was_stopped.then_some(Signal::SIGCONT)
}

/// Thread `tid` has started another one, which is traced, too.
fn add_new(traced: &mut Traced, tid: u32) {
    let new = ptrace::event_message(tid).ok();
    let new = new.and_then(|new| u32::try_from(new).ok());
    // Also a process can be started in this way: it is not to be traced, and is let go when it stops.
    if let Some(new) = new
        && process_of(new).ok().flatten() == Some(traced.pid)
    {
        traced.add(new);
    }
}

fn is_stop(signal: i32) -> bool {
    matches!(
        signal,
        libc::SIGSTOP | libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU
    )
}

/// Stops or continues the process that the shell knows, as the command was.
fn tell_shell(signal: Signal) {
    if let Ok(pid) = i32::try_from(visible_pid()) {
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

/// Says whether process `pid` has the file with this inode number mapped.
fn maps(pid: u32, inode: u64) -> bool {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    let number = inode.to_string();
    maps.lines()
        .any(|line| line.split_ascii_whitespace().nth(4) == Some(number.as_str()))
}

/// Wakes the thread that follows, from another thread of this process.
pub(super) fn wake() {
    let _ = kill(Pid::this(), Signal::SIGCHLD);
}
