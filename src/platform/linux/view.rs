//! The files of `/proc` through which a process is seen.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;

use super::capture_error::{CaptureError, explained, proc_error};
use super::pagemap::PageMap;
use super::process_memory::ProcessMemory;
use super::processes;
use super::procfs;
use super::regions::{self, RegionUse};
use super::suspend::SuspendError;
use crate::memory::Width;
use crate::snapshot::{Process, Region};

/// How often a file of `/proc` is read that is empty.
const MAX_READINGS: usize = 5;

/// The memory of a process, and what the kernel says of it.
///
/// It is seen through a thread that is alive: where the main thread has ended, its own files are
/// empty. The memory and the page map stay those of the program that ran when they were opened.
#[derive(Debug)]
pub(super) struct View {
    pid: u32,
    tid: u32,
    pub(super) memory: ProcessMemory,
    pub(super) pagemap: PageMap,
}

impl View {
    /// Opens the memory of process `pid`.
    pub(super) fn open(pid: u32) -> Result<Self, CaptureError> {
        Self::through(pid, living_thread(pid)?)
    }

    /// The same, through thread `tid` of it, which is alive.
    pub(super) fn through(pid: u32, tid: u32) -> Result<Self, CaptureError> {
        let file = |name| File::open(path(pid, tid, name)).map_err(|e| proc_error(pid, name, e));
        Ok(Self {
            pid,
            tid,
            memory: ProcessMemory::new(i32::try_from(tid).unwrap_or(i32::MAX), file("mem")?),
            pagemap: PageMap::new(file("pagemap")?),
        })
    }

    /// The VM mappings as they are now.
    pub(super) fn regions(&self) -> Result<Vec<Region>, CaptureError> {
        // The file is that of the memory which the process had when the file was opened: it is empty if
        // another program was executed between that and the reading.
        for _ in 0..MAX_READINGS {
            let regions = regions::parse_maps(&self.read("maps")?);
            if !regions.is_empty() {
                return Ok(regions);
            }
        }
        Err(explained(SuspendError::NoMemory(self.pid)))
    }

    /// The folder in `/proc` of the thread through which the process is seen.
    pub(super) fn folder(&self) -> String {
        format!("/proc/{}", self.tid)
    }

    /// How the mappings are used. The cost follows the memory that the process uses.
    pub(super) fn region_uses(&self) -> Result<Vec<RegionUse>, CaptureError> {
        Ok(regions::parse_smaps(&self.read("smaps")?))
    }

    /// Who the process is now: it may have executed another program since.
    pub(super) fn process(&self) -> Process {
        let text = |name| fs::read(path(self.pid, self.tid, name)).unwrap_or_default();
        let lossy = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let executable = fs::read_link(path(self.pid, self.tid, "exe")).unwrap_or_default();
        let command_line = text("cmdline");
        let arguments = command_line.strip_suffix(b"\0").unwrap_or(&command_line);
        let name = fs::read(format!("/proc/{}/comm", self.pid)).unwrap_or_default();
        Process {
            pid: self.pid,
            parent_pid: procfs::Status::read(self.pid, self.tid).map_or(0, |status| status.parent),
            name: lossy(name.trim_ascii_end()),
            executable: executable
                .to_string_lossy()
                .trim_end_matches(" (deleted)")
                .to_owned(),
            command_line: arguments.split(|byte| *byte == 0).map(lossy).collect(),
            started: processes::started(
                &fs::read(format!("/proc/{}/stat", self.pid)).unwrap_or_default(),
            ),
            user: fs::metadata(path(self.pid, self.tid, "")).map_or(0, |file| file.uid()),
            signal: None,
        }
    }

    /// The size of the program's pointers, as the ELF header of its executable has it; `None` for
    /// what rleaks cannot read.
    pub(super) fn width(&self) -> Option<Width> {
        let mut header = [0; 20];
        let mut executable = File::open(path(self.pid, self.tid, "exe")).ok()?;
        executable.read_exact(&mut header).ok()?;
        width_of(header)
    }

    /// The auxiliary vector of a program with pointers of this width.
    pub(super) fn auxv(&self, width: Width) -> Vec<(u64, u64)> {
        self.read("auxv")
            .map_or_else(|_| Vec::new(), |bytes| procfs::parse_auxv(&bytes, width))
    }

    /// Says whether the process still has its memory.
    pub(super) fn is_alive(&self) -> bool {
        self.read("maps").is_ok_and(|maps| !maps.is_empty())
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, CaptureError> {
        fs::read(path(self.pid, self.tid, name))
            .map_err(|source| proc_error(self.pid, name, source))
    }
}

/// The class and the machine in the first bytes of an executable: x32 programs have the class of
/// i386 and the machine of x86-64.
fn width_of(header: [u8; 20]) -> Option<Width> {
    const EM_386: u8 = 3;
    const EM_X86_64: u8 = 62;
    match (header[4], header[18]) {
        (1, EM_386) => Some(Width::Four),
        (2, EM_X86_64) => Some(Width::Eight),
        _ => None,
    }
}

/// The main thread, or where that has ended another one.
fn living_thread(pid: u32) -> Result<u32, CaptureError> {
    let threads = procfs::threads(pid).map_err(|_| explained(SuspendError::NoSuchProcess(pid)))?;
    let is_alive = |tid: &u32| {
        procfs::Status::read(pid, *tid).is_ok_and(|status| !matches!(status.state, 'Z' | 'X'))
    };
    let main = threads.iter().copied().filter(|tid| *tid == pid);
    let others = threads.iter().copied().filter(|tid| *tid != pid);
    main.chain(others)
        .find(is_alive)
        .ok_or_else(|| explained(SuspendError::NoMemory(pid)))
}

fn path(pid: u32, tid: u32, name: &str) -> String {
    format!("/proc/{pid}/task/{tid}/{name}")
}
