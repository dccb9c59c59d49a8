//! From a process id to a [`Snapshot`]: survey, stop, capture, let go.

use std::cell::RefCell;
use std::fs::{self, File};
use std::io;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use super::copy::{CopiedMemory, CopyBuffer};
use super::files::{RegularFile, TargetFiles};
use super::limits::{available_memory, has_room_for_copy};
use super::pagemap::PageMap;
use super::plan::Plan;
use super::process_memory::ProcessMemory;
use super::regions::{self, RegionUse};
use super::stream::StreamedMemory;
use super::suspend::{SuspendError, Suspended};
use super::{interrupt_flag, procfs, registers};
use crate::addr::AddrRange;
use crate::memory::Memory;
use crate::snapshot::{self, Capture, Method, Module, Process, Region, Snapshot, Thread};
use crate::warning::{Bias, Warning};

/// What the copy may need beyond the survey's estimate: the target runs on until it is stopped.
const SLACK: u64 = 16 << 20;

/// Why a process could not be captured. In each case it runs on.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// It could not be stopped.
    #[error(transparent)]
    Suspend(#[from] SuspendError),
    /// A file of `/proc` could not be read.
    #[error("cannot read {path}: {remedy}", remedy = remedy(.source))]
    Proc {
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The target has 32-bit code, or is no ELF program of this machine.
    #[error("process {0} is no 64-bit program: rleaks reads x86-64 processes only")]
    Architecture(u32),
    /// Memory for the copy could not be had.
    #[error("cannot allocate {0} bytes for the copy: use --snapshot=stream")]
    Buffer(u64, #[source] io::Error),
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "run rleaks as the same user or with sudo, or give it the capability cap_sys_ptrace"
        }
        io::ErrorKind::NotFound => "the process has ended, or the kernel does not offer this file",
        _ => "see the cause below",
    }
}

/// A process that is to be captured.
#[derive(Clone, Debug)]
pub struct Target(Rc<Opened>);

/// The process's files, and how long it stood still so far, stop by stop.
#[derive(Debug)]
struct Opened {
    pid: u32,
    process: Process,
    pagemap: PageMap,
    memory: ProcessMemory,
    pauses: RefCell<Vec<Duration>>,
}

/// What was found before the target was stopped, so that the stop is short.
pub struct Survey {
    uses: Vec<RegionUse>,
    /// The loaded modules.
    pub modules: Vec<Module>,
    /// The modules' regions: while they are the same, the modules are.
    images: Vec<Region>,
    buffer: Option<CopyBuffer>,
    method: Method,
    warnings: Vec<Warning>,
}

impl std::fmt::Debug for Survey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Survey")
            .field("modules", &self.modules.len())
            .field("method", &self.method)
            .finish_non_exhaustive()
    }
}

/// The target while it stands still. Dropping it lets the target go on.
#[derive(Debug)]
pub struct Stopped {
    target: Target,
    suspended: Option<Suspended>,
    taken_at: SystemTime,
    /// Its threads with their registers.
    pub threads: Vec<Thread>,
    regions: Vec<Region>,
}

impl Target {
    /// Opens process `pid`, which runs on.
    ///
    /// # Errors
    /// Says so when there is no such process, when it may not be read, and when it is no x86-64
    /// program.
    pub fn open(pid: u32) -> Result<Self, CaptureError> {
        if !fs::exists(format!("/proc/{pid}")).unwrap_or(false) {
            return Err(SuspendError::NoSuchProcess(pid).into());
        }
        let memory = ProcessMemory::new(i32::try_from(pid).unwrap_or(i32::MAX), open(pid, "mem")?);
        Ok(Self(Rc::new(Opened {
            pid,
            process: process(pid),
            pagemap: PageMap::new(open(pid, "pagemap")?),
            memory,
            pauses: RefCell::default(),
        })))
    }

    /// The file of the executable, if it can be opened.
    #[must_use]
    pub fn executable(&self) -> Option<RegularFile> {
        TargetFiles::of_process(self.0.pid).file(&self.0.process.executable)
    }

    /// The target's memory as it is now, whether the target runs or not.
    #[must_use]
    pub fn memory(&self) -> &dyn Memory {
        &self.0.memory
    }

    /// Finds out what there is to capture and, for a copy, allocates the memory. The target runs.
    ///
    /// # Errors
    /// Says so when the target has ended or may not be read.
    pub fn survey(&self, method: Method) -> Result<Survey, CaptureError> {
        let regions = self.regions()?;
        let uses = regions::parse_smaps(&read(self.0.pid, "smaps")?);
        let modules = snapshot::modules(&self.0.memory, &regions);
        let plan = Plan::new(&regions, &uses, &self.0.pagemap)
            .map_err(|source| proc_error(self.0.pid, "pagemap", source))?;
        let wanted = plan.bytes() + plan.bytes() / 16 + SLACK;
        let mut survey = Survey {
            uses,
            images: images(&regions),
            modules,
            buffer: None,
            method,
            warnings: Vec::new(),
        };
        if method == Method::Copy {
            survey.prepare_copy(wanted)?;
        }
        Ok(survey)
    }

    /// Stops all threads and reads their registers.
    ///
    /// # Errors
    /// Says so when the target has ended, may not be traced, or a thread does not stop. Then it
    /// runs on.
    pub fn stop(&self) -> Result<Stopped, CaptureError> {
        let suspended = Suspended::stop(self.0.pid, interrupt_flag())?;
        let taken_at = SystemTime::now();
        let mut threads = Vec::new();
        for tid in suspended.threads() {
            match registers::read(self.0.pid, tid) {
                Ok(thread) => threads.push(thread),
                // Killed while it stood still.
                Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => {}
                Err(error) => return Err(SuspendError::Other(self.0.pid, error).into()),
            }
        }
        if threads.is_empty() {
            return Err(SuspendError::NoSuchProcess(self.0.pid).into());
        }
        if threads.iter().any(Thread::is_32_bit) {
            return Err(CaptureError::Architecture(self.0.pid));
        }
        let regions = self.regions()?;
        Ok(Stopped {
            target: self.clone(),
            suspended: Some(suspended),
            taken_at,
            threads,
            regions,
        })
    }

    fn regions(&self) -> Result<Vec<Region>, CaptureError> {
        let regions = regions::parse_maps(&read(self.0.pid, "maps")?);
        if regions.is_empty() {
            // A zombie and a kernel thread have no memory.
            return Err(SuspendError::NoMemory(self.0.pid).into());
        }
        Ok(regions)
    }
}

impl Survey {
    /// Takes memory for a copy of `wanted` bytes; where that is too much, the target will be read
    /// while it stands still.
    fn prepare_copy(&mut self, wanted: u64) -> Result<(), CaptureError> {
        self.prepare_copy_within(wanted, available_memory())
    }

    fn prepare_copy_within(
        &mut self,
        wanted: u64,
        available: Option<u64>,
    ) -> Result<(), CaptureError> {
        if has_room_for_copy(wanted, available) {
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

impl Stopped {
    /// The target's memory.
    #[must_use]
    pub fn memory(&self) -> &dyn Memory {
        &self.target.0.memory
    }

    /// Says whether modules were loaded or unloaded since the survey.
    #[must_use]
    pub fn has_other_modules(&self, survey: &Survey) -> bool {
        images(&self.regions) != survey.images
    }

    /// Captures the target. With [`Method::Copy`] it runs again when this returns; with
    /// [`Method::Stream`] it stands still as long as the second value lives.
    ///
    /// # Errors
    /// Says so when the page map cannot be read or memory cannot be had. Then the target runs on.
    pub fn capture(mut self, survey: Survey) -> Result<(Snapshot, Option<Self>), CaptureError> {
        let pid = self.target.0.pid;
        let plan = Plan::new(&self.regions, &survey.uses, &self.target.0.pagemap)
            .map_err(|source| proc_error(pid, "pagemap", source))?;
        let mut snapshot = Snapshot {
            process: self.target.0.process.clone(),
            capture: Capture {
                taken_at: self.taken_at,
                method: survey.method,
                stops: 0,
                pause: Duration::ZERO,
                longest_pause: Duration::ZERO,
                memory_bytes: plan.bytes(),
            },
            modules: if self.has_other_modules(&survey) {
                snapshot::modules(&self.target.0.memory, &self.regions)
            } else {
                survey.modules
            },
            threads: std::mem::take(&mut self.threads),
            kernel_values: procfs::kernel_values(pid),
            auxv: procfs::auxv(pid).unwrap_or_default(),
            regions: std::mem::take(&mut self.regions),
            memory: Box::new(NoMemory),
            warnings: survey.warnings,
        };
        let Some(buffer) = survey.buffer else {
            let memory =
                ProcessMemory::new(i32::try_from(pid).unwrap_or(i32::MAX), open(pid, "mem")?);
            snapshot.memory = Box::new(StreamedMemory::new(plan, memory));
            return Ok((snapshot, Some(self)));
        };
        let (memory, holes) = self.copy(plan, buffer)?;
        self.resume();
        snapshot.memory = Box::new(memory);
        snapshot.warnings.extend(unreadable(&holes));
        self.target.account(&mut snapshot);
        Ok((snapshot, None))
    }

    fn copy(
        &self,
        plan: Plan,
        buffer: CopyBuffer,
    ) -> Result<(CopiedMemory, Vec<AddrRange>), CaptureError> {
        let wanted = plan.bytes();
        let buffer = if buffer.capacity() < wanted {
            // The target grew faster than expected.
            CopyBuffer::untouched(wanted).map_err(|error| CaptureError::Buffer(wanted, error))?
        } else {
            buffer
        };
        let interrupted: &AtomicBool = interrupt_flag();
        let copied = CopiedMemory::copy(plan, &self.target.0.memory, buffer, interrupted);
        if interrupted.load(Ordering::Relaxed) {
            return Err(SuspendError::Interrupted.into());
        }
        Ok(copied)
    }

    fn resume(&mut self) {
        if let Some(suspended) = self.suspended.take() {
            let pause = suspended.resume();
            self.target.0.pauses.borrow_mut().push(pause);
        }
    }

    /// Lets the target go on, and enters into `snapshot` for how long it stood still.
    pub fn release(mut self, snapshot: &mut Snapshot) {
        self.resume();
        self.target.account(snapshot);
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        self.resume();
    }
}

impl Target {
    fn account(&self, snapshot: &mut Snapshot) {
        let pauses = self.0.pauses.borrow();
        let capture = &mut snapshot.capture;
        capture.stops = u32::try_from(pauses.len()).unwrap_or(u32::MAX);
        capture.pause = pauses.iter().sum();
        capture.longest_pause = pauses.iter().max().copied().unwrap_or_default();
    }
}

/// Stands in for the memory until it is captured.
struct NoMemory;

impl Memory for NoMemory {
    fn read(&self, _: crate::addr::Addr, _: &mut [u8]) -> usize {
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

/// The regions that belong to files that are mapped for execution, without those parts whose size
/// changes as the program runs.
fn images(regions: &[Region]) -> Vec<Region> {
    regions
        .iter()
        .filter(|region| region.executable && !region.is_anonymous())
        .cloned()
        .collect()
}

fn process(pid: u32) -> Process {
    let text = |name| fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
    let lossy = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let executable = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
    let command_line = text("cmdline");
    let arguments = command_line.strip_suffix(b"\0").unwrap_or(&command_line);
    Process {
        pid,
        parent_pid: procfs::Status::read(pid, pid).map_or(0, |status| status.parent),
        name: lossy(text("comm").trim_ascii_end()),
        executable: executable
            .to_string_lossy()
            .trim_end_matches(" (deleted)")
            .to_owned(),
        command_line: arguments.split(|byte| *byte == 0).map(lossy).collect(),
    }
}

fn open(pid: u32, name: &str) -> Result<File, CaptureError> {
    File::open(format!("/proc/{pid}/{name}")).map_err(|source| proc_error(pid, name, source))
}

fn read(pid: u32, name: &str) -> Result<Vec<u8>, CaptureError> {
    fs::read(format!("/proc/{pid}/{name}")).map_err(|source| proc_error(pid, name, source))
}

fn proc_error(pid: u32, name: &str, source: io::Error) -> CaptureError {
    CaptureError::Proc {
        path: format!("/proc/{pid}/{name}"),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn survey() -> Survey {
        Survey {
            uses: Vec::new(),
            modules: Vec::new(),
            images: Vec::new(),
            buffer: None,
            method: Method::Copy,
            warnings: Vec::new(),
        }
    }

    #[test]
    fn too_little_memory_for_a_copy_means_stream_and_a_warning() {
        let mut survey = survey();
        let prepared = survey.prepare_copy_within(5 << 20, Some(6 << 20));
        assert!(prepared.is_ok() && survey.buffer.is_none());
        assert_eq!(survey.method, Method::Stream);
        let [warning] = survey.warnings.as_slice() else {
            panic!("{:?}", survey.warnings);
        };
        assert_eq!(
            (warning.code.as_str(), warning.bias),
            ("streamed", Bias::None)
        );
        assert!(warning.message.contains("a copy of 5 MiB"), "{warning:?}");
    }

    #[test]
    fn copy_gets_its_buffer_where_there_is_memory() {
        let mut survey = survey();
        let prepared = survey.prepare_copy_within(5 << 20, Some(60 << 20));
        assert!(prepared.is_ok() && survey.warnings.is_empty());
        assert_eq!(survey.method, Method::Copy);
        let capacity = survey.buffer.map(|buffer| buffer.capacity());
        assert!(capacity >= Some(5 << 20));
    }
}
