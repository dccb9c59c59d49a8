//! The operating system: finding, stopping, capturing and releasing a process.
//!
//! Only this folder and the preload recorder speak to the operating system. What one of two
//! systems does in its own way is a module of the same name in `linux/` (later `macos/`), chosen
//! here and nowhere else.

mod find;
#[cfg(target_os = "linux")]
mod linux;
mod process;

pub use find::{Choice, FindError, find_by_name, find_by_pid};
#[cfg(target_os = "linux")]
pub use linux::{
    CaptureError, Obstacle, Privileges, RegularFile, Remedy, Stopped, Survey, SuspendError, Target,
    TargetFiles, available_memory, check_proc, copy_limit, copy_speed, holds_a_stopped_target,
    interrupt_flag, is_hidden, kernel_release, page_map, privileges, process, processes,
    thread_count, tracer, visible_pid, watched,
};
pub use process::{ProcessInfo, ProcessState, user_name};
