//! rleaks on real processes: the programs in `fixtures/` say what is true, rleaks must say the same.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![expect(
    clippy::unwrap_used,
    reason = "a helper of a test fails by panicking, as the test does"
)]

mod generator;
mod harm;
mod kinds;
mod roots;
#[path = "../support/mod.rs"]
mod support;
mod widths;
