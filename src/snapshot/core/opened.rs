//! From a core file that rleaks has not written to a snapshot.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::images::{ImageFiles, Images, Lacking};
use super::notes;
use super::{CoreFile, CoreMemory, FileBytes, Machine, Part, lacks, link_map, regions, threads};
use crate::addr::{Addr, AddrRange, RangeSet};
use crate::memory::Memory;
use crate::snapshot::{Capture, ContentLevel, Method, Module, Region, Snapshot, Source, modules};

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
            let writable: Vec<_> = writable
                .flat_map(|region| in_core.resident(region.range))
                .collect();
            threads::find_pointers(&in_core, &writable, &mut threads);
        }
        let entry = auxv.iter().find(|(kind, _)| *kind == AT_ENTRY);
        let entry = entry.map(|(_, entry)| Addr(*entry));
        let images = Images::find(&regions, (&in_core, &ranges), entry, opener);

        let files: Vec<_> = [Arc::clone(&core.bytes)]
            .into_iter()
            .chain(images.files)
            .collect();
        let files: Arc<[Arc<dyn FileBytes>]> = files.into();
        let mut all: Vec<Part> = saved.iter().chain(&images.parts).copied().collect();
        all.sort_by_key(|part| part.range.start);
        let image_memory = CoreMemory::new(Arc::clone(&files), &all, &RangeSet::default());
        let modules = modules(&image_memory, &regions);
        let kept: Vec<Part> = saved
            .into_iter()
            .filter(|part| holds_data(part.range, &regions, &modules))
            .collect();
        let memory = CoreMemory::new(files, &kept, &unwritten(&regions, &ranges));
        let mut process = notes::process(core);
        let program = regions
            .iter()
            .find(|region| entry.is_some_and(|entry| region.range.contains(entry)));
        process.executable = program.map_or_else(String::new, |region| region.name.clone());
        let snapshot = Snapshot {
            source: Source::Core,
            machine: core.machine,
            process,
            width: core.machine.width(),
            capture: Capture {
                taken_at,
                method: Method::File,
                stops: 0,
                pause: Duration::ZERO,
                longest_pause: Duration::ZERO,
                memory_bytes: memory.bytes(),
                content: ContentLevel::Full,
            },
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

/// Says whether memory at `range` may hold references, as that of a process does which is copied: it
/// is none that only images have, such as code and constants.
fn holds_data(range: AddrRange, regions: &[Region], modules: &[Module]) -> bool {
    let after = regions.partition_point(|region| region.range.start <= range.start);
    let region = after.checked_sub(1).and_then(|index| regions.get(index));
    let Some(region) = region.filter(|region| region.range.contains(range.start)) else {
        // The kernel's own.
        return false;
    };
    if region.writable {
        return true;
    }
    let segments = || modules.iter().flat_map(|module| &module.segments);
    let touches =
        |segment: &&crate::snapshot::Segment| !segment.range.intersection(&region.range).is_empty();
    // Memory that became read-only after relocation belongs to a segment that was to be writable.
    segments().any(|segment| segment.writable && touches(&segment))
        || !segments().any(|segment| touches(&segment))
}

/// Writable parts of files that were never written to: they hold no reference.
fn unwritten(regions: &[Region], saved: &RangeSet) -> RangeSet {
    let files = regions
        .iter()
        .filter(|region| region.writable && !region.is_anonymous() && !region.shared);
    files.flat_map(|region| saved.gaps(region.range)).collect()
}
