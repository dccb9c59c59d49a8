//! Making the target forget a child that has ended.
//!
//! The target never learns of the child: no signal is sent at its end, and an ordinary wait passes it over.
//! But until its parent has waited for it, it stays as a zombie. So one thread of the target is stopped once
//! more, for a tenth of a millisecond, and waits for it.

use std::fs;
use std::time::{Duration, Instant};

use super::alarm::Alarm;
use super::guardian::{release, stop};
use super::injection;
use super::protocol::Failure;
use super::requests::{self, Stop};
use super::vdso::Instruction;
use super::waits;
use crate::platform::linux::{procfs, ptrace, registers::General};

/// How long a thread may take to stop.
const PATIENCE: Duration = Duration::from_millis(100);
/// All threads are let go within this time, or the kernel ends this process.
const LIMIT: Duration = Duration::from_secs(30);
/// How long a place for the call is looked for.
const LONGEST_SEARCH: Duration = Duration::from_secs(5);
/// From one search to the next.
const NAP: Duration = Duration::from_millis(3);
/// Searches for a thread that is in a system call. After that any is good that is in no restartable
/// sequence.
const CHOOSY: u32 = 5;

/// A process that is to forget a child.
struct Parent {
    pid: u32,
    inner_child: u32,
    /// Threads that were asked to stop and did not: they are not given a processor at the moment.
    late: Vec<u32>,
    pause: Option<Duration>,
}

/// Makes process `pid` wait for its child `inner_child`, which has ended; `tid` is the thread to be tried first. Returns
/// for how long threads stood still, and whether the child is still there.
pub(super) fn reap(
    (pid, tid): (u32, u32),
    inner_child: u32,
    alarm: &mut Alarm,
) -> (Option<Duration>, bool) {
    let mut parent = Parent {
        pid,
        inner_child,
        late: Vec::new(),
        pause: None,
    };
    alarm.set(LIMIT);
    let is_reaped = parent.search(tid);
    for tid in parent.late {
        release(tid, None);
    }
    alarm.clear();
    let is_left = !is_reaped && fs::exists(format!("/proc/{pid}")).unwrap_or(true);
    (parent.pause, is_left)
}

impl Parent {
    /// Tries thread by thread; says whether there is no such child any more.
    fn search(&mut self, first: u32) -> bool {
        let start = Instant::now();
        for search in 0.. {
            let is_choosy = search < CHOOSY;
            let Ok(mut threads) = procfs::threads(self.pid) else {
                return true;
            };
            threads.sort_by_key(|tid| *tid != first);
            // As for the place of the first call: not the main thread, if there are others.
            let may_be_main = threads.len() == 1 || start.elapsed() > LONGEST_SEARCH / 2;
            threads.retain(|tid| *tid != self.pid || may_be_main);
            threads.retain(|tid| !self.late.contains(tid));
            threads.retain(|tid| !is_choosy || waits::is_place(self.pid, *tid));
            if threads
                .into_iter()
                .any(|tid| self.is_done_through(tid, is_choosy))
            {
                return true;
            }
            if start.elapsed() > LONGEST_SEARCH {
                break;
            }
            std::thread::sleep(NAP);
        }
        false
    }

    fn is_done_through(&mut self, tid: u32, is_choosy: bool) -> bool {
        // All this while the thread runs.
        let Some(instruction) = Instruction::of_thread(tid) else {
            return false;
        };
        if ptrace::seize(tid).is_err() {
            return false;
        }
        let start = Instant::now();
        let result = through(tid, &instruction, self.inner_child, is_choosy);
        *self.pause.get_or_insert(Duration::ZERO) += start.elapsed();
        if result == Err(Failure::DoesNotStop) {
            self.late.push(tid);
        }
        result.is_ok()
    }
}

/// Stops thread `tid`, which is seized, has it wait for the child, and lets it go.
fn through(
    tid: u32,
    instruction: &Instruction,
    inner_pid: u32,
    is_choosy: bool,
) -> Result<bool, Failure> {
    let (result, signal) = match stop(tid, PATIENCE) {
        Ok(Some(Stop::Asked { .. })) if is_usable(tid, instruction, is_choosy) => {
            injection::wait_for(tid, instruction.at, inner_pid)
        }
        Ok(Some(Stop::Signal(signal))) => (Err(Failure::Disturbed), signal),
        Ok(Some(Stop::Ended)) => return Err(Failure::Ended),
        Ok(Some(_)) => (Err(Failure::NotInSystemCall), 0),
        Ok(None) | Err(_) => return Err(Failure::DoesNotStop),
    };
    release(tid, Some(signal));
    result
}

fn is_usable(tid: u32, instruction: &Instruction, is_choosy: bool) -> bool {
    let Ok(general) = General::read(tid) else {
        return false;
    };
    let is_place = injection::is_in_system_call(&general)
        || !is_choosy && injection::is_64(&general) && !is_in_sequence(tid);
    is_place && instruction.is_there()
}

/// Says whether thread `tid` may be in a restartable sequence (rseq(2)): the kernel would forget it.
fn is_in_sequence(tid: u32) -> bool {
    /// Of the field `rseq_cs`.
    const OFFSET: u64 = 8;
    match requests::restartable_sequences(tid) {
        Ok(0) => false,
        Ok(registered) => waits::word(tid, registered.saturating_add(OFFSET)) != Some(0),
        Err(_) => true,
    }
}
