//! What an address of the target stands for, and what a block is by its content.

mod allocators;
mod code_frames;
mod compression;
mod debug_file;
mod demangle;
mod describe;
mod descriptions;
mod dwarf;
mod elf;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod image;
mod inventory;
mod module_symbols;
mod perf_map;
mod preview;
mod starts;
mod symbolizer;
mod table;

#[cfg(test)]
mod code_tests;
#[cfg(test)]
mod tests;

pub use allocators::is_allocator_wrapper;
pub use code_frames::{CodeFrames, Detail};
pub use demangle::{demangle, vtable_class};
pub use describe::Describer;
pub use descriptions::{Description, Descriptions};
pub use image::{CodeAddress, CodeImage, SourceFrame};
pub use inventory::{ModuleSymbols, SymbolSource, inventory};
pub use starts::{Described, Shown, Source, Starts};
pub use symbolizer::{DataSymbol, Symbolizer};
