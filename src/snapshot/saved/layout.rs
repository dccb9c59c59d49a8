//! The headers of a core file: what lies where in it.

use super::elf_notes::Bytes;
use crate::addr::{Addr, AddrRange, RangeSet};
use crate::memory::{Memory, Width};
use crate::snapshot::Region;

const PAGE: u64 = 4096;
/// Memory that reads as zeros is a hole in the file where it is smaller than this. A larger one
/// ends a segment, so that reservations make no file of that size.
const LARGEST_HOLE: u64 = 64 << 10;

const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
/// `e_phnum` of a file with more program headers than it can say: `sh_info` of the first section
/// header has their number.
const PN_XNUM: u16 = 0xffff;

/// A segment of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Load {
    pub(super) range: AddrRange,
    /// The protection of its region: 4 to read, 2 to write, 1 to execute.
    flags: u32,
    pub(super) holds: Holds,
}

/// What a segment has in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holds {
    /// Memory of the snapshot.
    Memory,
    /// What the search for allocators needs of a module's file.
    Image,
    /// Nothing: it reads as zeros, or is unknown.
    Nothing,
}

impl Load {
    /// The bytes that it has in the file.
    fn file_size(&self) -> u64 {
        match self.holds {
            Holds::Memory | Holds::Image => self.range.size(),
            Holds::Nothing => 0,
        }
    }
}

/// Cuts `regions` into segments. `images` are parts of modules, page by page, of which
/// `memory` has nothing but zeros.
pub(super) fn loads(regions: &[Region], memory: &dyn Memory, images: &[AddrRange]) -> Vec<Load> {
    let mut loads = Vec::new();
    let mut next_image = images.iter().copied().peekable();
    for region in regions {
        let readable = memory.readable(region.range).into_iter();
        let mut parts: Vec<(AddrRange, Holds)> = readable
            .flat_map(|part| memory.resident(part))
            .map(|part| (part, Holds::Memory))
            .collect();
        while next_image
            .next_if(|image| image.end <= region.range.start)
            .is_some()
        {}
        while let Some(image) = next_image.next_if(|image| image.start < region.range.end) {
            parts.push((image.intersection(&region.range), Holds::Image));
        }
        parts.sort_unstable_by_key(|(part, _)| part.start);
        let readable: RangeSet = memory.readable(region.range).into_iter().collect();
        let parts = without_small_holes(&parts, &readable);
        tile(region, &parts, &mut loads);
    }
    loads
}

/// Joins parts of memory between which there is little, all of it `readable` as zeros.
fn without_small_holes(
    parts: &[(AddrRange, Holds)],
    readable: &RangeSet,
) -> Vec<(AddrRange, Holds)> {
    let mut joined: Vec<(AddrRange, Holds)> = Vec::new();
    for (part, holds) in parts {
        let hole = |last: &AddrRange| AddrRange::new(last.end, part.start);
        let is_filled = |last: &AddrRange| {
            let within = readable.containing(last.start);
            hole(last).size() < LARGEST_HOLE && within.is_some_and(|range| range.covers(part))
        };
        match joined.last_mut() {
            Some((last, Holds::Memory)) if *holds == Holds::Memory && is_filled(last) => {
                last.end = part.end;
            }
            _ => joined.push((*part, *holds)),
        }
    }
    joined
}

/// Appends the segments of `region`: `parts`, and what is between them.
fn tile(region: &Region, parts: &[(AddrRange, Holds)], loads: &mut Vec<Load>) {
    let flags = u32::from(region.readable) << 2
        | u32::from(region.writable) << 1
        | u32::from(region.executable);
    let mut add = |range: AddrRange, holds| {
        if !range.is_empty() {
            loads.push(Load {
                range,
                flags,
                holds,
            });
        }
    };
    let mut start = region.range.start;
    for (part, holds) in parts {
        let part = AddrRange::new(part.start.max(start), part.end);
        add(AddrRange::new(start, part.start), Holds::Nothing);
        add(part, *holds);
        start = start.max(part.end);
    }
    add(AddrRange::new(start, region.range.end), Holds::Nothing);
}

/// A core file's headers, and where the parts of it lie.
#[derive(Debug)]
pub(super) struct Layout {
    /// The headers and the notes: what is in front of the memory.
    pub(super) head: Vec<u8>,
    /// The offset of each segment that has something in the file.
    pub(super) data: Vec<(u64, Load)>,
    /// Where the last note begins.
    pub(super) tail: u64,
}

impl Layout {
    /// Lays out `loads` behind `notes`; a note of `tail_size` bytes will follow them.
    ///
    /// `None` where a file of that size cannot be.
    pub(super) fn new(width: Width, loads: &[Load], notes: &[u8], tail_size: u64) -> Option<Self> {
        let sizes = Sizes::of(width);
        let count = u32::try_from(loads.len()).ok()?.checked_add(2)?;
        let has_many = count >= u32::from(PN_XNUM);
        let sections = sizes
            .program_header
            .checked_mul(u64::from(count))?
            .checked_add(sizes.file_header)?;
        let notes_at = sections.checked_add(if has_many { sizes.section_header } else { 0 })?;
        let notes_end = notes_at.checked_add(notes.len() as u64)?;
        let start = notes_end.checked_next_multiple_of(PAGE)?;
        let data = data(loads, start)?;
        let tail = data.last().map_or(Some(start), |(offset, load)| {
            offset.checked_add(load.file_size())
        })?;
        // The class of a 32-bit file limits it.
        if width == Width::Four && u32::try_from(tail.checked_add(tail_size)?).is_err() {
            return None;
        }
        let mut head = Bytes::default();
        file_header(&mut head, width, count, has_many.then_some(sections));
        let note = |offset, size| ProgramHeader {
            kind: PT_NOTE,
            flags: 0,
            offset,
            range: AddrRange::default(),
            file_size: size,
            alignment: 4,
        };
        note(notes_at, notes.len() as u64).write(&mut head, width);
        let mut offset = start;
        for load in loads {
            let header = ProgramHeader {
                kind: PT_LOAD,
                flags: load.flags,
                offset,
                range: load.range,
                file_size: load.file_size(),
                alignment: PAGE,
            };
            header.write(&mut head, width);
            offset = offset.checked_add(load.file_size())?;
        }
        note(tail, tail_size).write(&mut head, width);
        if has_many {
            first_section(&mut head, width, count);
        }
        head.0.extend(notes);
        head.pad_to(usize::try_from(start).ok()?);
        Some(Self {
            head: head.0,
            data,
            tail,
        })
    }
}

fn data(loads: &[Load], start: u64) -> Option<Vec<(u64, Load)>> {
    let mut offset = start;
    let mut data = Vec::new();
    for load in loads.iter().filter(|load| load.file_size() > 0) {
        data.push((offset, *load));
        offset = offset.checked_add(load.file_size())?;
    }
    Some(data)
}

struct Sizes {
    file_header: u64,
    program_header: u64,
    section_header: u64,
}

impl Sizes {
    fn of(width: Width) -> Self {
        let (file_header, program_header, section_header) = match width {
            Width::Four => (52, 32, 40),
            Width::Eight => (64, 56, 64),
        };
        Self {
            file_header,
            program_header,
            section_header,
        }
    }
}

/// `Elf32_Ehdr` or `Elf64_Ehdr`.
fn file_header(head: &mut Bytes, width: Width, count: u32, sections: Option<u64>) {
    const CORE: u16 = 4;
    let (class, machine) = match width {
        Width::Four => (1, 3),
        Width::Eight => (2, 62),
    };
    let sizes = Sizes::of(width);
    let half = |size: u64| u16::try_from(size).unwrap_or(u16::MAX);
    head.0.extend([0x7f, b'E', b'L', b'F', class, 1, 1]);
    head.pad_to(16);
    head.u16(CORE);
    head.u16(machine);
    head.u32(1);
    // The entry point, the program headers, the section headers.
    for word in [0, sizes.file_header, sections.unwrap_or(0)] {
        head.word(width, word);
    }
    head.u32(0);
    head.u16(half(sizes.file_header));
    head.u16(half(sizes.program_header));
    head.u16(match sections {
        Some(_) => PN_XNUM,
        None => half(u64::from(count)),
    });
    head.u16(sections.map_or(0, |_| half(sizes.section_header)));
    head.u16(u16::from(sections.is_some()));
    head.u16(0);
}

/// The section header that has the number of program headers.
fn first_section(head: &mut Bytes, width: Width, count: u32) {
    head.u32(0);
    head.u32(0);
    for _ in 0..4 {
        head.word(width, 0);
    }
    head.u32(0);
    head.u32(count);
    head.word(width, 0);
    head.word(width, 0);
}

struct ProgramHeader {
    kind: u32,
    flags: u32,
    offset: u64,
    range: AddrRange,
    file_size: u64,
    alignment: u64,
}

impl ProgramHeader {
    fn write(&self, head: &mut Bytes, width: Width) {
        let Addr(start) = self.range.start;
        let memory_size = self.range.size();
        head.u32(self.kind);
        match width {
            Width::Four => {
                for word in [self.offset, start, 0, self.file_size, memory_size] {
                    head.word(width, word);
                }
                head.u32(self.flags);
                head.word(width, self.alignment);
            }
            Width::Eight => {
                head.u32(self.flags);
                let words = [self.offset, start, 0, self.file_size, memory_size];
                for word in words.into_iter().chain([self.alignment]) {
                    head.word(width, word);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::Extent;

    struct Known(Extent);

    impl Memory for Known {
        fn read(&self, addr: Addr, buf: &mut [u8]) -> usize {
            self.0.read(addr, buf, |_, _, part| part.len())
        }

        fn resident(&self, range: AddrRange) -> Vec<AddrRange> {
            self.0.resident_within(range)
        }

        fn readable(&self, range: AddrRange) -> Vec<AddrRange> {
            self.0.readable.within(range).collect()
        }
    }

    fn range(start: u64, end: u64) -> AddrRange {
        AddrRange::new(Addr(start), Addr(end))
    }

    fn region(range: AddrRange) -> Region {
        Region {
            range,
            readable: true,
            ..Region::default()
        }
    }

    #[test]
    fn small_holes_stay_in_a_segment_and_large_ones_end_it() {
        let regions = [
            region(range(0x10000, 1 << 40)),
            region(range(1 << 41, 2 << 41)),
        ];
        let memory = Known(Extent {
            readable: [range(0x10000, 1 << 40)].into_iter().collect(),
            resident: vec![
                range(0x11000, 0x12000),
                range(0x13000, 0x14000),
                range(0x5000_0000, 0x5000_1000),
            ],
        });
        let images = [range(1 << 41, (1 << 41) + 0x1000)];
        let loads = loads(&regions, &memory, &images);
        let found: Vec<_> = loads.iter().map(|load| (load.range, load.holds)).collect();
        let expected = [
            (range(0x10000, 0x11000), Holds::Nothing),
            (range(0x11000, 0x14000), Holds::Memory),
            (range(0x14000, 0x5000_0000), Holds::Nothing),
            (range(0x5000_0000, 0x5000_1000), Holds::Memory),
            (range(0x5000_1000, 1 << 40), Holds::Nothing),
            (range(1 << 41, (1 << 41) + 0x1000), Holds::Image),
            (range((1 << 41) + 0x1000, 2 << 41), Holds::Nothing),
        ];
        assert_eq!(found, expected);
        let layout = Layout::new(Width::Eight, &loads, b"note", 4).expect("a small file");
        assert_eq!(layout.head.len(), 0x1000);
        assert_eq!(layout.tail, 0x1000 + 0x3000 + 0x1000 + 0x1000);
    }

    /// The count is where tools look for it: another reader of ELF files finds all headers.
    #[test]
    fn more_segments_than_the_header_can_count_are_all_found() {
        let regions: Vec<_> = (0..70_000)
            .map(|i| region(range(0x1_0000 + i * 0x2000, 0x1_1000 + i * 0x2000)))
            .collect();
        let memory = Known(Extent::default());
        let loads = loads(&regions, &memory, &[]);
        for width in [Width::Four, Width::Eight] {
            let layout = Layout::new(width, &loads, b"", 0).expect("a small file");
            let elf = goblin::elf::Elf::lazy_parse(
                goblin::elf::Elf::parse_header(&layout.head).expect("a header"),
            );
            assert_eq!(elf.expect("an ELF file").header.e_phnum, PN_XNUM);
            let sections = Sizes::of(width).file_header + Sizes::of(width).program_header * 70_002;
            let info = usize::try_from(sections).expect("small")
                + if width == Width::Four { 28 } else { 44 };
            let info = layout.head[info..].first_chunk().expect("a section header");
            assert_eq!(u32::from_le_bytes(*info), 70_002);
        }
    }

    #[test]
    fn a_file_of_a_32_bit_class_is_not_made_where_it_would_be_too_large() {
        let regions = [
            region(range(0x1000, 0xffff_f000)),
            region(range(1 << 32, 1 << 33)),
        ];
        let memory = Known(Extent {
            readable: regions.iter().map(|region| region.range).collect(),
            resident: regions.iter().map(|region| region.range).collect(),
        });
        let loads = loads(&regions, &memory, &[]);
        assert!(Layout::new(Width::Four, &loads, b"", 0).is_none());
        assert!(Layout::new(Width::Eight, &loads, b"", 0).is_some());
    }
}
