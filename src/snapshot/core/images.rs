//! The files of loaded images, from which comes what a core file leaves out: memory that was never
//! written to.

use std::sync::Arc;

use super::{FileBytes, Part};
use crate::addr::{Addr, AddrRange, RangeSet};
use crate::memory::Memory;
use crate::snapshot::{Region, elf};

/// What is compared where an image has no build id.
const FIRST_PAGE: usize = 4096;

/// The first four bytes of an ELF file.
const ELF_MAGIC: u32 = u32::from_le_bytes(*b"\x7fELF");

/// Finds files that a target had mapped.
pub trait ImageFiles {
    /// The file that the target knew as `path`, if there is one here. `is_program` says that it is the
    /// target's executable.
    fn open(&self, path: &str, is_program: bool) -> Option<Arc<dyn FileBytes>>;
}

/// An image whose file is not there, or not for certain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lacking {
    /// Its path in the target.
    pub path: String,
    /// Its build id, if the core file has it.
    pub build_id: Option<Vec<u8>>,
    /// What is wrong with the file.
    pub lack: Lack,
}

/// What is wrong with an image's file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lack {
    /// There is no ELF file of that name.
    Missing,
    /// It is another one: its build id, if it has one.
    Other(Option<Vec<u8>>),
    /// The core file has nothing to compare it with.
    Unverified,
}

/// The files of images, and which parts of the target's memory they have.
#[derive(Default)]
pub(super) struct Images {
    pub(super) files: Vec<Arc<dyn FileBytes>>,
    /// In no order.
    pub(super) parts: Vec<Part>,
    pub(super) lacking: Vec<Lacking>,
    /// That of the executable.
    pub(super) program: Option<Arc<dyn FileBytes>>,
}

impl Images {
    /// Finds the files of all images in `regions`, of whose memory `saved` is in the core file, which
    /// is the first of all files. `entry` is an address of the executable.
    pub(super) fn find(
        regions: &[Region],
        (memory, saved): (&dyn Memory, &RangeSet),
        entry: Option<Addr>,
        opener: &dyn ImageFiles,
    ) -> Self {
        let mut images = Self::default();
        let mut by_file: Vec<&Region> = regions.iter().filter(|r| !r.is_anonymous()).collect();
        by_file.sort_by_key(|region| (region.file, region.range.start));
        for mapped in by_file.chunk_by(|a, b| a.file == b.file) {
            let is_program =
                entry.is_some_and(|entry| mapped.iter().any(|r| r.range.contains(entry)));
            if mapped
                .iter()
                .any(|region| region.executable && !region.shared)
            {
                let known = images.files.len();
                images.add(mapped, (memory, saved), &|path| {
                    opener.open(path, is_program)
                });
                let added = images.files.get(known).filter(|_| is_program);
                images.program = added.cloned().or(images.program);
            }
        }
        images
    }

    /// Adds the file of one image, which `mapped` are the mappings of.
    fn add(
        &mut self,
        mapped: &[&Region],
        (memory, saved): (&dyn Memory, &RangeSet),
        open: &dyn Fn(&str) -> Option<Arc<dyn FileBytes>>,
    ) {
        let Some(first) = mapped.iter().find(|region| region.offset == 0) else {
            return;
        };
        let base = first.range.start;
        let path = first.name.trim_end_matches(" (deleted)");
        let build_id = elf::build_id(memory, base);
        let mut lacks = |lack| {
            self.lacking.push(Lacking {
                path: path.to_owned(),
                build_id: build_id.clone(),
                lack,
            });
        };
        let is_elf = |start: &dyn Memory, at| start.word32(at) == Some(ELF_MAGIC);
        let is_image = is_elf(memory, base);
        let Some(file) = open(path) else {
            // Of other files nothing is saved: nothing is missed.
            if is_image
                || mapped
                    .iter()
                    .any(|region| saved.within(region.range).next().is_some())
            {
                lacks(Lack::Missing);
            }
            return;
        };
        if !is_image && !is_elf(&AsMemory(&*file), Addr(0)) {
            return;
        }
        match compare(memory, base, &*file) {
            None => lacks(Lack::Unverified),
            Some(true) => {}
            Some(false) => return lacks(Lack::Other(elf::build_id(&AsMemory(&*file), Addr(0)))),
        }
        self.files.push(file);
        let file = self.files.len();
        for region in mapped {
            let gaps = saved.gaps(region.range).into_iter();
            self.parts.extend(gaps.map(|range| {
                Part {
                    range,
                    file,
                    offset: region
                        .offset
                        .saturating_add(between(region.range.start, range.start)),
                }
            }));
        }
    }
}

/// Says whether `file` is that of the image at `base`. `None` where nothing of the image can be read.
fn compare(memory: &dyn Memory, base: Addr, file: &dyn FileBytes) -> Option<bool> {
    if let Some(id) = elf::build_id(memory, base) {
        return Some(elf::build_id(&AsMemory(file), Addr(0)) == Some(id));
    }
    let mut pages = [vec![0; FIRST_PAGE], vec![0; FIRST_PAGE]];
    let [saved, filed] = &mut pages;
    let count = memory.read(base, saved);
    let found = file.read_at(0, filed);
    (count > 0).then(|| found >= count && saved.get(..count) == filed.get(..count))
}

fn between(start: Addr, end: Addr) -> u64 {
    AddrRange::new(start, end).size()
}

/// A file in the order of its bytes, as its first mapping has it.
pub(super) struct AsMemory<'a>(pub(super) &'a dyn FileBytes);

impl Memory for AsMemory<'_> {
    fn read(&self, addr: Addr, buf: &mut [u8]) -> usize {
        self.0.read_at(addr.0, buf)
    }
}
