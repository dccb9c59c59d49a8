//! The malloc stack log: what a program that was started under the recorder knows about its
//! blocks.

pub mod format;
mod recorder;

pub use recorder::RECORDER;
