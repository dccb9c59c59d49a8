//! Snapshots in files: ELF core files with a note of rleaks' own.
//!
//! Debuggers open them as the core files that they are. The note has what a core file has no place
//! for, so that a scan of the file gives the answer that a scan of the process gave: names of
//! mappings, memory that reads as zeros, words that the kernel held.

mod container;
mod elf_notes;
mod image;
mod layout;
mod note;
mod open;
#[cfg(test)]
mod tests;
mod write;

pub use container::{ContainerError, Damage, SeekableFile};
pub use image::CoreImage;
pub use note::{HeapFacts, NOTE_OWNER};
pub use open::{Saved, SavedError, is_saved, open};
pub use write::{Compressed, NewBytes, WriteError, write_plain};
