//! Core files: the same leaks as a scan of the process itself.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::generator::{assert_blocks_are_exact, assert_leaks_are_exact};
use crate::support::{
    Build, CoreFolder, Fixture, Program, addresses, assert_refused, compile, compile_as, functions,
    heap, leaks, leaks_by, leaks_with, recorded, rleaks, rleaks_command, set_core_filter, text,
};

/// Address, size and kind of each leak, with the functions that allocated it.
fn found(report: &Value) -> BTreeSet<String> {
    let leaks = report["leaks"].as_array().unwrap().iter();
    let leak = |leak: &Value| {
        let stack = match leak["stack"].is_null() {
            true => Vec::new(),
            false => functions(report, leak),
        };
        let fields = ["address", "size", "kind", "parent", "type", "requested"];
        let fields = fields.map(|field| leak[field].to_string());
        format!("{} {}", fields.join(" "), stack.join(" < "))
    };
    leaks.map(leak).collect()
}

fn codes(report: &Value) -> BTreeSet<&str> {
    let warnings = report["warnings"].as_array().unwrap().iter();
    warnings
        .map(|warning| warning["code"].as_str().unwrap())
        .collect()
}

/// The report of the core file at `path`.
fn of_file(path: &Path) -> Value {
    let report = leaks_by(rleaks_command().arg(path));
    assert_eq!(report["target"]["kind"], "core");
    assert_eq!(report["capture"]["method"], "file");
    assert_eq!(report["capture"]["stops"], 0);
    assert!(report["capture"]["pause_seconds"].is_null());
    report
}

/// What only one of two reports has.
fn difference(one: &Value, other: &Value) -> Vec<String> {
    let (one, other) = (found(one), found(other));
    let difference = one.symmetric_difference(&other).take(20);
    difference.cloned().collect()
}

/// Scans the fixture and its core files by gdb and by the kernel, and returns these reports: all have
/// the same leaks, which are those that the fixture knows of.
fn compare(command: &mut Command) -> Vec<Value> {
    let folder = CoreFolder::new();
    let mut fixture = folder.start(command);
    let pid = fixture.pid();
    let live = leaks(&pid);
    assert_leaks_are_exact(&fixture, &live, "live");
    let mut cores = vec![of_file(&folder.gcore(&pid))];
    let core = folder.kernel_core(&mut fixture, &pid);
    cores.extend(core.map(|core| of_file(&core)));
    for (core, writer) in cores.iter().zip(["gdb", "the kernel"]) {
        assert_eq!(core["target"]["pid"], live["target"]["pid"], "{writer}");
        assert_eq!(core["target"]["arch"], live["target"]["arch"], "{writer}");
        assert_eq!(
            core["capture"]["threads"], live["capture"]["threads"],
            "{writer}"
        );
        assert_eq!(core["heap"], live["heap"], "{writer} {command:?}");
        assert_eq!(difference(core, &live), [""; 0], "{writer} {command:?}");
    }
    cores
}

/// The same, of a fixture without anything that a core file lacks: there is nothing to warn of.
fn compare_without_warning(command: &mut Command) {
    for core in compare(command) {
        assert_eq!(
            codes(&core),
            BTreeSet::new(),
            "{command:?}: {}",
            core["warnings"]
        );
    }
}

fn built(file: &str, build: Build) -> Command {
    Command::new(compile_as(file, build))
}

#[test]
fn each_kind_of_leak_and_class_of_roots_is_as_in_the_process() {
    for file in [
        "kind_root_leak.c",
        "kind_cycle.c",
        "kind_indirect.c",
        "cpp_types.cpp",
        "root_globals.c",
        "root_stack.c",
        "root_redzone.c",
        "root_registers.c",
        "root_other.c",
    ] {
        compare_without_warning(&mut built(file, Build::Usual));
    }
    let library = compile("tls_library.c");
    compare_without_warning(built("root_tls.c", Build::Usual).arg(library));
}

#[test]
fn dead_and_hidden_memory_is_as_in_the_process() {
    for file in [
        "coroutine.c",
        "dead_stack.c",
        "exited_thread.c",
        "free_chunk.c",
    ] {
        compare_without_warning(&mut built(file, Build::Usual));
    }
}

#[test]
fn random_graphs_are_as_in_the_process() {
    for build in [
        Build::Usual,
        Build::I386,
        Build::I386Static,
        Build::Static,
        Build::StaticPie,
    ] {
        for [seed, threads, blocks] in [["3", "0", "1500"], ["5", "4", "2500"]] {
            compare(built("generator.c", build).args([seed, threads, blocks]));
        }
    }
}

#[test]
fn i386_programs_are_as_in_the_process() {
    for file in [
        "kind_cycle.c",
        "root_globals.c",
        "root_stack.c",
        "root_registers.c",
        "root_other.c",
        "dead_stack.c",
        "exited_thread.c",
    ] {
        let reports = compare(&mut built(file, Build::I386));
        assert!(
            reports
                .iter()
                .all(|report| report["target"]["arch"] == "i386")
        );
    }
}

#[test]
fn recorded_stacks_are_as_in_the_process() {
    for report in compare(&mut recorded(compile("load_aot.c"))) {
        assert_eq!(report["stack_log"]["mode"], "lite");
        let leak = &report["leaks"][0];
        assert_eq!(functions(&report, leak)[0], "g_vasprintf", "{leak}");
    }
}

/// What epoll keeps for a program is in no core file: what only that references looks leaked.
#[test]
fn what_the_kernel_holds_is_warned_of() {
    let folder = CoreFolder::new();
    let mut fixture = folder.start(&mut built("root_kernel.c", Build::Usual));
    let pid = fixture.pid();
    let mut cores = vec![folder.gcore(&pid)];
    cores.extend(folder.kernel_core(&mut fixture, &pid));
    for core in cores {
        let report = of_file(&core);
        let warnings = report["warnings"].as_array().unwrap();
        let warning = warnings.iter().find(|w| w["code"] == "core_kernel_values");
        assert_eq!(warning.unwrap()["bias"], "false_leaks");
        let leaks = addresses(&report["leaks"]);
        assert!(fixture.leaks.keys().all(|leak| leaks.contains_key(leak)));
        assert!(fixture.live.keys().any(|live| leaks.contains_key(live)));
    }
}

#[test]
fn blocks_of_a_core_file_are_exactly_those_that_live() {
    let folder = CoreFolder::new();
    let mut command = built("generator.c", Build::Usual);
    let fixture = folder.start(command.args(["6", "3", "2000"]));
    let core = folder.gcore(&fixture.pid());
    let path = core.to_str().unwrap();
    assert_blocks_are_exact(&fixture, &heap(path), "gcore");
    assert_eq!(heap(path), heap(&fixture.pid()));
}

/// Compressed as systemd-coredump and people do it.
#[test]
fn compressed_core_files_are_as_others() {
    let folder = CoreFolder::new();
    let fixture = folder.start(built("generator.c", Build::Usual).args(["4", "2", "1500"]));
    let core = folder.gcore(&fixture.pid());
    let plain = of_file(&core);
    assert_leaks_are_exact(&fixture, &plain, "plain");
    for (program, extension) in [
        ("zstd", "zst"),
        ("lz4", "lz4"),
        ("xz", "xz"),
        ("gzip", "gz"),
    ] {
        let packed = folder.path().join(format!("packed.{extension}"));
        let output = Command::new(program).arg("-c").arg(&core).output().unwrap();
        assert!(
            output.status.success(),
            "{program}: {}",
            text(&output.stderr)
        );
        fs::write(&packed, &output.stdout).unwrap();
        assert_eq!(difference(&of_file(&packed), &plain), [""; 0], "{program}");
        // Told by what it holds, not by its name.
        let nameless = folder.path().join("nameless");
        fs::rename(&packed, &nameless).unwrap();
        assert_eq!(
            difference(&of_file(&nameless), &plain),
            [""; 0],
            "{program}"
        );
        // The first half of it is no answer.
        fs::write(&packed, &output.stdout[..output.stdout.len() / 2]).unwrap();
        assert_refused(&[packed.to_str().unwrap()], "cannot scan");
    }
}

/// Without private anonymous memory there is no heap; without the rest there is a warning of what it
/// means, or nothing that matters.
#[test]
fn each_coredump_filter_gives_the_same_leaks_or_says_why_not() {
    for filter in [0x33, 0x23, 0x31, 0x7f, 0x3, 0x1, 0x32, 0x0] {
        let folder = CoreFolder::new();
        let mut fixture = folder.start(&mut built("root_other.c", Build::Usual));
        let pid = fixture.pid();
        let live = leaks(&pid);
        set_core_filter(&pid, filter);
        let Some(core) = folder.kernel_core(&mut fixture, &pid) else {
            return;
        };
        let output = rleaks_command().arg(&core).arg("--json").output().unwrap();
        let said = text(&output.stderr);
        if filter & 1 == 0 {
            assert_eq!(output.status.code(), Some(2), "{filter:#x}: {said}");
            assert!(said.contains("coredump_filter"), "{filter:#x}: {said}");
            continue;
        }
        assert!(
            matches!(output.status.code(), Some(0 | 1)),
            "{filter:#x}: {said}"
        );
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let codes = codes(&report);
        if filter & 2 == 0 {
            assert!(
                codes.contains("core_shared_unsaved"),
                "{filter:#x}: {codes:?}"
            );
            continue;
        }
        assert_eq!(
            codes.contains("core_files_unverified"),
            filter & 0x14 == 0,
            "{filter:#x}"
        );
        assert_eq!(
            difference(&report, &live),
            [""; 0],
            "{filter:#x}: {codes:?}"
        );
    }
}

/// The target's files are not where it had them.
#[test]
fn files_elsewhere_are_found_by_sysroot_and_exe() {
    let folder = CoreFolder::new();
    let program = folder.path().join("program");
    fs::copy(compile("kind_cycle.c"), &program).unwrap();
    let mut fixture = folder.start(&mut Command::new(&program));
    let pid = fixture.pid();
    let live = leaks(&pid);
    let Some(core) = folder.kernel_core(&mut fixture, &pid) else {
        return;
    };
    let core = core.to_str().unwrap();
    let moved = folder.path().join("moved");
    fs::rename(&program, &moved).unwrap();
    let report = leaks_with(core, &["--exe", moved.to_str().unwrap()]);
    assert_eq!(difference(&report, &live), [""; 0]);
    assert_eq!(codes(&report), BTreeSet::new());

    // Another program is never taken for it.
    let report = leaks_with(core, &["--exe", "/usr/bin/cat"]);
    assert!(
        codes(&report).contains("core_files_missing"),
        "{}",
        report["warnings"]
    );

    let empty = tempfile::tempdir().unwrap();
    let empty = empty.path().to_str().unwrap();
    assert_refused(&[core, "--sysroot", empty], "--sysroot");
}

#[test]
fn core_file_that_is_cut_short_is_an_error_or_warns() {
    let folder = CoreFolder::new();
    let fixture = folder.start(built("generator.c", Build::Usual).args(["4", "0", "1500"]));
    let core = folder.gcore(&fixture.pid());
    let bytes = fs::read(&core).unwrap();
    let cut = folder.path().join("cut");
    for part in 0..16 {
        fs::write(&cut, &bytes[..bytes.len() / 16 * part]).unwrap();
        let output = rleaks(&[cut.to_str().unwrap(), "--json"]);
        let said = text(&output.stderr);
        match output.status.code() {
            Some(2) => assert!(said.contains("cannot scan"), "{part}: {said}"),
            Some(0 | 1) => {
                let report: Value = serde_json::from_slice(&output.stdout).unwrap();
                assert!(codes(&report).contains("core_cut_short"), "{part}");
            }
            other => panic!("{part}: {other:?}: {said}"),
        }
    }
}

/// Choosing among processes of a name means nothing for a file.
#[test]
fn choices_among_processes_are_refused_for_files() {
    let folder = CoreFolder::new();
    let fixture = folder.start(&mut built("kind_cycle.c", Build::Usual));
    let core = folder.gcore(&fixture.pid());
    for choice in ["--all", "--newest", "--oldest"] {
        assert_refused(&[core.to_str().unwrap(), choice], choice);
        assert_refused(&["heap", core.to_str().unwrap(), choice], choice);
    }
}

/// Compares programs of others, which stand still: their leaks are the same in their core files.
fn compare_program(command: &mut Command, start: impl FnOnce(&mut Program)) {
    let folder = CoreFolder::new();
    let mut program = Program::start(command.current_dir(folder.path()));
    start(&mut program);
    let pid = program.pid();
    let live = leaks(&pid);
    assert!(live["heap"]["blocks"].as_u64() > Some(100), "{live}");
    let mut cores = vec![folder.gcore(&pid)];
    cores.extend(folder.kernel_core(&mut program, &pid));
    for core in cores {
        let report = of_file(&core);
        assert_eq!(
            report["heap"],
            live["heap"],
            "{command:?} {}",
            core.display()
        );
        assert_eq!(
            difference(&report, &live),
            [""; 0],
            "{command:?} {}",
            core.display()
        );
    }
}

#[test]
fn programs_of_others_are_as_in_the_process() {
    let script = "import json, sys, threading\nheld = [json.loads('[1, 2.5, \"x\"]') for i in range(5000)]\n\
        threading.Thread(target=sys.stdin.readline).start()\nprint('ready', flush=True)\nsys.stdin.readline()";
    compare_program(
        Command::new("/usr/bin/python3").args(["-c", script]),
        |python| {
            assert_eq!(python.line(), "ready");
        },
    );
    let script = "declare -A words; for ((i = 0; i < 3000; i++)); do words[$i]=word$i; done; echo ready; read -r line";
    compare_program(Command::new("bash").args(["-c", script]), |bash| {
        assert_eq!(bash.line(), "ready");
    });
}

/// A runtime with a collector and a compiler of its own.
#[test]
fn mono_is_as_in_the_process() {
    let mut command = Command::new("mono-sgen");
    compare_program(command.arg(compile("marshal.cs")).arg("20"), |mono| {
        assert_eq!(mono.line(), "warm");
        assert_eq!(mono.ask("go on"), "ready");
    });
}

/// The main thread is gone, and the kernel says nothing of its memory.
#[test]
fn process_whose_main_thread_has_ended_is_as_in_the_process() {
    let folder = CoreFolder::new();
    let mut fixture = folder.start(&mut built("main_exited.c", Build::Usual));
    let pid = fixture.pid();
    let live = leaks(&pid);
    let core = folder.kernel_core(&mut fixture, &pid);
    if let Some(core) = core {
        assert_eq!(difference(&of_file(&core), &live), [""; 0]);
    }
}

/// A fixture knows its leaks: what a file says must be that.
#[test]
fn core_file_says_what_ended_the_process() {
    let folder = CoreFolder::new();
    let mut fixture: Fixture = folder.start(&mut built("kind_root_leak.c", Build::Usual));
    let pid = fixture.pid();
    if let Some(core) = folder.kernel_core(&mut fixture, &pid) {
        let report = of_file(&core);
        assert_leaks_are_exact(&fixture, &report, "kernel");
        let output = rleaks(&[core.to_str().unwrap()]);
        let said = text(&output.stdout);
        for line in ["core file", "Signal:          SIGSYS"] {
            assert!(said.contains(line), "{line:?} is not in:\n{said}");
        }
        assert!(!said.contains("Pause:"), "{said}");
    }
}
