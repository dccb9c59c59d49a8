//! Where the symbols of an image come from.

use goblin::elf::section_header::{SHT_DYNSYM, SHT_SYMTAB};

use super::debug_file::{self, DebugFile};
use super::elf::ElfFile;
use super::image::CodeImage;
use super::table::{SymbolTable, TableBuilder};
use crate::addr::Addr;
use crate::memory::Memory;
use crate::platform::{RegularFile, TargetFiles};
use crate::snapshot::{Module, dynamic_symbols};

/// What tells the file of an image from others.
#[derive(Clone, Copy)]
pub(super) struct Identity<'a> {
    path: &'a str,
    base: Addr,
    build_id: Option<&'a [u8]>,
    /// 0 when it is not known.
    inode: u64,
}

impl<'a> From<&'a Module> for Identity<'a> {
    fn from(module: &'a Module) -> Self {
        Self {
            path: &module.path,
            base: module.base,
            build_id: module.build_id.as_deref(),
            inode: module.file.2,
        }
    }
}

impl<'a> From<&'a CodeImage> for Identity<'a> {
    fn from(image: &'a CodeImage) -> Self {
        Self {
            path: &image.path,
            base: image.base,
            build_id: image.build_id.as_deref(),
            inode: image.file.2,
        }
    }
}

/// The data symbols of `module`, from everything that has some: its file, its separate debug
/// file, `.gnu_debugdata`; and where its file is out of reach, from `memory`.
pub(super) fn data_symbols(
    module: &Module,
    files: &TargetFiles,
    memory: &dyn Memory,
) -> SymbolTable {
    let mut table = TableBuilder::default();
    let file = image_file(module.into(), files);
    match &file {
        Some(elf) => add_from_file(elf, &mut table),
        None => add_from_memory(module, memory, &mut table),
    }
    let is_complete = file.as_ref().is_some_and(|elf| elf.has_symbols(SHT_SYMTAB));
    if !is_complete && let Some(debug) = debug_file(module.into(), files, file.as_ref()) {
        debug.elf.add_data_symbols(SHT_SYMTAB, &mut table);
    }
    table.finish()
}

fn add_from_file(elf: &ElfFile<RegularFile>, table: &mut TableBuilder) {
    elf.add_data_symbols(SHT_SYMTAB, table);
    elf.add_data_symbols(SHT_DYNSYM, table);
    if let Some(inner) = elf.mini_debug_info() {
        inner.add_data_symbols(SHT_SYMTAB, table);
    }
}

fn add_from_memory(module: &Module, memory: &dyn Memory, table: &mut TableBuilder) {
    for symbol in dynamic_symbols(memory, module) {
        if symbol.is_data && symbol.is_defined {
            let start = module.link_address(symbol.value);
            table.add(start, symbol.size, symbol.name.as_bytes(), false);
        }
    }
}

/// The functions of an image, from everything that has some.
pub(super) fn functions(
    file: Option<&ElfFile<RegularFile>>,
    debug: Option<&DebugFile>,
) -> SymbolTable {
    let mut table = TableBuilder::default();
    if let Some(elf) = file {
        elf.add_functions(SHT_SYMTAB, &mut table);
        elf.add_functions(SHT_DYNSYM, &mut table);
        if let Some(inner) = elf.mini_debug_info() {
            inner.add_functions(SHT_SYMTAB, &mut table);
        }
    }
    let is_complete = file.is_some_and(|elf| elf.has_symbols(SHT_SYMTAB));
    if let (Some(debug), false) = (debug, is_complete) {
        debug.elf.add_functions(SHT_SYMTAB, &mut table);
    }
    table.finish()
}

/// The file that the target has loaded as `image`; `None` when there is another one in its place.
///
/// The kernel shows the paths of a target in a chroot as rleaks itself would name them. There, no
/// less than the build id must agree.
pub(super) fn image_file(image: Identity<'_>, files: &TargetFiles) -> Option<ElfFile<RegularFile>> {
    let is_loaded = |elf: &ElfFile<RegularFile>| is_file_of(image, elf);
    let at_path = files.file(image.path).and_then(ElfFile::parse);
    at_path
        .filter(is_loaded)
        .or_else(|| {
            let mapped = files.mapped_at(image.base)?;
            ElfFile::parse(mapped).filter(is_loaded)
        })
        .or_else(|| {
            image.build_id?;
            let own = files.own_file(image.path)?;
            ElfFile::parse(own).filter(is_loaded)
        })
}

/// Compares build ids or, where the image has none, inode numbers. The device says nothing: on
/// overlay and btrfs a mapping and its file have different ones.
fn is_file_of(image: Identity<'_>, elf: &ElfFile<RegularFile>) -> bool {
    match image.build_id {
        Some(id) => elf.build_id().as_deref() == Some(id),
        None => image.inode == 0 || image.inode == elf.bytes().inode(),
    }
}

/// The debug file of `image`, whose own file is `file`, among the files of the target and those
/// of rleaks.
pub(super) fn debug_file(
    image: Identity<'_>,
    files: &TargetFiles,
    file: Option<&ElfFile<RegularFile>>,
) -> Option<DebugFile> {
    build_id(image, file)
        .and_then(|id| debug_file::by_build_id(files, &id))
        .or_else(|| debug_file::by_link(files, file?, image.path))
}

/// The build id of `image`, whose own file is `file`.
pub(super) fn build_id(
    image: Identity<'_>,
    file: Option<&ElfFile<RegularFile>>,
) -> Option<Vec<u8>> {
    let known = image.build_id.map(<[u8]>::to_vec);
    known.or_else(|| file?.build_id())
}
