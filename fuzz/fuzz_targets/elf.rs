//! Symbols and debug information.

#![no_main]

rleaks_fuzz::target!(rleaks::symbolize::fuzzing::elf, base: 64 << 20, factor: 1100);
