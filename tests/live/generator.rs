//! Random heap graphs that know their own reachable set.
//!
//! `RLEAKS_SEEDS=50 cargo test --release --test live generator` tries more seeds than the default of 5, and
//! `RLEAKS_FIRST_SEED` says where they begin.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::support::{Fixture, addresses, heap, leaks, number_from_environment};

fn for_each_seed(check: impl Fn(&Fixture, &str)) {
    let first = number_from_environment("RLEAKS_FIRST_SEED", 1);
    for seed in first..first + number_from_environment("RLEAKS_SEEDS", 5) {
        let (threads, blocks) = (seed % 7, 1000 + seed % 10 * 500);
        let [seed, threads, blocks] = [seed, threads, blocks].map(|number| number.to_string());
        let fixture = Fixture::start_with("generator.c", &[&seed, &threads, &blocks]);
        check(&fixture, &format!("generator {seed} {threads} {blocks}"));
    }
}

/// What is in one of two sets only, in a few lines: the sets have thousands of elements.
pub(crate) fn difference(reported: &BTreeMap<u64, u64>, truth: &BTreeMap<u64, u64>) -> Vec<String> {
    let missing = truth
        .iter()
        .filter(|(at, size)| reported.get(at) != Some(size));
    let surplus = reported
        .iter()
        .filter(|(at, size)| truth.get(at) != Some(size));
    let missing = missing.map(|(at, size)| format!("missing {at:#x} size {size}"));
    let surplus = surplus.map(|(at, size)| format!("surplus {at:#x} size {size}"));
    missing.chain(surplus).take(20).collect()
}

/// The reported leaks are exactly what is unreachable.
pub(crate) fn assert_leaks_are_exact(fixture: &Fixture, report: &Value, name: &str) {
    let truth = fixture
        .leaks
        .iter()
        .map(|(&at, leak)| (at, leak.size))
        .collect();
    let reported = addresses(&report["leaks"]);
    assert_eq!(difference(&reported, &truth), [""; 0], "{name}");
}

/// The listed blocks are exactly those that live.
pub(crate) fn assert_blocks_are_exact(fixture: &Fixture, heap: &Value, name: &str) {
    let mut reported = fixture.without_loader(addresses(&heap["blocks"]));
    for (at, what) in &fixture.libc {
        assert!(
            reported.remove(at).is_some(),
            "{name}: libc's {what} at {at:#x} is missing"
        );
    }
    let leaked = fixture.leaks.iter().map(|(&at, leak)| (at, leak.size));
    let truth = fixture.live.clone().into_iter().chain(leaked).collect();
    assert_eq!(difference(&reported, &truth), [""; 0], "{name}");
}

#[test]
fn leaks_of_random_graphs_are_exactly_what_is_unreachable() {
    for_each_seed(|fixture, name| assert_leaks_are_exact(fixture, &leaks(&fixture.pid()), name));
}

#[test]
fn blocks_of_random_graphs_are_exactly_those_that_live() {
    for_each_seed(|fixture, name| assert_blocks_are_exact(fixture, &heap(&fixture.pid()), name));
}
