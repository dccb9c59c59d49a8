//! The recorder in programs: they do what they do without it.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![expect(
    clippy::unwrap_used,
    reason = "a helper of a test fails by panicking, as the test does"
)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use goblin::elf::Elf;
use rleaks::stacklog::RECORDER;

#[path = "support/compile.rs"]
#[expect(dead_code, reason = "other tests compile in more ways")]
mod compile;

use compile::{Build, compile_as};

/// The recorder as a file, which lives as long as the folder.
fn recorder(folder: &Path) -> PathBuf {
    let path = folder.join("librleaks.so");
    fs::write(&path, RECORDER).expect("a file");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("a mode");
    path
}

fn run(program: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .envs(environment.iter().copied())
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stdin(Stdio::null());
    command
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"))
}

/// Runs a program without and with the recorder, in each mode, and compares what it says and its
/// status.
fn assert_unchanged(program: &str, arguments: &[&str]) {
    let folder = tempfile::tempdir().expect("a folder");
    let recorder = recorder(folder.path());
    let recorder = recorder.to_str().expect("a path");
    let history = folder.path().join("events");
    let history = history.to_str().expect("a path");
    let expected = run(program, arguments, &[]);
    let full = [
        ("RLEAKS_STACK_LOG", "full"),
        ("RLEAKS_STACK_LOG_HISTORY", history),
    ];
    for settings in [
        &[][..],
        &full,
        &[("RLEAKS_STACK_LOG", "off")],
        &[("RLEAKS_STACK_LOG_SAMPLE", "1000")],
        &[("RLEAKS_STACK_LOG_SCRIBBLE", "1")],
        &[("RLEAKS_STACK_LOG_DEPTH", "3")],
        &[("RLEAKS_STACK_LOG_LIMIT", "36")],
        &[("RLEAKS_STACK_LOG_LIMIT", "1")],
    ] {
        let environment = [&[("LD_PRELOAD", recorder)], settings].concat();
        let found = run(program, arguments, &environment);
        assert_eq!(found, expected, "{program} {arguments:?} {settings:?}");
    }
}

#[test]
fn the_recorder_needs_no_library_and_no_version_of_a_symbol() {
    let elf = Elf::parse(RECORDER).expect("an ELF file");
    assert_eq!(elf.libraries, Vec::<&str>::new());
    assert!(elf.verneed.is_none());
    let exported = |name| {
        let mut symbols = elf.dynsyms.iter();
        symbols.any(|symbol| {
            symbol.st_shndx != 0 && elf.dynstrtab.get_at(symbol.st_name) == Some(name)
        })
    };
    for name in [
        "malloc",
        "calloc",
        "free",
        "realloc",
        "_Znwm",
        "_ZdlPvm",
        "rleaks_stack_log",
    ] {
        assert!(exported(name), "{name}");
    }
}

#[test]
fn a_program_that_allocates_in_all_ways_finds_nothing_wrong() {
    for build in [Build::Usual, Build::Static, Build::Musl] {
        let program = compile_as("recorded.c", build);
        let program = program.to_str().expect("a path");
        assert_eq!(run(program, &[], &[]).stdout, b"ok\n");
        assert_unchanged(program, &[]);
    }
}

#[test]
fn programs_of_others_do_what_they_do_without_it() {
    let script = "set -- $(seq 50); declare -A a; for i; do a[$i]=$(echo x$i); done; echo ${a[7]}; \
                  (exit 3); echo $? | cat; trap 'echo bye' EXIT; exit 4";
    assert_unchanged("bash", &["-c", script]);
    let program = "import json, re, threading, sqlite3\n\
        out = []\n\
        def work(n): out.append(len(json.dumps({str(i): [i] * n for i in range(100)})))\n\
        threads = [threading.Thread(target=work, args=(n,)) for n in range(20)]\n\
        [t.start() for t in threads]; [t.join() for t in threads]\n\
        db = sqlite3.connect(':memory:'); db.execute('create table t(a)')\n\
        db.executemany('insert into t values (?)', [(i,) for i in range(1000)])\n\
        print(sorted(out), db.execute('select sum(a) from t').fetchone())";
    assert_unchanged("/usr/bin/python3", &["-c", program]);
    let folder = tempfile::tempdir().expect("a folder");
    let object = folder.path().join("recorded.o");
    let object = object.to_str().expect("a path");
    assert_unchanged("gcc", &["-O2", "-c", "-o", object, "fixtures/recorded.c"]);
}

#[test]
fn a_program_goes_on_where_there_is_no_memory_for_the_log() {
    let folder = tempfile::tempdir().expect("a folder");
    let recorder = recorder(folder.path());
    let recorder = recorder.to_str().expect("a path");
    for kilobytes in ["20000", "60000", "200000"] {
        let script = format!("ulimit -v {kilobytes}; exec ls /");
        let expected = run("bash", &["-c", &script], &[]);
        let script = format!("ulimit -v {kilobytes}; LD_PRELOAD={recorder} exec ls /");
        assert_eq!(run("bash", &["-c", &script], &[]), expected, "{kilobytes}");
    }
}

#[test]
fn another_allocator_is_called_where_it_comes_next() {
    let folder = tempfile::tempdir().expect("a folder");
    let recorder = recorder(folder.path());
    let recorder = recorder.to_str().expect("a path");
    let program = compile_as("recorded.c", Build::Usual);
    for allocator in [
        "libjemalloc.so.2",
        "libtcmalloc_minimal.so.4",
        "libmimalloc.so.2.0",
    ] {
        let preload = format!("{recorder}:{allocator}");
        let found = run(
            program.to_str().expect("a path"),
            &[],
            &[("LD_PRELOAD", &preload)],
        );
        assert_eq!(
            String::from_utf8_lossy(&found.stdout),
            "ok\n",
            "{allocator} {found:?}"
        );
    }
}
