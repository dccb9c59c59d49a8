//! Stopping the target at a moment when no thread is inside malloc, and capturing it.

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::addr::Addr;
use crate::heap::{self, Exporter, Heap, HeapError, embedded_allocator};
use crate::platform::{
    CaptureError, Ending, Stopped, Survey, SuspendError, Target, interrupt_flag,
};
use crate::snapshot::{Method, Snapshot, Thread};
use crate::stacklog::StackLog;

/// How often the target is stopped at most: a thread may be inside malloc each time.
const MAX_STOPS: u32 = 20;
/// How often a thread may fail to stop in time, or a copy take too long, before that is an error: on
/// a machine with many more runnable threads than processors both may wait for a processor for long.
/// As often there may be no heap.
const MAX_LATE_STOPS: u32 = 5;

/// A captured target and its live blocks.
pub(super) struct Captured {
    pub(super) snapshot: Snapshot,
    pub(super) heap: Heap,
    /// The target's malloc stack log, if it has one that can be used.
    pub(super) log: Option<StackLog>,
    /// The modules with a malloc.
    pub(super) exporters: Vec<Exporter>,
    /// With [`Method::Stream`] the target stands still until this is released, with [`Method::Fork`] a child of it
    /// lives as long.
    pub(super) stopped: Option<Stopped>,
}

/// What is found out while the target runs.
struct Prepared {
    survey: Survey,
    exporters: Vec<Exporter>,
    /// The allocator that is linked into the executable.
    embedded: Option<&'static str>,
}

/// What came of one stop.
enum Attempt {
    Captured(Box<Captured>),
    /// A thread was inside malloc, or modules were loaded meanwhile. What was prepared is handed
    /// back where it is still good.
    Again(Option<Box<Prepared>>),
}

/// Captures `target`. Where a stop finds a thread inside malloc, the target goes on for some
/// milliseconds and is stopped again.
pub(super) fn capture(target: &Target, method: Method) -> anyhow::Result<Captured> {
    // The threads that copy exist before the target is stopped.
    rayon::broadcast(|_| ());
    let mut prepared = None;
    let mut late_stops = 0;
    let mut sleepers = BTreeSet::new();
    for stop in 1..MAX_STOPS {
        let ready = prepare(target, method, prepared.take());
        if let (1, Ok(ready)) = (stop, &ready) {
            say_notice(&ready.survey);
        }
        match ready.and_then(|ready| attempt(target, ready, &mut sleepers)) {
            Ok(Attempt::Captured(captured)) => return Ok(*captured),
            Ok(Attempt::Again(still_good)) => prepared = still_good.map(|good| *good),
            // The next attempt is another one, or a copy.
            Err(error) if is_fork_refused(&error) => {}
            Err(error) if may_pass(&error) && late_stops < MAX_LATE_STOPS => late_stops += 1,
            Err(error) => return Err(error),
        }
        // Different each time, so that a thread with a rhythm is met at different points of it.
        std::thread::sleep(Duration::from_millis(u64::from(stop % 10 + 1)));
    }
    target.give_up_fork();
    let prepared = prepared.filter(|prepared| !prepared.survey.is_fork());
    last_attempt(target, prepare(target, method, prepared)?)
}

fn prepare(
    target: &Target,
    method: Method,
    prepared: Option<Prepared>,
) -> anyhow::Result<Prepared> {
    if interrupt_flag().load(Ordering::Relaxed) {
        return Err(SuspendError::Interrupted.into());
    }
    if let Some(prepared) = prepared {
        return Ok(prepared);
    }
    let survey = target.survey(method)?;
    let executable = survey.executable();
    Ok(Prepared {
        exporters: heap::exporters(survey.memory(), &survey.modules),
        embedded: executable.and_then(|file| {
            embedded_allocator(file.size(), |offset, buf| file.read_at(offset, buf))
        }),
        survey,
    })
}

/// Says, while the target still runs, that another way would stop it for less.
fn say_notice(survey: &Survey) {
    if let Some(notice) = survey.notice() {
        // There is nowhere to say that it could not be said.
        let _ = writeln!(std::io::stderr().lock(), "rleaks: {}", notice.message);
    }
}

/// Says whether that may be over in a moment: a thread did not stop in time, or the copy was not
/// finished in time; or the process has just begun to execute a program, which has no heap yet.
fn may_pass(error: &anyhow::Error) -> bool {
    let capture = error.downcast_ref();
    let heap = error.downcast_ref();
    matches!(
        capture,
        Some(CaptureError::Suspend(
            SuspendError::DoesNotStop(..) | SuspendError::TooSlow(_) | SuspendError::NoMemory(_)
        ))
    ) || matches!(heap, Some(HeapError::NotFound(_)))
}

fn is_fork_refused(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(CaptureError::Fork(_)))
}

/// Stops the target once, and accepts only a heap in which nothing is half-done. `sleepers` are the
/// threads that slept inside malloc, as far as it could be told, at the stop before.
fn attempt(
    target: &Target,
    prepared: Prepared,
    sleepers: &mut BTreeSet<Sleeper>,
) -> anyhow::Result<Attempt> {
    let stopped = target.stop(&prepared.survey)?;
    if is_changing_the_heap(&stopped, &prepared.exporters, sleepers) {
        return Ok(Attempt::Again(Some(Box::new(prepared))));
    }
    if stopped.has_other_modules(&prepared.survey) {
        return Ok(Attempt::Again(None));
    }
    let (mut snapshot, stopped) = stopped.capture(prepared.survey)?;
    let log = stack_log(&mut snapshot, &prepared.exporters);
    let walk = heap::walk(
        &snapshot,
        &prepared.exporters,
        prepared.embedded,
        log.as_ref(),
    );
    stopped.as_ref().map_or(Ok(()), Stopped::check_child)?;
    let walk = walk?;
    if !walk.is_clean() {
        return Ok(Attempt::Again(None));
    }
    let interposition = heap::interposition_warning(&prepared.exporters);
    snapshot.warnings.extend(walk.warnings);
    snapshot.warnings.extend(interposition);
    Ok(Attempt::Captured(Box::new(Captured {
        snapshot,
        heap: walk.heap,
        log,
        exporters: prepared.exporters,
        stopped,
    })))
}

/// Stops the target a last time.
fn last_attempt(target: &Target, prepared: Prepared) -> anyhow::Result<Captured> {
    let stopped = target.stop(&prepared.survey)?;
    accept(stopped, prepared)
}

/// Captures a process that stands at its end. There is no second attempt: a thread that was killed
/// inside malloc stays there.
pub(super) fn capture_at_end(ending: Ending, method: Method) -> anyhow::Result<Captured> {
    // The threads that copy exist before memory is copied.
    rayon::broadcast(|_| ());
    let target = Target::new(ending.pid);
    // A process that is at its end waits for nothing.
    target.give_up_fork();
    let prepared = prepare(&target, method, None)?;
    let stopped = ending.stopped(&target, &prepared.survey)?;
    accept(stopped, prepared)
}

/// Takes what is found, where a thread that stands inside malloc explains what is wrong with it.
fn accept(stopped: Stopped, prepared: Prepared) -> anyhow::Result<Captured> {
    let inside_malloc = is_inside_malloc(&stopped, &prepared.exporters);
    let (mut snapshot, stopped) = stopped.capture(prepared.survey)?;
    let log = stack_log(&mut snapshot, &prepared.exporters);
    let walk = heap::walk(
        &snapshot,
        &prepared.exporters,
        prepared.embedded,
        log.as_ref(),
    );
    stopped.as_ref().map_or(Ok(()), Stopped::check_child)?;
    let walk = walk?;
    let (heap, warnings) = walk.settle(inside_malloc)?;
    snapshot.warnings.extend(warnings);
    let interposition = heap::interposition_warning(&prepared.exporters);
    snapshot.warnings.extend(interposition);
    Ok(Captured {
        snapshot,
        heap,
        log,
        exporters: prepared.exporters,
        stopped,
    })
}

/// The malloc stack log of `snapshot`. A log that cannot be used is a warning.
fn stack_log(snapshot: &mut Snapshot, exporters: &[Exporter]) -> Option<StackLog> {
    let header = heap::stack_log(exporters)?;
    let log = StackLog::find(snapshot, header);
    log.unwrap_or_else(|error| {
        snapshot.warnings.push(error.warning());
        None
    })
}

fn is_inside_malloc(stopped: &Stopped, exporters: &[Exporter]) -> bool {
    threads_inside_malloc(stopped, exporters).next().is_some()
}

fn threads_inside_malloc<'a>(
    stopped: &'a Stopped,
    exporters: &'a [Exporter],
) -> impl Iterator<Item = &'a Thread> {
    let threads = stopped.threads.iter();
    threads.filter(|thread| heap::is_inside_malloc(thread, stopped.memory(), exporters))
}

/// Where a thread sleeps: its id, its stack pointer and its next instruction.
type Sleeper = (u32, Addr, Addr);

/// Says whether a thread may be changing the heap: it stands inside malloc, and it does not sleep in
/// the place where it slept at the stop before, which is one of `sleepers`.
///
/// A thread that sleeps waits for a lock of malloc, which it does before it changes anything; or, far
/// more often, for something else, and what looks like a call of malloc is left over on its stack.
/// Neither would be different at the next stop, nor at the one after that.
fn is_changing_the_heap(
    stopped: &Stopped,
    exporters: &[Exporter],
    sleepers: &mut BTreeSet<Sleeper>,
) -> bool {
    let mut is_changing = false;
    let mut sleeping = BTreeSet::new();
    for thread in threads_inside_malloc(stopped, exporters) {
        let place = (thread.tid, thread.stack_pointer, thread.instruction_pointer);
        if heap::waits_for_a_lock(thread) {
            sleeping.insert(place);
            is_changing |= !sleepers.contains(&place);
        } else {
            is_changing = true;
        }
    }
    *sleepers = sleeping;
    is_changing
}
