//! What is there to name the variables of each module.

use goblin::elf::section_header::SHT_SYMTAB;

use super::elf::ElfFile;
use super::module_symbols::{debug_file, image_file};
use crate::platform::TargetFiles;
use crate::snapshot::Module;

/// Where the symbols of a module are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SymbolSource {
    /// All of them are in its file.
    Full,
    /// All of them are in a separate debug file.
    DebugFile,
    /// There are only those that it exports.
    Exported,
    /// Its file is gone or is another one now: only what it exports is known, from memory.
    Missing,
}

/// What there is of one module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModuleSymbols {
    /// The path of the module.
    pub path: String,
    /// Where its symbols are.
    pub source: SymbolSource,
    /// Its file or debug file has DWARF debug information.
    pub has_debug_info: bool,
}

/// What there is of each of `modules` that is a file.
#[must_use]
pub fn inventory(modules: &[Module], files: &TargetFiles) -> Vec<ModuleSymbols> {
    let is_file = |module: &&Module| !module.path.starts_with('[');
    let modules = modules.iter().filter(is_file);
    modules.map(|module| inspect(module, files)).collect()
}

fn inspect(module: &Module, files: &TargetFiles) -> ModuleSymbols {
    let file = image_file(module.into(), files);
    let debug = debug_file(module.into(), files, file.as_ref());
    let debug = debug.map(|debug| debug.elf);
    let source = match (&file, &debug) {
        (Some(elf), _) if elf.has_symbols(SHT_SYMTAB) => SymbolSource::Full,
        (_, Some(_)) => SymbolSource::DebugFile,
        (Some(_), None) => SymbolSource::Exported,
        (None, None) => SymbolSource::Missing,
    };
    let mut both = file.iter().chain(&debug);
    ModuleSymbols {
        path: module.path.clone(),
        source,
        has_debug_info: both.any(ElfFile::has_debug_info),
    }
}
