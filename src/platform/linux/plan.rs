//! What of the target's memory a snapshot holds.

use std::io;

use super::pagemap::{PageMap, Pages};
use super::regions::RegionUse;
use super::shared_memory::{MemoryFiles, Unmapped};
use crate::addr::{Addr, AddrRange, RangeSet};
use crate::snapshot::Region;
use crate::warning::Warning;

/// The memory that a snapshot holds: decided from the regions and the page map at one instant.
#[derive(Clone, Debug, Default)]
pub(super) struct Plan {
    /// Regions whose memory the snapshot holds. What of them is not resident reads as zeros.
    pub(super) mapped: RangeSet,
    /// The pages that may hold anything but zeros, in ascending order; ranges of different
    /// regions are not joined.
    pub(super) resident: Vec<AddrRange>,
}

/// What a plan is made from.
#[derive(Debug)]
pub(super) struct Source<'a> {
    pub(super) regions: &'a [Region],
    /// What the survey before the stop found of them.
    pub(super) survey: &'a [RegionUse],
    pub(super) pagemap: &'a PageMap,
    pub(super) files: &'a MemoryFiles,
    /// The folder in `/proc` through which the target is seen.
    pub(super) folder: &'a str,
}

impl Plan {
    /// Decides what is read, and warns of what should be and is not.
    pub(super) fn new(source: &Source<'_>) -> io::Result<(Self, Option<Warning>)> {
        let mut mapped = Vec::new();
        let mut resident = Vec::new();
        let mut unmapped = Unmapped::default();
        for region in source.regions {
            let Some(pages) = wanted_pages(region, source.survey) else {
                continue;
            };
            mapped.push(region.range);
            let used = source.pagemap.pages(region.range, pages)?;
            if region.shared {
                unmapped.add(region, &used, source.files, source.folder);
            }
            resident.extend(used);
        }
        let (existing, warning) = unmapped.select(resident.iter().map(AddrRange::size).sum());
        if !existing.is_empty() {
            resident.extend(existing);
            resident.sort_unstable();
        }
        let plan = Self {
            mapped: mapped.into_iter().collect(),
            resident,
        };
        Ok((plan, warning))
    }

    /// The plans as one: they have nothing in common.
    pub(super) fn joined(plans: &[&Self]) -> Self {
        let mapped = plans.iter().flat_map(|plan| plan.mapped.ranges());
        let mut resident: Vec<_> = plans
            .iter()
            .flat_map(|plan| plan.resident.clone())
            .collect();
        resident.sort_unstable();
        Self {
            mapped: mapped.copied().collect(),
            resident,
        }
    }

    /// The bytes that are resident.
    pub(super) fn bytes(&self) -> u64 {
        // A mapping is listed once, so the sum is no more than the address space.
        self.resident.iter().map(AddrRange::size).sum()
    }

    /// The parts of `range` that are resident, in ascending order, joined where they touch.
    pub(super) fn resident_within(&self, range: AddrRange) -> Vec<AddrRange> {
        let first = self.resident.partition_point(|r| r.end <= range.start);
        let mut parts: Vec<AddrRange> = Vec::new();
        for resident in &self.resident[first..] {
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
    /// it, the bytes to fill; it returns how many it filled), other mapped memory as zeros, up to
    /// the first byte that is not mapped.
    pub(super) fn read(
        &self,
        addr: Addr,
        buf: &mut [u8],
        copy: impl Fn(usize, u64, &mut [u8]) -> usize,
    ) -> usize {
        let mut done = 0;
        let mut next = self.resident.partition_point(|r| r.end <= addr);
        while done < buf.len() {
            let at = addr.saturating_add(done as u64);
            let rest = &mut buf[done..];
            let resident = self
                .resident
                .get(next)
                .copied()
                .unwrap_or(AddrRange::new(Addr(u64::MAX), Addr(u64::MAX)));
            let count = if resident.contains(at) {
                let rest = cut(rest, resident.end.0 - at.0);
                let count = copy(next, at.0 - resident.start.0, rest);
                next += 1;
                if count < rest.len() {
                    return done + count;
                }
                count
            } else {
                let mapped_end = self.mapped.containing(at).map_or(at, |r| r.end);
                let rest = cut(rest, mapped_end.min(resident.start).0.saturating_sub(at.0));
                rest.fill(0);
                rest.len()
            };
            if count == 0 {
                break;
            }
            done += count;
        }
        done
    }
}

/// The first `size` bytes of `buf`, or all of it where it is shorter.
fn cut(buf: &mut [u8], size: u64) -> &mut [u8] {
    let size = usize::try_from(size).unwrap_or(usize::MAX).min(buf.len());
    &mut buf[..size]
}

/// Which pages of `region` can hold references, if any.
///
/// Private memory that may not be written now may have been written before (RELRO, a collector's
/// write barrier): its own pages count. Shared memory counts where the target may write it.
fn wanted_pages(region: &Region, survey: &[RegionUse]) -> Option<Pages> {
    if is_device(region)
        || matches!(
            region.name.as_str(),
            "[vvar]" | "[vvar_vclock]" | "[vsyscall]"
        )
    {
        return None;
    }
    let known = overlapping(survey, region.range);
    if known.iter().any(|part| part.forbidden) {
        return None;
    }
    // Reservations may be terabytes: where nothing was there before the stop and nothing may be
    // written, nothing is there now.
    let is_reserved =
        !region.readable && !known.is_empty() && known.iter().all(|part| part.used == 0);
    match (region.shared, region.writable) {
        _ if is_reserved => None,
        (true, false) => None,
        (_, true) => Some(Pages::Used),
        (false, false) => Some(Pages::Own),
    }
}

/// The parts of `survey` that have something in common with `range`.
pub(super) fn overlapping(survey: &[RegionUse], range: AddrRange) -> &[RegionUse] {
    let first = survey.partition_point(|part| part.range.end <= range.start);
    let last = survey.partition_point(|part| part.range.start < range.end);
    &survey[first..last.max(first)]
}

/// Says whether the region maps a device whose pages are no memory.
fn is_device(region: &Region) -> bool {
    let name = region.name.trim_end_matches(" (deleted)");
    let is_memory =
        name == "/dev/zero" || name.starts_with("/dev/shm/") || name.starts_with("/dev/hugepages");
    name.starts_with("/dev/") && !is_memory
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, end: u64) -> AddrRange {
        AddrRange::new(Addr(start), Addr(end))
    }

    fn region(permissions: &str, name: &str) -> Region {
        Region {
            range: range(0x10000, 0x20000),
            readable: permissions.contains('r'),
            writable: permissions.contains('w'),
            shared: permissions.contains('s'),
            name: name.to_owned(),
            ..Region::default()
        }
    }

    #[test]
    fn the_kind_of_a_region_decides_which_pages_count() {
        for (permissions, name, pages) in [
            ("rwp", "", Some(Pages::Used)),
            ("rwp", "/usr/lib/libc.so.6", Some(Pages::Used)),
            ("rp", "/usr/lib/libc.so.6", Some(Pages::Own)),
            ("p", "", Some(Pages::Own)),
            ("rws", "/dev/zero (deleted)", Some(Pages::Used)),
            ("rws", "/dev/shm/x", Some(Pages::Used)),
            ("rs", "/dev/shm/x", None),
            ("rws", "/dev/dri/card0", None),
            ("rp", "[vvar]", None),
        ] {
            assert_eq!(
                wanted_pages(&region(permissions, name), &[]),
                pages,
                "{permissions} {name}"
            );
        }
    }

    #[test]
    fn forbidden_and_reserved_regions_are_left_out() {
        let mut survey = [RegionUse {
            range: range(0x18000, 0x19000),
            forbidden: true,
            ..RegionUse::default()
        }];
        assert_eq!(wanted_pages(&region("rwp", ""), &survey), None);
        survey[0].forbidden = false;
        assert_eq!(wanted_pages(&region("p", ""), &survey), None);
        assert_eq!(wanted_pages(&region("rwp", ""), &survey), Some(Pages::Used));
        survey[0].used = 4096;
        assert_eq!(wanted_pages(&region("p", ""), &survey), Some(Pages::Own));
    }

    #[test]
    fn reading_crosses_from_resident_memory_to_zeros_and_stops_at_the_end_of_the_mapping() {
        let plan = Plan {
            mapped: [range(0x1000, 0x5000)].into_iter().collect(),
            resident: vec![
                range(0x1000, 0x2000),
                range(0x2000, 0x3000),
                range(0x4000, 0x5000),
            ],
        };
        let mut buf = vec![9; 0x5000];
        let count = plan.read(Addr(0x1800), &mut buf, |index, _, part| {
            part.fill(u8::try_from(index + 1).expect("small"));
            part.len()
        });
        assert_eq!(count, 0x3800);
        assert_eq!([buf[0], buf[0x7ff], buf[0x800], buf[0x17ff]], [1, 1, 2, 2]);
        assert_eq!(
            [buf[0x1800], buf[0x27ff], buf[0x2800], buf[0x37ff]],
            [0, 0, 3, 3]
        );
        assert_eq!(plan.read(Addr(0x5000), &mut buf, |_, _, _| 1), 0);
        assert_eq!(
            plan.resident_within(range(0x1800, 0x4800)),
            [range(0x1800, 0x3000), range(0x4000, 0x4800)]
        );
    }
}
