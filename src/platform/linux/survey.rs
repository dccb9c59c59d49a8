//! What is found out before a target is stopped, so that the stop is short.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use super::capture::Stopped;
use super::copy::CopyBuffer;
use super::files::{RegularFile, TargetFiles};
use super::limits::available_memory;
use super::plan::Plan;
use super::regions::RegionUse;
use super::suspend::{SuspendError, Suspended};
use super::view::{View, ViewError};
use crate::memory::Memory;
use crate::snapshot::{self, Method, Module, Process, Region};
use crate::warning::{Bias, Warning};

/// What the copy may need beyond the survey's estimate: the target runs on until it is stopped.
const SLACK: u64 = 16 << 20;
/// The share of the available memory that a copy may take; the analysis needs the rest.
const COPY_SHARE: (u64, u64) = (2, 3);
/// Bytes that are copied in a second at the least, and that are analysed in a second.
const SLOW_COPY: u64 = 512 << 20;
const SLOW_ANALYSIS: u64 = 64 << 20;
/// A stop may always last as long as this before it is cut short, and four times as long as it was
/// expected to.
const SHORTEST_LIMIT: Duration = Duration::from_secs(1);

/// Why a process could not be captured. In each case it runs on.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// It could not be stopped.
    #[error(transparent)]
    Suspend(#[from] SuspendError),
    /// It cannot be seen.
    #[error(transparent)]
    View(#[from] ViewError),
    /// Its page map cannot be read.
    #[error("cannot read the page map of process {0}, which tells what may be read without harm")]
    PageMap(u32, #[source] io::Error),
    /// The target is a program for another kind of processor, or mixes two.
    #[error("process {0} is neither an x86-64 nor an i386 program: rleaks reads only these")]
    Architecture(u32),
    /// Memory for the copy could not be had.
    #[error("cannot allocate {0} bytes for the copy: use --snapshot=stream")]
    Buffer(u64, #[source] io::Error),
}

/// A process that is to be captured.
#[derive(Clone, Debug)]
pub struct Target {
    pub(super) pid: u32,
    /// How long it stood still so far, stop by stop.
    pub(super) pauses: Rc<RefCell<Vec<Duration>>>,
}

/// What was found before the target was stopped.
pub struct Survey {
    view: View,
    pub(super) process: Process,
    pub(super) uses: Vec<RegionUse>,
    /// The loaded modules.
    pub modules: Vec<Module>,
    /// The modules' regions: while they are the same, the modules are.
    pub(super) images: Vec<Region>,
    /// Bytes that there are to copy.
    bytes: u64,
    pub(super) buffer: Option<CopyBuffer>,
    pub(super) method: Method,
    pub(super) warnings: Vec<Warning>,
}

impl Target {
    /// The process with this id. Nothing is done to it yet.
    #[must_use]
    pub fn new(pid: u32) -> Self {
        Self {
            pid,
            pauses: Rc::default(),
        }
    }

    /// Finds out what there is to capture and, for a copy, allocates the memory. The target runs.
    ///
    /// # Errors
    /// Says so when there is no such process, or when it may not be read.
    pub fn survey(&self, method: Method) -> Result<Survey, CaptureError> {
        let view = View::open(self.pid)?;
        view.width().ok_or(CaptureError::Architecture(self.pid))?;
        let regions = view.regions()?;
        let uses = view.region_uses()?;
        let plan = Plan::new(&regions, &uses, &view.pagemap)
            .map_err(|error| CaptureError::PageMap(self.pid, error))?;
        let mut survey = Survey {
            process: view.process(),
            uses,
            images: images(&regions),
            modules: snapshot::modules(&view.memory, &regions),
            view,
            bytes: plan.bytes(),
            buffer: None,
            method,
            warnings: Vec::new(),
        };
        if method == Method::Copy {
            survey.prepare_copy()?;
        }
        Ok(survey)
    }

    /// Stops all threads and reads their registers.
    ///
    /// # Errors
    /// Says so when the target has ended, may not be traced, or a thread does not stop. Then it
    /// runs on.
    pub fn stop(&self, survey: &Survey) -> Result<Stopped, CaptureError> {
        let (suspended, mut standstill) = Suspended::stop(self.pid, survey.limit())?;
        let taken_at = SystemTime::now();
        // Opened anew: the target may have executed another program since the survey.
        let view = View::open(self.pid)?;
        let width = view.width().ok_or(CaptureError::Architecture(self.pid))?;
        for thread in &mut standstill.threads {
            if *thread.width.get_or_insert(width) != width {
                return Err(CaptureError::Architecture(self.pid));
            }
        }
        let regions = view.regions()?;
        Ok(Stopped::new(
            self.clone(),
            suspended,
            standstill,
            view,
            regions,
            taken_at,
        ))
    }
}

impl Survey {
    /// The target's memory as it is now: the target runs.
    #[must_use]
    pub fn memory(&self) -> &dyn Memory {
        &self.view.memory
    }

    /// The file of the executable, if it can be opened.
    #[must_use]
    pub fn executable(&self) -> Option<RegularFile> {
        TargetFiles::of_process(self.process.pid).file(&self.process.executable)
    }

    /// How long the target may stand still before something must be wrong.
    fn limit(&self) -> Duration {
        let bandwidth = match self.method {
            Method::Copy => SLOW_COPY,
            Method::Stream => SLOW_ANALYSIS,
        };
        let expected = Duration::from_millis(self.bytes.saturating_mul(1000) / bandwidth);
        SHORTEST_LIMIT.max(4 * expected)
    }

    /// Takes memory for a copy; where that is too much, the target will be read while it stands
    /// still.
    fn prepare_copy(&mut self) -> Result<(), CaptureError> {
        let wanted = self.bytes + self.bytes / 16 + SLACK;
        if fits(wanted, available_memory()) {
            let buffer = CopyBuffer::faulted_in(wanted);
            self.buffer = Some(buffer.map_err(|error| CaptureError::Buffer(wanted, error))?);
            return Ok(());
        }
        self.method = Method::Stream;
        self.warnings.push(Warning::new(
            "streamed",
            format!(
                "too little free memory for a copy of {} MiB: the target was read while it stood \
                 still, which is a longer pause",
                wanted >> 20
            ),
            Bias::None,
        ));
        Ok(())
    }
}

/// Says whether a copy of `wanted` bytes leaves enough of the available memory.
fn fits(wanted: u64, available: Option<u64>) -> bool {
    let (share, of) = COPY_SHARE;
    available.is_none_or(|available| wanted <= available / of * share)
}

/// The regions of files that are mapped for execution.
pub(super) fn images(regions: &[Region]) -> Vec<Region> {
    regions
        .iter()
        .filter(|region| region.executable && !region.is_anonymous())
        .cloned()
        .collect()
}

impl std::fmt::Debug for Survey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Survey")
            .field("process", &self.process)
            .field("modules", &self.modules.len())
            .field("method", &self.method)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_takes_two_thirds_of_the_available_memory_at_most() {
        assert!(fits(600, Some(900)));
        assert!(!fits(601, Some(900)));
        assert!(fits(u64::MAX, None));
    }
}
