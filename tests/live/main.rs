//! rleaks on real processes: the programs in `fixtures/` say what is true, rleaks must say the same.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![expect(
    clippy::unwrap_used,
    reason = "a helper of a test fails by panicking, as the test does"
)]

mod aarch64;
mod allocators;
mod at_exit;
mod containers;
mod cores;
mod diff;
mod doctor;
mod fork;
mod generator;
mod guardian;
mod harm;
mod heap_modes;
mod kinds;
mod memory;
mod methods;
mod mono;
mod obstacles;
mod programs;
mod record;
mod roots;
mod saved;
mod signals;
mod stacks;
#[path = "../support/mod.rs"]
mod support;
mod syscalls;
mod terminal;
mod widths;
