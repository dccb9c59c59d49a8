//! What of its memory an allocator needs to know its blocks.

use crate::addr::{Addr, AddrRange};

/// The bookkeeping of the allocators of a target: what a walk of the heap depends on, and nothing of
/// what programs keep in their blocks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// Structures: arenas, parameters, caches.
    pub structures: Vec<AddrRange>,
    /// Single words, in ascending order: headers of chunks, and the links and footers of free ones.
    pub words: Vec<Addr>,
    /// Addresses of structures. A word with one of these values, wherever it is, may be what leads
    /// there.
    pub addresses: Vec<Addr>,
}
