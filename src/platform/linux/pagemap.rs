//! Which pages hold anything: `/proc/PID/pagemap`.
//!
//! The format of its entries and the `PAGEMAP_SCAN` request are documented in the kernel's
//! `Documentation/admin-guide/mm/pagemap.rst`.
#![expect(unsafe_code, reason = "the PAGEMAP_SCAN request has no safe wrapper")]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

use crate::addr::{Addr, AddrRange};

pub(super) const PAGE: u64 = 4096;

/// Which pages of a region count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pages {
    /// Every page that is in memory or in swap.
    Used,
    /// Of these, only the process's own: pages that it wrote, not pages of a mapped file.
    Own,
}

/// The page map of one process.
#[derive(Debug)]
pub(super) struct PageMap {
    file: File,
}

impl PageMap {
    pub(super) fn new(file: File) -> Self {
        Self { file }
    }

    /// The pages of `range` that count, joined to ranges, in ascending order.
    pub(super) fn pages(&self, range: AddrRange, which: Pages) -> io::Result<Vec<AddrRange>> {
        for known in [PAGE_IS_GUARD, 0] {
            match self.scan(range, which, known) {
                Err(error) if is_unsupported(&error) => {}
                result => return result,
            }
        }
        self.read_entries(range, which)
    }

    /// Says whether the kernel can search the page map by itself.
    pub(super) fn can_scan(&self, range: AddrRange) -> bool {
        self.scan(range, Pages::Used, 0).is_ok()
    }

    /// Asks the kernel for the ranges (Linux 6.7 and later): the cost follows the pages that are
    /// there, not the size of the range. `guard` is the category of guard pages, or 0 for a kernel
    /// that does not know it.
    fn scan(&self, range: AddrRange, which: Pages, guard: u64) -> io::Result<Vec<AddrRange>> {
        let mut found = Vec::new();
        let mut start = range.start.0;
        let mut regions = [PageRegion::default(); 512];
        while start < range.end.0 {
            let mut request = ScanRequest::new(start..range.end.0, which, guard, &mut regions);
            // SAFETY: `request` is a `pm_scan_arg` of the size it names, and `vec` and `vec_len`
            // describe `regions`, which outlives the call and which nothing else uses meanwhile.
            let count =
                unsafe { nix::libc::ioctl(self.file.as_raw_fd(), PAGEMAP_SCAN, &raw mut request) };
            let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
            for region in regions.iter().take(count) {
                push_joined(&mut found, region.start, region.end);
            }
            if request.walk_end <= start {
                break;
            }
            start = request.walk_end;
        }
        Ok(found)
    }

    /// Reads an entry for each page. Where the entries do not say which page of memory each is, pages of
    /// zeros count like others.
    fn read_entries(&self, range: AddrRange, which: Pages) -> io::Result<Vec<AddrRange>> {
        let mut found = Vec::new();
        let zeros = zero_page();
        let mut entries = [0_u8; 64 * 1024];
        let mut page = range.start.0 / PAGE;
        let end = range.end.0.div_ceil(PAGE);
        while page < end {
            let wanted = usize::try_from((end - page) * 8).unwrap_or(usize::MAX);
            let wanted = wanted.min(entries.len());
            let count = self.file.read_at(&mut entries[..wanted], page * 8)?;
            if count < 8 {
                break;
            }
            for entry in entries[..count].chunks_exact(8) {
                let entry = u64::from_le_bytes(entry.try_into().unwrap_or_default());
                let is_zeros = entry >> 63 == 1 && zeros == Some(entry & PAGE_NUMBER);
                if counts(entry, which) && !is_zeros {
                    push_joined(&mut found, page * PAGE, (page + 1) * PAGE);
                }
                page += 1;
            }
        }
        Ok(found)
    }
}

/// Bits 0 to 54 of an entry of a page that is present: which page of memory it is, for those who may know.
const PAGE_NUMBER: u64 = (1 << 55) - 1;

/// The page of memory that is mapped wherever zeros are read that nobody has written; `None` for those who
/// may not know.
fn zero_page() -> Option<u64> {
    static NUMBER: OnceLock<Option<u64>> = OnceLock::new();
    *NUMBER.get_or_init(|| {
        let page = memmap2::MmapMut::map_anon(1).ok()?;
        std::hint::black_box(page.first().copied());
        let mut entry = [0; 8];
        let file = File::open("/proc/self/pagemap").ok()?;
        let offset = page.as_ptr() as u64 / PAGE * 8;
        file.read_exact_at(&mut entry, offset).ok()?;
        let number = u64::from_le_bytes(entry) & PAGE_NUMBER;
        (number != 0).then_some(number)
    })
}

/// Bits 63 (present), 62 (swapped), 61 (file page or shared anonymous) and 58 (guard page, which
/// looks swapped and cannot be read) of an entry.
fn counts(entry: u64, which: Pages) -> bool {
    let present = entry >> 63 & 1 == 1;
    let swapped = entry >> 62 & 1 == 1;
    let file = entry >> 61 & 1 == 1;
    let guard = entry >> 58 & 1 == 1;
    let used = (present || swapped) && !guard;
    match which {
        Pages::Used => used,
        Pages::Own => used && !file,
    }
}

fn push_joined(ranges: &mut Vec<AddrRange>, start: u64, end: u64) {
    match ranges.last_mut() {
        Some(last) if last.end.0 == start => last.end = Addr(end),
        _ => ranges.push(AddrRange::new(Addr(start), Addr(end))),
    }
}

fn is_unsupported(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(nix::libc::ENOTTY | nix::libc::EINVAL | nix::libc::ENOSYS | nix::libc::EPERM)
    )
}

/// `struct page_region` of `<linux/fs.h>`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

/// `struct pm_scan_arg` of `<linux/fs.h>`.
#[repr(C)]
struct ScanRequest {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: nix::libc::c_ulong = 0xc060_6610;
const PAGE_IS_FILE: u64 = 1 << 2;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;
const PAGE_IS_PFNZERO: u64 = 1 << 5;
/// Since Linux 6.15: `MADV_GUARD_INSTALL`, with which glibc 2.42 and later guards stacks.
const PAGE_IS_GUARD: u64 = 1 << 8;

impl ScanRequest {
    fn new(range: Range<u64>, which: Pages, guard: u64, regions: &mut [PageRegion]) -> Self {
        // Pages of zeros that were only ever read hold no reference.
        let excluded = guard
            | match which {
                Pages::Used => PAGE_IS_PFNZERO,
                Pages::Own => PAGE_IS_PFNZERO | PAGE_IS_FILE,
            };
        Self {
            size: size_of::<Self>() as u64,
            flags: 0,
            start: range.start,
            end: range.end,
            walk_end: 0,
            vec: regions.as_mut_ptr() as u64,
            vec_len: regions.len() as u64,
            max_pages: 0,
            category_inverted: excluded,
            category_mask: excluded,
            category_anyof_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
            return_mask: PAGE_IS_PRESENT,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_counts_by_its_flags() {
        for (entry, used, own) in [
            (0, false, false),
            (1 << 63, true, true),
            (1 << 62, true, true),
            (1 << 63 | 1 << 61, true, false),
            (1 << 61, false, false),
            (1 << 62 | 1 << 58, false, false),
        ] {
            assert_eq!(counts(entry, Pages::Used), used, "{entry:#x}");
            assert_eq!(counts(entry, Pages::Own), own, "{entry:#x}");
        }
    }

    #[test]
    fn pages_of_zeros_that_were_only_read_do_not_count() {
        let mut map = memmap2::MmapMut::map_anon(64 * 4096).expect("memory");
        for page in 0..64 {
            std::hint::black_box(map[page * 4096]);
        }
        map[7 * 4096] = 1;
        let range = AddrRange::with_size(Addr(map.as_ptr() as u64), map.len() as u64);
        let written = AddrRange::with_size(Addr(range.start.0 + 7 * PAGE), PAGE);
        let pagemap = PageMap::new(File::open("/proc/self/pagemap").expect("own page map"));
        let entries = pagemap.read_entries(range, Pages::Own).expect("entries");
        let expected = if zero_page().is_some() {
            written
        } else {
            range
        };
        assert_eq!(entries, [expected]);
        match pagemap.scan(range, Pages::Own, 0) {
            Ok(scanned) => assert_eq!(scanned, [written]),
            Err(error) => assert!(is_unsupported(&error), "{error}"),
        }
    }

    #[test]
    fn scanning_and_reading_entries_agree_on_written_pages() {
        let mut map = memmap2::MmapMut::map_anon(64 * 4096).expect("memory");
        for page in [3, 4, 5, 17, 63] {
            map[page * 4096] = 1;
        }
        let range = AddrRange::with_size(Addr(map.as_ptr() as u64), map.len() as u64);
        let pagemap = PageMap::new(File::open("/proc/self/pagemap").expect("own page map"));
        let entries = pagemap.read_entries(range, Pages::Own).expect("entries");
        let offsets: Vec<_> = entries
            .iter()
            .map(|r| ((r.start.0 - range.start.0) / 4096, r.size() / 4096))
            .collect();
        assert_eq!(offsets, [(3, 3), (17, 1), (63, 1)]);
        for guard in [PAGE_IS_GUARD, 0] {
            match pagemap.scan(range, Pages::Own, guard) {
                Ok(scanned) => assert_eq!(scanned, entries),
                Err(error) => assert!(is_unsupported(&error), "{error}"),
            }
        }
    }
}
