//! rleaks finds leaked heap memory in a running process, without restarting or rebuilding it.
//!
//! A target is stopped for a moment and captured as a [`snapshot::Snapshot`]. Walkers list the
//! live blocks of its allocators ([`heap`]), every aligned word in roots and blocks becomes an
//! edge of a graph ([`scan`]), and what no root reaches is a leak ([`report`]).

pub mod addr;
pub mod memory;
pub mod warning;

#[cfg(any(test, fuzzing))]
mod fuzzing;

pub mod snapshot;

pub mod platform;

pub mod stacklog;

pub mod heap;
pub mod scan;

pub mod content;

pub mod symbolize;

pub mod report;

pub mod cli;
