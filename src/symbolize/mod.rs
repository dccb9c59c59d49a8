//! What an address of the target stands for, and what a block is by its content.

mod debug_file;
mod demangle;
mod describe;
mod elf;
mod inventory;
mod module_symbols;
mod preview;
mod symbolizer;
mod table;

#[cfg(test)]
mod tests;

pub use demangle::{demangle, vtable_class};
pub use describe::{Content, Describer, Description};
pub use inventory::{ModuleSymbols, SymbolSource, inventory};
pub use symbolizer::{DataSymbol, Symbolizer};
