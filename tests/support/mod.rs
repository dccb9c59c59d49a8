//! Builds the programs in `fixtures/`, runs them, and runs rleaks on them.
//!
//! A fixture says on its stdout which of its blocks are leaked: tests compare sets, not counts.

mod compile;
mod container;
mod cores;
mod fixture;
mod isolated;
mod program;
mod recorder;
mod report;
mod saved;

pub(crate) use compile::{Build, WIDTHS, compile, compile_as};
pub(crate) use container::{Container, Root};
pub(crate) use cores::{CoreFolder, set_core_filter};
pub(crate) use fixture::{Fixture, Leak};
pub(crate) use isolated::{Shared, unprivileged};
pub(crate) use program::Program;
pub(crate) use recorder::{recorded, recorder};
pub(crate) use report::{
    addresses, assert_refused, functions, heap, heap_by, leaks, leaks_by, leaks_with,
    leaks_without_roots, parse_address, rleaks, rleaks_command, text,
};

pub(crate) use saved::{SavedFile, lasting, leaks_in};

/// A number from the environment, which long runs raise.
pub(crate) fn number_from_environment(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{name} is not a number: {text}")),
        Err(_) => default,
    }
}
