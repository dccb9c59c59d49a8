//! Stopping the target at a moment when no thread is inside malloc, and capturing it.

use std::time::Duration;

use crate::heap::{self, Exporter, Heap, embedded_allocator};
use crate::memory::Memory;
use crate::platform::{CaptureError, Stopped, Survey, SuspendError, Target, interrupt_flag};
use crate::snapshot::{Method, Snapshot};

/// How often the target is stopped at most: a thread may be inside malloc each time.
const MAX_STOPS: u32 = 20;

/// A captured target and its live blocks.
pub(super) struct Captured {
    pub(super) snapshot: Snapshot,
    pub(super) heap: Heap,
    /// With [`Method::Stream`] the target stands still until this is released.
    pub(super) stopped: Option<Stopped>,
}

/// Captures `target`. Where a stop finds a thread inside malloc, the target goes on for some
/// milliseconds and is stopped again.
pub(super) fn capture(target: &Target, method: Method) -> anyhow::Result<Captured> {
    let embedded = target
        .executable()
        .and_then(|file| embedded_allocator(file.size(), |offset, buf| file.read_at(offset, buf)));
    // The threads that copy exist before the target is stopped.
    rayon::broadcast(|_| ());
    for stop in 1..MAX_STOPS {
        if let Some(captured) = attempt(target, method, embedded)? {
            return Ok(captured);
        }
        // Different each time, so that a thread with a rhythm is met at different points of it.
        std::thread::sleep(Duration::from_millis(u64::from(stop % 10 + 1)));
    }
    last_attempt(target, method, embedded)
}

/// Stops the target once. `None` if a thread was inside malloc, or if the modules changed.
fn attempt(
    target: &Target,
    method: Method,
    embedded: Option<&'static str>,
) -> anyhow::Result<Option<Captured>> {
    let (survey, exporters) = survey(target, method)?;
    let stopped = target.stop()?;
    if is_inside_malloc(&stopped, &exporters) || stopped.has_other_modules(&survey) {
        return Ok(None);
    }
    let (mut snapshot, stopped) = stopped.capture(survey)?;
    let walk = heap::walk(&snapshot, &exporters, embedded)?;
    if !walk.is_clean() {
        return Ok(None);
    }
    snapshot
        .warnings
        .extend(heap::interposition_warning(&exporters));
    Ok(Some(Captured {
        snapshot,
        heap: walk.heap,
        stopped,
    }))
}

/// Stops the target a last time, and takes what is found where a thread that stands inside malloc
/// explains what is wrong with it.
fn last_attempt(
    target: &Target,
    method: Method,
    embedded: Option<&'static str>,
) -> anyhow::Result<Captured> {
    let (survey, exporters) = survey(target, method)?;
    let stopped = target.stop()?;
    let inside_malloc = is_inside_malloc(&stopped, &exporters);
    let (mut snapshot, stopped) = stopped.capture(survey)?;
    let walk = heap::walk(&snapshot, &exporters, embedded)?;
    let (heap, warnings) = walk.settle(inside_malloc)?;
    snapshot.warnings.extend(warnings);
    snapshot
        .warnings
        .extend(heap::interposition_warning(&exporters));
    Ok(Captured {
        snapshot,
        heap,
        stopped,
    })
}

fn survey(target: &Target, method: Method) -> Result<(Survey, Vec<Exporter>), CaptureError> {
    let survey = target.survey(method)?;
    let exporters = heap::exporters(target.memory(), &survey.modules);
    if interrupt_flag().load(std::sync::atomic::Ordering::Relaxed) {
        return Err(SuspendError::Interrupted.into());
    }
    Ok((survey, exporters))
}

fn is_inside_malloc(stopped: &Stopped, exporters: &[Exporter]) -> bool {
    let memory: &dyn Memory = stopped.memory();
    stopped
        .threads
        .iter()
        .any(|thread| heap::is_inside_malloc(thread, memory, exporters))
}
