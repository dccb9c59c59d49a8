//! The operating system: finding, stopping, capturing and releasing a process.
//!
//! Only this folder and the preload recorder speak to the operating system. What one of two
//! systems does in its own way is a module of the same name in `linux/` (later `macos/`), chosen
//! here and nowhere else.

mod debuginfod;
#[cfg(unix)]
mod disk_file;
mod find;
#[cfg(target_os = "linux")]
mod linux;
#[cfg(unix)]
mod new_file;
mod process;

pub use debuginfod::Debuginfod;
#[cfg(unix)]
pub use disk_file::{DiskFile, unlinked_file};
pub use find::{Choice, FindError, find_by_name, find_by_pid};
#[cfg(all(target_os = "linux", any(test, fuzzing)))]
pub use linux::fuzzing;
#[cfg(target_os = "linux")]
pub use linux::{
    CaptureError, CommandEnd, CommandLine, Costs, Disposition, Ending, FolderError, Follow,
    FollowEvent, Followed, ForkRefusal, Limit, Obstacle, Privileges, ProgramFile, RegularFile,
    Remedy, RunError, SharedPage, Stopped, Survey, SuspendError, Target, TargetFiles, Waiter,
    Waiters, anonymous_memory, available_memory, check_proc, copy_limit, copy_speed, guardian,
    holds_a_stopped_target, interrupt_flag, is_hidden, keep_little_memory, kernel_release,
    make_public, page_map, private_folder, privileges, process, processes, put_file, thread_count,
    tracer, visible_pid, watched, watched_command,
};
#[cfg(unix)]
pub use new_file::{NewFile, Written};
pub use process::{ProcessInfo, ProcessState, signal_name, user_name};
