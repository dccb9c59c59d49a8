//! Loaded images, and all that is done with them.

#![no_main]

rleaks_fuzz::target!(rleaks::scan::fuzzing::modules, base: 8 << 20, factor: 512);
