//! From a target that stands still to a [`Snapshot`].

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use super::capture_error::{CaptureError, proc_error};
use super::copy::{CopiedMemory, CopyBuffer};
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

/// The target while it stands still. Dropping it lets the target go on.
#[derive(Debug)]
pub struct Stopped {
    target: Target,
    suspended: Option<Suspended>,
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
    /// [`snapshot::Method::Stream`] it stands still as long as the second value lives.
    ///
    /// # Errors
    /// Says so when the page map cannot be read or memory cannot be had. Then the target runs on.
    pub fn capture(mut self, survey: Survey) -> Result<(Snapshot, Option<Self>), CaptureError> {
        let pid = self.target.pid;
        let (extent, unread) = self.plan(&survey)?;
        let width = self.view.width();
        let width = width.or_else(|| self.threads.iter().find_map(|thread| thread.width));
        let width = width.unwrap_or_default();
        let mut kernel_held = procfs::kernel_held(pid);
        let mut snapshot = Snapshot {
            source: snapshot::Source::Process,
            machine: machine(width),
            capture: Capture {
                taken_at: self.taken_at,
                method: survey.method,
                stops: 0,
                pause: Duration::ZERO,
                longest_pause: Duration::ZERO,
                memory_bytes: extent.bytes(),
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
        snapshot.warnings.extend(unread);
        snapshot.warnings.append(&mut kernel_held.warnings);
        let Some(buffer) = survey.buffer else {
            let memory = View::open(pid)?.memory;
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

    /// What of the target's memory is read, and a warning of what is not.
    fn plan(&self, survey: &Survey) -> Result<(Extent, Option<Warning>), CaptureError> {
        let plan = plan::plan(&Source {
            regions: &self.regions,
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

    /// Lets the target go on, and enters into `snapshot` for how long it stood still.
    pub fn release(self, snapshot: &mut Snapshot) {
        self.account(&mut snapshot.capture);
    }

    /// The same, where the snapshot is still being read.
    pub fn account(mut self, capture: &mut Capture) {
        self.resume();
        self.target.account(capture);
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        self.resume();
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
