//! i386 programs, and statically linked ones of both widths: as exact as any other.

use crate::generator::{assert_blocks_are_exact, assert_leaks_are_exact};
use crate::support::{
    Build, Fixture, WIDTHS, addresses, compile_as, heap, leaks, leaks_with,
    number_from_environment, rleaks, text,
};

/// A random heap graph; `RLEAKS_SEEDS` tries more of them.
fn for_each_graph(check: impl Fn(&Fixture, &str)) {
    let first = number_from_environment("RLEAKS_FIRST_SEED", 1);
    let seeds = number_from_environment("RLEAKS_SEEDS", 4);
    for build in WIDTHS {
        for seed in first..first + seeds {
            let (threads, blocks) = (seed % 7, 1000 + seed % 10 * 500);
            let [seed, threads, blocks] = [seed, threads, blocks].map(|number| number.to_string());
            let arguments = [&*seed, &*threads, &*blocks];
            let fixture = Fixture::start_built("generator.c", build, &arguments);
            check(&fixture, &format!("{build:?} {arguments:?}"));
        }
    }
}

#[test]
fn leaks_and_blocks_of_random_graphs_are_exact() {
    for_each_graph(|fixture, name| {
        assert_leaks_are_exact(fixture, &leaks(&fixture.pid()), name);
        assert_blocks_are_exact(fixture, &heap(&fixture.pid()), name);
    });
}

#[test]
fn leaks_of_random_graphs_are_exact_however_they_are_scanned() {
    for build in WIDTHS {
        let fixture = Fixture::start_built("generator.c", build, &["9", "3", "1500"]);
        for options in [&["--snapshot=stream"][..], &["--threads=1"]] {
            let report = leaks_with(&fixture.pid(), options);
            assert_leaks_are_exact(&fixture, &report, &format!("{build:?} {options:?}"));
        }
    }
}

/// Every word that lies at a multiple of the width is seen by both; what lies between hides some.
#[test]
fn unaligned_scan_of_an_i386_program_finds_no_more_leaks() {
    let fixture = Fixture::start_built("generator.c", Build::I386, &["9", "3", "1500"]);
    let report = leaks_with(&fixture.pid(), &["--unaligned"]);
    let found = addresses(&report["leaks"]);
    assert!(!found.is_empty());
    assert!(found.keys().all(|at| fixture.leaks.contains_key(at)));
}

#[test]
fn children_of_processes_with_threads_are_exact() {
    for build in [Build::Usual].into_iter().chain(WIDTHS) {
        for seed in ["3", "12"] {
            let arguments = [seed, "4", "1500", "fork"];
            let fixture = Fixture::start_built("generator.c", build, &arguments);
            let name = format!("{build:?} {arguments:?}");
            assert_leaks_are_exact(&fixture, &leaks(&fixture.pid()), &name);
            assert_blocks_are_exact(&fixture, &heap(&fixture.pid()), &name);
        }
    }
}

#[test]
fn i386_programs_are_reported_as_such() {
    let fixture = Fixture::start_built("kind_root_leak.c", Build::I386, &[]);
    let target = &leaks(&fixture.pid())["target"];
    assert_eq!(target["arch"], "i386");
    assert_eq!(target["pointer_size"], 4);

    let doctor = rleaks(&["doctor", &fixture.pid()]);
    let said = text(&doctor.stdout);
    assert!(said.contains("ok  allocator   glibc 2."), "{said}");
}

fn assert_leaks_are_true(build: Build, file: &str, arguments: &[&str]) {
    let fixture = Fixture::start_built(file, build, arguments);
    assert_leaks_are_exact(
        &fixture,
        &leaks(&fixture.pid()),
        &format!("{file} {build:?}"),
    );
}

#[test]
fn each_class_of_roots_is_as_in_other_programs() {
    for build in WIDTHS {
        for (file, class) in [
            ("root_globals.c", "globals"),
            ("root_kernel.c", "kernel"),
            ("root_other.c", "other"),
            ("root_registers.c", "registers"),
            ("root_stack.c", "stacks"),
        ] {
            crate::roots::check_class(file, class, build);
        }
    }
}

#[test]
fn dead_and_hidden_memory_is_as_in_other_programs() {
    for build in WIDTHS {
        for file in [
            "coroutine.c",
            "dead_stack.c",
            "exited_thread.c",
            "free_chunk.c",
            "main_exited.c",
        ] {
            assert_leaks_are_true(build, file, &[]);
        }
    }
}

/// Static programs load no library.
#[test]
fn dynamic_tls_of_an_i386_program_is_a_root() {
    let library = compile_as("tls_library.c", Build::I386);
    assert_leaks_are_true(Build::I386, "root_tls.c", &[library.to_str().unwrap()]);
}

#[test]
fn leaks_have_their_kinds_and_types() {
    for build in WIDTHS {
        for file in [
            "kind_root_leak.c",
            "kind_cycle.c",
            "kind_indirect.c",
            "cpp_types.cpp",
        ] {
            crate::kinds::check(file, build);
        }
    }
}
