//! Registers of a stopped thread.

use std::io;

use super::ptrace::{register_set, set_register_set, thread_area};
use super::restart::restarting_result;
use crate::addr::Addr;
use crate::memory::Width;
use crate::snapshot::Thread;

/// The kernel's note type of the general registers, `<elf.h>`.
const NT_PRSTATUS: i32 = 1;
/// The x87 and SSE registers, where there is no extended state.
const NT_PRFPREG: i32 = 2;
/// All vector registers, in the processor's XSAVE layout.
const NT_X86_XSTATE: i32 = 0x202;

/// `-ENOSYS`: what the kernel puts into the result register when a system call begins, and leaves
/// there while the call sleeps.
const NO_RESULT: u64 = (-38_i64).cast_unsigned();

/// Indices in `struct user_regs_struct`, `<sys/user.h>`, of either width.
pub(super) struct Indices {
    pub(super) result: usize,
    pub(super) number: usize,
    pub(super) instruction_pointer: usize,
    pub(super) stack_pointer: usize,
}

const INDICES_32: Indices = Indices {
    result: 6,
    number: 11,
    instruction_pointer: 12,
    stack_pointer: 15,
};
pub(super) const INDICES_64: Indices = Indices {
    result: 10,
    number: 15,
    instruction_pointer: 16,
    stack_pointer: 19,
};
/// The size of the struct in 32-bit programs.
const SIZE_32: usize = 17 * 4;
const GS: usize = 10;
const FS_BASE: usize = 21;

/// The general registers of a thread as the kernel gives them: those of the code that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct General {
    pub(super) width: Width,
    pub(super) bytes: Vec<u8>,
}

impl General {
    pub(super) fn read(tid: u32) -> io::Result<Self> {
        Ok(Self::of(register_set(tid, NT_PRSTATUS)?))
    }

    fn of(bytes: Vec<u8>) -> Self {
        let width = if bytes.len() == SIZE_32 {
            Width::Four
        } else {
            Width::Eight
        };
        Self { width, bytes }
    }

    /// Makes them the registers of the stopped thread `tid`.
    pub(super) fn write(&self, tid: u32) -> io::Result<()> {
        set_register_set(tid, NT_PRSTATUS, &mut self.bytes.clone())
    }

    /// Changes the register at `index`.
    pub(super) fn set(&mut self, index: usize, value: u64) {
        let size = self.width.size();
        let register = self.bytes.chunks_exact_mut(size).nth(index);
        if let Some(register) = register {
            register.copy_from_slice(&value.to_le_bytes()[..size]);
        }
    }

    fn indices(&self) -> &'static Indices {
        match self.width {
            Width::Four => &INDICES_32,
            Width::Eight => &INDICES_64,
        }
    }

    pub(super) fn register(&self, index: usize) -> u64 {
        let bytes = self.bytes.get(index * self.width.size()..);
        bytes.and_then(|b| self.width.word(b)).unwrap_or(0)
    }

    /// A register with a number that may be negative.
    fn signed(&self, index: usize) -> u64 {
        let value = self.register(index);
        match u32::try_from(value) {
            Ok(value) if self.width == Width::Four => {
                i64::from(value.cast_signed()).cast_unsigned()
            }
            _ => value,
        }
    }

    /// The number of the system call that the thread was in, or -1, and its result.
    pub(super) fn call_and_result(&self) -> (u64, u64) {
        let indices = self.indices();
        (self.signed(indices.number), self.signed(indices.result))
    }
}

/// Reads the registers of thread `tid`, which must be stopped by the calling thread.
pub(super) fn read(tid: u32) -> io::Result<Thread> {
    let (general, vector) = (General::read(tid)?, vector(tid)?);
    Ok(thread(tid, &general, vector))
}

/// The vector registers of thread `tid`, which must be stopped by the calling thread.
pub(super) fn vector(tid: u32) -> io::Result<Vec<u8>> {
    register_set(tid, NT_X86_XSTATE).or_else(|_| register_set(tid, NT_PRFPREG))
}

/// Thread `tid` with 64-bit registers that another process has read.
pub(super) fn of_other_process(tid: u32, general: Vec<u8>, vector: Vec<u8>) -> Thread {
    thread(tid, &General::of(general), vector)
}

fn thread(tid: u32, general: &General, vector: Vec<u8>) -> Thread {
    let indices = general.indices();
    let (number, result) = general.call_and_result();
    Thread {
        tid,
        inner_tid: tid,
        width: Some(general.width),
        instruction_pointer: Addr(general.register(indices.instruction_pointer)),
        stack_pointer: Addr(general.register(indices.stack_pointer)),
        thread_pointer: thread_pointer(tid, general),
        system_call: system_call(number, result),
        general: general.width.words(&general.bytes).collect(),
        vector,
    }
}

/// Where the thread control block lies; 0 if there is none.
fn thread_pointer(tid: u32, general: &General) -> Addr {
    match general.width {
        Width::Eight => Addr(general.register(FS_BASE)),
        Width::Four => {
            // The selector's upper bits are the index in the table of descriptors.
            let index = u32::try_from(general.register(GS) >> 3).unwrap_or(0);
            Addr(thread_area(tid, index).map_or(0, u64::from))
        }
    }
}

/// The size of the pointers of thread `tid`, which is stopped by the calling thread, and the number of
/// the system call that it is in, or -1.
pub(super) fn system_call_of(tid: u32) -> io::Result<(Width, u64)> {
    let general = General::read(tid)?;
    Ok((general.width, general.call_and_result().0))
}

/// Makes the kernel restart the system call that thread `tid` was in, if the stop has ended it.
pub(super) fn restart_system_call(tid: u32) -> io::Result<()> {
    let mut general = General::read(tid)?;
    let (number, result) = general.call_and_result();
    let Some(result) = restarting_result(general.width, number, result) else {
        return Ok(());
    };
    general.set(general.indices().result, result);
    general.write(tid)
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
