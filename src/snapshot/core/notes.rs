//! The process, as the notes of a core file have it: core(5), `fs/binfmt_elf.c` of Linux.

use super::{CoreFile, Machine};
use crate::addr::{Addr, AddrRange};
use crate::memory::Width;
use crate::snapshot::Process;

const NT_PRSTATUS: u32 = 1;
const NT_PRPSINFO: u32 = 3;
const NT_AUXV: u32 = 6;
const NT_SIGINFO: u32 = 0x5349_4749;
const NT_FILE: u32 = 0x4649_4c45;

/// More than the largest note of its kind has: 2^20 mappings with long names.
const LARGEST: u64 = 1 << 30;
const LARGEST_STRUCT: u64 = 64 << 10;

/// A file that was mapped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MappedFile {
    pub(super) range: AddrRange,
    /// Where it begins in the file.
    pub(super) offset: u64,
    pub(super) path: String,
}

impl MappedFile {
    /// Where `addr`, which is in it, lies in the file.
    pub(super) fn offset_at(&self, addr: Addr) -> u64 {
        self.offset
            .saturating_add(AddrRange::new(self.range.start, addr).size())
    }
}

/// The content of the first note of `CORE` of this type.
fn content(core: &CoreFile, kind: u32, limit: u64) -> Option<Vec<u8>> {
    let mut notes = core.notes.iter();
    let note = notes.find(|note| (note.owner, note.kind) == ("CORE", kind))?;
    core.content(note, limit)
}

/// Who the process was; its executable is not known yet.
pub(super) fn process(core: &CoreFile) -> Process {
    let status = content(core, NT_PRSTATUS, LARGEST_STRUCT).unwrap_or_default();
    let info = content(core, NT_PRPSINFO, LARGEST_STRUCT).unwrap_or_default();
    let (user, pid, name): (_, usize, usize) = match core.machine {
        Machine::I386 => (half(&info, 8).map(u32::from), 12, 28),
        Machine::X86_64 | Machine::Aarch64 => (number(&info, 16), 24, 40),
    };
    let first_thread = match core.machine {
        Machine::I386 => 24,
        Machine::X86_64 | Machine::Aarch64 => 32,
    };
    let id = |at| number(&info, at).filter(|id| *id != 0);
    let arguments = text(&info, name.saturating_add(16), 80);
    Process {
        pid: id(pid)
            .or_else(|| number(&status, first_thread))
            .unwrap_or(0),
        parent_pid: number(&info, pid.saturating_add(4)).unwrap_or(0),
        name: text(&info, name, 16),
        executable: String::new(),
        command_line: arguments
            .split_ascii_whitespace()
            .map(str::to_owned)
            .collect(),
        started: None,
        user: user.unwrap_or(0),
        signal: signal(core),
    }
}

/// The number of the signal that ended the process, if one did. Debuggers say there by which one they stopped it,
/// which is none of those that make the kernel write a core file.
fn signal(core: &CoreFile) -> Option<i32> {
    /// `SIGQUIT`, `SIGILL`, `SIGTRAP`, `SIGABRT`, `SIGBUS`, `SIGFPE`, `SIGSEGV`, `SIGXCPU`, `SIGXFSZ`, `SIGSYS`:
    /// signal(7).
    const WITH_CORE: [i32; 10] = [3, 4, 5, 6, 7, 8, 11, 24, 25, 31];
    let info = content(core, NT_SIGINFO, LARGEST_STRUCT)?;
    let signal = number(&info, 0)?.cast_signed();
    WITH_CORE.contains(&signal).then_some(signal)
}

/// The auxiliary vector.
pub(super) fn auxv(core: &CoreFile) -> Vec<(u64, u64)> {
    let bytes = content(core, NT_AUXV, LARGEST_STRUCT).unwrap_or_default();
    let width = core.machine.width();
    let words: Vec<u64> = width.words(&bytes).collect();
    let (pairs, _) = words.as_chunks();
    let pairs = pairs.iter().map(|[kind, value]| (*kind, *value));
    pairs.take_while(|(kind, _)| *kind != 0).collect()
}

/// Which files were mapped, in ascending order without overlaps. Anything else is left out.
pub(super) fn files(core: &CoreFile) -> Vec<MappedFile> {
    let bytes = content(core, NT_FILE, LARGEST).unwrap_or_default();
    let mut files = mapped_files(&bytes, core.machine.width()).unwrap_or_default();
    files.retain(|file| !file.range.is_empty());
    files.sort_by_key(|file| file.range.start);
    let mut end = Addr(0);
    files.retain(|file| {
        let follows = file.range.start >= end;
        end = if follows { file.range.end } else { end };
        follows
    });
    files
}

/// Their number and the size of a page, then three words for each, then their names.
fn mapped_files(bytes: &[u8], width: Width) -> Option<Vec<MappedFile>> {
    let mut words = width.words(bytes);
    let count = usize::try_from(words.next()?).ok()?;
    let page = words.next()?;
    let table = count
        .checked_mul(3)?
        .checked_add(2)?
        .checked_mul(width.size())?;
    let names = bytes.get(table..)?.split(|byte| *byte == 0);
    let words: Vec<u64> = words.collect();
    let (entries, _) = words.as_chunks();
    let entries = entries.iter().take(count).zip(names);
    let files = entries.map(|([start, end, offset], name)| MappedFile {
        range: AddrRange::new(Addr(*start), Addr(*end).max(Addr(*start))),
        offset: offset.saturating_mul(page),
        path: String::from_utf8_lossy(name).into_owned(),
    });
    Some(files.collect())
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// The text in a field of `size` bytes, up to a zero.
fn text(bytes: &[u8], at: usize, size: usize) -> String {
    let field = bytes.get(at..).unwrap_or_default();
    let field = field.get(..size.min(field.len())).unwrap_or_default();
    let text = field.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}
