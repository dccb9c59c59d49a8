//! Heaps of glibc's malloc.

#![no_main]

rleaks_fuzz::target!(rleaks::heap::glibc::fuzzing::walkers, base: 16 << 20, factor: 64);
