//! The report: the one result type, its grouping, and one writer per output format.
//!
//! [`Report`] is exactly what `rleaks --json` writes, and the text is made from nothing else, so a
//! report that was read back from JSON prints the same text.

mod build;
mod call_stacks;
pub mod compare;
mod group;
mod hex;
pub mod json;
mod leaks;
mod model;
mod named_code;
mod read;
mod schema;
pub mod text;
mod time;

#[cfg(test)]
mod contract;
#[cfg(test)]
mod fixture;

pub use build::Logged;
pub use call_stacks::{CallStacks, FrameSource};
pub use hex::Offset;
pub use leaks::{LeakRef, Leaks};
pub use model::{
    Capture, CaptureMethod, ComparedBy, ComparedWith, Comparison, Frame, Group, HeapTotals, Leak,
    Module, Report, SCHEMA_VERSION, Stack, StackLog, StackLogMode, Summary, Target, TargetKind,
    Zone,
};
pub use named_code::{CodeImages, NamedCode};
pub use read::{ReadError, read_reports};
pub use schema::{write_diff_schema, write_schema};
pub use time::rfc3339;
