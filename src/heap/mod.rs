//! The live blocks of the target's allocators.

mod block;

pub use block::{Block, Heap, Zone};
