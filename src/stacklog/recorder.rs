//! The recorder, as the build script has made it.

/// The bytes of the library that is preloaded into a program to record its allocations: for this
/// machine's instruction set, and any C library. Empty where rleaks was built for another kind of
/// machine than the recorder is written for.
pub static RECORDER: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/librleaks.so"));
