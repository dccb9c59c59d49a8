//! The data model of a target at one instant.
//!
//! Everything after the capture is a function of a [`Snapshot`]. How it was taken (a copy of a
//! live process, the stopped process itself, later a file) shows only in its [`Memory`].

// The target's memory is hostile input: an index or a sum made of it must not panic.
#![cfg_attr(
    not(test),
    warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

pub mod core;
mod dynamic;
mod elf;
mod extent;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod module;
pub mod packed;
mod region;
pub mod saved;
mod thread;

pub use core::Machine;
pub use dynamic::{DynamicSymbol, dynamic_string, dynamic_symbols, needed_libraries};
pub use elf::modules;
pub use extent::Extent;
pub use module::{Module, Segment};
pub use region::Region;
pub use thread::Thread;

use std::fmt;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::addr::Addr;
use crate::memory::{Memory, Width};
use crate::warning::Warning;

/// A target at one instant.
pub struct Snapshot {
    /// Where it comes from.
    pub source: Source,
    /// Its instruction set.
    pub machine: Machine,
    /// Who the target is.
    pub process: Process,
    /// The size of its pointers.
    pub width: Width,
    /// How the snapshot was taken.
    pub capture: Capture,
    /// All VM mappings, in ascending order.
    pub regions: Vec<Region>,
    /// Loaded ELF images, in ascending order of their base.
    pub modules: Vec<Module>,
    /// All threads, the main thread first.
    pub threads: Vec<Thread>,
    /// Values that the kernel holds for the target and hands back to it, such as epoll user data.
    pub kernel_values: Vec<KernelValue>,
    /// The auxiliary vector: pairs of type and value, as the kernel gave them at exec.
    pub auxv: Vec<(u64, u64)>,
    /// The target's memory.
    pub memory: Box<dyn Memory + Send>,
    /// What could not be captured.
    pub warnings: Vec<Warning>,
}

impl Snapshot {
    /// The region that `addr` is in.
    #[must_use]
    pub fn region_at(&self, addr: Addr) -> Option<&Region> {
        region::find(&self.regions, addr)
    }

    /// The module that `addr` is in: in one of its segments.
    #[must_use]
    pub fn module_at(&self, addr: Addr) -> Option<&Module> {
        self.modules.iter().find(|module| module.contains(addr))
    }

    /// The value of the auxiliary vector's entry of type `kind` (`AT_…` in `<elf.h>`).
    #[must_use]
    pub fn aux_value(&self, kind: u64) -> Option<u64> {
        self.auxv.iter().find(|(k, _)| *k == kind).map(|(_, v)| *v)
    }
}

#[cfg(any(test, fuzzing))]
impl Snapshot {
    /// A snapshot of `memory`, of which nothing else is known.
    pub(crate) fn of_memory(memory: Box<dyn Memory + Send>) -> Self {
        Self {
            source: Source::Process,
            machine: Machine::default(),
            process: Process::default(),
            width: Width::default(),
            capture: Capture {
                taken_at: SystemTime::UNIX_EPOCH,
                method: Method::Copy,
                stops: 1,
                pause: Duration::ZERO,
                longest_pause: Duration::ZERO,
                memory_bytes: 0,
                content: ContentLevel::Full,
            },
            regions: Vec::new(),
            modules: Vec::new(),
            threads: Vec::new(),
            kernel_values: Vec::new(),
            auxv: Vec::new(),
            memory,
            warnings: Vec::new(),
        }
    }
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot")
            .field("process", &self.process)
            .field("capture", &self.capture)
            .field("regions", &self.regions.len())
            .field("modules", &self.modules.len())
            .field("threads", &self.threads.len())
            .finish_non_exhaustive()
    }
}

/// Where a snapshot comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A living process.
    Process,
    /// A core file that rleaks has saved.
    Snapshot,
    /// A core file of the kernel's or a debugger's.
    Core,
}

/// How much of what the target's memory holds a snapshot has.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum ContentLevel {
    /// All of it.
    #[default]
    Full,
    /// What read-only memory holds, and what is needed to find leaks.
    Readonly,
    /// What is needed to find leaks: references, and what allocators keep of their blocks.
    None,
}

/// Who the target is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// The process id, in the namespace of rleaks.
    pub pid: u32,
    /// The parent's process id.
    pub parent_pid: u32,
    /// The name that the kernel shows for it (`/proc/PID/comm`).
    pub name: String,
    /// The path of the executable, as the target's mount namespace names it.
    pub executable: String,
    /// The arguments it was started with.
    pub command_line: Vec<String>,
    /// The time from the start of the system to that of the process, if it is known. No clock that
    /// is set changes it.
    pub started: Option<Duration>,
    /// The number of its user.
    pub user: u32,
    /// The number of the signal that ended it, where a core file says so.
    #[serde(default)]
    pub signal: Option<i32>,
}

/// The way a snapshot was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// The memory was copied while the target was stopped.
    Copy,
    /// The target stayed stopped while it was read.
    Stream,
    /// A child of the target kept the memory, while the target ran on.
    Fork,
    /// It came from a core file.
    File,
}

/// How a snapshot was taken, and at what cost to the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capture {
    /// The wall-clock time of the stop.
    pub taken_at: SystemTime,
    /// How the memory was kept.
    pub method: Method,
    /// How often the target was stopped.
    pub stops: u32,
    /// The sum of all stops. With [`Method::Stream`] it is known only once the target runs again.
    pub pause: Duration,
    /// The longest single stop.
    pub longest_pause: Duration,
    /// Bytes of the target's memory that the snapshot holds.
    pub memory_bytes: u64,
    /// How much of what the memory holds is there.
    pub content: ContentLevel,
}

/// A word that the kernel holds for the target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelValue {
    /// The word.
    pub value: u64,
    /// Where the kernel holds it, for people: `epoll fd 5, watching fd 7`.
    pub holder: String,
}
