//! The headers of a core file: its segments and its notes.

use std::sync::Arc;

use super::{FileBytes, Part};
use crate::addr::{Addr, AddrRange};
use crate::memory::Width;

const ET_CORE: u16 = 4;
const EM_386: u16 = 3;
const EM_X86_64: u16 = 62;
const EM_AARCH64: u16 = 183;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const PF_X: u32 = 1;
const PF_W: u32 = 2;
const PF_R: u32 = 4;
/// There are more program headers than the field holds: the first section header has their number.
const PN_XNUM: u16 = 0xffff;
/// The bytes of a note before its owner.
const NOTE_HEADER: u64 = 12;
const PIECE: usize = 64 << 10;

/// Why a file cannot be used as a core file. Offsets are in the file, behind its decompression.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CoreError {
    /// It does not begin as one does.
    #[error("it is no core file: it does not begin with an ELF header of that type")]
    NotCore,
    /// rleaks does not know the machine.
    #[error(
        "it is the core file of a machine that rleaks does not know (ELF class {0}, byte order {1}, \
         machine {2}): it knows i386, x86-64 and aarch64"
    )]
    Machine(u8, u8, u16),
    /// Something in it makes no sense.
    #[error("the core file is damaged at offset {0:#x}: {1}")]
    Damaged(u64, &'static str),
    /// It ends before its headers do.
    #[error(
        "the core file is cut short: {1} at offset {0:#x} lie behind its end; save or copy it again"
    )]
    CutShort(u64, &'static str),
}

/// The instruction set of a target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Machine {
    /// 32 bits, Intel.
    I386,
    /// 64 bits, Intel and AMD.
    #[default]
    X86_64,
    /// 64 bits, ARM.
    Aarch64,
}

impl Machine {
    /// The size of its pointers.
    #[must_use]
    pub fn width(self) -> Width {
        match self {
            Self::I386 => Width::Four,
            Self::X86_64 | Self::Aarch64 => Width::Eight,
        }
    }

    /// Its name, as `uname -m` has it but for i386.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::I386 => "i386",
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }
}

/// A `PT_LOAD`: a part of the target's address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CoreSegment {
    /// Where it lies in the target.
    pub range: AddrRange,
    /// Where its bytes begin in the file.
    pub offset: u64,
    /// How many bytes of it the file is to hold.
    pub wanted: u64,
    /// How many bytes of it the file does hold.
    pub saved: u64,
    /// The target could read it.
    pub readable: bool,
    /// The target could write it.
    pub writable: bool,
    /// The target could execute it.
    pub executable: bool,
}

impl CoreSegment {
    /// The part that the file holds.
    #[must_use]
    pub fn saved_range(&self) -> AddrRange {
        AddrRange::with_size(self.range.start, self.saved)
    }
}

/// A note.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CoreNote {
    /// Its owner: `CORE`, `LINUX` or `RLEAKS`; empty for others.
    pub owner: &'static str,
    /// Its type, which means what the owner says.
    pub kind: u32,
    /// Where its content begins in the file.
    pub offset: u64,
    /// The bytes of its content.
    pub size: u64,
}

/// A core file whose headers were read.
pub struct CoreFile {
    /// The file itself.
    pub bytes: Arc<dyn FileBytes>,
    /// What machine it is of.
    pub machine: Machine,
    /// Its segments in ascending order, without overlaps.
    pub segments: Vec<CoreSegment>,
    /// Its notes in their order.
    pub notes: Vec<CoreNote>,
}

impl std::fmt::Debug for CoreFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CoreFile")
            .field("machine", &self.machine)
            .field("segments", &self.segments.len())
            .field("notes", &self.notes.len())
            .finish_non_exhaustive()
    }
}

impl CoreFile {
    /// Reads the headers of `bytes`.
    ///
    /// # Errors
    /// It is no core file, or one whose headers are damaged. One that lacks only memory is none of these.
    pub fn parse(bytes: Arc<dyn FileBytes>) -> Result<Self, CoreError> {
        let mut reader = Reader::new(&*bytes);
        let header = Header::read(&mut reader)?;
        let (mut segments, mut notes) = (Vec::new(), Vec::new());
        // Parts that share bytes could stand for any amount of memory.
        let mut left = bytes.size();
        let mut take = |at, size| {
            let rest = left.checked_sub(size);
            left = rest.ok_or(CoreError::Damaged(at, "a part that lies in another one"))?;
            Ok(())
        };
        for index in 0..header.count {
            let at = header
                .table
                .saturating_add(index.saturating_mul(header.entry_size()));
            let entry = ProgramHeader::read(&mut reader, at, header.machine.width())?;
            match entry.kind {
                PT_LOAD if entry.memory_size > 0 => {
                    let segment = entry.segment(at, bytes.size())?;
                    take(at, segment.saved)?;
                    segments.push((at, segment));
                }
                PT_NOTE => {
                    take(at, entry.file_size.min(bytes.size()))?;
                    read_notes(&*bytes, (entry.offset, entry.file_size), &mut notes)?;
                }
                _ => {}
            }
        }
        Ok(Self {
            machine: header.machine,
            segments: ordered(segments)?,
            notes,
            bytes,
        })
    }

    /// The content of `note`; `None` where the file ends before it does, or where it has more than `limit`
    /// bytes.
    #[must_use]
    pub fn content(&self, note: &CoreNote, limit: u64) -> Option<Vec<u8>> {
        if note.size > limit.min(self.bytes.size()) {
            return None;
        }
        let mut content = vec![0; usize::try_from(note.size).ok()?];
        (self.bytes.read_at(note.offset, &mut content) == content.len()).then_some(content)
    }

    /// What of the target's memory the file has, in ascending order.
    #[must_use]
    pub fn saved_parts(&self) -> Vec<Part> {
        let segments = self.segments.iter().filter(|segment| segment.saved > 0);
        let parts = segments.map(|segment| Part {
            range: segment.saved_range(),
            file: 0,
            offset: segment.offset,
        });
        parts.collect()
    }

    /// The bytes that the headers promise and the file does not have.
    #[must_use]
    pub fn missing_bytes(&self) -> u64 {
        let missing = |segment: &CoreSegment| segment.wanted.saturating_sub(segment.saved);
        let sum = |sum: u64, missing| sum.saturating_add(missing);
        self.segments.iter().map(missing).fold(0, sum)
    }
}

/// What the file header says.
struct Header {
    machine: Machine,
    /// Where the program headers begin.
    table: u64,
    /// How many there are.
    count: u64,
}

impl Header {
    fn read(reader: &mut Reader<'_>) -> Result<Self, CoreError> {
        let start = reader.bytes(0, 20).ok_or(CoreError::NotCore)?;
        let start: [u8; 20] = *start.first_chunk().ok_or(CoreError::NotCore)?;
        // The class, the byte order, and behind ten others the type and the machine.
        let [0x7f, b'E', b'L', b'F', class, order, .., k0, k1, m0, m1] = start else {
            return Err(CoreError::NotCore);
        };
        let half = |bytes| match order {
            2 => u16::from_be_bytes(bytes),
            _ => u16::from_le_bytes(bytes),
        };
        if half([k0, k1]) != ET_CORE {
            return Err(CoreError::NotCore);
        }
        let machine = match (class, order, half([m0, m1])) {
            (1, 1, EM_386) => Machine::I386,
            (2, 1, EM_X86_64) => Machine::X86_64,
            (2, 1, EM_AARCH64) => Machine::Aarch64,
            (class, order, machine) => return Err(CoreError::Machine(class, order, machine)),
        };
        let width = machine.width();
        let (table, sections, entry_size, count) = match width {
            Width::Four => (28, 32, 42, 44),
            Width::Eight => (32, 40, 54, 56),
        };
        let mut header = Self {
            machine,
            table: reader.word(width, table)?,
            count: reader.half(count)?.into(),
        };
        if u64::from(reader.half(entry_size)?) != header.entry_size() {
            return Err(CoreError::Damaged(
                entry_size,
                "program headers of another size",
            ));
        }
        if header.count == u64::from(PN_XNUM) {
            let sections = reader.word(width, sections)?;
            let info = if width == Width::Four { 28 } else { 44 };
            header.count = reader.word(Width::Four, sections.saturating_add(info))?;
        }
        let size = header.count.saturating_mul(header.entry_size());
        if header.table.saturating_add(size) > reader.file.size() {
            return Err(CoreError::CutShort(header.table, "program headers"));
        }
        Ok(header)
    }

    fn entry_size(&self) -> u64 {
        match self.machine.width() {
            Width::Four => 32,
            Width::Eight => 56,
        }
    }
}

/// A program header, `Elf64_Phdr` and `Elf32_Phdr` in `<elf.h>`.
struct ProgramHeader {
    kind: u32,
    flags: u32,
    offset: u64,
    addr: u64,
    file_size: u64,
    memory_size: u64,
}

impl ProgramHeader {
    fn read(reader: &mut Reader<'_>, at: u64, width: Width) -> Result<Self, CoreError> {
        let (flags, offset, addr, file_size, memory_size) = match width {
            Width::Four => (24, 4, 8, 16, 20),
            Width::Eight => (4, 8, 16, 32, 40),
        };
        let mut word = |width, field: u64| reader.word(width, at.saturating_add(field));
        let mut small =
            |field| word(Width::Four, field).map(|word| u32::try_from(word).unwrap_or(0));
        Ok(Self {
            kind: small(0)?,
            flags: small(flags)?,
            offset: word(width, offset)?,
            addr: word(width, addr)?,
            file_size: word(width, file_size)?,
            memory_size: word(width, memory_size)?,
        })
    }

    /// The segment of a `PT_LOAD` at `at` in a file of `size` bytes.
    fn segment(&self, at: u64, size: u64) -> Result<CoreSegment, CoreError> {
        let end = self.addr.checked_add(self.memory_size);
        let end = end.ok_or(CoreError::Damaged(at, "a segment that does not end"))?;
        if self.file_size > self.memory_size {
            return Err(CoreError::Damaged(
                at,
                "a segment with more bytes than memory",
            ));
        }
        Ok(CoreSegment {
            range: AddrRange::new(Addr(self.addr), Addr(end)),
            offset: self.offset,
            wanted: self.file_size,
            saved: self.file_size.min(size.saturating_sub(self.offset)),
            readable: self.flags & PF_R != 0,
            writable: self.flags & PF_W != 0,
            executable: self.flags & PF_X != 0,
        })
    }
}

/// The segments in ascending order. With each comes where its header is.
fn ordered(mut segments: Vec<(u64, CoreSegment)>) -> Result<Vec<CoreSegment>, CoreError> {
    segments.sort_by_key(|(_, segment)| segment.range.start);
    let overlapping = segments
        .array_windows()
        .find(|[(_, one), (_, next)]| next.range.start < one.range.end);
    if let Some([_, (at, _)]) = overlapping {
        return Err(CoreError::Damaged(
            *at,
            "a segment that overlaps another one",
        ));
    }
    Ok(segments.into_iter().map(|(_, segment)| segment).collect())
}

/// Reads the notes in a part of the file: where it begins, and its size.
fn read_notes(
    file: &dyn FileBytes,
    (start, size): (u64, u64),
    notes: &mut Vec<CoreNote>,
) -> Result<(), CoreError> {
    let end = start.saturating_add(size);
    if end > file.size() {
        return Err(CoreError::CutShort(start, "notes"));
    }
    let mut reader = Reader::new(file);
    let mut at = start;
    // The last one may be followed by padding.
    while end.saturating_sub(at) >= 12 {
        let mut number = |field: u64| reader.word(Width::Four, at.saturating_add(field));
        let (name_size, content_size, kind) = (number(0)?, number(4)?, number(8)?);
        let name_at = at.saturating_add(12);
        let offset = name_at.saturating_add(name_size.next_multiple_of(4));
        let next = offset.saturating_add(content_size);
        if next > end {
            return Err(CoreError::Damaged(
                at,
                "a note that is larger than its place",
            ));
        }
        // Each takes bytes of the file, unless headers name the same ones again and again.
        if notes.len() as u64 >= file.size() / NOTE_HEADER {
            return Err(CoreError::Damaged(
                at,
                "more notes than the file has room for",
            ));
        }
        notes.push(CoreNote {
            owner: owner(reader.bytes(name_at, usize::try_from(name_size.min(8)).unwrap_or(0))),
            kind: u32::try_from(kind).unwrap_or(0),
            offset,
            size: content_size,
        });
        at = next.next_multiple_of(4);
    }
    Ok(())
}

fn owner(name: Option<&[u8]>) -> &'static str {
    match name {
        // Not every writer counts the zero.
        Some(b"CORE\0" | b"CORE") => "CORE",
        Some(b"LINUX\0" | b"LINUX") => "LINUX",
        Some(b"RLEAKS\0") => "RLEAKS",
        _ => "",
    }
}

/// Reads a file ahead, so that each number does not cost a system call.
struct Reader<'a> {
    file: &'a dyn FileBytes,
    start: u64,
    buffer: Vec<u8>,
}

impl<'a> Reader<'a> {
    fn new(file: &'a dyn FileBytes) -> Self {
        Self {
            file,
            start: 0,
            buffer: Vec::new(),
        }
    }

    /// The `size` bytes at `at`, which are few.
    fn bytes(&mut self, at: u64, size: usize) -> Option<&[u8]> {
        if self.buffered(at, size).is_none() {
            self.buffer.resize(PIECE, 0);
            let count = self.file.read_at(at, &mut self.buffer);
            self.buffer.truncate(count);
            self.start = at;
        }
        self.buffered(at, size)
    }

    fn buffered(&self, at: u64, size: usize) -> Option<&[u8]> {
        let start = usize::try_from(at.checked_sub(self.start)?).ok()?;
        self.buffer.get(start..)?.get(..size)
    }

    fn word(&mut self, width: Width, at: u64) -> Result<u64, CoreError> {
        let bytes = self.bytes(at, width.size());
        let word = bytes.and_then(|bytes| width.word(bytes));
        word.ok_or(CoreError::CutShort(at, "headers"))
    }

    fn half(&mut self, at: u64) -> Result<u16, CoreError> {
        let bytes = self.bytes(at, 2).and_then(|bytes| bytes.first_chunk());
        let half = bytes.map(|bytes| u16::from_le_bytes(*bytes));
        half.ok_or(CoreError::CutShort(at, "headers"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A core file with `count` segments of this type, each of which has the same 1,200 bytes behind the
    /// headers.
    fn core(kind: u8, count: u16) -> Vec<u8> {
        let mut file = vec![0; 64];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        (file[16], file[18], file[32], file[54]) = (4, 62, 64, 56);
        file[56..58].copy_from_slice(&count.to_le_bytes());
        let at = 64 + 56 * u64::from(count);
        for number in 0..u64::from(count) {
            let mut header = [0; 56];
            header[0] = kind;
            header[8..16].copy_from_slice(&at.to_le_bytes());
            header[16..24].copy_from_slice(&(4096 * number).to_le_bytes());
            for size in [32, 40] {
                header[size..size + 8].copy_from_slice(&1200_u64.to_le_bytes());
            }
            file.extend(header);
        }
        file.resize(file.len() + 1200, 0);
        file
    }

    #[test]
    fn parts_that_all_lie_in_the_same_place_are_refused() {
        for kind in [1, 4] {
            let parse = |count| CoreFile::parse(Arc::new(core(kind, count)));
            let one = parse(1).expect("a core file");
            assert_eq!(
                (one.segments.len(), one.notes.len()),
                if kind == 1 { (1, 0) } else { (0, 100) }
            );
            let error = parse(100).expect_err("a damaged file");
            assert!(matches!(error, CoreError::Damaged(..)), "{error}");
        }
    }
}
