//! From addresses to the names of variables.

use std::fmt;
use std::sync::OnceLock;

use super::demangle::{demangle, vtable_class};
use super::module_symbols;
use super::table::{Symbol, SymbolTable};
use crate::addr::{Addr, AddrRange};
use crate::memory::Memory;
use crate::platform::TargetFiles;
use crate::snapshot::Module;

/// A variable or constant of a module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataSymbol {
    /// Its readable name.
    pub name: String,
    /// How many bytes of it lie before the address that was asked for.
    pub offset: u64,
    /// The class whose vtable it is, if it is one.
    pub class: Option<String>,
}

/// Names the variables of a target's modules.
///
/// A module's symbols are loaded when one is asked for the first time, and kept.
pub struct Symbolizer<'a> {
    modules: &'a [Module],
    memory: &'a dyn Memory,
    files: TargetFiles,
    segments: Segments,
    symbols: Vec<OnceLock<SymbolTable>>,
}

impl<'a> Symbolizer<'a> {
    /// A symbolizer for `modules`, whose symbols are in `files` or, where a file is missing, as
    /// far as the dynamic loader needs them in `memory`. It reads nothing yet.
    #[must_use]
    pub fn new(modules: &'a [Module], memory: &'a dyn Memory, files: TargetFiles) -> Self {
        Self {
            modules,
            memory,
            files,
            segments: Segments::new(modules),
            symbols: modules.iter().map(|_| OnceLock::new()).collect(),
        }
    }

    /// Gives the files back.
    #[must_use]
    pub fn into_files(self) -> TargetFiles {
        self.files
    }

    /// The variable that `addr` is in. One of unknown size is found at its first byte only.
    #[must_use]
    pub fn data_symbol(&self, addr: Addr) -> Option<DataSymbol> {
        let module = self.segments.module(addr)?;
        let address = self.modules[module].link_address(addr);
        let symbol = self.symbols(module).find(address)?;
        Some(readable(&symbol, address))
    }

    /// Says whether `addr` is in a segment of a module: a cheap test before [`Self::data_symbol`].
    #[must_use]
    pub fn is_in_module(&self, addr: Addr) -> bool {
        self.segments.module(addr).is_some()
    }

    fn symbols(&self, module: usize) -> &SymbolTable {
        self.symbols[module].get_or_init(|| {
            module_symbols::data_symbols(&self.modules[module], &self.files, self.memory)
        })
    }
}

/// All segments of modules in ascending order, each with the index of its module.
#[derive(Debug)]
pub(super) struct Segments(Vec<(AddrRange, usize)>);

impl Segments {
    pub(super) fn new(modules: &[Module]) -> Self {
        let segments = modules.iter().enumerate().flat_map(|(index, module)| {
            let ranges = module.segments.iter().map(|segment| segment.range);
            ranges.map(move |range| (range, index))
        });
        let mut segments: Vec<_> = segments.collect();
        segments.sort_unstable();
        Self(segments)
    }

    /// The index of the module that `addr` is in.
    pub(super) fn module(&self, addr: Addr) -> Option<usize> {
        let after = self.0.partition_point(|(r, _)| r.start <= addr);
        let (range, module) = self.0[after.checked_sub(1)?];
        range.contains(addr).then_some(module)
    }
}

impl fmt::Debug for Symbolizer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Symbolizer")
            .field("modules", &self.modules.len())
            .finish_non_exhaustive()
    }
}

fn readable(symbol: &Symbol<'_>, address: u64) -> DataSymbol {
    DataSymbol {
        name: demangle(symbol.name),
        offset: address - symbol.start,
        class: vtable_class(symbol.name),
    }
}
