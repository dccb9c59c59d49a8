//! Separate debug files: found by build id, or by the name in `.gnu_debuglink`.

use flate2::Crc;
use goblin::elf::section_header::SHT_SYMTAB;

use super::elf::{Bytes, ElfFile};
use crate::platform::{RegularFile, TargetFiles};

const DEBUG_ROOT: &str = "/usr/lib/debug";
const PIECE: usize = 1 << 20;

/// The debug file for `build_id`, in the target's root or else in that of rleaks.
pub(super) fn by_build_id(files: &TargetFiles, build_id: &[u8]) -> Option<ElfFile<RegularFile>> {
    let (first, rest) = build_id.split_first()?;
    let rest: String = rest.iter().map(|byte| format!("{byte:02x}")).collect();
    let path = format!("{DEBUG_ROOT}/.build-id/{first:02x}/{rest}.debug");
    candidates(files, &path)
        .into_iter()
        .find(|elf| elf.build_id().as_deref() == Some(build_id))
}

/// The debug file that `elf`, which the target knows as `path`, names in `.gnu_debuglink`.
///
/// It must have the same build id or, where one of the two has none, the CRC that `elf` names.
pub(super) fn by_link(
    files: &TargetFiles,
    elf: &ElfFile<RegularFile>,
    path: &str,
) -> Option<ElfFile<RegularFile>> {
    let (name, crc) = elf.debug_link()?;
    let (directory, _) = path.rsplit_once('/')?;
    let paths = [
        format!("{directory}/{name}"),
        format!("{directory}/.debug/{name}"),
        format!("{DEBUG_ROOT}{directory}/{name}"),
    ];
    let build_id = elf.build_id();
    let belongs = |debug: &ElfFile<RegularFile>| match (&build_id, debug.build_id()) {
        (Some(wanted), Some(found)) => *wanted == found,
        _ => checksum(debug.bytes()) == Some(crc),
    };
    let mut found = paths.iter().flat_map(|path| candidates(files, path));
    found.find(belongs)
}

/// The files at `path` that have symbols. A stripped file may name itself: debug files often have
/// its name and lie elsewhere.
fn candidates(files: &TargetFiles, path: &str) -> Vec<ElfFile<RegularFile>> {
    let found = [files.file(path), files.own_file(path)];
    let files = found.into_iter().flatten().filter_map(ElfFile::parse);
    files.filter(|elf| elf.has_symbols(SHT_SYMTAB)).collect()
}

/// The CRC-32 of a whole file.
fn checksum(file: &impl Bytes) -> Option<u32> {
    let mut crc = Crc::new();
    let mut piece = vec![0; PIECE];
    let mut offset = 0;
    while offset < file.size() {
        let left = usize::try_from(file.size() - offset).unwrap_or(PIECE);
        let part = &mut piece[..left.min(PIECE)];
        if !file.read_at(offset, part) {
            return None;
        }
        crc.update(part);
        offset += part.len() as u64;
    }
    Some(crc.sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_one_of_binutils() {
        assert_eq!(checksum(&b"123456789".to_vec()), Some(0xcbf4_3926));
        assert_eq!(checksum(&Vec::new()), Some(0));
    }
}
