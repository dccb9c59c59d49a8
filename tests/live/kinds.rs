//! Root leaks, root cycles, indirect leaks, and what a leak is called.

use serde_json::Value;

use crate::support::{Build, Fixture, Leak, addresses, leaks, parse_address};

/// Every leak is what the fixture says it is.
pub(crate) fn check(file: &str, build: Build) {
    let fixture = Fixture::start_built(file, build, &[]);
    let report = leaks(&fixture.pid());
    let reported = addresses(&report["leaks"]);
    assert!(
        reported.keys().eq(fixture.leaks.keys()),
        "{reported:#x?} {fixture:#x?}"
    );
    for leak in report["leaks"].as_array().unwrap() {
        let address = parse_address(leak["address"].as_str().unwrap());
        assert_leak_is(leak, &fixture.leaks[&address]);
    }
}

fn assert_leak_is(reported: &Value, truth: &Leak) {
    assert_eq!(reported["size"], truth.size, "{reported}");
    assert_eq!(reported["kind"], truth.kind.as_str(), "{reported}");
    let parent = reported["parent"].as_str().map(parse_address);
    assert_eq!(parent, truth.parent, "{reported} {truth:#x?}");
    if let Some((blocks, bytes)) = truth.held {
        assert_eq!(reported["held_blocks"], blocks, "{reported}");
        assert_eq!(reported["held_bytes"], bytes, "{reported}");
    }
    if let Some(name) = &truth.type_name {
        assert_eq!(reported["type"], name.as_str(), "{reported}");
    }
}

#[test]
fn leak_without_references_is_a_root_leak() {
    check("kind_root_leak.c", Build::Usual);
}

#[test]
fn leaks_that_reference_each_other_are_a_root_cycle() {
    check("kind_cycle.c", Build::Usual);
}

#[test]
fn leak_that_a_leak_references_is_indirect_and_held_once() {
    check("kind_indirect.c", Build::Usual);
}

#[test]
fn cpp_object_is_named_by_its_vtable() {
    check("cpp_types.cpp", Build::Usual);
}
