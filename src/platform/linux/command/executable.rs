//! What the file of a program says about how it will run.

use goblin::container::{Container, Ctx, Endian};
use goblin::elf::header::{ELFCLASS32, ELFCLASS64, ELFDATA2LSB, Header, header32, header64};
use goblin::elf::program_header::{PT_INTERP, ProgramHeader};
use goblin::elf::section_header::{SHN_UNDEF, SHT_DYNSYM, SectionHeader};
use goblin::elf::sym::Sym;

/// Larger tables than these are not looked at: a file can claim any size.
const MAX_HEADERS: u64 = 4 << 20;
const MAX_SYMBOLS: u64 = 64 << 20;
const MAX_INTERPRETER: u64 = 4096;

/// An ELF executable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::platform::linux) struct Executable {
    /// `ELFCLASS64`, …
    pub(super) class: u8,
    /// `EM_X86_64`, …
    pub(super) machine: u16,
    /// The dynamic loader that it asks for; a static program asks for none.
    pub(super) interpreter: Option<String>,
    /// It was made by the Go compiler.
    pub(super) is_go: bool,
    /// It defines `malloc` for itself and for its libraries.
    pub(super) defines_malloc: bool,
}

/// Gives the bytes of a file at an offset, or `None` where it has not that many.
pub(in crate::platform::linux) type Read<'a> = dyn Fn(u64, u64) -> Option<Vec<u8>> + 'a;

impl Executable {
    /// Reads the headers of a file; `None` if it is no ELF file. What is cut short or makes no sense
    /// counts as not being there.
    pub(in crate::platform::linux) fn parse(read: &Read<'_>) -> Option<Self> {
        let ident = read(0, 20)?;
        if !ident.starts_with(b"\x7fELF") {
            return None;
        }
        let machine = u16::from_le_bytes([ident[18], ident[19]]);
        let known = Self {
            class: ident[4],
            machine,
            ..Self::default()
        };
        Some(known.with_tables(read).unwrap_or(known))
    }

    fn with_tables(&self, read: &Read<'_>) -> Option<Self> {
        let (container, size) = match (self.class, read(5, 1)?.first()?) {
            (ELFCLASS32, &ELFDATA2LSB) => (Container::Little, header32::SIZEOF_EHDR),
            (ELFCLASS64, &ELFDATA2LSB) => (Container::Big, header64::SIZEOF_EHDR),
            _ => return None,
        };
        let class = Ctx::new(container, Endian::Little);
        let header = goblin::elf::Elf::parse_header(&read(0, size as u64)?).ok()?;
        let sections = sections(read, &header, class).unwrap_or_default();
        Some(Self {
            interpreter: interpreter(read, &header, class),
            is_go: is_go(read, &header, &sections),
            defines_malloc: defines_malloc(read, &sections, class).unwrap_or(false),
            ..self.clone()
        })
    }
}

fn table(read: &Read<'_>, offset: u64, size: u64, count: u16) -> Option<Vec<u8>> {
    let bytes = size.checked_mul(count.into())?;
    (bytes <= MAX_HEADERS).then(|| read(offset, bytes))?
}

fn interpreter(read: &Read<'_>, header: &Header, class: Ctx) -> Option<String> {
    let size = ProgramHeader::size(class) as u64;
    let bytes = table(read, header.e_phoff, size, header.e_phnum)?;
    let segments = ProgramHeader::parse(&bytes, 0, header.e_phnum.into(), class).ok()?;
    let named = segments.iter().find(|s| s.p_type == PT_INTERP)?;
    let path = read(named.p_offset, named.p_filesz.min(MAX_INTERPRETER))?;
    let path = path.split(|byte| *byte == 0).next()?;
    Some(String::from_utf8_lossy(path).into_owned())
}

fn sections(read: &Read<'_>, header: &Header, class: Ctx) -> Option<Vec<SectionHeader>> {
    let size = SectionHeader::size(class) as u64;
    let bytes = table(read, header.e_shoff, size, header.e_shnum)?;
    SectionHeader::parse_from(&bytes, 0, header.e_shnum.into(), class).ok()
}

fn is_go(read: &Read<'_>, header: &Header, sections: &[SectionHeader]) -> bool {
    let names = sections.get(usize::from(header.e_shstrndx));
    let names = names.and_then(|names| read(names.sh_offset, names.sh_size.min(MAX_HEADERS)));
    let names = names.unwrap_or_default();
    sections.iter().any(|section| {
        let name = names.get(section.sh_name..).unwrap_or_default();
        name.starts_with(b".go.buildinfo\0")
    })
}

fn defines_malloc(read: &Read<'_>, sections: &[SectionHeader], class: Ctx) -> Option<bool> {
    let dynamic = sections.iter().find(|s| s.sh_type == SHT_DYNSYM)?;
    let names = sections.get(usize::try_from(dynamic.sh_link).ok()?)?;
    let names = read(names.sh_offset, names.sh_size.min(MAX_SYMBOLS))?;
    let bytes = read(dynamic.sh_offset, dynamic.sh_size.min(MAX_SYMBOLS))?;
    let count = bytes.len() / Sym::size(class.container);
    let symbols = Sym::parse(&bytes, 0, count, class).ok()?;
    let is_malloc = |symbol: &Sym| {
        let name = names.get(symbol.st_name..).unwrap_or_default();
        symbol.st_shndx != SHN_UNDEF as usize && name.starts_with(b"malloc\0")
    };
    Some(symbols.iter().any(is_malloc))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_file(path: &str) -> Option<Executable> {
        let bytes = std::fs::read(path).expect("a file");
        Executable::parse(&|offset, size| part(&bytes, offset, size))
    }

    fn part(bytes: &[u8], offset: u64, size: u64) -> Option<Vec<u8>> {
        let start = usize::try_from(offset).ok()?;
        let end = start.checked_add(usize::try_from(size).ok()?)?;
        bytes.get(start..end).map(<[u8]>::to_vec)
    }

    #[test]
    fn a_dynamic_program_asks_for_a_loader_and_has_no_malloc() {
        let own = of_file("/proc/self/exe").expect("an ELF file");
        assert!(own.interpreter.is_some());
        assert!(!own.is_go && !own.defines_malloc);
    }

    #[test]
    fn what_is_no_elf_file_is_nothing() {
        assert_eq!(Executable::parse(&|_, _| None), None);
        let script = b"#!/bin/sh\necho a script that is long enough";
        let read = |offset, size| part(script, offset, size);
        assert_eq!(Executable::parse(&read), None);
    }

    #[test]
    fn damaged_files_are_no_problem() {
        let bytes = std::fs::read("/proc/self/exe").expect("a file");
        let start = bytes.get(..4096).expect("4096 bytes");
        let mut damaged = start.to_vec();
        for at in 0..200 {
            for value in [0, 1, 0x7f, 0xff] {
                damaged[at] = value;
                let _ = Executable::parse(&|offset, size| part(&damaged, offset, size));
            }
            damaged[at] = start[at];
            let cut = &start[..at];
            let _ = Executable::parse(&|offset, size| part(cut, offset, size));
        }
    }
}
