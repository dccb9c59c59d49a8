//! Linux.

mod files;

pub use files::{RegularFile, TargetFiles};
