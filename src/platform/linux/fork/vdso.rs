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
fn system_call_instruction(regions: &[Region], memory: &dyn Memory) -> Option<Addr> {
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

/// The instruction in the memory of a thread's process.
#[derive(Debug)]
pub(super) struct Instruction {
    pub(super) at: u64,
    memory: File,
}

impl Instruction {
    /// The one of thread `tid`, which may run.
    pub(super) fn of_thread(tid: u32) -> Option<Self> {
        let maps = fs::read(format!("/proc/{tid}/maps")).ok()?;
        let open = || File::open(format!("/proc/{tid}/mem"));
        let memory = ProcessMemory::new(i32::try_from(tid).ok()?, open().ok()?);
        let at = system_call_instruction(&parse_maps(&maps), &memory)?;
        Some(Self {
            at: at.0,
            memory: open().ok()?,
        })
    }

    /// Says whether it is there now. It is not where the process executes another program.
    pub(super) fn is_there(&self) -> bool {
        let mut code = [0; SYSTEM_CALL.len()];
        self.memory.read_exact_at(&mut code, self.at).is_ok() && code == SYSTEM_CALL
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_one() {
        let tid = std::process::id();
        let mut instruction = Instruction::of_thread(tid).expect("a vdso");
        assert!(instruction.is_there());
        instruction.at = 0;
        assert!(!instruction.is_there());
        assert_eq!(
            system_call_instruction(&[], &crate::memory::FakeMemory::zeroed(0, 1)),
            None
        );
    }
}
