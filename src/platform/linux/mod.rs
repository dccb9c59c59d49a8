//! Linux: ptrace, `/proc`, `process_vm_readv`.

mod capture;
mod copy;
mod files;
mod job_control;
mod limits;
mod obstacle_facts;
mod obstacles;
mod pagemap;
mod plan;
mod process_memory;
mod processes;
mod procfs;
mod ptrace;
mod regions;
mod registers;
mod stream;
mod suspend;

pub use capture::{CaptureError, Stopped, Survey, Target};
pub use files::{RegularFile, TargetFiles};
pub use job_control::interrupt_flag;
pub use obstacles::{Obstacle, Remedy};
pub use processes::{process, processes};
pub use suspend::{SuspendError, holds_a_stopped_target};
