//! The DWARF of one file: its units, found by offset, and what their first entries say.

use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use gimli::{
    Abbreviations, AttributeValue, DebugAbbrevOffset, DebugAddrBase, DebugInfoOffset,
    DebugLineOffset, DebugLocListsBase, DebugRngListsBase, DebugStrOffsetsBase, Dwarf, EndianSlice,
    LittleEndian, Section, Unit, UnitHeader, UnitOffset, UnitType,
};
use rustc_hash::FxHashMap;

use super::budget::Budget;
use super::extent::Extent;

pub(super) type Slice<'d> = EndianSlice<'d, LittleEndian>;

/// A table of abbreviations that is longer is none.
const MAX_ABBREVIATIONS: usize = 4 << 20;

/// The DWARF of an executable, a debug file, a supplementary file or a `.dwo` file.
pub(super) struct DwarfFile<'d> {
    pub(super) dwarf: Dwarf<Slice<'d>>,
    /// In ascending order of their offsets.
    headers: Vec<UnitHeader<Slice<'d>>>,
    roots: Vec<OnceLock<Option<Root<'d>>>>,
    inherited: Option<Inherited>,
    abbreviations: RwLock<FxHashMap<usize, Option<Arc<Abbreviations>>>>,
}

/// What the first entry of a unit says.
pub(super) struct Root<'d> {
    /// The unit, without its line program.
    pub(super) unit: Unit<Slice<'d>>,
    /// The code of the unit.
    pub(super) extent: Extent<'d>,
    /// Where its line program is.
    pub(super) lines: Option<DebugLineOffset>,
    /// The path of the `.dwo` file that has the rest of the unit.
    pub(super) dwo_name: Option<Slice<'d>>,
    /// It has only what other units refer to.
    pub(super) is_partial: bool,
}

/// What the unit in a `.dwo` file has from its skeleton in the executable.
#[derive(Clone, Copy)]
struct Inherited {
    low_pc: u64,
    addresses: DebugAddrBase,
    ranges: DebugRngListsBase,
}

impl<'d> DwarfFile<'d> {
    /// The DWARF of a `.dwo` file, whose unit has a skeleton.
    pub(super) fn of_skeleton(
        dwarf: Dwarf<Slice<'d>>,
        skeleton: &Unit<Slice<'_>>,
        budget: &Budget,
    ) -> Self {
        let inherited = Inherited {
            low_pc: skeleton.low_pc,
            addresses: skeleton.addr_base,
            ranges: skeleton.rnglists_base,
        };
        Self {
            inherited: Some(inherited),
            ..Self::new(dwarf, budget)
        }
    }

    /// Finds the units. The list ends where a header makes no sense.
    pub(super) fn new(dwarf: Dwarf<Slice<'d>>, budget: &Budget) -> Self {
        let mut headers = Vec::new();
        let mut units = dwarf.units();
        while let Ok(Some(header)) = units.next() {
            if budget.spend(1).is_none() {
                break;
            }
            headers.push(header);
        }
        Self {
            roots: headers.iter().map(|_| OnceLock::new()).collect(),
            dwarf,
            headers,
            inherited: None,
            abbreviations: RwLock::default(),
        }
    }

    /// The number of units.
    pub(super) fn len(&self) -> usize {
        self.headers.len()
    }

    /// What the first entry of the unit with the number `index` says.
    pub(super) fn root(&self, index: usize, budget: &Budget) -> Option<&Root<'d>> {
        let root = self.roots.get(index)?;
        root.get_or_init(|| self.read_root(*self.headers.get(index)?, budget))
            .as_ref()
    }

    /// The unit that has the entry at `offset` of the section, and the offset in the unit.
    pub(super) fn entry(
        &self,
        offset: DebugInfoOffset,
        budget: &Budget,
    ) -> Option<(&Root<'d>, UnitOffset)> {
        let starts_before =
            |header: &UnitHeader<Slice<'d>>| header.debug_info_offset() <= Some(offset);
        let after = self.headers.partition_point(starts_before);
        let root = self.root(after.checked_sub(1)?, budget)?;
        Some((root, offset.to_unit_offset(&root.unit.header)?))
    }

    fn abbreviations(
        &self,
        offset: DebugAbbrevOffset,
        budget: &Budget,
    ) -> Option<Arc<Abbreviations>> {
        // A panic of another thread leaves the map whole.
        let known = self.abbreviations.read();
        let known = known.unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known.get(&offset.0) {
            return known.clone();
        }
        drop(known);
        let section = self.dwarf.debug_abbrev.reader().slice();
        let length = section.get(offset.0..).and_then(abbreviations_length);
        let abbreviations = length.and_then(|_| {
            let abbreviations = self.dwarf.debug_abbrev.abbreviations(offset).ok()?;
            Some(Arc::new(abbreviations))
        });
        let known = self.abbreviations.write();
        let mut known = known.unwrap_or_else(PoisonError::into_inner);
        // Where two threads read the same table, only the first one counts: what the budget allows
        // must not depend on threads.
        known
            .entry(offset.0)
            .or_insert_with(|| {
                budget.spend(length.unwrap_or(MAX_ABBREVIATIONS))?;
                abbreviations
            })
            .clone()
    }

    fn read_root(&self, header: UnitHeader<Slice<'d>>, budget: &Budget) -> Option<Root<'d>> {
        let abbreviations = self.abbreviations(header.debug_abbrev_offset(), budget)?;
        let mut unit = empty_unit(header, abbreviations, &self.dwarf);
        let abbreviations = Arc::clone(&unit.abbreviations);
        let mut entries = header.entries_raw(&abbreviations, None).ok()?;
        let abbreviation = entries.read_abbreviation().ok()??;
        budget.spend(abbreviation.attributes().len())?;
        let mut attributes = RootAttributes::default();
        for specification in abbreviation.attributes() {
            let attribute = entries.read_attribute(*specification).ok()?;
            attributes.add(attribute.name(), attribute.value());
        }
        attributes.apply_bases(&mut unit);
        let string = |value| self.dwarf.attr_string(&unit, value).ok();
        let (name, comp_dir) = (
            attributes.name.and_then(string),
            attributes.comp_dir.and_then(string),
        );
        let dwo_name = attributes.dwo_name.and_then(string);
        (unit.name, unit.comp_dir) = (name, comp_dir);
        unit.low_pc = attributes
            .extent
            .low_pc(&self.dwarf, &unit)
            .unwrap_or_default();
        if let Some(inherited) = self.inherited {
            (unit.low_pc, unit.addr_base) = (inherited.low_pc, inherited.addresses);
            if header.version() < 5 {
                unit.rnglists_base = inherited.ranges;
            }
        }
        let tag_is_partial = abbreviation.tag() == gimli::DW_TAG_partial_unit;
        Some(Root {
            is_partial: tag_is_partial || is_partial(&header),
            unit,
            extent: attributes.extent,
            lines: attributes.lines,
            dwo_name,
        })
    }
}

fn is_partial(header: &UnitHeader<Slice<'_>>) -> bool {
    matches!(
        header.type_(),
        UnitType::Partial | UnitType::Type { .. } | UnitType::SplitType { .. }
    )
}

/// The attributes of a unit's first entry. Some need others to be understood.
#[derive(Default)]
struct RootAttributes<'d> {
    extent: Extent<'d>,
    name: Option<AttributeValue<Slice<'d>>>,
    comp_dir: Option<AttributeValue<Slice<'d>>>,
    dwo_name: Option<AttributeValue<Slice<'d>>>,
    lines: Option<DebugLineOffset>,
    bases: Vec<AttributeValue<Slice<'d>>>,
}

impl<'d> RootAttributes<'d> {
    fn add(&mut self, name: gimli::DwAt, value: AttributeValue<Slice<'d>>) {
        match name {
            gimli::DW_AT_name => self.name = Some(value),
            gimli::DW_AT_comp_dir => self.comp_dir = Some(value),
            gimli::DW_AT_dwo_name | gimli::DW_AT_GNU_dwo_name => self.dwo_name = Some(value),
            gimli::DW_AT_stmt_list => {
                if let AttributeValue::DebugLineRef(offset) = value {
                    self.lines = Some(offset);
                }
            }
            _ if self.extent.add(name, value) => {}
            _ if is_base(&value) => self.bases.push(value),
            _ => {}
        }
    }

    fn apply_bases(&self, unit: &mut Unit<Slice<'d>>) {
        for base in &self.bases {
            match *base {
                AttributeValue::DebugStrOffsetsBase(base) => unit.str_offsets_base = base,
                AttributeValue::DebugAddrBase(base) => unit.addr_base = base,
                AttributeValue::DebugLocListsBase(base) => unit.loclists_base = base,
                AttributeValue::DebugRngListsBase(base) => unit.rnglists_base = base,
                AttributeValue::DwoId(id) => unit.dwo_id = unit.dwo_id.or(Some(id)),
                _ => {}
            }
        }
    }
}

fn is_base(value: &AttributeValue<Slice<'_>>) -> bool {
    matches!(
        value,
        AttributeValue::DebugStrOffsetsBase(_)
            | AttributeValue::DebugAddrBase(_)
            | AttributeValue::DebugLocListsBase(_)
            | AttributeValue::DebugRngListsBase(_)
            | AttributeValue::DwoId(_)
    )
}

/// The unit of `header` before its first entry is read.
fn empty_unit<'d>(
    header: UnitHeader<Slice<'d>>,
    abbreviations: Arc<Abbreviations>,
    dwarf: &Dwarf<Slice<'d>>,
) -> Unit<Slice<'d>> {
    let (encoding, kind) = (header.encoding(), dwarf.file_type);
    Unit {
        abbreviations,
        name: None,
        comp_dir: None,
        low_pc: 0,
        str_offsets_base: DebugStrOffsetsBase::default_for_encoding_and_file(encoding, kind),
        addr_base: DebugAddrBase(0),
        loclists_base: DebugLocListsBase::default_for_encoding_and_file(encoding, kind),
        rnglists_base: DebugRngListsBase::default_for_encoding_and_file(encoding, kind),
        line_program: None,
        dwo_id: match header.type_() {
            UnitType::Skeleton(id) | UnitType::SplitCompilation(id) => Some(id),
            _ => None,
        },
        header,
    }
}

/// How many bytes the table of abbreviations at the start of `bytes` has: tables can overlap, so
/// their sizes do not follow from their offsets.
fn abbreviations_length(bytes: &[u8]) -> Option<usize> {
    let bytes = &bytes[..bytes.len().min(MAX_ABBREVIATIONS)];
    let mut rest = bytes;
    while leb128(&mut rest)? != 0 {
        let _tag = leb128(&mut rest)?;
        let (_has_children, after) = rest.split_first()?;
        rest = after;
        loop {
            let (name, form) = (leb128(&mut rest)?, leb128(&mut rest)?);
            if (name, form) == (0, 0) {
                break;
            }
            if form == u64::from(gimli::DW_FORM_implicit_const.0) {
                leb128(&mut rest)?;
            }
        }
    }
    Some(bytes.len() - rest.len())
}

/// Takes a LEB128 number from the start of `bytes`. Of one that is too large, some bits are lost.
fn leb128(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    let mut shift = 0;
    loop {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
        if byte & 0x80 == 0 {
            return Some(value);
        }
        shift = shift.saturating_add(7);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_of_abbreviations_is_that_of_the_table() {
        let table = [
            1, 0x11, 1, 0x25, 0x0e, 0x13, 0x21, 0xff, 0x7f, 0,
            0, // With an implicit constant.
            2, 0x2e, 0, 0, 0, 0, // The end.
            9,
        ];
        assert_eq!(abbreviations_length(&table), Some(table.len() - 1));
        assert_eq!(abbreviations_length(&[0]), Some(1));
        for cut in 0..table.len() - 1 {
            assert_eq!(abbreviations_length(&table[..cut]), None);
        }
    }
}
