//! Roots and references.

#![no_main]

rleaks_fuzz::target!(rleaks::scan::fuzzing::references, base: 16 << 20, factor: 64);
