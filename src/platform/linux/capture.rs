//! From a target that stands still to a [`Snapshot`].

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use super::capture_error::{CaptureError, proc_error};
use super::copy::{CopiedMemory, CopyBuffer};
use super::fork::{ForkedMemory, Guardian, NewProcess, Outcome, Parts};
use super::plan::{self, Source};
use super::stream::StreamedMemory;
use super::survey::{Survey, Target, images};
use super::suspend::{SuspendError, Suspended};
use super::tracer::Standstill;
use super::view::View;
use super::{interrupt_flag, procfs};
use crate::addr::{Addr, AddrRange};
use crate::memory::{Memory, Width};
use crate::snapshot::{self, Capture, ContentLevel, Extent, Machine, Region, Snapshot, Thread};
use crate::warning::{Bias, Warning};

/// The target while it stands still, or while a child of it keeps its memory. Dropping it lets the target go
/// on, and ends the child.
#[derive(Debug)]
pub struct Stopped {
    target: Target,
    suspended: Option<Suspended>,
    /// Who keeps a child of the target, and that one.
    child: Option<(Arc<Guardian>, NewProcess)>,
    view: View,
    taken_at: SystemTime,
    /// When a copy has to be given up.
    deadline: Instant,
    /// Its threads with their registers.
    pub threads: Vec<Thread>,
    regions: Vec<Region>,
    warnings: Vec<Warning>,
}

impl Stopped {
    pub(super) fn new(
        target: Target,
        (suspended, standstill): (Suspended, Standstill),
        (view, regions): (View, Vec<Region>),
        (taken_at, deadline): (SystemTime, Instant),
    ) -> Self {
        Self {
            target,
            suspended: Some(suspended),
            child: None,
            view,
            taken_at,
            deadline,
            threads: standstill.threads,
            regions,
            warnings: standstill.warnings,
        }
    }

    /// The target's memory.
    #[must_use]
    pub fn memory(&self) -> &dyn Memory {
        &self.view.memory
    }

    /// Says whether modules were loaded or unloaded since the survey.
    #[must_use]
    pub fn has_other_modules(&self, survey: &Survey) -> bool {
        images(&self.regions) != survey.images
    }

    /// Captures the target. With [`snapshot::Method::Copy`] it runs again when this returns; with
    /// [`snapshot::Method::Stream`] it stands still as long as the second value lives. With
    /// [`snapshot::Method::Fork`] it runs again, and a child of it lives as long as that.
    ///
    /// # Errors
    /// Says so when the page map cannot be read or memory cannot be had. Then the target runs on.
    pub fn capture(mut self, mut survey: Survey) -> Result<(Snapshot, Option<Self>), CaptureError> {
        if let Some(guardian) = survey.guardian.take() {
            return self.fork(survey, &guardian);
        }
        let (extent, unread) = self.plan(&self.regions, &survey)?;
        let buffer = survey.buffer.take();
        let mut snapshot = self.snapshot(survey);
        snapshot.capture.memory_bytes = extent.bytes();
        snapshot.warnings.extend(unread);
        let Some(buffer) = buffer else {
            let memory = View::open(self.target.pid)?.memory;
            snapshot.memory = Box::new(StreamedMemory::new(extent, memory));
            return Ok((snapshot, Some(self)));
        };
        let (memory, holes) = self.copy(extent, buffer)?;
        self.resume();
        snapshot.memory = Box::new(memory);
        snapshot.warnings.extend(unreadable(&holes));
        self.target.account(&mut snapshot.capture);
        Ok((snapshot, None))
    }

    /// Captures the target by making a child of it, and lets it go on.
    ///
    /// What a child does not get, and what the kernel holds, is read while it is being made. Where that fails, the
    /// guardian, of which nobody asks the child then, ends it.
    fn fork(
        mut self,
        mut survey: Survey,
        guardian: &Arc<Guardian>,
    ) -> Result<(Snapshot, Option<Self>), CaptureError> {
        let begun = guardian.begin_child(survey.lifetime());
        begun.map_err(|refusal| self.target.not_forked(refusal))?;
        let parts = Parts::of(&self.regions, &survey.uses);
        let (apart, unread) = self.plan(&parts.apart, &survey)?;
        let (files, _) = self.plan(&parts.files, &survey)?;
        let buffer = survey.buffer.take();
        let buffer = buffer.map_or_else(|| CopyBuffer::untouched(apart.bytes()), Ok);
        let buffer = buffer.map_err(|error| CaptureError::Buffer(apart.bytes(), error))?;
        let (copied, holes) = self.copy(apart, buffer)?;
        let uses = std::mem::take(&mut survey.uses);
        let mut snapshot = self.snapshot(survey);
        if let Some(suspended) = &self.suspended {
            suspended.begin_to_let_go();
        }
        let child = guardian.finish_child();
        let child = child.map_err(|refusal| self.target.not_forked(refusal))?;
        self.child = Some((Arc::clone(guardian), child));
        self.resume();
        let memory = ForkedMemory::new(child.pid, copied, files, &parts.inherited, &uses);
        let memory = memory.map_err(|refusal| self.target.not_forked(refusal))?;
        snapshot.capture.memory_bytes = memory.bytes();
        snapshot.memory = Box::new(memory);
        snapshot.warnings.extend(unread);
        snapshot.warnings.extend(unreadable(&holes));
        Ok((snapshot, Some(self)))
    }

    /// The snapshot, without its memory.
    fn snapshot(&mut self, survey: Survey) -> Snapshot {
        let width = self.view.width();
        let width = width.or_else(|| self.threads.iter().find_map(|thread| thread.width));
        let width = width.unwrap_or_default();
        let mut kernel_held = procfs::kernel_held(self.target.pid);
        let mut snapshot = Snapshot {
            source: snapshot::Source::Process,
            machine: machine(width),
            capture: Capture {
                taken_at: self.taken_at,
                method: survey.method,
                stops: 0,
                pause: Duration::ZERO,
                longest_pause: Duration::ZERO,
                memory_bytes: 0,
                content: ContentLevel::Full,
            },
            modules: if self.has_other_modules(&survey) {
                snapshot::modules(&self.view.memory, &self.regions)
            } else {
                survey.modules
            },
            process: survey.process,
            width,
            threads: std::mem::take(&mut self.threads),
            kernel_values: kernel_held.values,
            auxv: self.view.auxv(width),
            regions: std::mem::take(&mut self.regions),
            memory: Box::new(NoMemory),
            warnings: survey.warnings,
        };
        snapshot.warnings.append(&mut self.warnings);
        snapshot.warnings.append(&mut kernel_held.warnings);
        snapshot
    }

    /// What of these regions is read, and a warning of what is not.
    fn plan(
        &self,
        regions: &[Region],
        survey: &Survey,
    ) -> Result<(Extent, Option<Warning>), CaptureError> {
        let plan = plan::plan(&Source {
            regions,
            survey: &survey.uses,
            pagemap: &self.view.pagemap,
            files: &survey.files,
            folder: &self.view.folder(),
        });
        plan.map_err(|error| proc_error(self.target.pid, "pagemap", error))
    }

    fn copy(
        &self,
        extent: Extent,
        buffer: CopyBuffer,
    ) -> Result<(CopiedMemory, Vec<AddrRange>), CaptureError> {
        let wanted = extent.bytes();
        let buffer = if buffer.capacity() < wanted {
            // The target grew faster than expected.
            drop(buffer);
            CopyBuffer::untouched(wanted).map_err(|error| CaptureError::Buffer(wanted, error))?
        } else {
            buffer
        };
        let interrupted = || interrupt_flag().load(Ordering::Relaxed);
        let deadline = self.deadline;
        let is_over = || interrupted() || Instant::now() > deadline;
        let copied = CopiedMemory::copy(extent, &self.view.memory, buffer, is_over);
        if interrupted() {
            return Err(SuspendError::Interrupted.into());
        }
        let Some((memory, holes)) = copied else {
            return Err(SuspendError::TooSlow(self.target.pid).into());
        };
        if !holes.is_empty() && !self.view.is_alive() {
            return Err(SuspendError::Ended(self.target.pid).into());
        }
        Ok((memory, holes))
    }

    fn resume(&mut self) {
        if let Some(suspended) = self.suspended.take() {
            let pause = suspended.resume();
            self.target.pauses.borrow_mut().push(pause);
        }
    }

    /// Ends the child that keeps the target's memory, if there is one, and makes the target forget it.
    fn end_child(&mut self) -> Option<Result<Outcome, CaptureError>> {
        let (guardian, child) = self.child.take()?;
        let outcome = guardian.end(self.target.pid, child);
        Some(outcome.ok_or(CaptureError::Lost(self.target.pid)))
    }

    /// Makes sure that the child which keeps the target's memory, where there is one, is still there: without
    /// it, whatever else goes wrong is its consequence.
    ///
    /// # Errors
    /// It is not.
    pub fn check_child(&self) -> Result<(), CaptureError> {
        let Some((_, child)) = &self.child else {
            return Ok(());
        };
        match procfs::Status::read(child.pid, child.pid) {
            Ok(status) if !matches!(status.state, 'Z' | 'X') => Ok(()),
            _ => Err(CaptureError::Lost(self.target.pid)),
        }
    }

    /// Lets the target go on, ends the child that keeps its memory, and enters into `snapshot` for how long it
    /// stood still.
    ///
    /// # Errors
    /// The child was not there any more: what was read of it may be wrong.
    pub fn release(self, snapshot: &mut Snapshot) -> Result<(), CaptureError> {
        let warning = self.account(&mut snapshot.capture)?;
        snapshot.warnings.extend(warning);
        Ok(())
    }

    /// The same, where the snapshot is still in use. Gives what could not be done.
    ///
    /// # Errors
    /// As [`Stopped::release`].
    pub fn account(mut self, capture: &mut Capture) -> Result<Option<Warning>, CaptureError> {
        self.resume();
        let mut warning = None;
        if let Some(outcome) = self.end_child() {
            let outcome = outcome?;
            self.target.pauses.borrow_mut().extend(outcome.pause);
            warning = outcome.warning();
            if !outcome.was_whole {
                return Err(CaptureError::Lost(self.target.pid));
            }
        }
        self.target.account(capture);
        Ok(warning)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        self.resume();
        self.end_child();
    }
}

impl Target {
    fn account(&self, capture: &mut Capture) {
        let pauses = self.pauses.borrow();
        capture.stops = u32::try_from(pauses.len()).unwrap_or(u32::MAX);
        capture.pause = pauses.iter().sum();
        capture.longest_pause = pauses.iter().max().copied().unwrap_or_default();
    }
}

/// The instruction set of a target with pointers of this width: that of rleaks, or its 32-bit one.
fn machine(width: Width) -> Machine {
    match width {
        Width::Four => Machine::I386,
        Width::Eight if cfg!(target_arch = "aarch64") => Machine::Aarch64,
        Width::Eight => Machine::X86_64,
    }
}

/// Stands in for the memory until it is captured.
struct NoMemory;

impl Memory for NoMemory {
    fn read(&self, _: Addr, _: &mut [u8]) -> usize {
        0
    }
}

fn unreadable(holes: &[AddrRange]) -> Option<Warning> {
    let first = holes.first()?;
    let bytes: u64 = holes.iter().map(AddrRange::size).sum();
    Some(Warning::new(
        "region_unreadable",
        format!(
            "{} KiB of the target's memory could not be read, the first of it at {}: what only \
             this memory references is reported as leaked",
            bytes >> 10,
            first.start
        ),
        Bias::FalseLeaks,
    ))
}
