//! Core files.

#![no_main]

rleaks_fuzz::target!(rleaks::scan::fuzzing_files::core, base: 16 << 20, factor: 512);
