//! The malloc stack log: what a program that was started under the recorder knows about its
//! blocks.

mod exit_page;
pub mod format;
mod recorder;

pub use exit_page::ExitPage;
pub use recorder::RECORDER;
