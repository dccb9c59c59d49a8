//! Finding processes: what only the operating system knows.
//!
//! Only this folder and the preload recorder speak to the operating system. What one of two
//! systems does in its own way is a module of the same name in `linux/` (later `macos/`), chosen
//! here and nowhere else.

mod find;
mod process;

#[cfg(target_os = "linux")]
mod linux;

pub use find::{Choice, FindError, find_by_name, find_by_pid};
#[cfg(target_os = "linux")]
pub use linux::processes::{process, processes};
pub use process::{ProcessInfo, ProcessState, user_name};
