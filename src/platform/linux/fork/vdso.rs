//! The one instruction that a thread of the target executes for rleaks.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use crate::addr::{Addr, AddrRange};
use crate::memory::Memory;
use crate::platform::linux::process_memory::ProcessMemory;
use crate::platform::linux::regions::parse_maps;
use crate::snapshot::Region;

/// `syscall`.
const SYSTEM_CALL: [u8; 2] = [0x0f, 0x05];
/// The vdso is a few pages long.
const LONGEST: u64 = 64 << 10;

/// Where a system call can be made: an instruction in the code that the kernel maps into each process.
/// The bytes are an instruction wherever they are jumped to.
pub(in crate::platform::linux) fn system_call_instruction(
    regions: &[Region],
    memory: &dyn Memory,
) -> Option<Addr> {
    let vdso = regions
        .iter()
        .find(|region| region.name == "[vdso]" && region.executable)?;
    let size = usize::try_from(vdso.range.size().min(LONGEST)).ok()?;
    let mut code = vec![0; size];
    let count = memory.read(vdso.range.start, &mut code);
    let found = memchr::memmem::find(&code[..count], &SYSTEM_CALL)?;
    let at = vdso.range.start.checked_add(found as u64)?;
    vdso.range
        .covers(&AddrRange::with_size(at, 2))
        .then_some(at)
}

/// The same for a running process, seen through its thread `tid`.
pub(super) fn of_thread(tid: u32) -> Option<Addr> {
    let maps = fs::read(format!("/proc/{tid}/maps")).ok()?;
    let file = File::open(format!("/proc/{tid}/mem")).ok()?;
    let memory = ProcessMemory::new(i32::try_from(tid).ok()?, file);
    system_call_instruction(&parse_maps(&maps), &memory)
}

/// Says whether there is such an instruction at `at` in the memory that thread `tid` has now.
pub(super) fn is_there(tid: u32, at: u64) -> bool {
    let mut code = [0; SYSTEM_CALL.len()];
    let file = File::open(format!("/proc/{tid}/mem"));
    file.is_ok_and(|file| file.read_exact_at(&mut code, at).is_ok()) && code == SYSTEM_CALL
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_one() {
        let tid = std::process::id();
        let at = of_thread(tid).expect("a vdso");
        assert!(is_there(tid, at.0) && !is_there(tid, 0));
        assert_eq!(
            system_call_instruction(&[], &crate::memory::FakeMemory::zeroed(0, 1)),
            None
        );
    }
}
