//! A child of the target as its snapshot.
//!
//! One thread of the target, which sits in a system call, is made to do one `clone`. The child shares the
//! target's memory copy-on-write and never runs an instruction: its memory is the target's at that instant. It
//! is read through `/proc/CHILD/mem` (`process_vm_readv` would make the kernel copy each page that it reads). The
//! target goes on at once. When all is read, the child is killed, and another thread of the target, stopped
//! for a moment, waits for it, so that no zombie stays.
//!
//! - `guardian`: the process that does it; `client`: how rleaks speaks to it; `protocol`: what they say.
//! - `injection`, `requests`, `vdso`: one system call in a thread of the target.
//! - `reap`, `waits`: making the target forget the child.
//! - `checks`: where nothing of this is tried; `refusal`: why.
//! - `memory`: the child's memory, and copies of what a child does not get.

mod alarm;
mod checks;
mod client;
mod guardian;
mod injection;
mod memory;
mod protocol;
mod reap;
mod refusal;
mod requests;
mod vdso;
mod waits;

pub(super) use checks::{Facts, check, check_standstill, place};
pub(super) use client::{Guarded, Guardian};
pub use guardian::guardian;
pub(super) use memory::{ForkedMemory, Parts};
pub(super) use protocol::{NewProcess, Outcome};

pub use refusal::ForkRefusal;
