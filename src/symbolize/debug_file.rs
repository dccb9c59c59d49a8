//! Separate debug files: found by build id, or by the name in `.gnu_debuglink`; and the files that
//! dwz moved common parts of several of them to.

use flate2::Crc;
use goblin::elf::section_header::SHT_SYMTAB;

use super::elf::{Bytes, ElfFile};
use crate::platform::{Debuginfod, RegularFile, TargetFiles};

const DEBUG_ROOT: &str = "/usr/lib/debug";
const PIECE: usize = 1 << 20;

/// A file with the debug information of another one.
#[derive(Debug)]
pub(super) struct DebugFile {
    /// Where it is.
    pub(super) path: String,
    /// The file.
    pub(super) elf: ElfFile<RegularFile>,
}

/// The debug file for `build_id`, in the target's root or else in that of rleaks.
pub(super) fn by_build_id(files: &TargetFiles, build_id: &[u8]) -> Option<DebugFile> {
    let found = candidates(files, &build_id_path(build_id)?);
    let mut found = found.into_iter().filter(has_symbols);
    found.find(|debug| debug.elf.build_id().as_deref() == Some(build_id))
}

fn build_id_path(build_id: &[u8]) -> Option<String> {
    let (first, rest) = build_id.split_first()?;
    let rest = hex_digits(rest);
    Some(format!("{DEBUG_ROOT}/.build-id/{first:02x}/{rest}.debug"))
}

fn hex_digits(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The debug file that `elf`, which the target knows as `path`, names in `.gnu_debuglink`.
///
/// It must have the same build id or, where one of the two has none, the CRC that `elf` names.
pub(super) fn by_link(
    files: &TargetFiles,
    elf: &ElfFile<RegularFile>,
    path: &str,
) -> Option<DebugFile> {
    let (name, crc) = elf.debug_link()?;
    let (directory, _) = path.rsplit_once('/')?;
    let paths = [
        format!("{directory}/{name}"),
        format!("{directory}/.debug/{name}"),
        format!("{DEBUG_ROOT}{directory}/{name}"),
    ];
    let build_id = elf.build_id();
    let belongs = |debug: &DebugFile| match (&build_id, debug.elf.build_id()) {
        (Some(wanted), Some(found)) => *wanted == found,
        _ => checksum(debug.elf.bytes()) == Some(crc),
    };
    let found = paths.iter().flat_map(|path| candidates(files, path));
    found.filter(has_symbols).find(belongs)
}

/// The debug file for `build_id` that a debuginfod server has. The client checks nothing.
pub(super) fn fetched(
    files: &TargetFiles,
    debuginfod: &Debuginfod,
    build_id: &[u8],
) -> Option<DebugFile> {
    let path = debuginfod.debug_file(build_id)?;
    let elf = ElfFile::parse(files.own_file(&path)?)?;
    let is_right = elf.build_id().as_deref() == Some(build_id);
    is_right.then_some(DebugFile { path, elf })
}

/// The file that `debug` shares parts of its debug information with, if it says that there is one.
pub(super) fn supplement(files: &TargetFiles, debug: &DebugFile) -> Option<ElfFile<RegularFile>> {
    let link = debug.elf.supplement_link()?;
    let (directory, _) = debug.path.rsplit_once('/')?;
    let named = match link.name.starts_with('/') {
        true => link.name.clone(),
        false => format!("{directory}/{}", link.name),
    };
    let paths = [Some(named), build_id_path(&link.id)];
    let found = paths.into_iter().flatten();
    let mut found = found.flat_map(|path| candidates(files, &path));
    let supplement = found.find(|found| found.elf.supplement_id().as_ref() == Some(&link.id))?;
    Some(supplement.elf)
}

/// A stripped file may name itself in its debug link: debug files often have its name and lie
/// elsewhere.
fn has_symbols(debug: &DebugFile) -> bool {
    debug.elf.has_symbols(SHT_SYMTAB)
}

/// The files at `path`, for the target and for rleaks.
fn candidates(files: &TargetFiles, path: &str) -> Vec<DebugFile> {
    let found = [files.file(path), files.own_file(path)];
    let found = found.into_iter().flatten().filter_map(ElfFile::parse);
    let path = path.to_owned();
    found
        .map(|elf| DebugFile {
            path: path.clone(),
            elf,
        })
        .collect()
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
