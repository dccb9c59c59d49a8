//! Which addresses a memory has, and what of them is more than zeros.

use crate::addr::{Addr, AddrRange, RangeSet};

/// The addresses that a memory has: decided at one instant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// All memory that can be read. What of it is not resident reads as zeros.
    pub readable: RangeSet,
    /// The pages that may hold anything but zeros, in ascending order; ranges of different
    /// regions are not joined.
    pub resident: Vec<AddrRange>,
}

impl Extent {
    /// Several as one, which have nothing in common.
    #[must_use]
    pub fn joined(extents: &[&Self]) -> Self {
        let readable = extents.iter().flat_map(|extent| extent.readable.ranges());
        let resident = extents.iter().flat_map(|extent| &extent.resident);
        let mut resident: Vec<_> = resident.copied().collect();
        resident.sort_unstable();
        Self {
            readable: readable.copied().collect(),
            resident,
        }
    }

    /// The bytes that are resident.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        // An address is listed once, so the sum is no more than the address space.
        self.resident.iter().map(AddrRange::size).sum()
    }

    /// The parts of `range` that are resident, in ascending order, joined where they touch.
    #[must_use]
    pub fn resident_within(&self, range: AddrRange) -> Vec<AddrRange> {
        let first = self.resident.partition_point(|r| r.end <= range.start);
        let mut parts: Vec<AddrRange> = Vec::new();
        for resident in self.resident.iter().skip(first) {
            if resident.start >= range.end {
                break;
            }
            let part = resident.intersection(&range);
            match parts.last_mut() {
                Some(last) if last.end == part.start => last.end = part.end,
                _ => parts.push(part),
            }
        }
        parts
    }

    /// Reads from `addr` on: resident memory through `copy` (the index of the range, the offset in
    /// it, the bytes to fill; it returns how many it filled), other readable memory as zeros, up to
    /// the first byte that cannot be read.
    pub fn read(
        &self,
        addr: Addr,
        buf: &mut [u8],
        copy: impl Fn(usize, u64, &mut [u8]) -> usize,
    ) -> usize {
        let mut done = 0_usize;
        let mut next = self.resident.partition_point(|r| r.end <= addr);
        while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let at = addr.saturating_add(done as u64);
            let resident = self
                .resident
                .get(next)
                .copied()
                .unwrap_or(AddrRange::new(Addr(u64::MAX), Addr(u64::MAX)));
            let count = if resident.contains(at) {
                let rest = cut(rest, AddrRange::new(at, resident.end).size());
                let count = copy(next, AddrRange::new(resident.start, at).size(), rest);
                next = next.saturating_add(1);
                if count < rest.len() {
                    return done.saturating_add(count);
                }
                count
            } else {
                let end = self.readable.containing(at).map_or(at, |r| r.end);
                let rest = cut(rest, AddrRange::new(at, end.min(resident.start)).size());
                rest.fill(0);
                rest.len()
            };
            if count == 0 {
                break;
            }
            done = done.saturating_add(count);
        }
        done
    }
}

/// The first `size` bytes of `buf`, or all of it where it is shorter.
fn cut(buf: &mut [u8], size: u64) -> &mut [u8] {
    let size = usize::try_from(size).unwrap_or(usize::MAX).min(buf.len());
    buf.get_mut(..size).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, end: u64) -> AddrRange {
        AddrRange::new(Addr(start), Addr(end))
    }

    #[test]
    fn reading_crosses_from_resident_memory_to_zeros_and_stops_at_the_end_of_the_mapping() {
        let extent = Extent {
            readable: [range(0x1000, 0x5000)].into_iter().collect(),
            resident: vec![
                range(0x1000, 0x2000),
                range(0x2000, 0x3000),
                range(0x4000, 0x5000),
            ],
        };
        let mut buf = vec![9; 0x5000];
        let count = extent.read(Addr(0x1800), &mut buf, |index, _, part| {
            part.fill(u8::try_from(index + 1).expect("small"));
            part.len()
        });
        assert_eq!(count, 0x3800);
        assert_eq!([buf[0], buf[0x7ff], buf[0x800], buf[0x17ff]], [1, 1, 2, 2]);
        assert_eq!(
            [buf[0x1800], buf[0x27ff], buf[0x2800], buf[0x37ff]],
            [0, 0, 3, 3]
        );
        assert_eq!(extent.read(Addr(0x5000), &mut buf, |_, _, _| 1), 0);
        assert_eq!(
            extent.resident_within(range(0x1800, 0x4800)),
            [range(0x1800, 0x3000), range(0x4000, 0x4800)]
        );
    }
}
