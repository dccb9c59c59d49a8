//! The code that an entry stands for.

use gimli::{AttributeValue, Dwarf, Unit};

use super::budget::Budget;
use super::file::Slice;
use crate::addr::{Addr, RangeSet};

/// The attributes that say which addresses an entry covers.
#[derive(Clone, Copy, Default)]
pub(super) struct Extent<'d> {
    low: Option<AttributeValue<Slice<'d>>>,
    high: Option<AttributeValue<Slice<'d>>>,
    ranges: Option<AttributeValue<Slice<'d>>>,
}

impl<'d> Extent<'d> {
    /// Takes the attribute `name`, and says whether it is one of an extent.
    pub(super) fn add(&mut self, name: gimli::DwAt, value: AttributeValue<Slice<'d>>) -> bool {
        match name {
            gimli::DW_AT_low_pc => self.low = Some(value),
            gimli::DW_AT_high_pc => self.high = Some(value),
            gimli::DW_AT_ranges => self.ranges = Some(value),
            _ => return false,
        }
        true
    }

    /// Says whether there is code at all.
    pub(super) fn is_some(&self) -> bool {
        self.ranges.is_some() || (self.low.is_some() && self.high.is_some())
    }

    /// The lowest address or, where there are several ranges, the base of their addresses.
    pub(super) fn low_pc(&self, dwarf: &Dwarf<Slice<'d>>, unit: &Unit<Slice<'d>>) -> Option<u64> {
        dwarf.attr_address(unit, self.low?).ok()?
    }

    /// Calls `visit` with the start and the end of each range whose start is in `code`.
    ///
    /// Linkers leave the debug information of functions that they drop, at addresses near 0 or at
    /// the end of the address space, which are no code.
    pub(super) fn each_range(
        &self,
        dwarf: &Dwarf<Slice<'d>>,
        unit: &Unit<Slice<'d>>,
        code: &RangeSet,
        budget: &Budget,
        mut visit: impl FnMut(u64, u64),
    ) -> Option<()> {
        let mut visit_code = |start, end| {
            if start < end && code.contains(Addr(start)) {
                visit(start, end);
            }
        };
        if let Some(ranges) = self.ranges {
            let offset = dwarf.attr_ranges_offset(unit, ranges).ok()??;
            // Entries that only set a base count, too.
            for entry in dwarf.raw_ranges(unit, offset).ok()? {
                budget.spend(1)?;
                entry.ok()?;
            }
            for range in dwarf.ranges(unit, offset).ok()? {
                let range = range.ok()?;
                visit_code(range.begin, range.end);
            }
        } else if let (Some(start), Some(high)) = (self.low_pc(dwarf, unit), self.high) {
            budget.spend(1)?;
            let end = match dwarf.attr_address(unit, high).ok()? {
                Some(end) => end,
                None => start.checked_add(high.udata_value()?)?,
            };
            visit_code(start, end);
        }
        Some(())
    }
}
