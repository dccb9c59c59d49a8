//! Threads: registers and where the stack is.

use serde::{Deserialize, Serialize};

use crate::addr::Addr;
use crate::memory::Width;

/// A thread of the target at the instant of the snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Thread {
    /// The thread id, in the namespace of rleaks.
    pub tid: u32,
    /// The thread id, as the target itself knows it (innermost pid namespace).
    pub inner_tid: u32,
    /// The width of the code that it runs; `None` where the thread could not be stopped.
    pub width: Option<Width>,
    /// The general registers, in the order of the kernel's `NT_PRSTATUS` set.
    pub general: Vec<u64>,
    /// The vector registers: the raw bytes of the kernel's `NT_X86_XSTATE` set.
    #[serde(skip)]
    pub vector: Vec<u8>,
    /// The address of the next instruction.
    pub instruction_pointer: Addr,
    /// The stack pointer.
    pub stack_pointer: Addr,
    /// The thread pointer (`fs_base` on x86-64, the base of `gs` on i386), where the thread control block lies; 0 if none.
    pub thread_pointer: Addr,
    /// The number of the system call that the thread is in, if it is in one.
    pub system_call: Option<u64>,
}

impl Thread {
    /// The return address that aarch64 code keeps in a register; `None` on other machines.
    #[must_use]
    pub fn link_register(&self) -> Option<Addr> {
        /// The general registers of aarch64: 31, the stack pointer, the next instruction and the flags.
        const COUNT: usize = 34;
        const LINK: usize = 30;
        let link = self
            .general
            .get(LINK)
            .filter(|_| self.general.len() == COUNT);
        link.map(|link| Addr(*link))
    }
}
