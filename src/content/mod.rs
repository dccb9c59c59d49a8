//! Snapshots without content: what of a target's memory finds its leaks, and nothing else of it.
//!
//! Of blocks and roots remain the words that are references; of allocators, what they keep of their
//! blocks; of threads, what tells where their stacks are. Everything else reads as zeros, so that a
//! file can leave a machine whose data may not.

// The target's memory is hostile input: an index or a sum made of it must not panic.
#![cfg_attr(
    not(test),
    warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

mod kept;
mod reduced;
mod registers;
#[cfg(test)]
mod tests;

pub use kept::{Kept, Sources};
pub use reduced::ReducedMemory;
pub use registers::without_content;
