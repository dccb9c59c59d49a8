//! What a core file has no place for: the two notes of rleaks' own, as JSON.
//!
//! The first one is written before the memory, the second one behind it: a file without the second
//! was cut short.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::addr::{Addr, AddrRange};
use crate::memory::Width;
use crate::snapshot::{
    Capture, ContentLevel, KernelValue, Method, Module, Process, Region, Snapshot, Thread,
};
use crate::warning::{Bias, Warning};

/// The owner of the notes.
pub const NOTE_OWNER: &str = "RLEAKS";
/// The type of the note that comes first. Some debuggers look at the type alone: it is none of the
/// usual ones.
pub(super) const BEGINNING: u32 = 0x524c_0001;
/// The type of the note that comes last.
pub(super) const END: u32 = 0x524c_0002;
/// The version of the format. Fields may be added without raising it.
pub(super) const FORMAT: u32 = 1;

/// What the walk of the heap needs beside the snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeapFacts {
    /// The allocator that is linked into the executable, if it is one that rleaks knows.
    pub embedded: Option<String>,
    /// A thread stood inside malloc at every stop, so that the heap may be in flux.
    pub inside_malloc: bool,
    /// The address of the header of the malloc stack log, if a recorder was loaded.
    pub stack_log: Option<Addr>,
}

/// The note before the memory.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Beginning {
    pub(super) format: u32,
    pub(super) rleaks_version: String,
    pub(super) content: ContentLevel,
    pub(super) process: Process,
    pub(super) width: Width,
    pub(super) taken_at: SystemTime,
    pub(super) method: Method,
    pub(super) memory_bytes: u64,
    pub(super) regions: Vec<Region>,
    /// All memory that can be read. What of it is in no segment of the file reads as zeros.
    pub(super) readable: Vec<AddrRange>,
    /// Segments of the file that are no part of the snapshot's memory: what of the modules' files
    /// the search for allocators needs.
    pub(super) images: Vec<AddrRange>,
    pub(super) modules: Vec<Module>,
    /// The threads without their vector registers, in the order of the standard notes.
    pub(super) threads: Vec<Thread>,
    pub(super) kernel_values: Vec<KernelValue>,
    pub(super) auxv: Vec<(u64, u64)>,
    pub(super) warnings: Vec<Warning>,
    pub(super) heap: HeapFacts,
}

impl Beginning {
    /// What is known of `snapshot`. Of its warnings, those of the capture are the first
    /// `warnings`; later steps will give the others again.
    pub(super) fn new(snapshot: &Snapshot, heap: HeapFacts, warnings: usize) -> Self {
        Self {
            format: FORMAT,
            rleaks_version: env!("CARGO_PKG_VERSION").to_owned(),
            content: snapshot.capture.content,
            process: snapshot.process.clone(),
            width: snapshot.width,
            taken_at: snapshot.capture.taken_at,
            method: snapshot.capture.method,
            memory_bytes: snapshot.capture.memory_bytes,
            regions: snapshot.regions.clone(),
            readable: Vec::new(),
            images: Vec::new(),
            modules: snapshot.modules.clone(),
            threads: snapshot.threads.clone(),
            kernel_values: snapshot.kernel_values.clone(),
            auxv: snapshot.auxv.clone(),
            warnings: snapshot.warnings.iter().take(warnings).cloned().collect(),
            heap,
        }
    }
}

/// The note behind the memory.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct End {
    pub(super) stops: u32,
    pub(super) pause: Duration,
    pub(super) longest_pause: Duration,
    /// Bytes that could not be read when they were to be written.
    pub(super) unread_bytes: u64,
}

impl End {
    pub(super) fn new(capture: &Capture, unread_bytes: u64) -> Self {
        Self {
            stops: capture.stops,
            pause: capture.pause,
            longest_pause: capture.longest_pause,
            unread_bytes,
        }
    }

    /// Enters what is known at the end into `snapshot`.
    pub(super) fn enter(&self, snapshot: &mut Snapshot) {
        let capture = &mut snapshot.capture;
        capture.stops = self.stops;
        capture.pause = self.pause;
        capture.longest_pause = self.longest_pause;
        if self.unread_bytes > 0 {
            snapshot.warnings.push(Warning::new(
                "memory_unreadable",
                format!(
                    "{} bytes of the target's memory could not be read when the snapshot was saved",
                    self.unread_bytes
                ),
                Bias::FalseLeaks,
            ));
        }
    }
}
