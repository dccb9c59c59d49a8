//! Stopping the target at a moment when no thread is inside malloc, and capturing it.

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context;

use crate::addr::{Addr, AddrRange, RangeSet};
use crate::heap::{self, Exporter, Heap, HeapError, embedded_allocator};
use crate::memory::{Excerpt, Reads};
use crate::platform::{
    CaptureError, Ending, Stopped, Survey, SuspendError, Target, interrupt_flag,
};
use crate::snapshot::saved::{HeapFacts, Saved};
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
    /// What beside the snapshot the walk depended on.
    pub(super) facts: HeapFacts,
    /// How many of the snapshot's warnings are of the capture itself.
    pub(super) capture_warnings: usize,
    /// Parts of the modules' files, where the snapshot is to be saved.
    pub(super) parts: ModuleParts,
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
    parts: ModuleParts,
}

/// What the search for allocators reads of the modules' files, which no snapshot has.
#[derive(Clone, Debug, Default)]
pub(super) struct ModuleParts {
    /// The memory that was read.
    pub(super) read: RangeSet,
    /// The pages of it.
    pub(super) pages: Excerpt,
}

impl ModuleParts {
    /// Copies the pages of what was `read`, the first one of each module, and the vdso, from the
    /// target, which runs.
    fn copy(survey: &Survey, read: RangeSet) -> Self {
        const PAGE: u64 = 4096;
        let first_pages = survey.modules.iter().map(|module| {
            let is_vdso = module.path == "[vdso]";
            let ends = module.segments.iter().map(|segment| segment.range.end);
            let end = ends.max().filter(|_| is_vdso);
            let page = AddrRange::with_size(module.base, 1);
            AddrRange::new(module.base, end.unwrap_or(page.end))
        });
        let pages: RangeSet = read
            .ranges()
            .iter()
            .copied()
            .chain(first_pages)
            .filter_map(|range| {
                let start = range.start.align_down(PAGE);
                Some(AddrRange::new(start, range.end.align_up(PAGE)?))
            })
            .collect();
        Self {
            pages: Excerpt::copy(survey.memory(), pages.ranges().iter().copied()),
            read,
        }
    }
}

/// What a snapshot is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To be looked at, and forgotten.
    Scan,
    /// To be saved.
    Save,
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
pub(super) fn capture(
    target: &Target,
    method: Method,
    purpose: Purpose,
) -> anyhow::Result<Captured> {
    // The threads that copy exist before the target is stopped.
    rayon::broadcast(|_| ());
    let mut prepared = None;
    let mut late_stops = 0;
    let mut sleepers = BTreeSet::new();
    for stop in 1..MAX_STOPS {
        let ready = prepare(target, (method, purpose), prepared.take());
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
    last_attempt(target, prepare(target, (method, purpose), prepared)?)
}

fn prepare(
    target: &Target,
    (method, purpose): (Method, Purpose),
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
    let reads = Reads::new(survey.memory());
    let exporters = heap::exporters(&reads, &survey.modules);
    let read = reads.ranges();
    Ok(Prepared {
        exporters,
        parts: match purpose {
            Purpose::Scan => ModuleParts::default(),
            Purpose::Save => ModuleParts::copy(&survey, read),
        },
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
    let (snapshot, stopped) = stopped.capture(prepared.survey)?;
    let found = Found {
        stack_log: heap::stack_log(&prepared.exporters),
        exporters: prepared.exporters,
        embedded: prepared.embedded,
        inside_malloc: None,
    };
    let captured = found.walk(snapshot);
    stopped.as_ref().map_or(Ok(()), Stopped::check_child)?;
    Ok(captured?.map_or(Attempt::Again(None), |captured| {
        Attempt::Captured(Box::new(Captured {
            stopped,
            parts: prepared.parts,
            ..captured
        }))
    }))
}

/// Stops the target a last time.
fn last_attempt(target: &Target, prepared: Prepared) -> anyhow::Result<Captured> {
    let stopped = target.stop(&prepared.survey)?;
    accept(stopped, prepared)
}

/// Captures `target`, which stands at its end. There is no second attempt: a thread that was killed
/// inside malloc stays there.
pub(super) fn capture_at_end(
    ending: Ending,
    target: &Target,
    (method, purpose): (Method, Purpose),
) -> anyhow::Result<Captured> {
    // The threads that copy exist before memory is copied.
    rayon::broadcast(|_| ());
    // A process that is at its end waits for nothing.
    target.give_up_fork();
    let prepared = prepare(target, (method, purpose), None)?;
    let stopped = ending.stopped(target, &prepared.survey)?;
    accept(stopped, prepared)
}

/// Takes what is found, where a thread that stands inside malloc explains what is wrong with it.
fn accept(stopped: Stopped, prepared: Prepared) -> anyhow::Result<Captured> {
    let inside_malloc = is_inside_malloc(&stopped, &prepared.exporters);
    let (snapshot, stopped) = stopped.capture(prepared.survey)?;
    let found = Found {
        stack_log: heap::stack_log(&prepared.exporters),
        exporters: prepared.exporters,
        embedded: prepared.embedded,
        inside_malloc: Some(inside_malloc),
    };
    let captured = found.walk(snapshot);
    stopped.as_ref().map_or(Ok(()), Stopped::check_child)?;
    let captured = captured?.context("there is no other attempt")?;
    Ok(Captured {
        stopped,
        parts: prepared.parts,
        ..captured
    })
}

/// What is known of the allocators of a snapshot before its heap is walked.
pub(super) struct Found {
    pub(super) exporters: Vec<Exporter>,
    pub(super) embedded: Option<&'static str>,
    /// Whether a thread stands inside malloc; `None` where a heap that does not fit together is not
    /// taken.
    pub(super) inside_malloc: Option<bool>,
    /// Where the header of the malloc stack log is, if a recorder was loaded.
    pub(super) stack_log: Option<Addr>,
}

impl Found {
    /// Walks the heap of `snapshot`. `None` where it is not to be taken.
    pub(super) fn walk(self, mut snapshot: Snapshot) -> anyhow::Result<Option<Captured>> {
        let capture_warnings = snapshot.warnings.len();
        let log = stack_log(&mut snapshot, self.stack_log);
        let walk = heap::walk(&snapshot, &self.exporters, self.embedded, log.as_ref())?;
        let (heap, warnings) = match self.inside_malloc {
            None if !walk.is_clean() => return Ok(None),
            None => walk.settle(false)?,
            Some(inside_malloc) => walk.settle(inside_malloc)?,
        };
        snapshot.warnings.extend(warnings);
        let interposition = heap::interposition_warning(&self.exporters);
        snapshot.warnings.extend(interposition);
        Ok(Some(Captured {
            facts: HeapFacts {
                embedded: self.embedded.map(str::to_owned),
                inside_malloc: self.inside_malloc.unwrap_or(false),
                stack_log: self.stack_log,
            },
            capture_warnings,
            parts: ModuleParts::default(),
            snapshot,
            heap,
            log,
            exporters: self.exporters,
            stopped: None,
        }))
    }
}

/// Walks the heap of a snapshot that was saved.
pub(super) fn of_saved(saved: Saved) -> anyhow::Result<Captured> {
    let Saved {
        snapshot,
        images,
        parts,
        heap: facts,
    } = saved;
    let embedded = facts.embedded.as_deref().and_then(heap::embedded_named);
    let reads = Reads::new(&images);
    let exporters = heap::exporters(&reads, &snapshot.modules);
    let read = reads.ranges();
    let found = Found {
        exporters,
        embedded,
        inside_malloc: Some(facts.inside_malloc),
        stack_log: facts.stack_log,
    };
    let captured = found.walk(snapshot)?;
    let captured = captured.context("a saved heap is taken as it is")?;
    Ok(Captured {
        parts: ModuleParts {
            pages: Excerpt::copy(&images, parts.into_iter()),
            read,
        },
        ..captured
    })
}

/// The malloc stack log of `snapshot`. A log that cannot be used is a warning.
fn stack_log(snapshot: &mut Snapshot, header: Option<Addr>) -> Option<StackLog> {
    let log = StackLog::find(snapshot, header?);
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
