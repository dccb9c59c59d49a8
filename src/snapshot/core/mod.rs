//! ELF core files: of the kernel, of debuggers, and of rleaks itself.
//!
//! Their bytes are untrusted. What is read is bounded by the size of the file, and a number that does
//! not fit it is an error with the offset where it stands.

mod bytes;
mod file;
mod images;
mod lacks;
mod link_map;
mod memory;
mod notes;
mod opened;
mod regions;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod threads;

pub use bytes::FileBytes;
pub use file::{CoreError, CoreFile, CoreNote, CoreSegment, Machine};
pub use images::{ImageFiles, Lack, Lacking};
pub use memory::{CoreMemory, Part};
pub use opened::Opened;
