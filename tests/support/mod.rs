//! Builds the programs in `fixtures/`, runs them, and runs rleaks on them.
//!
//! A fixture says on its stdout which of its blocks are leaked: tests compare sets, not counts.

mod compile;
mod fixture;
mod report;

pub(crate) use compile::Build;
pub(crate) use fixture::{Fixture, Leak};
pub(crate) use report::{addresses, heap, leaks, leaks_without_roots, parse_address};

/// A number from the environment, which long runs raise.
pub(crate) fn number_from_environment(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{name} is not a number: {text}")),
        Err(_) => default,
    }
}
