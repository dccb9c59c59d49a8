//! Stopping the target at a moment when no thread is inside malloc, and capturing it.

use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::heap::{self, Exporter, Heap, embedded_allocator};
use crate::platform::{
    CaptureError, Ending, Stopped, Survey, SuspendError, Target, interrupt_flag,
};
use crate::snapshot::{Method, Snapshot};
use crate::stacklog::StackLog;

/// How often the target is stopped at most: a thread may be inside malloc each time.
const MAX_STOPS: u32 = 20;
/// How often a thread may fail to stop in time before that is an error: on a machine with many more
/// runnable threads than processors it may wait for a processor for long.
const MAX_LATE_STOPS: u32 = 3;

/// A captured target and its live blocks.
pub(super) struct Captured {
    pub(super) snapshot: Snapshot,
    pub(super) heap: Heap,
    /// The target's malloc stack log, if it has one that can be used.
    pub(super) log: Option<StackLog>,
    /// The modules with a malloc.
    pub(super) exporters: Vec<Exporter>,
    /// With [`Method::Stream`] the target stands still until this is released.
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
    for stop in 1..MAX_STOPS {
        match attempt(target, prepare(target, method, prepared.take())?) {
            Ok(Attempt::Captured(captured)) => return Ok(*captured),
            Ok(Attempt::Again(still_good)) => prepared = still_good.map(|good| *good),
            Err(error) if was_late(&error) && late_stops < MAX_LATE_STOPS => late_stops += 1,
            Err(error) => return Err(error),
        }
        // Different each time, so that a thread with a rhythm is met at different points of it.
        std::thread::sleep(Duration::from_millis(u64::from(stop % 10 + 1)));
    }
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

/// Says whether a thread did not stop in time.
fn was_late(error: &anyhow::Error) -> bool {
    matches!(
        error.downcast_ref(),
        Some(CaptureError::Suspend(SuspendError::DoesNotStop(..)))
    )
}

/// Stops the target once, and accepts only a heap in which nothing is half-done.
fn attempt(target: &Target, prepared: Prepared) -> anyhow::Result<Attempt> {
    let stopped = target.stop(&prepared.survey)?;
    if is_inside_malloc(&stopped, &prepared.exporters) {
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
    )?;
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
    )?;
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
    stopped
        .threads
        .iter()
        .any(|thread| heap::is_inside_malloc(thread, stopped.memory(), exporters))
}
