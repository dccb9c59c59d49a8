//! Programs whose blocks rleaks does not know are refused by the name of their allocator, and go on.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{Build, Program, assert_refused, compile, compile_as, heap, leaks};

/// A program that holds 500 blocks and has said so.
fn start(command: &mut Command) -> Program {
    let mut program = Program::start(command.arg("500"));
    assert_eq!(program.line(), "ready");
    program
}

fn assert_goes_on(program: &mut Program) {
    assert_eq!(program.ask("still there?"), "still there?");
    assert!(program.finish().0.success());
}

#[track_caller]
fn assert_refuses(mut program: Program, reason: &str) {
    for command in [&[][..], &["heap"]] {
        let pid = program.pid();
        let arguments = [command, &[pid.as_str()]].concat();
        assert_refused(&arguments, reason);
    }
    assert_goes_on(&mut program);
}

/// Where Debian installs a library.
fn library(name: &str) -> PathBuf {
    let path = Path::new("/usr/lib/x86_64-linux-gnu").join(name);
    // The loader goes on without a library that it cannot preload.
    assert!(path.exists(), "{} is missing", path.display());
    path
}

fn preloaded(name: &str) -> Program {
    start(Command::new(compile("echo.c")).env("LD_PRELOAD", library(name)))
}

#[test]
fn jemalloc_is_refused() {
    assert_refuses(preloaded("libjemalloc.so.2"), " allocates with jemalloc, ");
}

#[test]
fn tcmalloc_is_refused() {
    assert_refuses(
        preloaded("libtcmalloc_minimal.so.4"),
        " allocates with tcmalloc, ",
    );
}

#[test]
fn mimalloc_is_refused() {
    assert_refuses(preloaded("libmimalloc.so.2"), " allocates with mimalloc, ");
}

#[test]
fn musl_is_refused() {
    let path = compile_as("echo.c", Build::Musl);
    assert_refuses(
        start(&mut Command::new(path)),
        " allocates with musl malloc, ",
    );
}

/// It has no name that it could be known by.
#[test]
fn statically_linked_program_of_another_libc_is_refused() {
    let path = compile_as("echo.c", Build::MuslStatic);
    let program = start(&mut Command::new(path));
    assert_refuses(program, "no heap of glibc's malloc was found in ");
}

#[test]
fn address_sanitizer_is_refused() {
    let path = compile_as("echo.c", Build::AddressSanitizer);
    assert_refuses(
        start(&mut Command::new(path)),
        " allocates with AddressSanitizer, ",
    );
}

#[test]
fn preloaded_allocators_of_real_programs_are_refused() {
    let work = "import os; held = list(map(str, range(10**4))); os.write(1, b'ready\\n'); \
                os.read(0, 1); print(len(held))";
    let mut python = Program::start(
        Command::new("/usr/bin/python3")
            .args(["-c", work])
            .env("LD_PRELOAD", library("libjemalloc.so.2")),
    );
    assert_eq!(python.line(), "ready");
    assert_refused(&[&python.pid()], " allocates with jemalloc, ");
    let (status, rest) = python.finish();
    assert!(status.success());
    assert_eq!(rest, "10000\n");
}

#[test]
fn program_that_never_called_malloc_has_no_blocks_and_no_leaks() {
    let mut program = Program::start(&mut Command::new(compile("echo.c")));
    assert_eq!(program.line(), "ready");
    let report = leaks(&program.pid());
    assert_eq!(report["heap"]["blocks"], 0, "{report}");
    assert_eq!(report["leaks"].as_array().map(Vec::len), Some(0));
    assert_eq!(
        heap(&program.pid())["blocks"].as_array().map(Vec::len),
        Some(0)
    );
    assert_goes_on(&mut program);
}
