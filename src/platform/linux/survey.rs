//! What is found out before a target is stopped, so that the stop is short.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use super::capture::Stopped;
use super::capture_error::{CaptureError, explained, proc_error};
use super::checks::thread_count;
use super::copy::CopyBuffer;
use super::files::{RegularFile, TargetFiles};
use super::limits::available_memory;
use super::obstacle_facts;
use super::obstacles::Obstacle;
use super::plan::{Source, plan};
use super::priority::Hurry;
use super::regions::RegionUse;
use super::shared_memory::MemoryFiles;
use super::suspend::Suspended;
use super::tracer::Standstill;
use super::view::View;
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
/// How long a thread takes to stop and to go on at the most, where there are many.
const SLOW_STOP: Duration = Duration::from_micros(200);
/// What an analysis takes beside that: on a machine with many more runnable threads than processors,
/// what takes milliseconds takes long.
const ANALYSIS: Duration = Duration::from_secs(1);
/// A stop may always last as long as this before it is cut short, and four times as long as it was
/// expected to.
const SHORTEST_LIMIT: Duration = Duration::from_secs(1);

/// A target that is at its end may be held for as long as this.
const SHORTEST_LIMIT_AT_END: Duration = Duration::from_secs(60);

/// The memory that is taken for a copy of `bytes` bytes: the target may grow until it is stopped.
fn copy_size(bytes: u64) -> u64 {
    bytes.saturating_add(bytes / 16).saturating_add(SLACK)
}

/// The largest copy that is taken; a target that needs a larger one is read while it stands still.
/// `None` where the available memory is not known.
#[must_use]
pub fn copy_limit() -> Option<u64> {
    available_memory().map(share)
}

fn share(available: u64) -> u64 {
    let (share, of) = COPY_SHARE;
    available / of * share
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
    threads: u32,
    pub(super) uses: Vec<RegionUse>,
    pub(super) files: MemoryFiles,
    /// The loaded modules.
    pub modules: Vec<Module>,
    /// The modules' regions: while they are the same, the modules are.
    pub(super) images: Vec<Region>,
    /// Bytes that a capture of this moment would hold.
    pub bytes: u64,
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
        if let Some(obstacle) = obstacle_facts::architecture(self.pid) {
            return Err(obstacle.into());
        }
        let regions = view.regions()?;
        let uses = view.region_uses()?;
        let files = MemoryFiles::of_process(self.pid);
        let plan = plan(&Source {
            regions: &regions,
            survey: &uses,
            pagemap: &view.pagemap,
            files: &files,
            folder: &view.folder(),
        });
        let (extent, _) = plan.map_err(|error| proc_error(self.pid, "pagemap", error))?;
        let mut survey = Survey {
            process: view.process(),
            threads: u32::try_from(thread_count(self.pid)).unwrap_or(u32::MAX),
            uses,
            files,
            images: images(&regions),
            modules: snapshot::modules(&view.memory, &regions),
            view,
            bytes: extent.bytes(),
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
        let limit = survey.limit();
        // The rest is for letting go.
        let deadline = Instant::now() + limit / 4 * 3;
        // A stream is no short stop: it must not keep the rest of the system waiting, too.
        let hurry = (survey.method == Method::Copy).then(Hurry::new);
        let stop = Suspended::stop(self.pid, limit, hurry);
        self.stopped(stop.map_err(explained)?, deadline)
    }

    /// What the threads of the stopped target were found to be. A copy must be finished at `deadline`.
    pub(super) fn stopped(
        &self,
        (suspended, mut standstill): (Suspended, Standstill),
        deadline: Instant,
    ) -> Result<Stopped, CaptureError> {
        let taken_at = SystemTime::now();
        // Opened anew: the target may have executed another program since the survey.
        let view = View::open(self.pid)?;
        let mut widths = standstill.threads.iter().filter_map(|thread| thread.width);
        let width = view.width().or_else(|| widths.next()).unwrap_or_default();
        for thread in &mut standstill.threads {
            if *thread.width.get_or_insert(width) != width {
                let what = "a mixture of x86-64 and i386".to_owned();
                return Err(Obstacle::Architecture(self.pid, what).into());
            }
        }
        let regions = view.regions()?;
        Ok(Stopped::new(
            self.clone(),
            (suspended, standstill),
            (view, regions),
            (taken_at, deadline),
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
        TargetFiles::of_process(self.process.pid).executable()
    }

    /// The memory that a copy needs.
    #[must_use]
    pub fn copy_size(&self) -> u64 {
        copy_size(self.bytes)
    }

    /// How long the target may stand still before something must be wrong.
    fn limit(&self) -> Duration {
        let at = |bandwidth| {
            Duration::from_millis(self.bytes.saturating_mul(1000) / bandwidth)
                .saturating_add(SLOW_STOP.saturating_mul(self.threads))
        };
        let expected = match self.method {
            Method::Copy => at(SLOW_COPY),
            Method::Stream | Method::File => ANALYSIS + at(SLOW_ANALYSIS),
        };
        SHORTEST_LIMIT.max(expected.saturating_mul(4))
    }

    /// The same for a target that is at its end: nobody waits for what it does.
    pub(super) fn limit_at_end(&self) -> Duration {
        SHORTEST_LIMIT_AT_END.max(self.limit().saturating_mul(10))
    }

    /// Takes memory for a copy; where that is too much, the target will be read while it stands
    /// still.
    fn prepare_copy(&mut self) -> Result<(), CaptureError> {
        let wanted = self.copy_size();
        if copy_limit().is_none_or(|limit| wanted <= limit) {
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
        assert_eq!(share(900), 600);
        assert_eq!(share(u64::MAX), u64::MAX / 3 * 2);
    }

    #[test]
    fn the_memory_for_a_copy_leaves_room_for_growth() {
        assert_eq!(copy_size(16 << 20), (17 << 20) + SLACK);
        assert_eq!(copy_size(u64::MAX), u64::MAX);
    }
}
