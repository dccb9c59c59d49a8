//! The names of functions: an entry has one, or refers to another entry that has.

use gimli::{AttributeValue, DebugInfoOffset, DwAt, UnitOffset};

use super::budget::Budget;
use super::file::{DwarfFile, Root, Slice};

/// From a concrete function to its abstract one, its definition, its declaration: references
/// that lead further lead in a circle.
const MAX_REFERENCES: usize = 16;

/// Where the name of a function is.
#[derive(Clone, Copy, Default)]
pub(super) struct NameSource<'d> {
    linkage_name: Option<AttributeValue<Slice<'d>>>,
    name: Option<AttributeValue<Slice<'d>>>,
    origin: Option<AttributeValue<Slice<'d>>>,
}

/// The name of a function.
#[derive(Clone, Copy)]
pub(super) struct Name<'d> {
    pub(super) text: Slice<'d>,
    /// It is the name that the linker sees: a mangled one says more than a plain one.
    pub(super) is_linkage_name: bool,
}

/// A unit and the file that it is in.
#[derive(Clone, Copy)]
pub(super) struct UnitIn<'n, 'd> {
    pub(super) file: &'n DwarfFile<'d>,
    pub(super) root: &'n Root<'d>,
}

impl<'d> NameSource<'d> {
    /// Takes the attribute `name`.
    pub(super) fn add(&mut self, name: DwAt, value: AttributeValue<Slice<'d>>) {
        match name {
            gimli::DW_AT_linkage_name | gimli::DW_AT_MIPS_linkage_name => {
                self.linkage_name = Some(value);
            }
            gimli::DW_AT_name => self.name = Some(value),
            gimli::DW_AT_abstract_origin | gimli::DW_AT_specification => self.origin = Some(value),
            _ => {}
        }
    }

    /// The name, for an entry of `unit`. `sup` is the supplementary file that entries refer to.
    pub(super) fn resolve<'n>(
        self,
        mut unit: UnitIn<'n, 'd>,
        sup: Option<&'n DwarfFile<'d>>,
        budget: &Budget,
    ) -> Option<Name<'d>> {
        let mut source = self;
        for _ in 0..MAX_REFERENCES {
            if let Some(name) = source.own(unit) {
                budget.spend(name.text.len())?;
                return Some(name);
            }
            let (next, offset) = follow(unit, source.origin?, sup, budget)?;
            unit = next;
            source = read(unit, offset, budget)?;
        }
        None
    }

    fn own(&self, unit: UnitIn<'_, 'd>) -> Option<Name<'d>> {
        let name = |value: Option<_>, is_linkage_name| {
            let text = unit.file.dwarf.attr_string(&unit.root.unit, value?).ok()?;
            (!text.is_empty()).then_some(Name {
                text,
                is_linkage_name,
            })
        };
        name(self.linkage_name, true).or_else(|| name(self.name, false))
    }
}

/// The entry that `origin` of an entry of `unit` refers to.
fn follow<'n, 'd>(
    unit: UnitIn<'n, 'd>,
    origin: AttributeValue<Slice<'d>>,
    sup: Option<&'n DwarfFile<'d>>,
    budget: &Budget,
) -> Option<(UnitIn<'n, 'd>, UnitOffset)> {
    let entry = |file: &'n DwarfFile<'d>, offset: DebugInfoOffset| {
        let (root, offset) = file.entry(offset, budget)?;
        Some((UnitIn { file, root }, offset))
    };
    match origin {
        AttributeValue::UnitRef(offset) => Some((unit, offset)),
        AttributeValue::DebugInfoRef(offset) => entry(unit.file, offset),
        AttributeValue::DebugInfoRefSup(offset) => entry(sup?, offset),
        _ => None,
    }
}

fn read<'d>(unit: UnitIn<'_, 'd>, offset: UnitOffset, budget: &Budget) -> Option<NameSource<'d>> {
    let unit = &unit.root.unit;
    let entries = unit.header.entries_raw(&unit.abbreviations, Some(offset));
    let mut entries = entries.ok()?;
    let abbreviation = entries.read_abbreviation().ok()??;
    budget.spend(abbreviation.attributes().len())?;
    let mut source = NameSource::default();
    for specification in abbreviation.attributes() {
        let attribute = entries.read_attribute(*specification).ok()?;
        source.add(attribute.name(), attribute.value());
    }
    Some(source)
}
