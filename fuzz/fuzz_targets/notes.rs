//! The notes of core files.

#![no_main]

rleaks_fuzz::target!(rleaks::scan::fuzzing_files::notes, base: 16 << 20, factor: 512);
