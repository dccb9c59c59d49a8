//! Roots: what is scanned first.

use crate::addr::AddrRange;

/// The class of a root, as `--no-roots` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RootKind {
    /// Writable data of modules: .data, .bss, and what RELRO made read-only.
    Globals,
    /// The live part of a thread's stack.
    Stacks,
    /// Thread control blocks and thread-local storage.
    Tls,
    /// General and vector registers of threads.
    Registers,
    /// Words that the kernel holds for the target.
    Kernel,
    /// Other writable memory that no allocator owns.
    Other,
}

/// Where a root's words come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RootSource {
    /// The memory of the target.
    Memory(AddrRange),
    /// Words that are not in the target's memory: registers, kernel-held values.
    Words(Vec<u64>),
}

/// A range or a set of values that is scanned first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    /// Its class.
    pub kind: RootKind,
    /// Where its words come from.
    pub source: RootSource,
    /// What it is, for people: `stack of thread 42`.
    pub name: String,
}
