//! The malloc stack log.

#![no_main]

rleaks_fuzz::target!(rleaks::stacklog::fuzzing::stack_log, base: 96 << 20, factor: 64);
