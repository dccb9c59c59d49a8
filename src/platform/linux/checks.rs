//! What works for this user on this system, found out by trying it on rleaks itself.

use std::fs::{self, File};
use std::io;
use std::time::{Duration, Instant};

use super::copy::{CopiedMemory, CopyBuffer};
use super::obstacle_facts;
use super::obstacles::Obstacle;
use super::pagemap::{PAGE, PageMap, Pages};
use super::process_memory::ProcessMemory;
use super::procfs;
use crate::addr::{Addr, AddrRange};
use crate::snapshot::Extent;

/// Bytes that are copied to measure the speed: more than the processor's caches hold.
pub(super) const MEASURED: u64 = 64 << 20;

/// The rights that this process has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Privileges {
    /// Its effective user.
    pub uid: u32,
    /// It has the capability `cap_sys_ptrace` in its user namespace.
    pub may_trace: bool,
    /// It runs under a seccomp filter.
    pub is_filtered: bool,
    /// The scope of Yama, where the kernel has Yama.
    pub yama: Option<u8>,
}

/// The rights that this process has.
#[must_use]
pub fn privileges() -> Privileges {
    let own = obstacle_facts::own_credentials();
    Privileges {
        uid: own.uids[1],
        may_trace: own.may_trace(),
        is_filtered: obstacle_facts::is_filtered(),
        yama: obstacle_facts::yama_scope(),
    }
}

/// The release of the kernel, such as `6.1.0-18-amd64`.
#[must_use]
pub fn kernel_release() -> String {
    let text = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    text.trim().to_owned()
}

/// Whether page maps can be read: `Ok(true)` where the kernel can search them by itself
/// (`PAGEMAP_SCAN`, Linux 6.7 and later).
///
/// # Errors
/// Says why they cannot.
pub fn page_map() -> io::Result<bool> {
    let own = vec![1_u8; 4096];
    let page = AddrRange::with_size(Addr(own.as_ptr() as u64).align_down(PAGE), PAGE);
    let map = PageMap::new(File::open("/proc/self/pagemap")?);
    map.pages(page, Pages::Used)?;
    Ok(map.can_scan(page))
}

/// How many bytes a second are copied from a process, by as many threads as a scan uses. `None`
/// where `process_vm_readv` does not work.
///
/// # Errors
/// Says why there is no memory for it.
pub fn copy_speed() -> io::Result<Option<u64>> {
    // Plain memory, as a target's heap is: that of a copy asks for huge pages.
    let bytes = vec![1_u8; usize::try_from(MEASURED).map_err(io::Error::other)?];
    let source = AddrRange::with_size(Addr(bytes.as_ptr() as u64), MEASURED);
    let mut buffer = CopyBuffer::faulted_in(MEASURED)?;
    let pid = i32::try_from(std::process::id()).map_err(io::Error::other)?;
    let memory = ProcessMemory::new(pid, File::open("/proc/self/mem")?);
    let mut word = [0; 8];
    let first = AddrRange::with_size(source.start, 8);
    if memory.read_ranges(&[first], &mut word) < word.len() {
        return Ok(None);
    }
    let extent = Extent {
        readable: [source].into_iter().collect(),
        resident: vec![source],
    };
    // One of them may be disturbed.
    let mut times = [Duration::MAX; 3];
    for time in &mut times {
        let start = Instant::now();
        let Some((copy, _)) = CopiedMemory::copy(extent.clone(), &memory, buffer, || false) else {
            return Ok(None);
        };
        *time = start.elapsed();
        buffer = copy.into_buffer();
    }
    drop(bytes);
    times.sort_unstable();
    let nanoseconds = u64::try_from(times[1].as_nanos()).unwrap_or(u64::MAX);
    Ok(Some(
        MEASURED.saturating_mul(1_000_000_000) / nanoseconds.max(1),
    ))
}

/// What would keep a process that can be read from being stopped, as far as that is known without
/// trying: another tracer.
///
/// # Errors
/// Names the tracer.
pub fn tracer(pid: u32) -> Result<(), Obstacle> {
    match procfs::Status::read(pid, pid).map(|status| status.tracer) {
        Ok(0) | Err(_) => Ok(()),
        Ok(tracer) => Err(obstacle_facts::traced_by(pid, tracer)),
    }
}

/// The number of threads of process `pid`; 0 if it has ended.
#[must_use]
pub fn thread_count(pid: u32) -> usize {
    procfs::threads(pid).map_or(0, |threads| threads.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_rights_are_those_of_the_kernel() {
        let own = privileges();
        assert_eq!(own.uid, nix::unistd::geteuid().as_raw());
        assert!(!kernel_release().is_empty());
    }

    #[test]
    fn own_memory_can_be_copied_and_its_pages_are_known() {
        page_map().expect("own page map");
        let speed = copy_speed().expect("memory");
        assert!(speed.is_none_or(|bytes| bytes > 1 << 20), "{speed:?}");
    }

    #[test]
    fn threads_of_this_process_are_counted() {
        assert!(thread_count(std::process::id()) > 0);
        assert_eq!(thread_count(u32::MAX), 0);
        assert_eq!(tracer(std::process::id()), Ok(()));
    }
}
