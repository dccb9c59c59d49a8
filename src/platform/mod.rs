//! The operating system: finding, stopping, capturing and releasing a process.
//!
//! This and the recorder are the only parts of rleaks that make system calls.

#[cfg(target_os = "linux")]
mod linux;

#[cfg(target_os = "linux")]
pub use linux::*;
