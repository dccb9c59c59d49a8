//! The notes that every core file has, as `<sys/procfs.h>` and core(5) describe them.

use crate::memory::Width;
use crate::snapshot::{Process, Region, Snapshot, Thread};

const NT_PRSTATUS: u32 = 1;
const NT_PRFPREG: u32 = 2;
const NT_PRPSINFO: u32 = 3;
const NT_AUXV: u32 = 6;
const NT_FILE: u32 = 0x4649_4c45;
const NT_PRXFPREG: u32 = 0x46e6_2b7f;
const NT_X86_XSTATE: u32 = 0x202;

/// The x87 and SSE registers, which the extended state begins with.
const LEGACY_STATE: usize = 512;
const PAGE: u64 = 4096;

/// Bytes that grow: numbers of the target's width and others, little endian.
#[derive(Debug, Default)]
pub(super) struct Bytes(pub(super) Vec<u8>);

impl Bytes {
    pub(super) fn u16(&mut self, value: u16) {
        self.0.extend(value.to_le_bytes());
    }

    pub(super) fn u32(&mut self, value: u32) {
        self.0.extend(value.to_le_bytes());
    }

    /// A word of the target; on i386 the lower half of it.
    pub(super) fn word(&mut self, width: Width, value: u64) {
        let bytes = value.to_le_bytes();
        self.0.extend(bytes.iter().take(width.size()));
    }

    /// Zeros up to `size` bytes.
    pub(super) fn pad_to(&mut self, size: usize) {
        self.0.resize(size.max(self.0.len()), 0);
    }

    /// `text` in a field of `size` bytes, the last of which is zero.
    fn text(&mut self, text: &str, size: usize) {
        let end = self.0.len().saturating_add(size);
        let text = text.bytes().take(size.saturating_sub(1));
        self.0.extend(text);
        self.pad_to(end);
    }
}

/// Appends a note. Its parts are padded to multiples of 4 bytes.
pub(super) fn note(notes: &mut Bytes, owner: &str, kind: u32, content: &[u8]) {
    notes.u32(u32::try_from(owner.len().saturating_add(1)).unwrap_or(u32::MAX));
    notes.u32(u32::try_from(content.len()).unwrap_or(u32::MAX));
    notes.u32(kind);
    for part in [owner.as_bytes(), &[0]] {
        notes.0.extend(part);
    }
    notes.pad_to(notes.0.len().next_multiple_of(4));
    notes.0.extend(content);
    notes.pad_to(notes.0.len().next_multiple_of(4));
}

/// The notes of the kernel's core files, in their order: the process, then all threads, the first
/// of which has the notes of the process behind it.
pub(super) fn standard(snapshot: &Snapshot) -> Bytes {
    let mut notes = Bytes::default();
    let width = snapshot.width;
    let (first, others) = match snapshot.threads.split_first() {
        Some((first, others)) => (Some(first), others),
        None => (None, &[][..]),
    };
    if let Some(thread) = first {
        status_note(&mut notes, snapshot, thread);
    }
    note(
        &mut notes,
        "CORE",
        NT_PRPSINFO,
        &process(&snapshot.process, width),
    );
    note(&mut notes, "CORE", NT_AUXV, &auxv(snapshot));
    note(
        &mut notes,
        "CORE",
        NT_FILE,
        &files(&snapshot.regions, width),
    );
    if let Some(thread) = first {
        vector_notes(&mut notes, width, thread);
    }
    for thread in others {
        status_note(&mut notes, snapshot, thread);
        vector_notes(&mut notes, width, thread);
    }
    notes
}

fn status_note(notes: &mut Bytes, snapshot: &Snapshot, thread: &Thread) {
    note(notes, "CORE", NT_PRSTATUS, &status(snapshot, thread));
}

/// `struct elf_prstatus`.
fn status(snapshot: &Snapshot, thread: &Thread) -> Vec<u8> {
    let (width, process) = (snapshot.width, &snapshot.process);
    let (ids, registers, count) = match width {
        Width::Four => (24, 72, 17),
        Width::Eight => (32, 112, 27),
    };
    let mut bytes = Bytes::default();
    bytes.pad_to(ids);
    for id in [thread.tid, process.parent_pid, process.pid, process.pid] {
        bytes.u32(id);
    }
    bytes.pad_to(registers);
    for register in general(thread, width, count) {
        bytes.word(width, register);
    }
    // The floating-point registers are there.
    bytes.u32(u32::from(!thread.vector.is_empty()));
    bytes.pad_to(bytes.0.len().next_multiple_of(width.size()));
    bytes.0
}

/// The general registers; of a thread that could not be stopped, those that are known.
fn general(thread: &Thread, width: Width, count: usize) -> Vec<u64> {
    if thread.width.is_some() && thread.general.len() == count {
        return thread.general.clone();
    }
    let (instruction, stack) = match width {
        Width::Four => (12, 15),
        Width::Eight => (16, 19),
    };
    let known = [
        (instruction, thread.instruction_pointer.0),
        (stack, thread.stack_pointer.0),
    ];
    let value = |index| known.iter().find(|(at, _)| *at == index);
    (0..count)
        .map(|index| value(index).map_or(0, |(_, value)| *value))
        .collect()
}

fn vector_notes(notes: &mut Bytes, width: Width, thread: &Thread) {
    if let Some(legacy) = thread.vector.get(..LEGACY_STATE) {
        match width {
            Width::Four => note(notes, "LINUX", NT_PRXFPREG, legacy),
            Width::Eight => note(notes, "CORE", NT_PRFPREG, legacy),
        }
    }
    if thread.vector.len() > LEGACY_STATE {
        note(notes, "LINUX", NT_X86_XSTATE, &thread.vector);
    }
}

/// Says what the vector registers in a note of this owner and type are: `Some(true)` if they are all
/// that there are.
pub(super) fn is_vector_state(owner: &str, kind: u32) -> Option<bool> {
    match (owner, kind) {
        ("LINUX", NT_X86_XSTATE) => Some(true),
        ("LINUX", NT_PRXFPREG) | ("CORE", NT_PRFPREG) => Some(false),
        _ => None,
    }
}

/// Says whether a note of this owner and type begins a thread.
pub(super) fn is_status(owner: &str, kind: u32) -> bool {
    (owner, kind) == ("CORE", NT_PRSTATUS)
}

/// `struct elf_prpsinfo`.
fn process(process: &Process, width: Width) -> Vec<u8> {
    let mut bytes = Bytes::default();
    // State, its letter, zombie, nice.
    bytes.0.extend([0, b'R', 0, 0]);
    bytes.pad_to(width.size());
    // Flags.
    bytes.word(width, 0);
    for id in [process.user, 0] {
        match width {
            Width::Four => bytes.u16(u16::try_from(id).unwrap_or(u16::MAX)),
            Width::Eight => bytes.u32(id),
        }
    }
    for id in [process.pid, process.parent_pid, process.pid, process.pid] {
        bytes.u32(id);
    }
    bytes.text(&process.name, 16);
    bytes.text(&process.command_line.join(" "), 80);
    bytes.pad_to(bytes.0.len().next_multiple_of(width.size()));
    bytes.0
}

fn auxv(snapshot: &Snapshot) -> Vec<u8> {
    let mut bytes = Bytes::default();
    for (kind, value) in &snapshot.auxv {
        bytes.word(snapshot.width, *kind);
        bytes.word(snapshot.width, *value);
    }
    bytes.0
}

/// Which files are mapped where: the ranges, then the names.
fn files(regions: &[Region], width: Width) -> Vec<u8> {
    let mapped: Vec<&Region> = regions
        .iter()
        .filter(|region| !region.is_anonymous())
        .collect();
    let mut bytes = Bytes::default();
    bytes.word(width, mapped.len() as u64);
    bytes.word(width, PAGE);
    for region in &mapped {
        bytes.word(width, region.range.start.0);
        bytes.word(width, region.range.end.0);
        bytes.word(width, region.offset.checked_div(PAGE).unwrap_or(0));
    }
    for region in &mapped {
        bytes.0.extend(region.name.bytes());
        bytes.0.push(0);
    }
    bytes.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structs_have_the_sizes_of_both_widths() {
        let mut snapshot = Snapshot::of_memory(Box::new(crate::memory::Excerpt::default()));
        let thread = Thread::default();
        for (width, status_size, process_size) in
            [(Width::Four, 144, 124), (Width::Eight, 336, 136)]
        {
            snapshot.width = width;
            assert_eq!(status(&snapshot, &thread).len(), status_size);
            assert_eq!(process(&Process::default(), width).len(), process_size);
        }
    }

    #[test]
    fn a_note_is_padded_after_its_name_and_its_content() {
        let mut notes = Bytes::default();
        note(&mut notes, "RLEAKS", 7, b"12345");
        let expected = b"\x07\0\0\0\x05\0\0\0\x07\0\0\0RLEAKS\0\x0012345\0\0\0";
        assert_eq!(notes.0, expected);
    }
}
