//! Each class of roots, and each kind of memory that is none.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;

use serde_json::Value;

use crate::support::{
    Build, Fixture, Shared, addresses, compile, leaks, leaks_by, leaks_with, leaks_without_roots,
    unprivileged,
};

/// rleaks reports exactly the blocks that the fixture leaked: nothing missing, nothing else.
fn assert_leaks_are_true(fixture: &Fixture) {
    let report = leaks(&fixture.pid());
    let truth: BTreeMap<u64, u64> = fixture
        .leaks
        .iter()
        .map(|(&at, leak)| (at, leak.size))
        .collect();
    assert_eq!(addresses(&report["leaks"]), truth, "{fixture:#x?}");
}

/// Without the class of roots that alone references them, the live blocks are leaks as well.
fn assert_class_alone_reaches(
    fixture: &Fixture,
    class: &str,
    blocks: impl IntoIterator<Item = u64>,
) {
    let report = leaks_without_roots(&fixture.pid(), class);
    let leaks = addresses(&report["leaks"]);
    for block in blocks {
        assert!(
            leaks.contains_key(&block),
            "{block:#x} is no leak without {class}: {fixture:#x?}"
        );
    }
}

/// The live blocks of a fixture are reached, and by this class of roots alone.
pub(crate) fn check_class(file: &str, class: &str, build: Build) {
    let fixture = Fixture::start_built(file, build, &[]);
    assert_leaks_are_true(&fixture);
    assert_class_alone_reaches(&fixture, class, fixture.live.keys().copied());
}

#[test]
fn globals_are_roots_and_so_is_what_was_made_read_only() {
    check_class("root_globals.c", "globals", Build::Usual);
}

#[test]
fn live_frames_are_roots() {
    check_class("root_stack.c", "stacks", Build::Usual);
}

#[test]
fn red_zone_below_the_stack_pointer_is_a_root() {
    check_class("root_redzone.c", "stacks", Build::Usual);
}

#[test]
fn general_and_vector_registers_are_roots() {
    check_class("root_registers.c", "registers", Build::Usual);
}

#[test]
fn other_private_and_shared_memory_is_a_root() {
    check_class("root_other.c", "other", Build::Usual);
}

/// The bytes that the files have which process `pid` has mapped under `name`.
fn file_bytes(pid: &str, name: &str) -> u64 {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let mapped = maps.lines().filter(|line| line.contains(name));
    let blocks = mapped.map(|line| {
        let path = format!("/proc/{pid}/map_files/{}", line.split(' ').next().unwrap());
        fs::metadata(path).unwrap().blocks()
    });
    blocks.sum::<u64>() * 512
}

#[test]
fn shared_memory_that_is_not_mapped_now_is_a_root_and_no_page_of_it_appears() {
    let fixture = Fixture::start("root_shared.c");
    let names = [
        "/dev/zero (deleted)",
        "/memfd:root_shared",
        "/dev/shm/root_shared",
    ];
    let bytes = || names.map(|name| file_bytes(&fixture.pid(), name));
    let before = bytes();
    assert_eq!(before, [4096; 3]);
    for options in [&[][..], &["--snapshot=stream"]] {
        let report = leaks_with(&fixture.pid(), options);
        let found = addresses(&report["leaks"]);
        assert!(
            found.keys().eq(fixture.leaks.keys()),
            "{found:x?} {fixture:x?}"
        );
        assert_eq!(report["warnings"], Value::Array(Vec::new()));
    }
    assert_eq!(bytes(), before);
    assert_class_alone_reaches(&fixture, "other", fixture.live.keys().copied());
}

/// Neither a file on a disk, nor what one may not look at: that may make blocks look leaked.
#[test]
fn shared_memory_that_is_not_read_is_warned_of() {
    let fixture = Fixture::start_with("root_shared.c", &["disk"]);
    let report = leaks(&fixture.pid());
    let biased = |report: &Value| {
        let warnings = report["warnings"].as_array().unwrap();
        let warning = warnings
            .iter()
            .find(|w| w["code"] == "shared_memory_unread");
        warning.map(|warning| warning["bias"].clone())
    };
    assert_eq!(biased(&report), Some("false_leaks".into()));

    let (shared, rleaks) = Shared::with_rleaks();
    let program = shared.add(&Fixture::program("root_shared.c"), "fixture");
    let fixture = Fixture::of(&mut unprivileged(&program));
    let report = leaks_by(unprivileged(&rleaks).arg(fixture.pid()));
    assert_eq!(biased(&report), Some("false_leaks".into()));
}

#[test]
fn what_the_kernel_holds_is_a_root() {
    check_class("root_kernel.c", "kernel", Build::Usual);
}

/// What is queued is found; a warning says that what is in flight is not.
#[test]
fn user_data_of_queued_io_uring_requests_is_a_root_and_what_is_in_flight_is_warned_of() {
    let fixture = Fixture::start("root_io_uring.c");
    let report = leaks(&fixture.pid());
    let (found, truth) = (addresses(&report["leaks"]), &fixture.leaks);
    assert!(
        fixture.live.keys().all(|at| !found.contains_key(at)),
        "{found:x?} {fixture:#x?}"
    );
    let in_flight = |at: &&u64| truth[*at].kind == "in_flight";
    let certain: Vec<_> = truth.keys().filter(|at| !in_flight(at)).collect();
    assert!(
        certain.iter().all(|at| found.contains_key(*at)),
        "{found:x?}"
    );
    let warnings = report["warnings"].as_array().unwrap();
    let warning = warnings.iter().find(|w| w["code"] == "io_uring");
    assert_eq!(warning.unwrap()["bias"], "false_leaks");
    // That is what the warning says: nothing shows it.
    assert!(
        truth
            .keys()
            .filter(in_flight)
            .all(|at| found.contains_key(at))
    );
}

#[test]
fn static_and_dynamic_thread_local_variables_are_roots() {
    let library = compile("tls_library.c");
    let fixture = Fixture::start_with("root_tls.c", &[library.to_str().unwrap()]);
    assert_leaks_are_true(&fixture);
    let is_static = |at: &u64| fixture.notes[at] == "static";
    assert_class_alone_reaches(
        &fixture,
        "tls",
        fixture.live.keys().copied().filter(is_static),
    );
}

#[test]
fn stacks_that_a_program_made_itself_are_roots() {
    assert_leaks_are_true(&Fixture::start("coroutine.c"));
}

#[test]
fn dead_stack_is_no_root() {
    assert_leaks_are_true(&Fixture::start("dead_stack.c"));
}

#[test]
fn stack_of_an_exited_thread_is_no_root() {
    assert_leaks_are_true(&Fixture::start("exited_thread.c"));
}

#[test]
fn freed_memory_is_no_root() {
    assert_leaks_are_true(&Fixture::start("free_chunk.c"));
}
