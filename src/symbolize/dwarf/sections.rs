//! The sections with DWARF of a file, in our own memory.
//!
//! They are read, not mapped: a mapped file that is cut short while it is read would end rleaks
//! with SIGBUS, and files of a target may change at any time. Only one image's are held at a time.

use gimli::{DwarfPackageSections, DwarfSections, SectionId};
use rayon::prelude::*;

use crate::symbolize::elf::{Bytes, ElfFile};

/// The sections that functions and lines are in.
const NEEDED: [SectionId; 10] = [
    SectionId::DebugAbbrev,
    SectionId::DebugAddr,
    SectionId::DebugInfo,
    SectionId::DebugLine,
    SectionId::DebugLineStr,
    SectionId::DebugRanges,
    SectionId::DebugRngLists,
    SectionId::DebugStr,
    SectionId::DebugStrOffsets,
    SectionId::DebugCuIndex,
];
/// The sections of a package that its index refers to: it is an error if they are not there.
const INDEXED: [SectionId; 5] = [
    SectionId::DebugLoc,
    SectionId::DebugLocLists,
    SectionId::DebugMacinfo,
    SectionId::DebugMacro,
    SectionId::DebugTypes,
];
/// All sections of an executable or a debug file are no more than this.
const MAX_MAIN: u64 = 3 << 30;
/// All sections of a `.dwo` file are no more than this: several are read at a time.
const MAX_SPLIT: u64 = 256 << 20;

/// The sections of an executable or a debug file.
pub(super) fn main<B: Bytes + Sync>(elf: &ElfFile<B>) -> Option<DwarfSections<Vec<u8>>> {
    let mut contents = Contents::read(elf, &NEEDED, |id| Some(id.name()), MAX_MAIN)?;
    DwarfSections::load(|id| Ok::<_, ()>(contents.take(id))).ok()
}

/// The sections of a `.dwo` file.
pub(super) fn split<B: Bytes + Sync>(elf: &ElfFile<B>) -> Option<DwarfSections<Vec<u8>>> {
    let mut contents = Contents::read(elf, &NEEDED, SectionId::dwo_name, MAX_SPLIT)?;
    DwarfSections::load(|id| Ok::<_, ()>(contents.take(id))).ok()
}

/// The sections of a `.dwp` file.
pub(super) fn package<B: Bytes + Sync>(elf: &ElfFile<B>) -> Option<DwarfPackageSections<Vec<u8>>> {
    let sections = [&NEEDED[..], &INDEXED].concat();
    let mut contents = Contents::read(elf, &sections, SectionId::dwo_name, MAX_MAIN)?;
    DwarfPackageSections::load(|id| Ok::<_, gimli::Error>(contents.take(id))).ok()
}

/// The number of bytes in all of `sections`.
pub(super) fn size(sections: &DwarfSections<Vec<u8>>) -> u64 {
    let mut size = 0;
    sections.borrow(|section| {
        size += section.len() as u64;
        gimli::EndianSlice::new(section, gimli::LittleEndian)
    });
    size
}

struct Contents(Vec<(SectionId, Vec<u8>)>);

impl Contents {
    fn read<B: Bytes + Sync>(
        elf: &ElfFile<B>,
        sections: &[SectionId],
        name: impl Fn(SectionId) -> Option<&'static str> + Sync,
        limit: u64,
    ) -> Option<Self> {
        let sizes = NEEDED
            .iter()
            .filter_map(|id| elf.debug_section_size(name(*id)?));
        if sizes.fold(0, u64::saturating_add) > limit {
            return None;
        }
        let present = sections.iter().filter_map(|id| {
            let name = name(*id)?;
            elf.has(name).then_some((*id, name))
        });
        let present: Vec<_> = present.collect();
        // Decompression is what takes time. A section that cannot be read spoils the others.
        let contents = present
            .par_iter()
            .map(|(id, name)| Some((*id, elf.debug_section(name)?)));
        contents.collect::<Option<_>>().map(Self)
    }

    fn take(&mut self, id: SectionId) -> Vec<u8> {
        let contents = self.0.iter_mut().find(|(known, _)| *known == id);
        contents
            .map(|(_, bytes)| std::mem::take(bytes))
            .unwrap_or_default()
    }
}
