//! Reading the memory of another process.
#![expect(unsafe_code, reason = "the system call that reads another process")]

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::addr::{Addr, AddrRange};
use crate::memory::Memory;

/// The memory of a process, stopped or running.
///
/// `process_vm_readv` is the fast way; `/proc/PID/mem` is tried for what it cannot read, such as
/// pages that the target protected from itself.
#[derive(Debug)]
pub(super) struct ProcessMemory {
    pid: i32,
    file: File,
}

impl ProcessMemory {
    pub(super) fn new(pid: i32, file: File) -> Self {
        Self { pid, file }
    }

    /// Copies `ranges`, one after the other, into `buf` and returns how many bytes were copied
    /// before the first page that cannot be read. At most 1024 ranges (`IOV_MAX`).
    pub(super) fn read_ranges(&self, ranges: &[AddrRange], buf: &mut [u8]) -> usize {
        let remote: Vec<_> = ranges.iter().map(iovec).collect();
        let local = nix::libc::iovec {
            iov_base: buf.as_mut_ptr().cast(),
            iov_len: buf.len(),
        };
        // SAFETY: `local` describes `buf`, which we hold exclusively for the whole call. `remote`
        // holds addresses in the other process: the kernel checks them and stops at a bad one.
        let copied = unsafe {
            nix::libc::process_vm_readv(
                self.pid,
                &raw const local,
                1,
                remote.as_ptr(),
                remote.len() as u64,
                0,
            )
        };
        usize::try_from(copied).unwrap_or(0)
    }
}

fn iovec(range: &AddrRange) -> nix::libc::iovec {
    nix::libc::iovec {
        iov_base: range.start.0 as *mut nix::libc::c_void,
        iov_len: usize::try_from(range.size()).unwrap_or(usize::MAX),
    }
}

impl Memory for ProcessMemory {
    fn read(&self, addr: Addr, buf: &mut [u8]) -> usize {
        let mut done = 0;
        while done < buf.len() {
            let at = addr.saturating_add(done as u64);
            let rest = &mut buf[done..];
            let mut count = self.read_ranges(&[AddrRange::with_size(at, rest.len() as u64)], rest);
            if count == 0 && i64::try_from(at.0).is_ok() {
                // Only to the end of the page: the next one may be readable the fast way.
                let to_page_end = usize::try_from(4096 - at.0 % 4096).unwrap_or(0);
                let page = rest.len().min(to_page_end);
                count = self.file.read_at(&mut rest[..page], at.0).unwrap_or(0);
            }
            if count == 0 {
                break;
            }
            done += count;
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own_memory() -> ProcessMemory {
        let pid = i32::try_from(std::process::id()).expect("a pid");
        ProcessMemory::new(pid, File::open("/proc/self/mem").expect("own memory"))
    }

    #[test]
    fn reading_stops_at_the_first_unreadable_page() {
        let map = memmap2::MmapMut::map_anon(3 * 4096).expect("memory");
        let start = map.as_ptr() as u64;
        // SAFETY: the page is the last one of our own mapping, and nothing refers to it.
        let unmapped = unsafe { nix::libc::munmap((start + 8192) as *mut nix::libc::c_void, 4096) };
        assert_eq!(unmapped, 0);
        let mut buf = vec![0xff; 3 * 4096];
        let count = own_memory().read(Addr(start), &mut buf);
        // The unmapped page may have been reused by another thread of this test process.
        assert!(count >= 8192);
        assert!(buf[..8192].iter().all(|byte| *byte == 0));
        std::mem::forget(map);
    }

    #[test]
    fn a_page_without_read_permission_is_read() {
        let mut map = memmap2::MmapMut::map_anon(4096).expect("memory");
        map[0] = 42;
        let start = map.as_ptr() as u64;
        // SAFETY: the mapping is ours, and nothing reads it through the reference from here on.
        let protected = unsafe { nix::libc::mprotect(start as *mut nix::libc::c_void, 4096, 0) };
        assert_eq!(protected, 0);
        assert_eq!(own_memory().word(Addr(start)), Some(42));
    }

    #[test]
    fn wild_addresses_are_unreadable() {
        for addr in [0, 8, u64::MAX - 7, 1 << 63] {
            assert_eq!(own_memory().word(Addr(addr)), None, "{addr:#x}");
        }
    }
}
