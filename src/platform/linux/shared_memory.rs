//! Shared memory that exists, though the target has not mapped it now.
//!
//! The page table of a process may lack pages of shared memory that hold what somebody wrote: after
//! `fork` the child's has none of them, and the kernel may take out any, to swap it for instance. The
//! page map says nothing of such pages, nor do they differ there from those that never were.
//!
//! Where the memory is a file that is kept in memory (anonymous shared memory, memfd, tmpfs, System
//! V), the file tells: `SEEK_DATA` finds the pages that it has. Reading these through the target maps
//! them there, and makes none appear. Of other files, a part may be on a disk only, or on a file
//! system that the target itself serves: they are not opened, and a warning says so.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::{major, minor};
use nix::unistd::{Whence, lseek};

use super::pagemap::PAGE;
use crate::addr::{Addr, AddrRange, RangeSet};
use crate::snapshot::Region;
use crate::warning::{Bias, Warning};

/// Unmapped shared memory of this size is always read. Of more, only as much as there is mapped
/// memory: the pause is not much longer for it.
const ALWAYS_READ: u64 = 64 << 20;

/// The file systems of the target that keep their files in memory.
#[derive(Clone, Debug, Default)]
pub(super) struct MemoryFiles {
    /// Their device numbers.
    devices: BTreeSet<(u32, u32)>,
}

impl MemoryFiles {
    /// Those that process `pid` can see, and the one without a name to which anonymous shared memory
    /// belongs.
    pub(super) fn of_process(pid: u32) -> Self {
        let mounts = fs::read(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
        let mut devices = tmpfs_devices(&String::from_utf8_lossy(&mounts));
        devices.extend(nameless_device());
        Self { devices }
    }

    /// The pages of the region that exist, by the file behind it; `None` where that does not tell.
    /// `folder` is that of the process in `/proc`.
    fn existing(&self, region: &Region, folder: &str) -> Option<RangeSet> {
        let (major, minor, _) = region.file;
        if !self.devices.contains(&(major, minor)) {
            return None;
        }
        let (start, end) = (region.range.start.0, region.range.end.0);
        let file = File::open(format!("{folder}/map_files/{start:x}-{end:x}")).ok()?;
        let mut existing = Vec::new();
        let last = region.offset.checked_add(region.range.size())?;
        let mut offset = region.offset;
        while offset < last {
            // ENXIO: there is no more.
            let Ok(data) = seek(&file, offset, Whence::SeekData) else {
                break;
            };
            let hole = seek(&file, data, Whence::SeekHole).ok()?;
            let [from, to] = [data, hole].map(|at| at.clamp(region.offset, last) - region.offset);
            let range = AddrRange::new(
                region.range.start.checked_add(from)?.align_down(PAGE),
                region.range.start.checked_add(to.next_multiple_of(PAGE))?,
            );
            existing.push(range.intersection(&region.range));
            if hole <= offset {
                break;
            }
            offset = hole;
        }
        Some(existing.into_iter().filter(|r| r.size() > 0).collect())
    }
}

fn seek(file: &File, offset: u64, whence: Whence) -> nix::Result<u64> {
    let offset = i64::try_from(offset).map_err(|_| nix::errno::Errno::EOVERFLOW)?;
    let found = lseek(file.as_fd(), offset, whence)?;
    u64::try_from(found).map_err(|_| nix::errno::Errno::EOVERFLOW)
}

/// The device numbers of lines such as `26 25 0:24 / /dev/shm rw - tmpfs tmpfs rw`.
fn tmpfs_devices(mountinfo: &str) -> BTreeSet<(u32, u32)> {
    let device = |line: &str| {
        let (mount, kind) = line.split_once(" - ")?;
        let (major, minor) = mount.split(' ').nth(2)?.split_once(':')?;
        let is_tmpfs = matches!(kind.split(' ').next()?, "tmpfs" | "devtmpfs");
        is_tmpfs.then_some((major.parse().ok()?, minor.parse().ok()?))
    };
    mountinfo.lines().filter_map(device).collect()
}

/// The device of memfd's files, which is that of anonymous shared memory, too.
fn nameless_device() -> Option<(u32, u32)> {
    let file = File::from(memfd_create(c"rleaks", MFdFlags::MFD_CLOEXEC).ok()?);
    let device = file.metadata().ok()?.dev();
    Some((
        u32::try_from(major(device)).ok()?,
        u32::try_from(minor(device)).ok()?,
    ))
}

/// Shared memory that is not mapped.
#[derive(Debug, Default)]
pub(super) struct Unmapped {
    /// What exists, and can be read.
    existing: Vec<AddrRange>,
    /// What may exist, and is not read.
    unread: Vec<AddrRange>,
}

impl Unmapped {
    /// Notes what the page map lacks of a region of shared memory, of which it has `used`.
    pub(super) fn add(
        &mut self,
        region: &Region,
        used: &[AddrRange],
        files: &MemoryFiles,
        folder: &str,
    ) {
        // The rings of a driver are mapped as a whole, or not files at all.
        if region.name.starts_with("anon_inode:") || region.name.starts_with("socket:") {
            return;
        }
        let used: RangeSet = used.iter().copied().collect();
        let missing = used.gaps(region.range);
        if missing.is_empty() {
            return;
        }
        match files.existing(region, folder) {
            Some(existing) => {
                let existing = existing.ranges().iter();
                self.existing.extend(existing.flat_map(|r| used.gaps(*r)));
            }
            None => self.unread.extend(missing),
        }
    }

    /// What is read beside `mapped` bytes of mapped memory, and a warning of what is not.
    pub(super) fn select(mut self, mapped: u64) -> (Vec<AddrRange>, Option<Warning>) {
        let mut left = mapped.max(ALWAYS_READ);
        let mut selected = Vec::new();
        for range in self.existing {
            match left.checked_sub(range.size()) {
                Some(rest) => {
                    left = rest;
                    selected.push(range);
                }
                None => self.unread.push(range),
            }
        }
        (selected, warning(&self.unread))
    }
}

fn warning(unread: &[AddrRange]) -> Option<Warning> {
    let first = unread.iter().map(|range| range.start).min()?;
    let bytes: u64 = unread.iter().map(AddrRange::size).sum();
    Some(Warning::new(
        "shared_memory_unread",
        format!(
            "up to {} KiB of shared memory were not read, the first of it at {}: the process has not \
             mapped it at this time, and it lies in a file on a disk, or is too much, or rleaks may \
             not look at it (sudo helps): what only this memory references is reported as leaked",
            bytes >> 10,
            Addr(first.0)
        ),
        Bias::FalseLeaks,
    ))
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, SeekFrom, Write};

    use memmap2::MmapMut;

    use super::*;

    fn range(start: u64, end: u64) -> AddrRange {
        AddrRange::new(Addr(start), Addr(end))
    }

    #[test]
    fn file_systems_in_memory_are_known_by_their_devices() {
        let text = "22 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n\
                    26 22 0:24 / /dev/shm rw,nosuid shared:4 - tmpfs tmpfs rw\n\
                    27 22 0:25 / /a\\040b rw - fuse.sshfs x rw\nx\n";
        assert_eq!(tmpfs_devices(text), [(0, 24)].into());
        assert!(nameless_device().is_some());
    }

    #[test]
    fn what_is_too_much_is_warned_of() {
        let unmapped = || Unmapped {
            existing: vec![
                range(0x1000, 0x3000),
                range(1 << 30, (1 << 30) + ALWAYS_READ),
            ],
            unread: Vec::new(),
        };
        let (selected, warning) = unmapped().select(0);
        assert_eq!(selected, [range(0x1000, 0x3000)]);
        let warning = warning.expect("a warning");
        assert!(warning.message.contains("up to 65536 KiB"), "{warning:?}");
        let (selected, warning) = unmapped().select(2 * ALWAYS_READ);
        assert_eq!((selected.len(), warning), (2, None));
    }

    /// Needs the right to read `/proc/self/map_files`, as root has it.
    #[test]
    fn the_file_tells_which_pages_exist() {
        let mut file =
            File::from(memfd_create(c"test", MFdFlags::MFD_CLOEXEC).expect("a file in memory"));
        file.set_len(16 * 4096).expect("room");
        for page in [3, 4, 9] {
            file.seek(SeekFrom::Start(page * 4096 + 100)).expect("seek");
            file.write_all(b"x").expect("write");
        }
        let map = map_shared(&file);
        let start = map.as_ptr() as u64;
        let maps = fs::read("/proc/self/maps").expect("own maps");
        let regions = super::super::regions::parse_maps(&maps);
        let region = regions.iter().find(|r| r.range.start.0 == start);
        let region = region.expect("the region");
        let files = MemoryFiles::of_process(std::process::id());
        let existing = files.existing(region, "/proc/self");
        let existing = existing.expect("the right to look: run it as root");
        let page = |from: u64, to: u64| range(start + from * 4096, start + to * 4096);
        assert_eq!(existing.ranges(), [page(3, 5), page(9, 10)]);
        let mut unmapped = Unmapped::default();
        unmapped.add(region, &[page(4, 5)], &files, "/proc/self");
        assert_eq!(unmapped.existing, [page(3, 4), page(9, 10)]);
    }

    #[expect(unsafe_code, reason = "a file can be changed while it is mapped")]
    fn map_shared(file: &File) -> MmapMut {
        // SAFETY: the file has no name, and nobody but this test can shorten it.
        unsafe { MmapMut::map_mut(file) }.expect("a mapping")
    }
}
