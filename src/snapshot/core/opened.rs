//! From a core file that rleaks has not written to a snapshot.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::images::{ImageFiles, Images, Lacking};
use super::notes;
use super::{CoreFile, CoreMemory, FileBytes, Machine, Part, lacks, link_map, regions, threads};
use crate::addr::{Addr, RangeSet};
use crate::memory::Memory;
use crate::snapshot::{
    Capture, ContentLevel, Method, Module, Process, Region, Snapshot, Source, modules,
};

const AT_ENTRY: u64 = 9;

/// A core file as a snapshot.
pub struct Opened {
    /// The snapshot.
    pub snapshot: Snapshot,
    /// All memory that can be read: that of the snapshot, and what the files of images have.
    pub images: CoreMemory,
    /// Images whose files are not there.
    pub lacking: Vec<Lacking>,
    /// The file of the executable, if it is there.
    pub program: Option<Arc<dyn FileBytes>>,
}

impl std::fmt::Debug for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opened")
            .field("snapshot", &self.snapshot)
            .field("lacking", &self.lacking)
            .finish_non_exhaustive()
    }
}

impl Opened {
    /// Opens `core`, which was made at about `taken_at`.
    #[must_use]
    pub fn new(core: &CoreFile, taken_at: SystemTime, opener: &dyn ImageFiles) -> Self {
        let auxv = notes::auxv(core);
        let mut threads = threads::threads(core);
        let mut mapped = notes::files(core);
        if mapped.is_empty() {
            mapped = link_map::files(core, &auxv, opener);
        }
        let regions = regions::regions(core, &mapped, &auxv, &threads);
        let saved = core.saved_parts();
        let own: Arc<[Arc<dyn FileBytes>]> = Arc::from([Arc::clone(&core.bytes)]);
        let in_core = CoreMemory::new(own, &saved, &RangeSet::default());
        let ranges: RangeSet = saved.iter().map(|part| part.range).collect();
        if core.machine == Machine::I386 {
            let writable = regions.iter().filter(|region| region.writable);
            let writable = writable.flat_map(|region| in_core.resident(region.range));
            threads::find_pointers(&in_core, &writable.collect::<Vec<_>>(), &mut threads);
        }
        let entry = auxv.iter().find(|(kind, _)| *kind == AT_ENTRY);
        let entry = entry.map(|(_, entry)| Addr(*entry));
        let images = Images::find(&regions, (&in_core, &ranges), entry, opener);

        let files = [Arc::clone(&core.bytes)].into_iter().chain(images.files);
        let files: Arc<[Arc<dyn FileBytes>]> = files.collect();
        let mut all: Vec<Part> = saved.iter().chain(&images.parts).copied().collect();
        all.sort_by_key(|part| part.range.start);
        let image_memory = CoreMemory::new(Arc::clone(&files), &all, &RangeSet::default());
        let modules = modules(&image_memory, &regions);
        let kept = with_data(saved, &regions, &modules);
        let memory = CoreMemory::new(files, &kept, &unwritten(&regions, &ranges));
        let snapshot = Snapshot {
            source: Source::Core,
            machine: core.machine,
            process: process(core, &regions, entry),
            width: core.machine.width(),
            capture: capture(taken_at, memory.bytes()),
            warnings: lacks::warnings(core, (&regions, &threads), &modules, &image_memory),
            regions,
            modules,
            threads,
            kernel_values: Vec::new(),
            auxv,
            memory: Box::new(memory),
        };
        Self {
            snapshot,
            images: image_memory,
            lacking: images.lacking,
            program: images.program,
        }
    }
}

/// Who the process was; its executable is the file that `entry` is in.
fn process(core: &CoreFile, regions: &[Region], entry: Option<Addr>) -> Process {
    let mut regions = regions.iter();
    let program = regions.find(|region| entry.is_some_and(|entry| region.range.contains(entry)));
    Process {
        executable: program.map_or_else(String::new, |region| region.name.clone()),
        ..notes::process(core)
    }
}

/// What a file cost its target is not known.
fn capture(taken_at: SystemTime, memory_bytes: u64) -> Capture {
    Capture {
        taken_at,
        method: Method::File,
        stops: 0,
        pause: Duration::ZERO,
        longest_pause: Duration::ZERO,
        memory_bytes,
        content: ContentLevel::Full,
    }
}

/// Those of `parts` whose memory may hold references, as that of a process does which is copied: it
/// is none that only images have, such as code and constants.
fn with_data(mut parts: Vec<Part>, regions: &[Region], modules: &[Module]) -> Vec<Part> {
    let segments = || modules.iter().flat_map(|module| &module.segments);
    let images: RangeSet = segments().map(|segment| segment.range).collect();
    let variables = segments().filter(|segment| segment.writable);
    let variables: RangeSet = variables.map(|segment| segment.range).collect();
    let touches = |set: &RangeSet, region: &Region| set.within(region.range).next().is_some();
    parts.retain(|part| {
        let after = regions.partition_point(|region| region.range.start <= part.range.start);
        let region = after.checked_sub(1).and_then(|index| regions.get(index));
        // What is in none is the kernel's own. Memory that became read-only after relocation belongs to
        // a segment that was to be writable.
        region
            .filter(|region| region.range.contains(part.range.start))
            .is_some_and(|region| {
                region.writable || touches(&variables, region) || !touches(&images, region)
            })
    });
    parts
}

/// Writable parts of files that were never written to: they hold no reference.
fn unwritten(regions: &[Region], saved: &RangeSet) -> RangeSet {
    let files = regions
        .iter()
        .filter(|region| region.writable && !region.is_anonymous() && !region.shared);
    files.flat_map(|region| saved.gaps(region.range)).collect()
}
