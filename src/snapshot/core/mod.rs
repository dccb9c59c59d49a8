//! ELF core files, as snapshots that were saved.

mod bytes;

pub use bytes::FileBytes;
