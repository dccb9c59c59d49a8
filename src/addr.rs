//! Addresses in the target, with checked arithmetic.

use std::fmt;

use serde::{Deserialize, Serialize};

/// An address in the target. It is never a pointer in this process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Addr(pub u64);

impl Addr {
    /// Returns the address `offset` bytes above, or `None` where that would pass the end of the
    /// address space.
    #[must_use]
    pub fn checked_add(self, offset: u64) -> Option<Self> {
        self.0.checked_add(offset).map(Self)
    }

    /// Returns the address `offset` bytes above, or the highest address there is.
    #[must_use]
    pub fn saturating_add(self, offset: u64) -> Self {
        Self(self.0.saturating_add(offset))
    }

    /// Returns the address `offset` bytes below, or address 0.
    #[must_use]
    pub fn saturating_sub(self, offset: u64) -> Self {
        Self(self.0.saturating_sub(offset))
    }

    /// Rounds down to a multiple of `alignment`, which is a power of two.
    #[must_use]
    pub fn align_down(self, alignment: u64) -> Self {
        Self(self.0 & !(alignment - 1))
    }

    /// Rounds up to a multiple of `alignment`, which is a power of two. `None` past the end.
    #[must_use]
    pub fn align_up(self, alignment: u64) -> Option<Self> {
        let top = self.0.checked_add(alignment - 1)?;
        Some(Self(top & !(alignment - 1)))
    }

    /// Says whether the address is a multiple of `alignment`, which is a power of two.
    #[must_use]
    pub fn is_aligned(self, alignment: u64) -> bool {
        self.0 & (alignment - 1) == 0
    }
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// Addresses from `start` up to, not including, `end`. Empty when `end <= start`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct AddrRange {
    /// The first address.
    pub start: Addr,
    /// The address after the last one.
    pub end: Addr,
}

impl AddrRange {
    /// The range from `start` to `end`.
    #[must_use]
    pub fn new(start: Addr, end: Addr) -> Self {
        Self { start, end }
    }

    /// The range of `size` bytes at `start`, cut at the end of the address space.
    #[must_use]
    pub fn with_size(start: Addr, size: u64) -> Self {
        Self::new(start, start.saturating_add(size))
    }

    /// The length in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.end.0.saturating_sub(self.start.0)
    }

    /// Says whether no address is in the range.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.end <= self.start
    }

    /// Says whether `addr` is in the range.
    #[must_use]
    pub fn contains(&self, addr: Addr) -> bool {
        self.start <= addr && addr < self.end
    }

    /// Says whether all of `other` is in the range. An empty range is in every range.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        other.is_empty() || (self.start <= other.start && other.end <= self.end)
    }

    /// The addresses that are in both ranges.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        Self::new(self.start.max(other.start), self.end.min(other.end))
    }

    /// Says whether the two ranges have an address in common.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        !self.intersection(other).is_empty()
    }
}

impl fmt::Display for AddrRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.start, self.end)
    }
}

/// A set of addresses: sorted ranges that neither overlap nor touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeSet(Vec<AddrRange>);

impl RangeSet {
    /// The ranges in ascending order.
    #[must_use]
    pub fn ranges(&self) -> &[AddrRange] {
        &self.0
    }

    /// Says whether `addr` is in the set.
    #[must_use]
    pub fn contains(&self, addr: Addr) -> bool {
        self.containing(addr).is_some()
    }

    /// The range of the set that `addr` is in.
    #[must_use]
    pub fn containing(&self, addr: Addr) -> Option<AddrRange> {
        let after = self.0.partition_point(|range| range.start <= addr);
        let range = *self.0.get(after.checked_sub(1)?)?;
        range.contains(addr).then_some(range)
    }

    /// The parts of `range` that are in the set, in ascending order.
    pub fn within(&self, range: AddrRange) -> impl Iterator<Item = AddrRange> + '_ {
        let first = self.0.partition_point(|r| r.end <= range.start);
        self.0[first..]
            .iter()
            .take_while(move |r| r.start < range.end)
            .map(move |r| r.intersection(&range))
    }

    /// The parts of `range` that are not in the set, in ascending order.
    #[must_use]
    pub fn gaps(&self, range: AddrRange) -> Vec<AddrRange> {
        let mut gaps = Vec::new();
        let mut start = range.start;
        for taken in self.within(range) {
            gaps.push(AddrRange::new(start, taken.start));
            start = taken.end;
        }
        gaps.push(AddrRange::new(start, range.end));
        gaps.retain(|gap| !gap.is_empty());
        gaps
    }

    /// The number of addresses in the set.
    #[must_use]
    pub fn size(&self) -> u64 {
        // The ranges do not overlap, so the sum is no more than the address space.
        self.0.iter().map(AddrRange::size).sum()
    }
}

impl FromIterator<AddrRange> for RangeSet {
    /// Sorts the ranges and joins those that overlap or touch.
    fn from_iter<I: IntoIterator<Item = AddrRange>>(ranges: I) -> Self {
        let mut sorted: Vec<_> = ranges.into_iter().filter(|r| !r.is_empty()).collect();
        sorted.sort_unstable();
        let mut joined: Vec<AddrRange> = Vec::with_capacity(sorted.len());
        for range in sorted {
            match joined.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => joined.push(range),
            }
        }
        Self(joined)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, end: u64) -> AddrRange {
        AddrRange::new(Addr(start), Addr(end))
    }

    #[test]
    fn rounding_up_past_the_end_of_the_address_space_is_none() {
        assert_eq!(Addr(u64::MAX).align_up(16), None);
        assert_eq!(Addr(0x1001).align_up(0x1000), Some(Addr(0x2000)));
        assert_eq!(Addr(0x1fff).align_down(0x1000), Addr(0x1000));
    }

    #[test]
    fn a_set_joins_ranges_that_overlap_or_touch() {
        let set: RangeSet = [
            range(5, 7),
            range(1, 3),
            range(3, 4),
            range(6, 9),
            range(2, 2),
        ]
        .into_iter()
        .collect();
        assert_eq!(set.ranges(), [range(1, 4), range(5, 9)]);
        assert_eq!(set.size(), 7);
    }

    #[test]
    fn gaps_and_parts_of_a_range_tile_it() {
        let set: RangeSet = [range(10, 20), range(30, 40)].into_iter().collect();
        assert_eq!(set.gaps(range(0, 35)), [range(0, 10), range(20, 30)]);
        assert_eq!(
            set.within(range(15, 35)).collect::<Vec<_>>(),
            [range(15, 20), range(30, 35)]
        );
        assert_eq!(set.gaps(range(12, 18)), []);
        assert!(set.contains(Addr(10)) && !set.contains(Addr(20)));
    }
}
