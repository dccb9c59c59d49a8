//! The malloc stack log: what a program that was started under the recorder knows about its
//! blocks.

mod exit_page;
pub mod format;

pub use exit_page::ExitPage;
