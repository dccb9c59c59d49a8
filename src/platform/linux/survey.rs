//! What is found out before a target is stopped, so that the stop is short.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::capture::Stopped;
use super::capture_error::{CaptureError, explained, proc_error};
use super::checks::thread_count;
use super::copy::CopyBuffer;
use super::cost::FORK_IS_SHORTER;
use super::files::{RegularFile, TargetFiles};
use super::fork::{self, ForkRefusal, Guarded, Guardian};
use super::limits::available_memory;
use super::obstacle_facts;
use super::obstacles::Obstacle;
use super::plan::{Source, plan};
use super::priority::Hurry;
use super::regions::RegionUse;
use super::shared_memory::MemoryFiles;
use super::suspend::{SuspendError, Suspended};
use super::tracer::Standstill;
use super::view::View;
use crate::memory::Memory;
use crate::snapshot::{self, Extent, Method, Module, Process, Region};
use crate::warning::Warning;

/// What the copy may need beyond the survey's estimate: the target runs on until it is stopped.
const SLACK: u64 = 16 << 20;
/// The share of the available memory that a copy may take; the analysis needs the rest.
const COPY_SHARE: (u64, u64) = (2, 3);
/// Bytes that are copied in a second at the least, and that are analysed in a second.
const SLOW_COPY: u64 = 512 << 20;
const SLOW_ANALYSIS: u64 = 64 << 20;
/// Bytes for which the kernel makes the page tables of a child in a second at the least.
const SLOW_FORK: u64 = 1 << 30;
/// How often a child is tried to be made at the most.
const MOST_FORKS: u32 = 10;
/// What a guardian has beyond the limit of a stop, to undo everything, before the kernel ends it.
const GUARDIAN_MORE: Duration = Duration::from_secs(5);
/// How long a thread takes to stop and to go on at the most, where there are many.
const SLOW_STOP: Duration = Duration::from_micros(200);
/// So much longer an analysis may take in little memory: blocks are read one by one.
const LITTLE_MEMORY: u32 = 4;
/// What an analysis takes beside that: on a machine with many more runnable threads than processors,
/// what takes milliseconds takes long.
const ANALYSIS: Duration = Duration::from_secs(1);
/// The same while the target runs: there is no hurry.
const LONG_ANALYSIS: Duration = Duration::from_secs(60);
/// A stop may always last as long as this before it is cut short, and four times as long as it was
/// expected to.
const SHORTEST_LIMIT: Duration = Duration::from_secs(1);

/// A target that is at its end may be held for as long as this.
const SHORTEST_LIMIT_AT_END: Duration = Duration::from_secs(60);

/// The memory that is taken for a copy of `bytes` bytes: the target may grow until it is stopped.
pub(super) fn copy_size(bytes: u64) -> u64 {
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
    fork: Rc<RefCell<Attempts>>,
    /// How long it may stand still at a time.
    pub(super) max_pause: Option<Duration>,
    /// How much anonymous memory rleaks may have.
    pub(super) memory_limit: Option<u64>,
}

/// What came of attempts to make a child of a target.
#[derive(Clone, Debug, Default)]
struct Attempts {
    count: u32,
    /// Why there are no more.
    refusal: Option<ForkRefusal>,
}

/// What was found before the target was stopped.
pub struct Survey {
    pub(super) view: View,
    pub(super) process: Process,
    pub(super) threads: u32,
    pub(super) uses: Vec<RegionUse>,
    pub(super) files: MemoryFiles,
    /// The loaded modules.
    pub modules: Vec<Module>,
    /// The modules' regions: while they are the same, the modules are.
    pub(super) images: Vec<Region>,
    /// Bytes that a capture of this moment would hold.
    pub bytes: u64,
    pub(super) buffer: Option<CopyBuffer>,
    /// Who makes a child of the target.
    pub(super) guardian: Option<Arc<Guardian>>,
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
            fork: Rc::default(),
            max_pause: None,
            memory_limit: None,
        }
    }

    /// The same process, which must not stand still for longer than `limit` at a time, as far as that can be told
    /// beforehand; a copy that takes longer is given up.
    #[must_use]
    pub fn with_max_pause(mut self, limit: Option<Duration>) -> Self {
        self.max_pause = limit;
        self
    }

    /// The same process, which is copied only where the copy and what is found in it take `limit` bytes of
    /// anonymous memory at most, with all else that rleaks has.
    #[must_use]
    pub fn with_memory_limit(mut self, limit: Option<u64>) -> Self {
        self.memory_limit = limit;
        self
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
            guardian: None,
            method,
            warnings: Vec::new(),
        };
        survey.prepare(self, &regions)?;
        Ok(survey)
    }

    /// Takes note of why no child was made of the target, and gives that back as an error. After
    /// some attempts, or where they are futile, the target is copied instead.
    pub(super) fn not_forked(&self, refusal: ForkRefusal) -> CaptureError {
        let mut attempts = self.fork.borrow_mut();
        attempts.count += 1;
        if !refusal.may_pass() || attempts.count >= MOST_FORKS {
            attempts.refusal = Some(refusal.clone());
        }
        refusal.into()
    }

    /// Says why no child is made of the target any more.
    pub(super) fn may_fork(&self) -> Result<(), ForkRefusal> {
        self.fork.borrow().refusal.clone().map_or(Ok(()), Err)
    }

    /// Makes no child of the target any more.
    pub fn give_up_fork(&self) {
        let refusal = &mut self.fork.borrow_mut().refusal;
        refusal.get_or_insert(ForkRefusal::Disturbed);
    }

    /// Has a thread seized that can make a child.
    fn guard(&self, survey: &Survey, limit: Duration) -> Result<Option<Guarded>, CaptureError> {
        let Some(guardian) = &survey.guardian else {
            return Ok(None);
        };
        let turn = self.fork.borrow().count;
        let guarded = fork::place(self.pid, turn)
            .and_then(|tid| guardian.seize(self.pid, tid, limit.saturating_add(GUARDIAN_MORE)));
        guarded
            .map(Some)
            .map_err(|refusal| self.not_forked(refusal))
    }

    /// Stops all threads and reads their registers.
    ///
    /// # Errors
    /// Says so when the target has ended, may not be traced, or a thread does not stop. Then it
    /// runs on.
    pub fn stop(&self, survey: &Survey) -> Result<Stopped, CaptureError> {
        let limit = survey.limit().saturating_mul(match self.memory_limit {
            Some(_) => LITTLE_MEMORY,
            None => 1,
        });
        // The rest is for letting go.
        let rest = self.max_pause.filter(|_| survey.method == Method::Copy);
        let deadline = Instant::now() + rest.unwrap_or(limit).min(limit / 4 * 3);
        // A stream is no short stop: it must not keep the rest of the system waiting, too.
        let hurry = (survey.method != Method::Stream).then(Hurry::new);
        let guarded = self.guard(survey, limit)?;
        let is_guarded = guarded.is_some();
        let (suspended, standstill) = match Suspended::stop(self.pid, limit, hurry, guarded) {
            Err(SuspendError::Fork(refusal)) => return Err(self.not_forked(refusal)),
            stop => stop.map_err(explained)?,
        };
        if is_guarded && let Err(refusal) = fork::check_standstill(&standstill.threads) {
            return Err(self.not_forked(refusal));
        }
        self.stopped((suspended, standstill), deadline)
    }

    /// What the threads of the stopped target were found to be. A copy must be finished at `deadline`.
    pub(super) fn stopped(
        &self,
        (suspended, mut standstill): (Suspended, Standstill),
        deadline: Instant,
    ) -> Result<Stopped, CaptureError> {
        let taken_at = SystemTime::now();
        // Opened anew: the target may have executed another program since the survey.
        let stopped = standstill
            .threads
            .iter()
            .find(|thread| thread.width.is_some());
        let view = stopped.map_or_else(
            || View::open(self.pid),
            |thread| View::through(self.pid, thread.tid),
        )?;
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

    /// Says so where another way to keep the target's memory would stop it for less.
    #[must_use]
    pub fn notice(&self) -> Option<&Warning> {
        let mut warnings = self.warnings.iter();
        warnings.find(|warning| warning.code == FORK_IS_SHORTER)
    }

    /// Says whether a child of the target will be made.
    #[must_use]
    pub fn is_fork(&self) -> bool {
        self.method == Method::Fork
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
            Method::Fork => at(SLOW_FORK),
        };
        SHORTEST_LIMIT.max(expected.saturating_mul(4))
    }

    /// How long a child may be needed at the longest. It does not stop the target, but what that writes
    /// meanwhile is there twice.
    pub(super) fn lifetime(&self) -> Duration {
        let analysis = Duration::from_millis(self.bytes.saturating_mul(1000) / SLOW_ANALYSIS);
        LONG_ANALYSIS + analysis.saturating_mul(4)
    }

    /// The same for a target that is at its end: nobody waits for what it does.
    pub(super) fn limit_at_end(&self) -> Duration {
        SHORTEST_LIMIT_AT_END.max(self.limit().saturating_mul(10))
    }

    /// What of `regions` is read, as it is now.
    pub(super) fn plan(&self, regions: &[Region]) -> Result<Extent, CaptureError> {
        let plan = plan(&Source {
            regions,
            survey: &self.uses,
            pagemap: &self.view.pagemap,
            files: &self.files,
            folder: &self.view.folder(),
        });
        let plan = plan.map_err(|error| proc_error(self.process.pid, "pagemap", error));
        Ok(plan?.0)
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
