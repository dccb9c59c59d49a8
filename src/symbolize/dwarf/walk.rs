//! The functions of a unit: which one each address is in, and the calls that were inlined there.
//!
//! The entries of a unit are read once, in their order, with a stack of our own: entries can be
//! nested as deeply as a file likes.

use gimli::{AttributeValue, DwAt, Dwarf, Unit};

use super::budget::Budget;
use super::extent::Extent;
use super::file::Slice;
use super::lines::Position;
use super::names::NameSource;
use crate::addr::RangeSet;

/// Calls that are inlined more deeply than this are left out.
const MAX_INLINED: usize = 256;
/// No program nests functions and inlined calls more deeply than this.
const MAX_SCOPES: usize = 16 << 10;

/// The function that an address is in.
pub(super) struct Function<'d> {
    /// Its number in the unit.
    id: usize,
    pub(super) name: NameSource<'d>,
    /// Where it starts, if the address is in the same range of code.
    pub(super) start: Option<u64>,
    /// The size of all its code.
    size: u64,
    /// The inlined calls around the address, from the outermost to the innermost.
    pub(super) inlined: Vec<InlinedCall<'d>>,
}

/// A call that was replaced by the code of the function that it calls.
#[derive(Clone)]
pub(super) struct InlinedCall<'d> {
    /// What was called.
    pub(super) name: NameSource<'d>,
    /// Where the call is.
    pub(super) call: Position,
}

/// The function of each of `addresses`, which are in ascending order. `None` if the entries make
/// no sense.
pub(super) fn functions<'d>(
    dwarf: &Dwarf<Slice<'d>>,
    unit: &Unit<Slice<'d>>,
    addresses: &[u64],
    code: &RangeSet,
    budget: &Budget,
) -> Option<Vec<Option<Function<'d>>>> {
    let mut walk = Walk {
        dwarf,
        unit,
        addresses,
        code,
        budget,
        functions: addresses.iter().map(|_| None).collect(),
        scopes: Vec::new(),
        next_id: 0,
    };
    walk.run()?;
    Some(walk.functions)
}

struct Walk<'w, 'd> {
    dwarf: &'w Dwarf<Slice<'d>>,
    unit: &'w Unit<Slice<'d>>,
    addresses: &'w [u64],
    code: &'w RangeSet,
    budget: &'w Budget,
    functions: Vec<Option<Function<'d>>>,
    /// The functions and inlined calls that the current entry is in.
    scopes: Vec<Scope>,
    next_id: usize,
}

/// A function or an inlined call whose entries are being read.
#[derive(Clone, Copy)]
struct Scope {
    depth: isize,
    /// The number of the function.
    function: usize,
    /// How many inlined calls deep it is.
    level: usize,
    /// Some address is in it.
    is_hit: bool,
}

/// The attributes of a function or an inlined call.
#[derive(Default)]
struct Attributes<'d> {
    extent: Extent<'d>,
    name: NameSource<'d>,
    call: Position,
}

impl<'d> Walk<'_, 'd> {
    fn run(&mut self) -> Option<()> {
        let abbreviations = &self.unit.abbreviations;
        let mut entries = self.unit.header.entries_raw(abbreviations, None).ok()?;
        while !entries.is_empty() {
            let depth = entries.next_depth();
            let Some(abbreviation) = entries.read_abbreviation().ok()? else {
                self.budget.spend(1)?;
                continue;
            };
            self.budget.spend(1 + abbreviation.attributes().len())?;
            while self.scopes.last().is_some_and(|scope| scope.depth >= depth) {
                self.scopes.pop();
            }
            let is_function = abbreviation.tag() == gimli::DW_TAG_subprogram;
            let is_inlined = abbreviation.tag() == gimli::DW_TAG_inlined_subroutine;
            let is_hit = self.scopes.last().is_some_and(|scope| scope.is_hit);
            if !(is_function || is_inlined && is_hit) {
                entries.skip_attributes(abbreviation.attributes()).ok()?;
                continue;
            }
            let mut attributes = Attributes::default();
            for specification in abbreviation.attributes() {
                let attribute = entries.read_attribute(*specification).ok()?;
                attributes.add(attribute.name(), attribute.value(), self.unit);
            }
            let scope = match is_function {
                true => self.enter_function(depth, attributes)?,
                false => self.enter_inlined(depth, &attributes)?,
            };
            self.scopes.push(scope);
            (self.scopes.len() <= MAX_SCOPES).then_some(())?;
        }
        Some(())
    }

    fn enter_function(&mut self, depth: isize, attributes: Attributes<'d>) -> Option<Scope> {
        let id = self.next_id;
        self.next_id += 1;
        let mut hits = Hits::default();
        if attributes.extent.is_some() {
            hits = self.hits(&attributes.extent)?;
        }
        for (index, start) in &hits.found {
            // Of several functions that claim an address, the smallest is the one.
            let known = self.functions[*index].as_ref();
            if known.is_none_or(|known| hits.size < known.size) {
                self.functions[*index] = Some(Function {
                    id,
                    name: attributes.name,
                    start: *start,
                    size: hits.size,
                    inlined: Vec::new(),
                });
            }
        }
        Some(Scope {
            depth,
            function: id,
            level: 0,
            is_hit: !hits.found.is_empty(),
        })
    }

    fn enter_inlined(&mut self, depth: isize, attributes: &Attributes<'d>) -> Option<Scope> {
        let outer = *self.scopes.last()?;
        let mut is_hit = false;
        for (index, _) in self.hits(&attributes.extent)?.found {
            let function = self.functions[index].as_mut();
            let Some(function) = function.filter(|function| function.id == outer.function) else {
                continue;
            };
            // One that is not in the call around it, or that has a brother there, is not the one.
            if function.inlined.len() == outer.level && outer.level < MAX_INLINED {
                function.inlined.push(InlinedCall {
                    name: attributes.name,
                    call: attributes.call,
                });
                is_hit = true;
            }
        }
        Some(Scope {
            depth,
            function: outer.function,
            level: outer.level + 1,
            is_hit,
        })
    }

    /// The addresses in `extent`.
    fn hits(&self, extent: &Extent<'d>) -> Option<Hits> {
        let (mut hits, mut entry) = (Hits::default(), None);
        let low = extent.low_pc(self.dwarf, self.unit);
        extent.each_range(
            self.dwarf,
            self.unit,
            self.code,
            self.budget,
            |start, end| {
                let entry = *entry.get_or_insert(low.filter(|low| *low != 0).unwrap_or(start));
                hits.size = hits.size.saturating_add(end - start);
                let first = self.addresses.partition_point(|address| *address < start);
                let after = self.addresses.partition_point(|address| *address < end);
                let has_entry = (start..end).contains(&entry);
                for index in first..after {
                    let is_behind = self.addresses[index] >= entry;
                    hits.found
                        .push((index, (has_entry && is_behind).then_some(entry)));
                }
            },
        )?;
        self.budget.spend(hits.found.len())?;
        Some(hits)
    }
}

/// The addresses in an extent: their numbers, and the start of the function where it is known.
#[derive(Default)]
struct Hits {
    found: Vec<(usize, Option<u64>)>,
    size: u64,
}

impl<'d> Attributes<'d> {
    fn add(&mut self, name: DwAt, value: AttributeValue<Slice<'d>>, unit: &Unit<Slice<'d>>) {
        let number = |value: AttributeValue<Slice<'d>>| {
            let number = u32::try_from(value.udata_value()?).ok()?;
            (number != 0).then_some(number)
        };
        match name {
            gimli::DW_AT_call_file => {
                if let AttributeValue::FileIndex(index) = value {
                    // Before DWARF 5, 0 was no file.
                    let is_file = index > 0 || unit.header.version() >= 5;
                    self.call.file = is_file.then_some(index);
                }
            }
            gimli::DW_AT_call_line => self.call.line = number(value),
            gimli::DW_AT_call_column => self.call.column = number(value),
            _ if self.extent.add(name, value) => {}
            _ => self.name.add(name, value),
        }
    }
}
