//! Each class of roots, and each kind of memory that is none.

use std::collections::BTreeMap;

use crate::support::{Build, Fixture, addresses, compile, leaks, leaks_without_roots};

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

#[test]
fn what_the_kernel_holds_is_a_root() {
    check_class("root_kernel.c", "kernel", Build::Usual);
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
