//! Where a module's data symbols come from.

use goblin::elf::section_header::{SHT_DYNSYM, SHT_SYMTAB};

use super::debug_file;
use super::elf::ElfFile;
use super::table::{SymbolTable, TableBuilder};
use crate::memory::Memory;
use crate::platform::{RegularFile, TargetFiles};
use crate::snapshot::{Module, dynamic_symbols};

/// The data symbols of `module`, from everything that has some: its file, its separate debug
/// file, `.gnu_debugdata`; and where its file is out of reach, from `memory`.
pub(super) fn data_symbols(
    module: &Module,
    files: &TargetFiles,
    memory: &dyn Memory,
) -> SymbolTable {
    let mut table = TableBuilder::default();
    let file = module_file(module, files);
    match &file {
        Some(elf) => add_from_file(elf, &mut table),
        None => add_from_memory(module, memory, &mut table),
    }
    let is_complete = file.as_ref().is_some_and(|elf| elf.has_symbols(SHT_SYMTAB));
    if !is_complete && let Some(debug) = debug_file(module, files, file.as_ref()) {
        debug.add_data_symbols(SHT_SYMTAB, &mut table);
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

/// The file that the target has loaded as `module`; `None` when there is another one in its place.
///
/// The kernel shows the paths of a target in a chroot as rleaks itself would name them. There, no
/// less than the build id must agree.
pub(super) fn module_file(module: &Module, files: &TargetFiles) -> Option<ElfFile<RegularFile>> {
    let is_loaded = |elf: &ElfFile<RegularFile>| is_file_of(module, elf);
    let at_path = files.file(&module.path).and_then(ElfFile::parse);
    at_path
        .filter(is_loaded)
        .or_else(|| {
            let mapped = files.mapped_at(module.base)?;
            ElfFile::parse(mapped).filter(is_loaded)
        })
        .or_else(|| {
            module.build_id.as_ref()?;
            let own = files.own_file(&module.path)?;
            ElfFile::parse(own).filter(is_loaded)
        })
}

/// Compares build ids or, where the module has none, inode numbers. The device says nothing: on
/// overlay and btrfs a mapping and its file have different ones.
fn is_file_of(module: &Module, elf: &ElfFile<RegularFile>) -> bool {
    match &module.build_id {
        Some(id) => elf.build_id().as_ref() == Some(id),
        None => module.file.2 == 0 || module.file.2 == elf.bytes().inode(),
    }
}

pub(super) fn debug_file(
    module: &Module,
    files: &TargetFiles,
    file: Option<&ElfFile<RegularFile>>,
) -> Option<ElfFile<RegularFile>> {
    let build_id = module.build_id.clone();
    let build_id = build_id.or_else(|| file?.build_id());
    build_id
        .and_then(|id| debug_file::by_build_id(files, &id))
        .or_else(|| debug_file::by_link(files, file?, &module.path))
}
