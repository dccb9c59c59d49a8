//! Loaded ELF images, read from the target's memory.
//!
//! Nothing is opened by name, so a deleted or replaced file, or one in another mount namespace,
//! makes no difference. Layouts are those of `<elf.h>`, little endian.

use crate::addr::{Addr, AddrRange};
use crate::memory::{Memory, Width};
use crate::snapshot::{Module, Region, Segment};

const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const PT_NOTE: u32 = 4;
const PT_TLS: u32 = 7;
const PF_X: u32 = 1;
const PF_W: u32 = 2;
/// The types and owners of notes: a GNU build id, and a Go build id (`cmd/link`).
const GNU_BUILD_ID: (u32, [u8; 4]) = (3, *b"GNU\0");
const GO_BUILD_ID: (u32, [u8; 4]) = (4, *b"Go\0\0");
/// The larger of the two file headers. That of a 32-bit image is followed by something.
const HEADER_SIZE: usize = 64;
/// More program headers than any linker writes.
const MAX_PROGRAM_HEADERS: usize = 256;
/// Notes are read up to here: a build id comes early.
const MAX_NOTES: u64 = 4096;

/// One program header.
#[derive(Clone, Copy, Debug, Default)]
struct ProgramHeader {
    kind: u32,
    flags: u32,
    offset: u64,
    addr: u64,
    file_size: u64,
    memory_size: u64,
}

/// Finds the ELF images that are loaded in `regions` of `memory`: mapped from offset 0 and with
/// their code executable where their program headers say. An ELF file that is only mapped to be
/// read is none.
#[must_use]
pub fn modules(memory: &dyn Memory, regions: &[Region]) -> Vec<Module> {
    let mut modules: Vec<Module> = regions
        .iter()
        .filter(|region| region.offset == 0 && region.readable && !region.shared)
        .filter(|region| !region.is_anonymous() || region.name == "[vdso]")
        .filter_map(|region| module(memory, regions, region))
        .collect();
    separate(&mut modules);
    modules
}

/// Cuts each segment where the next one starts, of whatever module.
///
/// Segments of real images never overlap. Damaged headers can make each cover all memory, and
/// then everything that looks at each segment would take forever.
fn separate(modules: &mut [Module]) {
    let segments = modules.iter_mut().flat_map(|module| &mut module.segments);
    let mut segments: Vec<&mut Segment> = segments.collect();
    segments.sort_by_key(|segment| segment.range.start);
    let mut next = Addr(u64::MAX);
    for segment in segments.into_iter().rev() {
        segment.range.end = segment.range.end.min(next).max(segment.range.start);
        next = segment.range.start;
    }
}

fn module(memory: &dyn Memory, regions: &[Region], first: &Region) -> Option<Module> {
    let (width, headers) = program_headers(memory, first.range.start)?;
    let loads = || headers.iter().filter(|header| header.kind == PT_LOAD);
    let link_base = loads().map(|header| header.addr & !0xfff).min()?;
    let bias = first.range.start.0.wrapping_sub(link_base);
    let place = |header: &ProgramHeader| {
        let start = Addr(bias.wrapping_add(header.addr));
        AddrRange::with_size(start, header.memory_size)
    };
    let is_loaded = loads().any(|header| {
        header.flags & PF_X != 0
            && super::region::find(regions, place(header).start)
                .is_some_and(|code| code.executable && code.file == first.file)
    });
    if !is_loaded {
        return None;
    }
    let segments = loads().map(|header| Segment {
        range: place(header),
        writable: header.flags & PF_W != 0,
        executable: header.flags & PF_X != 0,
    });
    let of_kind = |kind| headers.iter().find(|header| header.kind == kind);
    let notes = || {
        headers
            .iter()
            .filter(|header| header.kind == PT_NOTE)
            .map(place)
    };
    Some(Module {
        path: first.name.trim_end_matches(" (deleted)").to_owned(),
        width,
        base: first.range.start,
        bias,
        segments: segments.collect(),
        dynamic: of_kind(PT_DYNAMIC).map(place),
        tls_size: of_kind(PT_TLS).map_or(0, |header| header.memory_size),
        file: first.file,
        build_id: notes().find_map(|range| note(memory, range, GNU_BUILD_ID)),
        is_go: notes().any(|range| note(memory, range, GO_BUILD_ID).is_some()),
    })
}

/// The GNU build id of the image whose first byte is at `base`. `None` also where its notes cannot be read.
pub(super) fn build_id(memory: &dyn Memory, base: Addr) -> Option<Vec<u8>> {
    let (_, headers) = program_headers(memory, base)?;
    let loads = headers.iter().filter(|header| header.kind == PT_LOAD);
    let link_base = loads.map(|header| header.addr & !0xfff).min()?;
    let bias = base.0.wrapping_sub(link_base);
    let notes = headers.iter().filter(|header| header.kind == PT_NOTE);
    let mut places = notes.map(|header| {
        AddrRange::with_size(Addr(bias.wrapping_add(header.addr)), header.memory_size)
    });
    places.find_map(|range| note(memory, range, GNU_BUILD_ID))
}

/// A part of a file that is to be loaded.
pub(super) struct Load {
    /// Where it begins in the file.
    pub(super) offset: u64,
    /// Where it is to be loaded, before relocation.
    pub(super) addr: u64,
    /// Its bytes in the file.
    pub(super) file_size: u64,
}

/// The parts of `file`, whose bytes lie in the order of the file from address 0 on.
pub(super) fn loads(file: &dyn Memory) -> Option<Vec<Load>> {
    let (_, headers) = program_headers(file, Addr(0))?;
    let loads = headers.iter().filter(|header| header.kind == PT_LOAD);
    let loads = loads.map(|header| Load {
        offset: header.offset,
        addr: header.addr,
        file_size: header.file_size,
    });
    Some(loads.collect())
}

/// The entry point of `file`, before relocation.
pub(super) fn entry(file: &dyn Memory) -> Option<u64> {
    let (width, _) = program_headers(file, Addr(0))?;
    file.pointer(Addr(24), width)
}

/// Where the dynamic section of the image lies whose first byte is at `base`.
pub(super) fn dynamic(memory: &dyn Memory, base: Addr) -> Option<AddrRange> {
    let (_, headers) = program_headers(memory, base)?;
    let loads = headers.iter().filter(|header| header.kind == PT_LOAD);
    let bias = base
        .0
        .wrapping_sub(loads.map(|header| header.addr & !0xfff).min()?);
    let dynamic = headers.iter().find(|header| header.kind == PT_DYNAMIC)?;
    let start = Addr(bias.wrapping_add(dynamic.addr));
    Some(AddrRange::with_size(start, dynamic.memory_size))
}

/// Where the headers of a class have what.
struct Offsets {
    /// `e_phoff`, `e_phentsize` and `e_phnum`, and the size of a program header.
    table: usize,
    entry_size: usize,
    count: usize,
    program_header: usize,
    /// `p_flags`, `p_offset`, `p_vaddr`, `p_filesz` and `p_memsz`.
    flags: usize,
    offset: usize,
    addr: usize,
    file_size: usize,
    memory_size: usize,
}

impl Offsets {
    fn of(width: Width) -> Self {
        match width {
            Width::Four => Self {
                table: 28,
                entry_size: 42,
                count: 44,
                program_header: 32,
                flags: 24,
                offset: 4,
                addr: 8,
                file_size: 16,
                memory_size: 20,
            },
            Width::Eight => Self {
                table: 32,
                entry_size: 54,
                count: 56,
                program_header: 56,
                flags: 4,
                offset: 8,
                addr: 16,
                file_size: 32,
                memory_size: 40,
            },
        }
    }
}

/// The class and the program headers of a little-endian executable or shared object.
fn program_headers(memory: &dyn Memory, base: Addr) -> Option<(Width, Vec<ProgramHeader>)> {
    let mut header = [0; HEADER_SIZE];
    if memory.read(base, &mut header) < HEADER_SIZE {
        return None;
    }
    let width = match *header.first_chunk()? {
        [0x7f, b'E', b'L', b'F', 1, 1] => Width::Four,
        [0x7f, b'E', b'L', b'F', 2, 1] => Width::Eight,
        _ => return None,
    };
    let offsets = Offsets::of(width);
    let kind = u16_at(&header, 16)?;
    let entry_size = usize::from(u16_at(&header, offsets.entry_size)?);
    let count = usize::from(u16_at(&header, offsets.count)?);
    let is_loadable = matches!(kind, 2 | 3);
    if !is_loadable || entry_size != offsets.program_header || count > MAX_PROGRAM_HEADERS {
        return None;
    }
    let table = width.word(header.get(offsets.table..)?)?;
    let table = base.checked_add(table)?;
    let mut bytes = vec![0; count.checked_mul(entry_size)?];
    if memory.read(table, &mut bytes) < bytes.len() {
        return None;
    }
    let headers = bytes.chunks_exact(entry_size);
    let headers = headers.map(|bytes| program_header(bytes, width, &offsets));
    Some((width, headers.collect::<Option<_>>()?))
}

fn program_header(bytes: &[u8], width: Width, offsets: &Offsets) -> Option<ProgramHeader> {
    Some(ProgramHeader {
        kind: u32_at(bytes, 0)?,
        flags: u32_at(bytes, offsets.flags)?,
        offset: width.word(bytes.get(offsets.offset..)?)?,
        addr: width.word(bytes.get(offsets.addr..)?)?,
        file_size: width.word(bytes.get(offsets.file_size..)?)?,
        memory_size: width.word(bytes.get(offsets.memory_size..)?)?,
    })
}

/// The content of the note of this type and owner among those in `range`.
fn note(memory: &dyn Memory, range: AddrRange, wanted: (u32, [u8; 4])) -> Option<Vec<u8>> {
    let size = usize::try_from(range.size().min(MAX_NOTES)).ok()?;
    let mut bytes = vec![0; size];
    let count = memory.read(range.start, &mut bytes);
    let mut rest = bytes.get(..count)?;
    loop {
        let name_size = usize::try_from(u32_at(rest, 0)?).ok()?;
        let content_size = usize::try_from(u32_at(rest, 4)?).ok()?;
        let kind = u32_at(rest, 8)?;
        let content = 12_usize
            .checked_add(name_size)?
            .checked_next_multiple_of(4)?;
        let end = content.checked_add(content_size)?;
        if kind == wanted.0 && rest.get(12..16) == Some(&wanted.1[..]) {
            return rest.get(content..end).map(<[u8]>::to_vec);
        }
        rest = rest.get(end.checked_next_multiple_of(4)?..)?;
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u16::from_le_bytes(*bytes))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::FakeMemory;

    const BASE: u64 = 0x7f00_0000_0000;

    /// An image with a text segment at 0x1000, data at 0x2e00 to 0x3100, and a build id at 0x200.
    fn image() -> FakeMemory {
        let mut memory = FakeMemory::zeroed(BASE, 0x4000);
        memory.bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        memory.bytes[16] = 3;
        memory.bytes[32] = 64;
        memory.bytes[54] = 56;
        memory.bytes[56] = 4;
        let headers: [(u32, u32, u64, u64); 4] = [
            (PT_LOAD, 4, 0, 0x800),
            (PT_LOAD, 4 | PF_X, 0x1000, 0x500),
            (PT_LOAD, 4 | PF_W, 0x2e00, 0x300),
            (PT_NOTE, 4, 0x200, 0x24),
        ];
        for (index, (kind, flags, addr, size)) in headers.into_iter().enumerate() {
            let at = 64 + 56 * index;
            memory.bytes[at..at + 4].copy_from_slice(&kind.to_le_bytes());
            memory.bytes[at + 4..at + 8].copy_from_slice(&flags.to_le_bytes());
            memory.bytes[at + 16..at + 24].copy_from_slice(&addr.to_le_bytes());
            memory.bytes[at + 40..at + 48].copy_from_slice(&size.to_le_bytes());
        }
        memory.bytes[0x200..0x210].copy_from_slice(b"\x04\0\0\0\x04\0\0\0\x03\0\0\0GNU\0");
        memory.bytes[0x210..0x214].copy_from_slice(&[0xab, 0xcd, 0xef, 0x01]);
        memory
    }

    fn regions() -> Vec<Region> {
        let region = |start: u64, end: u64, executable, offset| Region {
            range: AddrRange::new(Addr(BASE + start), Addr(BASE + end)),
            readable: true,
            executable,
            offset,
            file: (8, 1, 42),
            name: "/opt/x.so (deleted)".to_owned(),
            ..Region::default()
        };
        vec![
            region(0, 0x1000, false, 0),
            region(0x1000, 0x2000, true, 0x1000),
            region(0x2000, 0x4000, false, 0x1e00),
        ]
    }

    #[test]
    fn a_loaded_image_is_a_module() {
        let modules = modules(&image(), &regions());
        assert_eq!(modules.len(), 1);
        let module = &modules[0];
        assert_eq!(module.path, "/opt/x.so");
        assert_eq!((module.base, module.bias), (Addr(BASE), BASE));
        assert_eq!(
            module.build_id.as_deref(),
            Some(&[0xab, 0xcd, 0xef, 0x01][..])
        );
        let data = &module.segments[2];
        assert!(
            data.writable && data.range.start == Addr(BASE + 0x2e00) && data.range.size() == 0x300
        );
        assert!(module.contains(Addr(BASE + 0x30ff)) && !module.contains(Addr(BASE + 0x3100)));
    }

    #[test]
    fn segments_end_where_the_next_one_starts() {
        let mut image = image();
        // The sizes of the code and of the data.
        for header in [64 + 56, 64 + 2 * 56] {
            image.set_word(BASE + header + 40, u64::MAX);
        }
        let modules = modules(&image, &regions());
        let ends = modules[0]
            .segments
            .iter()
            .map(|segment| segment.range.end.0);
        let ends: Vec<u64> = ends.collect();
        assert_eq!(ends, [BASE + 0x800, BASE + 0x2e00, u64::MAX]);
    }

    #[test]
    fn a_file_that_is_mapped_only_to_be_read_is_no_module() {
        let mut regions = regions();
        regions[1].executable = false;
        assert_eq!(modules(&image(), &regions), []);
    }

    #[test]
    fn damaged_headers_make_no_module_and_no_panic() {
        for at in 0..512 {
            for value in [0, 1, 0x7f, 0xff] {
                let mut image = image();
                image.bytes[at] = value;
                for module in modules(&image, &regions()) {
                    assert_eq!(module.base, Addr(BASE));
                }
            }
        }
        for size in 0..512 {
            let mut image = image();
            image.bytes.truncate(size);
            assert!(modules(&image, &regions()).len() <= 1);
        }
    }
}
