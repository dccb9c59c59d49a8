//! Core files made of nothing, for tests.

use std::sync::Arc;

use super::{FileBytes, ImageFiles, Machine};
use crate::memory::Width;

const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;

/// A segment of a core file.
pub(crate) struct Load {
    pub(crate) start: u64,
    /// `PF_R` is 4, `PF_W` is 2, `PF_X` is 1.
    pub(crate) flags: u32,
    pub(crate) memory_size: u64,
    pub(crate) bytes: Vec<u8>,
}

/// A core file that is put together part by part.
pub(crate) struct CoreBuilder {
    machine: Machine,
    loads: Vec<Load>,
    notes: Vec<u8>,
}

impl CoreBuilder {
    /// One without segments and notes.
    pub(crate) fn new(machine: Machine) -> Self {
        Self {
            machine,
            loads: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// Adds readable and writable memory that the file has.
    pub(crate) fn memory(self, start: u64, bytes: &[u8]) -> Self {
        self.load(Load {
            start,
            flags: 6,
            memory_size: bytes.len() as u64,
            bytes: bytes.to_vec(),
        })
    }

    /// Adds a segment.
    pub(crate) fn load(mut self, load: Load) -> Self {
        self.loads.push(load);
        self
    }

    /// Adds a note.
    pub(crate) fn note(mut self, owner: &str, kind: u32, content: &[u8]) -> Self {
        let name_size = u32::try_from(owner.len() + 1).expect("short");
        let size = u32::try_from(content.len()).expect("short");
        for number in [name_size, size, kind] {
            self.notes.extend(number.to_le_bytes());
        }
        self.notes.extend(owner.bytes());
        self.notes.push(0);
        self.notes.resize(self.notes.len().next_multiple_of(4), 0);
        self.notes.extend(content);
        self.notes.resize(self.notes.len().next_multiple_of(4), 0);
        self
    }

    /// Adds a thread with these general registers.
    pub(crate) fn thread(self, tid: u32, registers: &[u64]) -> Self {
        let (id_at, registers_at, size) = match self.machine {
            Machine::I386 => (24, 72, 144),
            Machine::X86_64 => (32, 112, 336),
            Machine::Aarch64 => (32, 112, 392),
        };
        let mut status = vec![0; size];
        status[id_at..id_at + 4].copy_from_slice(&tid.to_le_bytes());
        let width = self.machine.width();
        for (index, register) in registers.iter().enumerate() {
            let at = registers_at + index * width.size();
            status[at..at + width.size()].copy_from_slice(&register.to_le_bytes()[..width.size()]);
        }
        self.note("CORE", 1, &status)
    }

    /// Adds the auxiliary vector.
    pub(crate) fn auxv(self, entries: &[(u64, u64)]) -> Self {
        let content = self.words(entries.iter().flat_map(|(kind, value)| [*kind, *value]));
        self.note("CORE", 6, &content)
    }

    /// Adds which files are mapped: start, end, offset in pages, path.
    pub(crate) fn files(self, files: &[(u64, u64, u64, &str)]) -> Self {
        let head = [files.len() as u64, 4096];
        let ranges = files
            .iter()
            .flat_map(|(start, end, page, _)| [*start, *end, *page]);
        let mut content = self.words(head.into_iter().chain(ranges));
        for (.., path) in files {
            content.extend(path.bytes());
            content.push(0);
        }
        self.note("CORE", 0x4649_4c45, &content)
    }

    fn words(&self, words: impl Iterator<Item = u64>) -> Vec<u8> {
        let width = self.machine.width();
        words
            .flat_map(|word| word.to_le_bytes()[..width.size()].to_vec())
            .collect()
    }

    /// The bytes of the file: headers, notes, memory.
    pub(crate) fn build(&self) -> Vec<u8> {
        let (header_size, entry_size) = self.sizes();
        let table_end = header_size + entry_size * (self.loads.len() + 1);
        let mut file = self.header(u16::try_from(self.loads.len() + 1).expect("few"));
        let mut offset = (table_end + self.notes.len()) as u64;
        let notes_size = self.notes.len() as u64;
        file.extend(self.entry(PT_NOTE, 0, (table_end as u64, 0, notes_size, 0)));
        for load in &self.loads {
            let size = load.bytes.len() as u64;
            let place = (offset, load.start, size, load.memory_size);
            file.extend(self.entry(PT_LOAD, load.flags, place));
            offset += size;
        }
        file.extend(&self.notes);
        for load in &self.loads {
            file.extend(&load.bytes);
        }
        file
    }

    /// Where the header of segment `index` stands in the file.
    pub(crate) fn header_of(&self, index: usize) -> usize {
        let (header_size, entry_size) = self.sizes();
        header_size + entry_size * (index + 1)
    }

    fn sizes(&self) -> (usize, usize) {
        match self.machine.width() {
            Width::Four => (52, 32),
            Width::Eight => (64, 56),
        }
    }

    fn header(&self, count: u16) -> Vec<u8> {
        let (class, machine): (u8, u16) = match self.machine {
            Machine::I386 => (1, 3),
            Machine::X86_64 => (2, 62),
            Machine::Aarch64 => (2, 183),
        };
        let (header_size, entry_size) = self.sizes();
        let mut header = b"\x7fELF".to_vec();
        header.extend([class, 1, 1]);
        header.resize(16, 0);
        header.extend(4_u16.to_le_bytes());
        header.extend(machine.to_le_bytes());
        header.extend(1_u32.to_le_bytes());
        let word = self.machine.width().size();
        // The entry, the program headers, no section headers; then the flags.
        for at in [0, header_size as u64, 0] {
            header.extend(&at.to_le_bytes()[..word]);
        }
        header.extend(0_u32.to_le_bytes());
        for number in [header_size, entry_size] {
            header.extend(u16::try_from(number).expect("small").to_le_bytes());
        }
        header.extend(count.to_le_bytes());
        header.resize(header_size, 0);
        header
    }

    /// A program header; its place is the offset, the address, and the sizes in the file and in memory.
    fn entry(&self, kind: u32, flags: u32, place: (u64, u64, u64, u64)) -> Vec<u8> {
        let (offset, start, size, memory_size) = place;
        let mut entry = kind.to_le_bytes().to_vec();
        match self.machine.width() {
            Width::Eight => {
                entry.extend(flags.to_le_bytes());
                for word in [offset, start, 0, size, memory_size, 1] {
                    entry.extend(word.to_le_bytes());
                }
            }
            Width::Four => {
                for word in [offset, start, 0, size, memory_size, u64::from(flags), 1] {
                    entry.extend(&word.to_le_bytes()[..4]);
                }
            }
        }
        entry
    }
}

/// None of the target's files is here.
pub(crate) struct NoFiles;

impl ImageFiles for NoFiles {
    fn open(&self, _: &str, _: bool) -> Option<Arc<dyn FileBytes>> {
        None
    }
}
