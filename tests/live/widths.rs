//! i386 programs, and statically linked ones of both widths: as exact as any other.

use std::collections::BTreeMap;

use crate::support::{Build, Fixture, addresses, compile_as, heap, leaks};

const BUILDS: [Build; 4] = [
    Build::I386,
    Build::I386Static,
    Build::Static,
    Build::StaticPie,
];

fn truth(fixture: &Fixture) -> BTreeMap<u64, u64> {
    let leaks = fixture.leaks.iter();
    leaks.map(|(&at, leak)| (at, leak.size)).collect()
}

/// In 32 bits a random word, such as a stack canary, now and then is an address of a large block.
/// Another run has other random words.
const RUNS: usize = 5;

fn assert_leaks_are_true(build: Build, file: &str, arguments: &[&str]) {
    let is_exact = |_| {
        let fixture = Fixture::start_built(file, build, arguments);
        addresses(&leaks(&fixture.pid())["leaks"]) == truth(&fixture)
    };
    assert!((0..RUNS).any(is_exact), "{file} {build:?} {arguments:?}");
}

#[test]
fn leaks_of_random_graphs_are_exactly_what_is_unreachable() {
    for build in BUILDS {
        for (seed, threads) in [("1", "2"), ("3", "3"), ("4", "4")] {
            assert_leaks_are_true(build, "generator.c", &[seed, threads, "1500"]);
        }
    }
}

#[test]
fn blocks_of_random_graphs_are_among_those_that_live_with_their_sizes() {
    for build in BUILDS {
        let fixture = Fixture::start_built("generator.c", build, &["2", "3", "1500"]);
        let reported = addresses(&heap(&fixture.pid())["blocks"]);
        for (at, size) in truth(&fixture).iter().chain(&fixture.live) {
            assert_eq!(reported.get(at), Some(size), "{at:#x} {build:?}");
        }
    }
}

#[test]
fn i386_programs_are_reported_as_such() {
    let fixture = Fixture::start_built("kind_root_leak.c", Build::I386, &[]);
    let target = &leaks(&fixture.pid())["target"];
    assert_eq!(target["arch"], "i386");
    assert_eq!(target["pointer_size"], 4);
}

#[test]
fn roots_of_i386_programs_are_those_of_others() {
    for file in [
        "root_globals.c",
        "root_kernel.c",
        "root_other.c",
        "root_registers.c",
        "root_stack.c",
        "coroutine.c",
        "dead_stack.c",
        "exited_thread.c",
        "free_chunk.c",
    ] {
        assert_leaks_are_true(Build::I386, file, &[]);
    }
    let library = compile_as("tls_library.c", Build::I386);
    let library = library.to_str().unwrap();
    assert_leaks_are_true(Build::I386, "root_tls.c", &[library]);
}

#[test]
fn leaks_of_i386_programs_have_their_kinds_and_types() {
    for file in [
        "kind_root_leak.c",
        "kind_cycle.c",
        "kind_indirect.c",
        "cpp_types.cpp",
    ] {
        crate::kinds::check(file, Build::I386);
    }
}
