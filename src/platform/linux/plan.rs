//! What of the target's memory a snapshot holds.

use std::io;

use super::pagemap::{PageMap, Pages};
use super::regions::RegionUse;
use super::shared_memory::{MemoryFiles, Unmapped};
use crate::addr::AddrRange;
use crate::snapshot::{Extent, Region};
use crate::warning::Warning;

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

/// Decides what is read, and warns of what should be and is not.
pub(super) fn plan(source: &Source<'_>) -> io::Result<(Extent, Option<Warning>)> {
    let mut readable = Vec::new();
    let mut resident = Vec::new();
    let mut unmapped = Unmapped::default();
    for region in source.regions {
        let Some(pages) = wanted_pages(region, source.survey) else {
            continue;
        };
        readable.push(region.range);
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
    let extent = Extent {
        readable: readable.into_iter().collect(),
        resident,
    };
    Ok((extent, warning))
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
    use crate::addr::Addr;

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
}
