//! A fuzz target: files with symbols and debug information.

use std::path::Path;

use goblin::elf::section_header::{SHT_DYNSYM, SHT_SYMTAB};

use super::demangle::{demangle, vtable_class};
use super::dwarf::{DebugInfo, SplitFiles};
use super::elf::{Bytes, ElfFile};
use super::perf_map;
use super::table::TableBuilder;
use crate::addr::{Addr, RangeSet};
use crate::platform::TargetFiles;

/// How many addresses are looked up in a file.
const ADDRESSES: u64 = 64;

/// Reads all that is read of an executable, a library or a debug file. A file that is none is taken
/// for the names of a JIT compiler's code.
pub fn elf(input: &[u8]) {
    let bytes = input.to_vec();
    match ElfFile::parse(bytes.clone()) {
        Some(file) => read(&file),
        None => names(&bytes),
    }
}

fn read<B: Bytes + Sync>(file: &ElfFile<B>) {
    symbols(file);
    let _ = (file.build_id(), file.debug_link());
    let _ = (file.supplement_link(), file.supplement_id());
    if let Some(inner) = file.mini_debug_info() {
        symbols(&inner);
    }
    let Some(debug) = DebugInfo::read(file, Some(file)) else {
        return;
    };
    let code = file.code();
    let files = TargetFiles::under(Path::new("/nowhere"));
    let split = SplitFiles {
        files: &files,
        paths: Vec::new(),
    };
    let addresses = addresses(&code);
    if let Ok(located) = debug.locate(&addresses, &code, &split) {
        assert_eq!(located.len(), addresses.len());
        for found in located.into_iter().flatten() {
            assert!(!found.calls.is_empty());
        }
    }
}

fn symbols<B: Bytes>(file: &ElfFile<B>) {
    let mut table = TableBuilder::default();
    for kind in [SHT_SYMTAB, SHT_DYNSYM] {
        let _ = file.add_data_symbols(kind, &mut table);
        let _ = file.add_functions(kind, &mut table);
    }
    let table = table.finish();
    for address in addresses(&file.code()) {
        if let Some(symbol) = table.find(address) {
            assert!(address - symbol.start < symbol.size.max(1));
            let _ = (demangle(symbol.name), vtable_class(symbol.name));
        }
    }
}

/// Some addresses in ascending order: at the start, in the middle and at the end of the code.
fn addresses(code: &RangeSet) -> Vec<u64> {
    let mut addresses = vec![0, 1, u64::MAX];
    for range in code.ranges().iter().take(4) {
        let step = range.size().div_ceil(ADDRESSES).max(1);
        let within =
            (0..ADDRESSES).map(|index| range.start.saturating_add(index.saturating_mul(step)));
        addresses.extend(
            within
                .filter(|addr| range.contains(*addr))
                .map(|addr| addr.0),
        );
    }
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

/// Names of a JIT compiler, each of which may be one that a compiler has mangled.
fn names(bytes: &Vec<u8>) {
    let addresses = [0, 1, 0x1000, 0x1010, u64::MAX].map(Addr);
    let found = perf_map::named(bytes, &addresses);
    assert_eq!(found.len(), addresses.len());
    for (code, addr) in found.into_iter().zip(addresses) {
        assert!(code.is_none_or(|code| code.start <= addr));
    }
    for line in bytes.split(|byte| *byte == b'\n') {
        let name = String::from_utf8_lossy(line);
        let _ = (demangle(&name), vtable_class(&name));
    }
}

#[cfg(test)]
#[test]
fn the_corpus_of_elf_is_harmless() {
    crate::fuzzing::run_corpus("elf", elf);
}
