//! Everything that speaks to the operating system.

#[cfg(target_os = "linux")]
mod linux;

#[cfg(target_os = "linux")]
pub use linux::{RegularFile, TargetFiles};
