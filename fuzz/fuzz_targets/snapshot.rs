//! Files that rleaks has saved.

#![no_main]

rleaks_fuzz::target!(rleaks::scan::fuzzing_files::snapshot, base: 256 << 20, factor: 512);
