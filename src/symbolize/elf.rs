//! ELF files: sections, and what symbolizing needs of them.
//!
//! A file may be hostile. Nothing here trusts a size: sections must lie in the file, and what
//! they decompress to is limited.

use goblin::container::{Container, Ctx, Endian};
use goblin::elf::Elf;
use goblin::elf::header::{ELFCLASS32, ELFCLASS64, ELFDATA2LSB, Header};
use goblin::elf::note::NT_GNU_BUILD_ID;
use goblin::elf::section_header::{
    SHF_ALLOC, SHF_COMPRESSED, SHF_EXECINSTR, SHN_ABS, SHN_UNDEF, SHN_XINDEX, SHT_NOBITS, SHT_NOTE,
    SHT_SYMTAB, SectionHeader,
};
use goblin::elf::sym::{STB_LOCAL, STT_FUNC, STT_GNU_IFUNC, STT_NOTYPE, STT_OBJECT, Sym};
use liblzma::read::XzDecoder;
use liblzma::stream::{CONCATENATED, Stream};

use super::compression::{
    ANNOUNCEMENT, announced_size, decompressed, gnu_decompressed, read_limited,
};
use super::table::TableBuilder;
use crate::addr::{Addr, AddrRange, RangeSet};
use crate::platform::RegularFile;

/// A larger section is not read: a sparse file can claim any size.
const MAX_SECTION: u64 = 1 << 30;
const MAX_SECTIONS: u64 = 1 << 20;
/// Sections of notes, and the bytes of each. All of them could name the same large part of a file.
const MAX_NOTES: usize = 64;
const MAX_NOTES_SIZE: u64 = 64 << 10;
const MAX_MINI_DEBUG_INFO: u64 = 256 << 20;
const XZ_MEMORY: u64 = 256 << 20;
const HEADER_SIZE: usize = 64;
/// Symbols that are decoded at a time.
const BATCH: usize = 16 << 10;

/// The bytes of an ELF file: a file of the target, or a file inside such a file.
pub(super) trait Bytes {
    /// How many there are.
    fn size(&self) -> u64;

    /// Fills `buf` with those at `offset`, and says whether there are that many.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> bool;
}

impl Bytes for RegularFile {
    fn size(&self) -> u64 {
        Self::size(self)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> bool {
        Self::read_at(self, offset, buf)
    }
}

impl Bytes for Vec<u8> {
    fn size(&self) -> u64 {
        self.len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> bool {
        let part = usize::try_from(offset)
            .ok()
            .and_then(|start| self.get(start..)?.get(..buf.len()));
        part.map(|part| buf.copy_from_slice(part)).is_some()
    }
}

/// A file that another one shares its debug information with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SupplementLink {
    /// Its path, absolute or from the directory of the other one.
    pub(super) name: String,
    /// Its build id or checksum.
    pub(super) id: Vec<u8>,
}

/// A little-endian ELF file.
#[derive(Debug)]
pub(super) struct ElfFile<B> {
    bytes: B,
    class: Ctx,
    sections: Vec<SectionHeader>,
    names: Vec<u8>,
}

impl<B: Bytes> ElfFile<B> {
    /// Reads the section headers; `None` if `bytes` is no ELF file of the right kind or is cut
    /// short.
    pub(super) fn parse(bytes: B) -> Option<Self> {
        let (class, header) = header(&bytes)?;
        let sections = section_headers(&bytes, class, &header)?;
        let mut file = Self {
            bytes,
            class,
            sections,
            names: Vec::new(),
        };
        file.names = file.section_names(&header).unwrap_or_default();
        Some(file)
    }

    pub(super) fn bytes(&self) -> &B {
        &self.bytes
    }

    fn section_names(&self, header: &Header) -> Option<Vec<u8>> {
        let index = if u32::from(header.e_shstrndx) == SHN_XINDEX {
            self.sections.first()?.sh_link as usize
        } else {
            usize::from(header.e_shstrndx)
        };
        self.contents(self.sections.get(index)?)
    }

    /// The contents of the section named `name`, decompressed.
    pub(super) fn section(&self, name: &str) -> Option<Vec<u8>> {
        self.contents(self.named(name)?)
    }

    /// The contents of the section named `.debug_…`, also where it is a `.zdebug_…`.
    pub(super) fn debug_section(&self, name: &str) -> Option<Vec<u8>> {
        if let Some(section) = self.named(name) {
            return self.contents(section);
        }
        let packed = self.section(&name.replacen(".debug_", ".zdebug_", 1))?;
        gnu_decompressed(&packed, MAX_SECTION)
    }

    /// Says whether there are contents of a section named `.debug_…`, or `.zdebug_…`.
    pub(super) fn has(&self, name: &str) -> bool {
        let names = [name, &name.replacen(".debug_", ".zdebug_", 1)];
        let mut sections = names.iter().filter_map(|name| self.named(name));
        sections.any(|section| section.sh_type != SHT_NOBITS && section.sh_size > 0)
    }

    /// The size that the section named `.debug_…` says it has when it is decompressed.
    pub(super) fn debug_section_size(&self, name: &str) -> Option<u64> {
        let (section, is_gnu) = match self.named(name) {
            Some(section) => (section, false),
            None => (self.named(&name.replacen(".debug_", ".zdebug_", 1))?, true),
        };
        let is_packed = is_gnu || section.sh_flags & u64::from(SHF_COMPRESSED) != 0;
        if section.sh_type == SHT_NOBITS || !is_packed {
            return (section.sh_type != SHT_NOBITS).then_some(section.sh_size);
        }
        let start = section.sh_size.min(ANNOUNCEMENT);
        let start = read(&self.bytes, section.sh_offset, start)?;
        announced_size(&start, is_gnu, self.class)
    }

    /// Says whether there is DWARF in the file: a debug file, or one that was not stripped.
    pub(super) fn has_debug_info(&self) -> bool {
        self.has(".debug_info")
    }

    fn named(&self, name: &str) -> Option<&SectionHeader> {
        self.sections.iter().find(|section| {
            let tail = self.names.get(section.sh_name..).unwrap_or_default();
            tail.strip_prefix(name.as_bytes())
                .is_some_and(|rest| rest.first() == Some(&0))
        })
    }

    fn contents(&self, section: &SectionHeader) -> Option<Vec<u8>> {
        if section.sh_type == SHT_NOBITS {
            return None;
        }
        let raw = read(&self.bytes, section.sh_offset, section.sh_size)?;
        if section.sh_flags & u64::from(SHF_COMPRESSED) == 0 {
            return Some(raw);
        }
        decompressed(&raw, self.class, MAX_SECTION)
    }

    /// The GNU build id.
    pub(super) fn build_id(&self) -> Option<Vec<u8>> {
        let is_note = |s: &&SectionHeader| s.sh_type == SHT_NOTE && s.sh_size <= MAX_NOTES_SIZE;
        let notes = self.sections.iter().filter(is_note);
        notes
            .take(MAX_NOTES)
            .filter_map(|section| self.contents(section))
            .find_map(|notes| gnu_build_id(&notes))
    }

    /// The name and the CRC of the file that has the debug information of this one.
    pub(super) fn debug_link(&self) -> Option<(String, u32)> {
        let link = self.section(".gnu_debuglink")?;
        let end = link.iter().position(|byte| *byte == 0)?;
        let name = str::from_utf8(&link[..end]).ok()?;
        let crc = word32(&link, (end + 1).next_multiple_of(4))?;
        let is_plain = !name.is_empty() && name != "." && name != ".." && !name.contains('/');
        is_plain.then(|| (name.to_owned(), crc))
    }

    /// What names the file that this one shares debug information with: `.gnu_debugaltlink`, or
    /// `.debug_sup` of DWARF 5.
    pub(super) fn supplement_link(&self) -> Option<SupplementLink> {
        if let Some(link) = self.section(".gnu_debugaltlink") {
            let end = link.iter().position(|byte| *byte == 0)?;
            return Some(SupplementLink {
                name: str::from_utf8(&link[..end]).ok()?.to_owned(),
                id: link[end + 1..].to_vec(),
            });
        }
        let (is_supplement, link) = self.debug_sup()?;
        (!is_supplement).then_some(link)
    }

    /// What files that share debug information with this one name it by.
    pub(super) fn supplement_id(&self) -> Option<Vec<u8>> {
        match self.debug_sup() {
            Some((true, link)) => Some(link.id),
            _ => self.build_id(),
        }
    }

    /// `.debug_sup`: whether this file is what others share, a name, and a checksum.
    fn debug_sup(&self) -> Option<(bool, SupplementLink)> {
        let section = self.section(".debug_sup")?;
        let ([_, _, is_supplement], rest) = section.split_first_chunk()?;
        let end = rest.iter().position(|byte| *byte == 0)?;
        let (length, id) = rest[end + 1..].split_first()?;
        let link = SupplementLink {
            name: str::from_utf8(&rest[..end]).ok()?.to_owned(),
            // A checksum of 128 bytes and more would have a longer length.
            id: id.get(..usize::from(*length))?.to_vec(),
        };
        Some((*is_supplement == 1, link))
    }

    /// The ELF file inside `.gnu_debugdata`: the symbols of a stripped file, compressed by xz.
    pub(super) fn mini_debug_info(&self) -> Option<ElfFile<Vec<u8>>> {
        let packed = self.section(".gnu_debugdata")?;
        let stream = Stream::new_stream_decoder(XZ_MEMORY, CONCATENATED).ok()?;
        let decoder = XzDecoder::new_stream(packed.as_slice(), stream);
        ElfFile::parse(read_limited(decoder, MAX_MINI_DEBUG_INFO)?)
    }

    /// The addresses of its code: those of its executable sections.
    pub(super) fn code(&self) -> RangeSet {
        let flags = u64::from(SHF_ALLOC | SHF_EXECINSTR);
        let sections = self.sections.iter();
        let code = sections.filter(|section| section.sh_flags & flags == flags);
        code.map(|section| AddrRange::with_size(Addr(section.sh_addr), section.sh_size))
            .collect()
    }

    /// Says whether the file has a symbol table of type `kind` (`SHT_SYMTAB`, `SHT_DYNSYM`).
    pub(super) fn has_symbols(&self, kind: u32) -> bool {
        self.symbol_table(kind).is_some()
    }

    fn symbol_table(&self, kind: u32) -> Option<&SectionHeader> {
        self.sections.iter().find(|section| section.sh_type == kind)
    }

    /// Adds the data objects of the symbol table of type `kind` to `table`.
    pub(super) fn add_data_symbols(&self, kind: u32, table: &mut TableBuilder) -> Option<()> {
        self.each_symbol(kind, |symbol, name| {
            if is_data(symbol) {
                let is_local = symbol.st_bind() == STB_LOCAL;
                table.add(symbol.st_value, symbol.st_size, name, is_local);
            }
        })
    }

    /// Adds the functions of the symbol table of type `kind` to `table`.
    ///
    /// Those without a size are functions that were written in assembler. They end where the next
    /// symbol of their section starts; but only a table that has local symbols, too, tells where
    /// that is.
    pub(super) fn add_functions(&self, kind: u32, table: &mut TableBuilder) -> Option<()> {
        let mut has_locals = false;
        let known = table.unsized_count();
        let result = self.each_symbol(kind, |symbol, name| {
            let Some(section) = self.code_section(symbol) else {
                return;
            };
            let is_local = symbol.st_bind() == STB_LOCAL;
            has_locals |= is_local && symbol.st_type() == STT_FUNC;
            if symbol.st_size > 0 {
                table.add(symbol.st_value, symbol.st_size, name, is_local);
            } else {
                let end = section.sh_addr.saturating_add(section.sh_size);
                table.add_unsized(symbol.st_value, end, name, is_local);
            }
        });
        if kind != SHT_SYMTAB || !has_locals {
            table.forget_unsized(known);
        }
        result
    }

    /// The section that `symbol` names code in.
    fn code_section(&self, symbol: &Sym) -> Option<&SectionHeader> {
        let is_code = matches!(symbol.st_type(), STT_FUNC | STT_GNU_IFUNC | STT_NOTYPE);
        let section = self.sections.get(symbol.st_shndx).filter(|_| is_code)?;
        let offset = symbol.st_value.checked_sub(section.sh_addr)?;
        let is_inside =
            section.sh_flags & u64::from(SHF_EXECINSTR) != 0 && offset < section.sh_size;
        (symbol.st_shndx != 0 && is_inside).then_some(section)
    }

    fn each_symbol(&self, kind: u32, mut visit: impl FnMut(&Sym, &[u8])) -> Option<()> {
        let section = self.symbol_table(kind)?;
        let strings = self.sections.get(section.sh_link as usize)?;
        let strings = self.contents(strings)?;
        let symbols = self.contents(section)?;
        let size = Sym::size(self.class.container);
        for batch in symbols.chunks(BATCH * size) {
            let symbols = Sym::parse(batch, 0, batch.len() / size, self.class).ok()?;
            for symbol in &symbols {
                visit(symbol, strings.get(symbol.st_name..).unwrap_or_default());
            }
        }
        Some(())
    }
}

/// Thread-local objects are no data here: their values are no addresses.
fn is_data(symbol: &Sym) -> bool {
    let section = u32::try_from(symbol.st_shndx).unwrap_or(SHN_UNDEF);
    symbol.st_type() == STT_OBJECT && section != SHN_UNDEF && section != SHN_ABS
}

/// The class and the header of a file.
fn header(bytes: &impl Bytes) -> Option<(Ctx, Header)> {
    let start = read(bytes, 0, HEADER_SIZE as u64)?;
    let container = match (start[4], start[5]) {
        (ELFCLASS32, ELFDATA2LSB) => Container::Little,
        (ELFCLASS64, ELFDATA2LSB) => Container::Big,
        _ => return None,
    };
    let class = Ctx::new(container, Endian::Little);
    let header = Elf::parse_header(&start).ok()?;
    (usize::from(header.e_shentsize) == SectionHeader::size(class)).then_some((class, header))
}

fn section_headers(bytes: &impl Bytes, class: Ctx, header: &Header) -> Option<Vec<SectionHeader>> {
    let table = |count: u64| {
        let raw = read(
            bytes,
            header.e_shoff,
            count.checked_mul(header.e_shentsize.into())?,
        )?;
        let count = usize::try_from(count).ok()?;
        SectionHeader::parse_from(&raw, 0, count, class).ok()
    };
    if header.e_shoff == 0 {
        return None;
    }
    // Where the header's 16 bits do not suffice, the first section's size is the count.
    let count = match u64::from(header.e_shnum) {
        0 => table(1)?.first()?.sh_size,
        count => count,
    };
    (1..=MAX_SECTIONS).contains(&count).then(|| table(count))?
}

fn read(bytes: &impl Bytes, offset: u64, size: u64) -> Option<Vec<u8>> {
    let end = offset.checked_add(size)?;
    if end > bytes.size() || size > MAX_SECTION {
        return None;
    }
    let mut buf = vec![0; usize::try_from(size).ok()?];
    bytes.read_at(offset, &mut buf).then_some(buf)
}

/// The build id among `notes`, whose fields are aligned to four bytes.
fn gnu_build_id(mut notes: &[u8]) -> Option<Vec<u8>> {
    loop {
        let name_size = word32(notes, 0)? as usize;
        let size = word32(notes, 4)? as usize;
        let kind = word32(notes, 8)?;
        let name = notes.get(12..)?.get(..name_size)?;
        let rest = notes.get(12 + name_size.next_multiple_of(4)..)?;
        let description = rest.get(..size)?;
        if kind == NT_GNU_BUILD_ID && name == b"GNU\0" {
            return Some(description.to_vec());
        }
        notes = rest.get(size.next_multiple_of(4)..)?;
    }
}

fn word32(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_le_bytes(*bytes))
}
