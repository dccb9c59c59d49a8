//! Linux: ptrace, `/proc`, `process_vm_readv`.

mod capture;
mod capture_error;
mod checks;
mod choice;
mod command;
mod copy;
mod cost;
mod files;
mod fork;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod job_control;
mod landlock;
mod limits;
mod obstacle_facts;
mod obstacles;
mod own_memory;
mod pagemap;
mod plan;
mod priority;
mod private_folder;
mod process_memory;
mod processes;
mod procfs;
mod ptrace;
mod regions;
mod registers;
mod restart;
mod shared_memory;
mod shared_page;
mod signals;
mod stream;
mod survey;
mod suspend;
mod tracer;
mod view;
mod watchdog;

pub use capture::Stopped;
pub use capture_error::CaptureError;
pub use checks::{
    Privileges, copy_speed, kernel_release, page_map, privileges, thread_count, tracer,
};
pub use command::{
    CommandEnd, CommandLine, Disposition, Ending, Follow, FollowEvent, Followed, Limit,
    ProgramFile, RunError, Waiter, Waiters,
};
pub use cost::Costs;
pub use files::{RegularFile, TargetFiles};
pub use fork::{ForkRefusal, guardian};
pub use job_control::interrupt_flag;
pub use limits::available_memory;
pub use obstacle_facts::check_proc;
pub use obstacles::{Obstacle, Remedy};
pub use own_memory::{anonymous_memory, keep_little_memory};
pub use private_folder::{FolderError, make_public, private_folder, put_file};
pub use processes::{is_hidden, process, processes};
pub use shared_page::SharedPage;
pub use survey::{Survey, Target, copy_limit};
pub use suspend::{SuspendError, holds_a_stopped_target};
pub use watchdog::{visible_pid, watched, watched_command};
