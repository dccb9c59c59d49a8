//! DWARF: from addresses to functions, inlined calls, files and lines.
//!
//! All addresses of an image are asked for at once, so each unit that has some of them is read
//! once, in the order of its bytes, and nothing is indexed that nobody asks for. Units are read in
//! parallel.
//!
//! It is built on gimli alone. addr2line, which answers one address at a time, recurses as deeply
//! as a file nests its inlined calls, and builds tables that grow with the product of what a file
//! shares: a small hostile file ends the process. Tests compare the two on honest files.

mod budget;
mod extent;
mod file;
mod lines;
mod names;
mod sections;
mod split;
mod walk;

#[cfg(test)]
mod tests;

use gimli::{DwarfPackage, DwarfSections, EndianSlice, LittleEndian};
use rayon::prelude::*;

pub(super) use self::split::SplitFiles;

use self::budget::Budget;
use self::file::{DwarfFile, Root, Slice};
use self::lines::{LineProgram, Position};
use self::names::{NameSource, UnitIn};
use self::walk::Function;
use super::demangle::demangle;
use super::elf::{Bytes, ElfFile};
use crate::addr::RangeSet;

/// A name that is longer is cut before it is demangled.
const MAX_NAME: usize = 8 << 10;

/// The debug information of an image, in memory.
pub(super) struct DebugInfo {
    main: DwarfSections<Vec<u8>>,
    supplement: Option<DwarfSections<Vec<u8>>>,
}

/// What the debug information says of one address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Located {
    /// The calls at the address: the innermost inlined one first, the function last. There is
    /// always one.
    pub(super) calls: Vec<Call>,
    /// Where the function starts, if that is known and the address is in the same part of it.
    pub(super) function_start: Option<u64>,
    /// The name of the function is the one that the linker sees.
    pub(super) has_linkage_name: bool,
}

/// A call, inlined or not. What is not known is none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Call {
    pub(super) function: Option<String>,
    pub(super) file: Option<String>,
    pub(super) line: Option<u32>,
    pub(super) column: Option<u32>,
}

/// The debug information asks for more work than its size is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OutOfProportion;

impl DebugInfo {
    /// Reads what is in `elf` and in `supplement`, the file that dwz moved common parts to.
    pub(super) fn read<B: Bytes + Sync>(
        elf: &ElfFile<B>,
        supplement: Option<&ElfFile<B>>,
    ) -> Option<Self> {
        Some(Self {
            main: sections::main(elf)?,
            supplement: supplement.and_then(sections::main),
        })
    }

    /// Locates `addresses`, which are link addresses in ascending order, each but once. `code` is
    /// where the image has code.
    pub(super) fn locate(
        &self,
        addresses: &[u64],
        code: &RangeSet,
        split: &SplitFiles<'_>,
    ) -> Result<Vec<Option<Located>>, OutOfProportion> {
        let size = sections::size(&self.main) + self.supplement.as_ref().map_or(0, sections::size);
        let budget = Budget::new(steps_for(size) + 1000 * addresses.len() as u64);
        let slice = |section| EndianSlice::new(section, LittleEndian);
        let supplement = self.supplement.as_ref();
        let dwarf = self
            .main
            .borrow_with_sup(supplement, |s: &Vec<u8>| slice(s));
        let main = DwarfFile::new(dwarf, &budget);
        let supplement = supplement
            .map(|sections| DwarfFile::new(sections.borrow(|s: &Vec<u8>| slice(s)), &budget));
        let package = split.package();
        let package = package
            .as_ref()
            .and_then(|package| package.borrow(|s: &Vec<u8>| slice(s), slice(&[])).ok());
        let image = Image {
            main,
            supplement,
            package,
            split,
            code,
            budget,
        };
        let located = image.locate(addresses);
        let is_spent = image.budget.is_spent();
        (!is_spent).then_some(located).ok_or(OutOfProportion)
    }
}

/// The steps that debug information of `size` bytes is worth: honest one takes less than one for
/// each byte.
fn steps_for(size: u64) -> u64 {
    4 * size + (4 << 20)
}

/// The debug information of an image, parsed.
struct Image<'d> {
    main: DwarfFile<'d>,
    supplement: Option<DwarfFile<'d>>,
    package: Option<DwarfPackage<Slice<'d>>>,
    split: &'d SplitFiles<'d>,
    code: &'d RangeSet,
    budget: Budget,
}

impl<'d> Image<'d> {
    fn locate(&self, addresses: &[u64]) -> Vec<Option<Located>> {
        let units: Vec<_> = (0..self.main.len())
            .into_par_iter()
            .filter_map(|unit| self.locate_in_unit(unit, addresses))
            .collect();
        let mut best: Vec<Option<Located>> = vec![None; addresses.len()];
        for (index, located) in units.into_iter().flatten() {
            let known = &mut best[index];
            // A unit that knows the function knows more than one that has a line.
            let is_better = |known: &Located| known.name().is_none() && located.name().is_some();
            if known.as_ref().is_none_or(is_better) {
                *known = Some(located);
            }
        }
        best
    }

    /// Those of `addresses` that are in the unit with the number `index`, each with its number.
    fn locate_in_unit(&self, index: usize, addresses: &[u64]) -> Option<Vec<(usize, Located)>> {
        let root = self.main.root(index, &self.budget)?;
        if root.is_partial {
            return None;
        }
        let numbers = self.numbers_in(root, addresses)?;
        if numbers.is_empty() {
            return None;
        }
        let wanted: Vec<u64> = numbers.iter().map(|number| addresses[*number]).collect();
        let lines = root.lines.and_then(|offset| {
            LineProgram::new(&self.main.dwarf, &root.unit, offset, &self.budget)
        });
        let positions = match &lines {
            Some(lines) => lines.positions(&wanted, self.code),
            None => vec![None; wanted.len()],
        };
        let reading = Reading {
            addresses: &wanted,
            positions: &positions,
            lines: lines.as_ref(),
            code: self.code,
        };
        let located = self
            .calls_in_split(root, &reading)
            .or_else(|| reading.calls(&self.main, root, self.supplement.as_ref(), &self.budget));
        let located = located.unwrap_or_else(|| reading.without_functions());
        let located = numbers.into_iter().zip(located);
        Some(
            located
                .filter_map(|(number, l)| Some((number, l?)))
                .collect(),
        )
    }

    /// What the unit says that `skeleton` stands for, if it is one.
    fn calls_in_split(
        &self,
        skeleton: &Root<'d>,
        reading: &Reading<'_, 'd>,
    ) -> Option<Vec<Option<Located>>> {
        skeleton.dwo_name?;
        let package = self.package.as_ref();
        self.split
            .with_unit(&self.main, skeleton, package, |file, root, budget| {
                reading.calls(file, root, None, budget)
            })
    }

    /// The numbers of those of `addresses` that are in the unit of `root`.
    fn numbers_in(&self, root: &Root<'d>, addresses: &[u64]) -> Option<Vec<usize>> {
        if !root.extent.is_some() {
            // Assemblers and older compilers leave it to the line program.
            return Some(match root.lines {
                Some(_) => (0..addresses.len()).collect(),
                None => Vec::new(),
            });
        }
        let mut numbers = Vec::new();
        let (dwarf, unit) = (&self.main.dwarf, &root.unit);
        root.extent
            .each_range(dwarf, unit, self.code, &self.budget, |start, end| {
                let first = addresses.partition_point(|address| *address < start);
                let after = addresses.partition_point(|address| *address < end);
                numbers.extend(first..after);
            })?;
        self.budget.spend(numbers.len())?;
        numbers.sort_unstable();
        numbers.dedup();
        Some(numbers)
    }
}

/// The addresses that are looked for in one unit, and their positions by its line program.
struct Reading<'r, 'd> {
    addresses: &'r [u64],
    positions: &'r [Option<Position>],
    lines: Option<&'r LineProgram<'r, 'd>>,
    code: &'r RangeSet,
}

impl Reading<'_, '_> {
    /// What the unit of `root`, which is in `file`, says of each address.
    fn calls<'x>(
        &self,
        file: &DwarfFile<'x>,
        root: &Root<'x>,
        supplement: Option<&DwarfFile<'x>>,
        budget: &Budget,
    ) -> Option<Vec<Option<Located>>> {
        let unit = &root.unit;
        let functions = walk::functions(&file.dwarf, unit, self.addresses, self.code, budget)?;
        let name_of = |source: NameSource<'x>| {
            let name = source.resolve(UnitIn { file, root }, supplement, budget)?;
            Some((readable(name.text), name.is_linkage_name))
        };
        let located = functions.into_iter().zip(self.positions);
        let located = located.map(|(function, position)| match function {
            Some(function) => Some(self.in_function(&function, *position, name_of)),
            None => self.without_function(*position),
        });
        Some(located.collect())
    }

    /// The lines alone, where the functions cannot be read.
    fn without_functions(&self) -> Vec<Option<Located>> {
        let positions = self.positions.iter();
        positions.map(|p| self.without_function(*p)).collect()
    }

    fn without_function(&self, position: Option<Position>) -> Option<Located> {
        Some(Located {
            calls: vec![self.call(None, position?)],
            function_start: None,
            has_linkage_name: false,
        })
    }

    /// The innermost call is at `position`; each other one is where the one inside it is called.
    fn in_function<'x>(
        &self,
        function: &Function<'x>,
        position: Option<Position>,
        name_of: impl Fn(NameSource<'x>) -> Option<(String, bool)>,
    ) -> Located {
        let mut position = position.unwrap_or_default();
        let mut calls = Vec::with_capacity(function.inlined.len() + 1);
        for inlined in function.inlined.iter().rev() {
            let name = name_of(inlined.name).map(|(name, _)| name);
            calls.push(self.call(name, position));
            position = inlined.call;
        }
        let (name, has_linkage_name) = name_of(function.name).unzip();
        calls.push(self.call(name, position));
        Located {
            calls,
            function_start: function.start,
            has_linkage_name: has_linkage_name.unwrap_or_default(),
        }
    }

    fn call(&self, function: Option<String>, position: Position) -> Call {
        Call {
            function,
            file: self.lines.and_then(|lines| lines.path(position.file?)),
            line: position.line,
            column: position.column,
        }
    }
}

fn readable(name: Slice<'_>) -> String {
    let name = &name.slice()[..name.len().min(MAX_NAME)];
    demangle(&String::from_utf8_lossy(name))
}

impl Located {
    /// The name of the function.
    pub(super) fn name(&self) -> Option<&str> {
        self.calls.last()?.function.as_deref()
    }
}
