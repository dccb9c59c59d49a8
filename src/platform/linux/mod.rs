//! Linux: ptrace, `/proc`, `process_vm_readv`.

mod capture;
mod copy;
mod files;
mod job_control;
mod limits;
mod pagemap;
mod plan;
mod priority;
mod process_memory;
mod processes;
mod procfs;
mod ptrace;
mod regions;
mod registers;
mod restart;
mod stream;
mod survey;
mod suspend;
mod tracer;
mod view;
mod watchdog;

pub use capture::Stopped;
pub use files::{RegularFile, TargetFiles};
pub use job_control::interrupt_flag;
pub use processes::{process, processes};
pub use survey::{CaptureError, Survey, Target};
pub use suspend::{SuspendError, holds_a_stopped_target};
pub use view::{ProcError, ViewError};
pub use watchdog::watched;
