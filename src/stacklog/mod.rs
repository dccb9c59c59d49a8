//! The malloc stack log: what a program that was started under the recorder knows about its
//! blocks.
//!
//! The recorder writes it into the target's own memory, so every snapshot of the target has it.
//! [`StackLog::find`] opens it, [`Records`] are the blocks that it says are alive, and
//! [`StackReader`] reads the call stacks of some of them.

// The log lies in the target's memory, which is hostile input: an index or a sum made of it must
// not panic.
#![cfg_attr(
    not(test),
    warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

mod allocations;
mod exit_page;
pub mod format;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod header;
mod image;
mod log;
mod recorder;
mod records;
mod stack;
#[cfg(any(test, fuzzing))]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use allocations::Allocations;
pub use exit_page::ExitPage;
pub use header::{LogError, LogHeader, LogMode};
pub use image::Image;
pub use log::{StackLog, search};
pub use recorder::RECORDER;
pub use records::{Area, LiveRecord, Records};
pub use stack::{Allocation, AllocationReader, CallStack, CodeFrame, StackReader};
