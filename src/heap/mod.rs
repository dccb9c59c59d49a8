//! The live blocks of the target's allocators.

mod block;
pub mod glibc;

pub use block::{Block, Heap, Zone};
