//! The report as text, familiar to people who know macOS `leaks`.

mod by_type;
mod diff;
mod escape;
mod forest;
mod header;
mod label;
mod list;
mod options;
mod size;
mod stack;
mod tree;
mod view;

#[cfg(test)]
mod tests;

pub use diff::write_diff;
pub use options::{DEFAULT_LIMIT, Layout, Palette, TextOptions};
pub use size::{Count, Size};
pub use view::write;
