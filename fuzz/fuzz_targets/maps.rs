//! Texts and tables of `/proc`.

#![no_main]

rleaks_fuzz::target!(rleaks::platform::fuzzing::maps, base: 1 << 20, factor: 64);
