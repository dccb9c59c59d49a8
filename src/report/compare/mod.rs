//! Comparison of reports: which leaks are new, and which are gone.
//!
//! Reports of one process are compared by address; those of different ones by what allocated the
//! leaks and how large they are, as many as there are of a kind. Both are plain functions of reports,
//! wherever these come from.

mod compared;
mod diff;
mod kinds;
mod live;
mod matching;
mod only_new;
mod terms;
mod weak;

#[cfg(test)]
mod tests;

pub use diff::{Change, DIFF_SCHEMA_VERSION, Diff, DiffSide, DiffSummary, GroupChange};
pub use live::{LiveGroup, LiveMemory, Side};
pub use only_new::{Earlier, PickError};
