//! The files of a target whose core file names none (`NT_FILE`), such as those of emulators: from the
//! executable and the list of the dynamic loader, `struct link_map` in `<link.h>`.

use std::sync::Arc;

use super::images::AsMemory;
use super::notes::MappedFile;
use super::{CoreFile, CoreMemory, FileBytes, ImageFiles, Part};
use crate::addr::{Addr, AddrRange, RangeSet};
use crate::memory::{Memory, Width};
use crate::snapshot::elf;

const AT_ENTRY: u64 = 9;
const AT_EXECFN: u64 = 31;
const DT_DEBUG: u64 = 21;
const PAGE: u64 = 4096;
/// More than any loader writes.
const MAX_DYNAMIC: u64 = 1024;
/// More images than any process has.
const MAX_LINKS: usize = 1 << 16;
const MAX_NAME: usize = 4096;

/// The files that were mapped, in ascending order, as far as they are here. Empty where the executable
/// is not.
pub(super) fn files(
    core: &CoreFile,
    auxv: &[(u64, u64)],
    opener: &dyn ImageFiles,
) -> Vec<MappedFile> {
    let mut found = find(core, auxv, opener).unwrap_or_default();
    found.sort_by_key(|file| file.range.start);
    let mut end = Addr(0);
    found.retain(|file| {
        let follows = file.range.start >= end && !file.range.is_empty();
        end = if follows { file.range.end } else { end };
        follows
    });
    found
}

fn find(core: &CoreFile, auxv: &[(u64, u64)], opener: &dyn ImageFiles) -> Option<Vec<MappedFile>> {
    let width = core.machine.width();
    let value = |kind| {
        auxv.iter()
            .find(|(k, _)| *k == kind)
            .map(|(_, value)| *value)
    };
    let saved = memory(core, &[]);
    let name = value(AT_EXECFN)
        .and_then(|at| string(&saved, Addr(at)))
        .unwrap_or_default();
    let program = opener.open(&name, true)?;
    let entry = elf::entry(&AsMemory(&*program))?;
    let bias = value(AT_ENTRY)?.wrapping_sub(entry);
    let mut found = mapped(&*program, bias, &name);
    // Names may be in constants of the executable.
    let memory = memory(core, &[(program, &found)]);
    let dynamic = found.iter().find(|file| file.offset == 0)?;
    let dynamic = elf::dynamic(&memory, dynamic.range.start)?;
    let mut link = first_link(&memory, width, dynamic);
    for _ in 0..MAX_LINKS {
        let Some(at) = link.filter(|at| *at != Addr(0)) else {
            break;
        };
        let field = |index: u64| {
            let addr = at.checked_add(index.checked_mul(width.bytes())?)?;
            memory.pointer(addr, width)
        };
        // The first is the executable; the vdso has no file.
        let name = field(1).and_then(|name| string(&memory, Addr(name)));
        if let Some(name) = name.filter(|name| name.starts_with('/'))
            && let Some(file) = opener.open(&name, false)
        {
            found.extend(mapped(&*file, field(0)?, &name));
        }
        link = field(3).map(Addr);
    }
    Some(found)
}

/// The second word of what `DT_DEBUG` leads to, `struct r_debug`.
fn first_link(memory: &dyn Memory, width: Width, dynamic: AddrRange) -> Option<Addr> {
    let size = width.bytes();
    let entries = (dynamic.start.0..dynamic.end.0).step_by(width.pair_size());
    let mut entries = entries.take(usize::try_from(MAX_DYNAMIC).ok()?).map(Addr);
    let entry = entries.find(|entry| memory.pointer(*entry, width) == Some(DT_DEBUG))?;
    let debug = Addr(memory.pointer(entry.checked_add(size)?, width)?);
    memory.pointer(debug.checked_add(size)?, width).map(Addr)
}

/// The mappings of an image whose addresses lie `bias` above those in `file`.
fn mapped(file: &dyn FileBytes, bias: u64, path: &str) -> Vec<MappedFile> {
    let loads = elf::loads(&AsMemory(file)).unwrap_or_default();
    let mapped = loads.into_iter().map(|load| {
        let start = Addr(bias.wrapping_add(load.addr));
        let end = start.saturating_add(load.file_size);
        MappedFile {
            range: AddrRange::new(start.align_down(PAGE), end.align_up(PAGE).unwrap_or(end)),
            offset: load.offset & !(PAGE - 1),
            path: path.to_owned(),
        }
    });
    mapped.collect()
}

/// The memory that `core` has, and what it lacks of that in `images`.
fn memory(core: &CoreFile, images: &[(Arc<dyn FileBytes>, &Vec<MappedFile>)]) -> CoreMemory {
    let mut parts = core.saved_parts();
    let saved: RangeSet = parts.iter().map(|part| part.range).collect();
    let mut files = vec![Arc::clone(&core.bytes)];
    for (file, mapped) in images {
        for mapping in *mapped {
            let gaps = saved.gaps(mapping.range).into_iter();
            parts.extend(gaps.map(|range| Part {
                range,
                file: files.len(),
                offset: mapping.offset_at(range.start),
            }));
        }
        files.push(Arc::clone(file));
    }
    parts.sort_by_key(|part| part.range.start);
    CoreMemory::new(files.into(), &parts, &RangeSet::default())
}

/// The text at `at`, up to a zero.
fn string(memory: &dyn Memory, at: Addr) -> Option<String> {
    let mut bytes = vec![0; MAX_NAME];
    let count = memory.read(at, &mut bytes);
    let bytes = bytes.get(..count)?;
    let end = bytes.iter().position(|byte| *byte == 0)?;
    Some(String::from_utf8_lossy(bytes.get(..end)?).into_owned())
}
