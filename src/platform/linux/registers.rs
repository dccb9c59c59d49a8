//! Registers of a stopped thread.

use std::io;

use super::procfs::Status;
use super::ptrace::{register_set, set_register_set};
use super::restart::restarting_result;
use crate::addr::Addr;
use crate::snapshot::Thread;

/// The kernel's note type of the general registers, `<elf.h>`.
const NT_PRSTATUS: i32 = 1;
/// The x87 and SSE registers, where there is no extended state.
const NT_PRFPREG: i32 = 2;
/// All vector registers, in the processor's XSAVE layout.
const NT_X86_XSTATE: i32 = 0x202;

/// Indices in `struct user_regs_struct`, `<sys/user.h>`.
const RAX: usize = 10;
const ORIG_RAX: usize = 15;
const RIP: usize = 16;
const RSP: usize = 19;
const FS_BASE: usize = 21;

/// `-ENOSYS`: what the kernel puts into the result register when a system call begins, and leaves
/// there while the call sleeps.
const NO_RESULT: u64 = (-38_i64).cast_unsigned();

/// Reads the registers of thread `tid`, which must be stopped by the calling thread.
pub(super) fn read(pid: u32, tid: u32) -> io::Result<Thread> {
    let general = register_set(tid, NT_PRSTATUS)?;
    let general: Vec<u64> = general
        .chunks_exact(8)
        .map(|word| u64::from_le_bytes(word.try_into().unwrap_or_default()))
        .collect();
    let vector = register_set(tid, NT_X86_XSTATE).or_else(|_| register_set(tid, NT_PRFPREG))?;
    let register = |index: usize| general.get(index).copied().unwrap_or(0);
    Ok(Thread {
        tid,
        inner_tid: Status::read(pid, tid).map_or(tid, |status| status.inner_tid),
        instruction_pointer: Addr(register(RIP)),
        stack_pointer: Addr(register(RSP)),
        thread_pointer: Addr(register(FS_BASE)),
        system_call: system_call(register(ORIG_RAX), register(RAX)),
        general,
        vector,
    })
}

/// Makes the kernel restart the system call that thread `tid` was in, if the stop has ended it.
pub(super) fn restart_system_call(tid: u32) -> io::Result<()> {
    let mut general = register_set(tid, NT_PRSTATUS)?;
    let register = |index: usize| {
        let bytes = general.get(8 * index..)?.first_chunk()?;
        Some(u64::from_le_bytes(*bytes))
    };
    let result = register(ORIG_RAX)
        .zip(register(RAX))
        .and_then(|(number, result)| restarting_result(number, result));
    let Some(result) = result else {
        return Ok(());
    };
    general[8 * RAX..8 * RAX + 8].copy_from_slice(&result.to_le_bytes());
    set_register_set(tid, NT_PRSTATUS, &mut general)
}

/// A thread that was interrupted in a system call has its number in `orig_rax`, and in `rax` one
/// of the codes by which the kernel restarts it (-512 to -516), or no result yet.
fn system_call(orig_rax: u64, rax: u64) -> Option<u64> {
    let is_restarted = (-516..=-512).contains(&rax.cast_signed());
    (i64::try_from(orig_rax).is_ok()
        && (is_restarted || rax == NO_RESULT || rax == (-4_i64).cast_unsigned()))
    .then_some(orig_rax)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupted_system_call_is_told_from_running_code() {
        for (orig_rax, rax, call) in [
            (35, -516_i64, Some(35)),
            (7, -514, Some(7)),
            (0, -512, Some(0)),
            (232, -4, Some(232)),
            (61, -38, Some(61)),
            (u64::MAX, 0, None),
            (1, 5, None),
        ] {
            assert_eq!(
                system_call(orig_rax, rax.cast_unsigned()),
                call,
                "{orig_rax} {rax}"
            );
        }
    }
}
