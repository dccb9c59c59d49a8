//! The leaks of a report, kept small: there may be tens of millions.

use std::borrow::Cow;
use std::fmt;

use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::model::Leak;
use crate::addr::Addr;
use crate::scan::LeakKind;
use crate::symbolize::{Description, Descriptions};

/// The leaked blocks of a report, in its order.
///
/// A number that no leak has, such as a size of 2⁶⁴ - 1 bytes that were asked for, stands for one that is not known.
#[derive(Clone, Default)]
pub struct Leaks {
    /// In ascending order of their addresses. Those that are not in the order are leaks that were
    /// left out, or that only the parent of another one is known of.
    rows: Vec<Row>,
    /// What the stack log knows of each row. Empty where there is no log.
    allocations: Vec<Allocated>,
    /// The rows of the report's leaks, in its order.
    order: Vec<u32>,
    descriptions: Descriptions,
}

/// What is known of a leaked block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    pub(super) address: Addr,
    pub(super) size: u64,
    pub(super) held_bytes: u64,
    pub(super) held_blocks: u32,
    /// Rows, or [`NONE`].
    pub(super) parent: u32,
    pub(super) tree_parent: u32,
    pub(super) description: u32,
    pub(super) zone: u32,
    pub(super) kind: LeakKind,
}

/// What a stack log knows of a leaked block. What is not known is all ones.
#[derive(Clone, Copy, Debug)]
pub(super) struct Allocated {
    pub(super) requested: u64,
    pub(super) milliseconds: u64,
    pub(super) stack: u32,
    pub(super) thread: u32,
}

/// No row, stack or thread.
pub(super) const NONE: u32 = u32::MAX;
const NO_NUMBER: u64 = u64::MAX;

impl Allocated {
    /// Nothing is known.
    pub(super) const NOTHING: Self = Self {
        requested: NO_NUMBER,
        milliseconds: NO_NUMBER,
        stack: NONE,
        thread: NONE,
    };
}

impl Leaks {
    /// The leaks of a scan, the largest first: `rows` are in ascending order of their addresses, their descriptions
    /// are numbers in `descriptions`, and `allocations` has what is known of each, if there is a log.
    pub(super) fn new(
        rows: Vec<Row>,
        allocations: Vec<Allocated>,
        descriptions: Descriptions,
    ) -> Self {
        Self {
            order: largest_first(&rows),
            rows,
            allocations,
            descriptions,
        }
    }

    /// The number of leaks.
    #[must_use]
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Says whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// The leak at a place of the report's order.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<LeakRef<'_>> {
        self.order.get(index).map(|row| self.at(*row))
    }

    /// The leaks in the report's order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = LeakRef<'_>> + ExactSizeIterator + Clone {
        self.order.iter().map(|row| self.at(*row))
    }

    /// Leaves out the leaks for which `is_kept`, which is asked for each in the report's order, says no.
    pub(super) fn retain(&mut self, mut is_kept: impl FnMut(LeakRef<'_>) -> bool) {
        let mut order = std::mem::take(&mut self.order);
        order.retain(|row| is_kept(self.at(*row)));
        self.order = order;
    }

    /// The number of rows: leaks have numbers below it.
    pub(super) fn rows(&self) -> usize {
        self.rows.len()
    }

    /// The leak with this row, which need not be one of the report's.
    pub(super) fn at(&self, row: u32) -> LeakRef<'_> {
        LeakRef { leaks: self, row }
    }

    /// The name of the type with this number.
    pub(super) fn type_name(&self, type_number: u32) -> &str {
        self.descriptions.type_name(type_number)
    }

    /// Gives stacks other ids: `id` is asked in the report's order, for each leak that has one.
    pub(super) fn rename_stacks(&mut self, mut id: impl FnMut(u32) -> Option<u32>) {
        for row in &self.order {
            if let Some(allocated) = self.allocations.get_mut(*row as usize) {
                allocated.stack = known32(allocated.stack).and_then(&mut id).unwrap_or(NONE);
            }
        }
    }
}

/// One of the leaks of a report.
#[derive(Clone, Copy)]
pub struct LeakRef<'a> {
    leaks: &'a Leaks,
    row: u32,
}

impl<'a> LeakRef<'a> {
    /// All that is known of it.
    #[must_use]
    pub fn leak(self) -> Leak<'a> {
        let row = self.here();
        let description = self.description();
        Leak {
            address: row.address,
            size: row.size,
            requested: self.requested(),
            zone: row.zone,
            kind: row.kind,
            parent: self.address_of(row.parent),
            tree_parent: self.tree_parent(),
            held_blocks: row.held_blocks.into(),
            held_bytes: row.held_bytes,
            type_name: description.type_name.map(Cow::Borrowed),
            content: description.content.map(Cow::Borrowed),
            content_length: description.content_length,
            stack: self.stack(),
            thread: self.thread(),
            allocated_milliseconds: self.allocated_milliseconds(),
        }
    }

    /// Its address.
    #[must_use]
    pub fn address(self) -> Addr {
        self.here().address
    }

    /// The bytes that the program may use.
    #[must_use]
    pub fn size(self) -> u64 {
        self.here().size
    }

    /// The bytes that the program asked for.
    #[must_use]
    pub fn requested(self) -> Option<u64> {
        known(self.allocated().requested)
    }

    /// What it is to the other leaks.
    #[must_use]
    pub fn kind(self) -> LeakKind {
        self.here().kind
    }

    /// The id of its stack.
    #[must_use]
    pub fn stack(self) -> Option<u32> {
        known32(self.allocated().stack)
    }

    /// The id of the thread that allocated it.
    #[must_use]
    pub fn thread(self) -> Option<u32> {
        known32(self.allocated().thread)
    }

    /// The milliseconds from the start of the stack log to its allocation.
    #[must_use]
    pub fn allocated_milliseconds(self) -> Option<u64> {
        known(self.allocated().milliseconds)
    }

    /// Its type.
    #[must_use]
    pub fn type_name(self) -> Option<&'a str> {
        self.description().type_name
    }

    /// A number for its type, which no other type in the report has.
    pub(super) fn type_number(self) -> Option<u32> {
        self.leaks.descriptions.type_number(self.here().description)
    }

    /// Its type, or the string that it starts with.
    pub(super) fn description(self) -> Description<'a> {
        self.leaks.descriptions.get(self.here().description)
    }

    /// What a stack log knows of it.
    fn allocated(self) -> Allocated {
        let allocated = self.leaks.allocations.get(self.row as usize);
        allocated.copied().unwrap_or(Allocated::NOTHING)
    }

    /// The leak below which it stands in the trees. It need not be in the report.
    #[must_use]
    pub fn tree_parent(self) -> Option<Addr> {
        self.address_of(self.here().tree_parent)
    }

    /// The row of that leak.
    pub(super) fn row_above(self) -> Option<u32> {
        known32(self.here().tree_parent)
    }

    pub(super) fn here(self) -> &'a Row {
        &self.leaks.rows[self.row as usize]
    }

    pub(super) fn row(self) -> u32 {
        self.row
    }

    fn address_of(self, row: u32) -> Option<Addr> {
        Some(self.leaks.rows[known32(row)? as usize].address)
    }
}

impl fmt::Debug for LeakRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.leak().fmt(f)
    }
}

impl fmt::Debug for Leaks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl PartialEq for Leaks {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len()
            && self
                .iter()
                .zip(other.iter())
                .all(|(a, b)| a.leak() == b.leak())
    }
}

fn known(number: u64) -> Option<u64> {
    Some(number).filter(|number| *number != NO_NUMBER)
}

fn known32(number: u32) -> Option<u32> {
    Some(number).filter(|number| *number != NONE)
}

/// The number of a row. A process has fewer blocks than 2³², and no file that is read has as many leaks.
pub(super) fn number(index: usize) -> u32 {
    u32::try_from(index).expect("fewer than 2³² leaks")
}

/// The rows in descending order of what they and those below them have; those that are equal stay in ascending order.
///
/// This is a radix sort: nearly all numbers are small, so that it reads the rows once or twice.
fn largest_first(rows: &[Row]) -> Vec<u32> {
    const DIGIT: u32 = 16;
    let total = |row: u32| {
        let row = &rows[row as usize];
        row.size.saturating_add(row.held_bytes)
    };
    let mut order: Vec<u32> = (0..number(rows.len())).collect();
    let largest = order.iter().map(|row| total(*row)).max().unwrap_or(0);
    let bits = u64::BITS - largest.leading_zeros();
    let mut sorted = vec![0; rows.len()];
    for shift in (0..bits).step_by(DIGIT as usize) {
        let digit = |row: u32| {
            let digit = (total(row) >> shift) & ((1 << DIGIT) - 1);
            usize::try_from(digit).unwrap_or(0)
        };
        let mut starts = vec![0_usize; 1 << DIGIT];
        order.iter().for_each(|row| starts[digit(*row)] += 1);
        let mut next = 0;
        for start in starts.iter_mut().rev() {
            next += std::mem::replace(start, next);
        }
        for row in &order {
            let place = &mut starts[digit(*row)];
            sorted[*place] = *row;
            *place += 1;
        }
        std::mem::swap(&mut order, &mut sorted);
    }
    order
}

/// Collects leaks one by one, in the report's order.
#[derive(Default)]
struct Collected {
    /// Without parents.
    rows: Vec<Row>,
    allocations: Vec<Allocated>,
    /// The parent and the tree parent of each.
    parents: Vec<[Option<Addr>; 2]>,
    descriptions: Descriptions,
}

impl Collected {
    fn push(&mut self, leak: &Leak<'_>) {
        let description = Description {
            type_name: leak.type_name.as_deref(),
            content: leak.content.as_deref(),
            content_length: leak.content_length,
        };
        self.rows.push(Row {
            address: leak.address,
            size: leak.size,
            held_bytes: leak.held_bytes,
            // No process has more blocks.
            held_blocks: u32::try_from(leak.held_blocks).unwrap_or(u32::MAX),
            parent: NONE,
            tree_parent: NONE,
            description: self.descriptions.number(description),
            zone: leak.zone,
            kind: leak.kind,
        });
        self.allocations.push(Allocated {
            requested: leak.requested.unwrap_or(NO_NUMBER),
            milliseconds: leak.allocated_milliseconds.unwrap_or(NO_NUMBER),
            stack: leak.stack.unwrap_or(NONE),
            thread: leak.thread.unwrap_or(NONE),
        });
        self.parents.push([leak.parent, leak.tree_parent]);
    }

    /// Adds a row for each parent that is no leak itself.
    fn add_outside(&mut self) {
        let mut known: Vec<Addr> = self.rows.iter().map(|row| row.address).collect();
        known.sort_unstable();
        let parents = self.parents.iter().flatten().flatten().copied();
        let mut outside: Vec<Addr> = parents
            .filter(|p| known.binary_search(p).is_err())
            .collect();
        outside.sort_unstable();
        outside.dedup();
        for address in outside {
            self.push(&Leak {
                address,
                ..Leak::default()
            });
        }
    }

    fn finish(mut self) -> Leaks {
        let leaks = self.rows.len();
        self.add_outside();
        let mut sorted: Vec<u32> = (0..number(self.rows.len())).collect();
        sorted.sort_by_key(|index| self.rows[*index as usize].address);
        let mut order = vec![0; sorted.len()];
        for (row, index) in (0..).zip(&sorted) {
            order[*index as usize] = row;
        }
        order.truncate(leaks);
        let rows = sorted.iter().map(|index| self.rows[*index as usize]);
        let allocations = sorted.iter().map(|index| self.allocations[*index as usize]);
        let mut all = Leaks {
            rows: rows.collect(),
            allocations: allocations.collect(),
            order,
            descriptions: self.descriptions,
        };
        for (index, row) in sorted.iter().zip(0..) {
            let row_of = |parent: Option<Addr>| {
                let found = all.rows.binary_search_by_key(&parent?, |row| row.address);
                found.ok().map(number)
            };
            let parents = self.parents[*index as usize].map(row_of);
            let [parent, tree_parent] = parents.map(|row| row.unwrap_or(NONE));
            let row: &mut Row = &mut all.rows[row];
            (row.parent, row.tree_parent) = (parent, tree_parent);
        }
        all
    }
}

impl<'a> FromIterator<Leak<'a>> for Leaks {
    fn from_iter<I: IntoIterator<Item = Leak<'a>>>(leaks: I) -> Self {
        let mut collected = Collected::default();
        leaks.into_iter().for_each(|leak| collected.push(&leak));
        collected.finish()
    }
}

impl Serialize for Leaks {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter().map(LeakRef::leak))
    }
}

impl<'de> Deserialize<'de> for Leaks {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(LeaksVisitor)
    }
}

/// Keeps each leak as it is read.
struct LeaksVisitor;

impl<'de> Visitor<'de> for LeaksVisitor {
    type Value = Leaks;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a sequence")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut leaks: A) -> Result<Leaks, A::Error> {
        let mut collected = Collected::default();
        while let Some(leak) = leaks.next_element::<Leak<'_>>()? {
            collected.push(&leak);
        }
        Ok(collected.finish())
    }
}

#[cfg(test)]
impl Leaks {
    /// All leaks, to be changed and collected again.
    pub(crate) fn to_vec(&self) -> Vec<Leak<'static>> {
        let owned = |text: Option<Cow<'_, str>>| text.map(|text| Cow::Owned(text.into_owned()));
        self.iter()
            .map(LeakRef::leak)
            .map(|leak| Leak {
                type_name: owned(leak.type_name),
                content: owned(leak.content),
                ..leak
            })
            .collect()
    }

    /// Changes the leaks.
    pub(crate) fn edit(&mut self, change: impl FnOnce(&mut Vec<Leak<'static>>)) {
        let mut leaks = self.to_vec();
        change(&mut leaks);
        *self = leaks.into_iter().collect();
    }
}

#[cfg(test)]
mod tests {
    use std::cmp::Reverse;

    use proptest::prelude::*;

    use super::*;

    /// Leaks in any order, of which some are at the same address, and with parents that need not be there.
    fn some_leaks() -> impl Strategy<Value = Vec<Leak<'static>>> {
        let address = || (0_u64..20).prop_map(Addr);
        let numbers = (
            prop::option::of(0_u64..9),
            prop::option::of(0_u32..9),
            any::<u32>(),
            any::<u64>(),
        );
        let text = || prop::option::of("[ab\u{1b}\"]{0,2}");
        let leak = (
            address(),
            prop::option::of(address()),
            prop::option::of(address()),
            numbers,
            text(),
            text(),
        );
        let leak = leak.prop_map(
            |(address, parent, tree_parent, numbers, type_name, content)| {
                let (requested, stack, held_blocks, size) = numbers;
                Leak {
                    address,
                    parent,
                    tree_parent,
                    size,
                    requested,
                    stack,
                    held_blocks: held_blocks.into(),
                    held_bytes: size / 3,
                    allocated_milliseconds: requested.map(|requested| requested * 17),
                    content_length: content.as_ref().map(|text| text.len() as u64),
                    thread: stack,
                    type_name: type_name.map(Cow::Owned),
                    content: content.map(Cow::Owned),
                    ..Leak::default()
                }
            },
        );
        prop::collection::vec(leak, 0..40)
    }

    proptest! {
        #[test]
        fn leaks_are_what_they_were_collected_from(leaks in some_leaks()) {
            let collected: Leaks = leaks.iter().cloned().collect();
            prop_assert_eq!(&collected.to_vec(), &leaks);
            let json = serde_json::to_string(&leaks).expect("JSON");
            prop_assert_eq!(&serde_json::to_string(&collected).expect("JSON"), &json);
            let read: Leaks = serde_json::from_str(&json).expect("leaks");
            prop_assert_eq!(read, collected);
        }

        #[test]
        fn what_is_left_is_as_it_was(leaks in some_leaks(), kept in prop::collection::vec(any::<bool>(), 40)) {
            let mut collected: Leaks = leaks.iter().cloned().collect();
            let mut at = kept.iter();
            collected.retain(|_| at.next() == Some(&true));
            let expected = leaks.into_iter().zip(kept).filter(|(_, kept)| *kept);
            let expected: Vec<_> = expected.map(|(leak, _)| leak).collect();
            prop_assert_eq!(collected.to_vec(), expected);
        }

        #[test]
        fn the_largest_come_first_and_equals_stay(
            sizes in prop::collection::vec((0_u64..5, 0_u32..64, any::<u64>()), 0..200)
        ) {
            let row = |(few, shift, many): &(u64, u32, u64)| Row {
                address: Addr(0),
                size: if shift % 2 == 0 { *few } else { many >> shift },
                held_bytes: few << shift,
                held_blocks: 0,
                parent: NONE,
                tree_parent: NONE,
                description: Descriptions::NOTHING,
                zone: 0,
                kind: LeakKind::RootLeak,
            };
            let rows: Vec<Row> = sizes.iter().map(row).collect();
            let mut expected: Vec<u32> = (0..number(rows.len())).collect();
            expected.sort_by_key(|row| {
                let row = &rows[*row as usize];
                Reverse(row.size.saturating_add(row.held_bytes))
            });
            prop_assert_eq!(largest_first(&rows), expected);
        }
    }
}
