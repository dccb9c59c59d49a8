//! The memory of a child of the target.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;

use super::refusal::ForkRefusal;
use crate::addr::{Addr, AddrRange, RangeSet};
use crate::memory::Memory;
use crate::platform::linux::copy::CopiedMemory;
use crate::platform::linux::pagemap::PageMap;
use crate::platform::linux::plan::{Source, overlapping, plan};
use crate::platform::linux::regions::{RegionUse, parse_smaps};
use crate::platform::linux::shared_memory::MemoryFiles;
use crate::snapshot::Extent;
use crate::snapshot::Region;

/// What of the target's memory comes from where.
#[derive(Debug, Default)]
pub(in crate::platform::linux) struct Parts {
    /// A child has none of it, or shares it with the target that runs: it is copied while the target stands
    /// still.
    pub(in crate::platform::linux) apart: Vec<Region>,
    /// A child has of it what was written, and the rest when it is read: the target's page map says which pages
    /// count.
    pub(in crate::platform::linux) files: Vec<Region>,
    /// A child has all of it.
    pub(in crate::platform::linux) inherited: Vec<Region>,
}

impl Parts {
    pub(in crate::platform::linux) fn of(regions: &[Region], uses: &[RegionUse]) -> Self {
        let mut parts = Self::default();
        for region in regions {
            let part = if is_kept_apart(region, uses) {
                &mut parts.apart
            } else if region.writable && !region.is_anonymous() {
                &mut parts.files
            } else {
                &mut parts.inherited
            };
            part.push(region.clone());
        }
        parts
    }
}

/// Says whether a child does not get the memory of `region` as it is: it is shared, or marked with
/// `MADV_DONTFORK` or `MADV_WIPEONFORK`, or consists of huge pages that were set aside for the target.
fn is_kept_apart(region: &Region, uses: &[RegionUse]) -> bool {
    region.shared
        || overlapping(uses, region.range)
            .iter()
            .any(|part| part.apart)
}

/// The memory of a child, and copies of what it did not get.
pub(in crate::platform::linux) struct ForkedMemory {
    extent: Extent,
    apart: RangeSet,
    copied: CopiedMemory,
    child: File,
}

impl ForkedMemory {
    /// The memory of the process `child`. `files` is what of [`Parts::files`] counts; `inherited` are the regions of
    /// [`Parts::inherited`].
    pub(in crate::platform::linux) fn new(
        child: u32,
        copied: CopiedMemory,
        files: Extent,
        inherited: &[Region],
        uses: &[RegionUse],
    ) -> Result<Self, ForkRefusal> {
        let open = |name| File::open(format!("/proc/{child}/{name}"));
        let failed = |error: io::Error| ForkRefusal::Guardian(error.to_string());
        let pagemap = PageMap::new(open("pagemap").map_err(failed)?);
        let plan = plan(&Source {
            regions: inherited,
            survey: uses,
            pagemap: &pagemap,
            // Nothing of it is shared.
            files: &MemoryFiles::default(),
            folder: "",
        });
        let (inherited, _) = plan.map_err(failed)?;
        let smaps = fs::read(format!("/proc/{child}/smaps")).map_err(failed)?;
        check_inheritance(&[&files, &inherited], &parse_smaps(&smaps))?;
        let apart = copied.extent().readable.clone();
        Ok(Self {
            extent: Extent::joined(&[copied.extent(), &files, &inherited]),
            apart,
            copied,
            child: open("mem").map_err(failed)?,
        })
    }

    /// The bytes that it holds.
    pub(in crate::platform::linux) fn bytes(&self) -> u64 {
        self.extent.bytes()
    }

    fn read_child(&self, at: Addr, buf: &mut [u8]) -> usize {
        let mut done = 0;
        while done < buf.len() {
            let from = at.saturating_add(done as u64);
            match self.child.read_at(&mut buf[done..], from.0) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        done
    }
}

impl Memory for ForkedMemory {
    fn read(&self, addr: Addr, buf: &mut [u8]) -> usize {
        self.extent.read(addr, buf, |index, offset, part| {
            let at = self.extent.resident[index].start.saturating_add(offset);
            if self.apart.contains(at) {
                self.copied.read(at, part)
            } else {
                self.read_child(at, part)
            }
        })
    }

    fn resident(&self, range: AddrRange) -> Vec<AddrRange> {
        self.extent.resident_within(range)
    }
}

/// Makes sure that the child has what the plans expect of it: the target may have marked its memory differently
/// since it was surveyed.
fn check_inheritance(plans: &[&Extent], child: &[RegionUse]) -> Result<(), ForkRefusal> {
    let has = |range: &AddrRange| {
        let parts = overlapping(child, *range);
        let covered: RangeSet = parts.iter().map(|part| part.range).collect();
        covered.gaps(*range).is_empty() && !parts.iter().any(|part| part.apart)
    };
    let mut expected = plans.iter().flat_map(|plan| plan.readable.ranges());
    if expected.all(has) {
        Ok(())
    } else {
        Err(ForkRefusal::Changed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, end: u64) -> AddrRange {
        AddrRange::new(Addr(start), Addr(end))
    }

    fn used(start: u64, end: u64, apart: bool) -> RegionUse {
        RegionUse {
            range: range(start, end),
            apart,
            ..RegionUse::default()
        }
    }

    fn region(start: u64, end: u64) -> Region {
        Region {
            range: range(start, end),
            readable: true,
            writable: true,
            ..Region::default()
        }
    }

    #[test]
    fn memory_that_a_child_does_not_get_is_kept_apart() {
        let shared = Region {
            shared: true,
            ..region(0x3000, 0x4000)
        };
        let file = Region {
            file: (1, 2, 3),
            ..region(0x4000, 0x5000)
        };
        let regions = [region(0x1000, 0x2000), region(0x2000, 0x3000), shared, file];
        let parts = Parts::of(&regions, &[used(0x2000, 0x3000, true)]);
        let starts = |regions: &[Region]| -> Vec<u64> {
            regions.iter().map(|region| region.range.start.0).collect()
        };
        assert_eq!(starts(&parts.apart), [0x2000, 0x3000]);
        assert_eq!(starts(&parts.files), [0x4000]);
        assert_eq!(starts(&parts.inherited), [0x1000]);
    }

    #[test]
    fn a_child_without_a_region_or_with_an_empty_one_is_noticed() {
        let plan = Extent {
            readable: [range(0x1000, 0x3000)].into_iter().collect(),
            resident: Vec::new(),
        };
        let whole = [used(0x1000, 0x2000, false), used(0x2000, 0x4000, false)];
        assert_eq!(check_inheritance(&[&plan], &whole), Ok(()));
        assert_eq!(
            check_inheritance(&[&plan], &whole[..1]),
            Err(ForkRefusal::Changed)
        );
        let wiped = [used(0x1000, 0x2000, false), used(0x2000, 0x4000, true)];
        assert_eq!(
            check_inheritance(&[&plan], &wiped),
            Err(ForkRefusal::Changed)
        );
    }
}
