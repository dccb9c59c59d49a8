//! Line programs: the file and the line of each address.

use gimli::{DebugLineOffset, Dwarf, LineProgramHeader, LineRow, Section, Unit};

use super::budget::Budget;
use super::file::Slice;
use crate::addr::{Addr, RangeSet};

/// The list of files of a line program is no longer than this. (It is allocated by its count.)
const MAX_HEADER: u64 = 4 << 20;
/// A longer path is cut.
const MAX_PATH: usize = 4 << 10;

/// A position in the sources. Its file is a number in a [`LineProgram`].
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Position {
    pub(super) file: Option<u64>,
    pub(super) line: Option<u32>,
    pub(super) column: Option<u32>,
}

/// The line program of one unit.
pub(super) struct LineProgram<'u, 'd> {
    dwarf: &'u Dwarf<Slice<'d>>,
    unit: &'u Unit<Slice<'d>>,
    program: gimli::IncompleteLineProgram<Slice<'d>>,
}

impl<'u, 'd> LineProgram<'u, 'd> {
    /// The line program of `unit`, which is at `offset`.
    pub(super) fn new(
        dwarf: &'u Dwarf<Slice<'d>>,
        unit: &'u Unit<Slice<'d>>,
        offset: DebugLineOffset,
        budget: &Budget,
    ) -> Option<Self> {
        let section = dwarf.debug_line.reader().slice();
        // All of it is read once at most.
        budget.spend(checked_length(section.get(offset.0..)?)?)?;
        let address_size = unit.header.address_size();
        let program = dwarf
            .debug_line
            .program(offset, address_size, unit.comp_dir, unit.name)
            .ok()?;
        Some(Self {
            dwarf,
            unit,
            program,
        })
    }

    /// The position of each of `addresses`, which are in ascending order.
    pub(super) fn positions(&self, addresses: &[u64], code: &RangeSet) -> Vec<Option<Position>> {
        let mut positions = vec![None; addresses.len()];
        let mut rows = self.program.clone().rows();
        let mut before: Option<LineRow> = None;
        let mut is_live = false;
        // A damaged program is right up to there.
        while let Ok(Some((_, row))) = rows.next_row() {
            match &before {
                None => is_live = code.contains(Addr(row.address())),
                Some(before) if is_live => {
                    assign(before, row.address(), addresses, &mut positions);
                }
                Some(_) => {}
            }
            before = (!row.end_sequence()).then_some(*row);
        }
        positions
    }

    /// The path of the file with the number `index`, joined with the directories that it is in.
    pub(super) fn path(&self, index: u64) -> Option<String> {
        let header: &LineProgramHeader<Slice<'d>> = self.program.header();
        let file = header.file(index)?;
        let mut path = String::new();
        if let Some(directory) = self.unit.comp_dir {
            push(&mut path, directory);
        }
        // Directory 0 is that of the compilation.
        if file.directory_index() != 0
            && let Some(directory) = file.directory(header)
        {
            push(
                &mut path,
                self.dwarf.attr_string(self.unit, directory).ok()?,
            );
        }
        let name = self.dwarf.attr_string(self.unit, file.path_name()).ok()?;
        push(&mut path, name);
        Some(path)
    }
}

/// Gives those of `addresses` the position `row` that lie between it and `end`.
fn assign(row: &LineRow, end: u64, addresses: &[u64], positions: &mut [Option<Position>]) {
    let first = addresses.partition_point(|address| *address < row.address());
    for (address, position) in addresses.iter().zip(positions).skip(first) {
        if *address >= end {
            break;
        }
        position.get_or_insert_with(|| position_of(row));
    }
}

fn position_of(row: &LineRow) -> Position {
    Position {
        file: Some(row.file_index()),
        line: row.line().and_then(|line| u32::try_from(line.get()).ok()),
        column: match row.column() {
            gimli::ColumnType::LeftEdge => None,
            gimli::ColumnType::Column(column) => u32::try_from(column.get()).ok(),
        },
    }
}

/// Appends `part` to `path`, or replaces it where `part` is absolute.
fn push(path: &mut String, part: Slice<'_>) {
    let part = part.slice();
    let part = String::from_utf8_lossy(&part[..part.len().min(MAX_PATH)]);
    if part.starts_with('/') {
        path.clear();
    } else if !path.is_empty() && !path.ends_with('/') {
        path.push('/');
    }
    path.push_str(&part);
}

/// The length of the line program at the start of `bytes`, if its header has a sane size.
fn checked_length(bytes: &[u8]) -> Option<usize> {
    let word = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
    let long = |at: usize| Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
    let is_64_bit = word(0)? == u32::MAX;
    let (length, start) = match is_64_bit {
        true => (long(4)?, 12),
        false => (u64::from(word(0)?), 4),
    };
    let version = u16::from_le_bytes(*bytes.get(start..)?.first_chunk()?);
    let at = start + if version >= 5 { 4 } else { 2 };
    let header = match is_64_bit {
        true => long(at)?,
        false => u64::from(word(at)?),
    };
    (header <= MAX_HEADER).then(|| usize::try_from(length).ok())?
}
