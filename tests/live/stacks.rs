//! Leaks of programs that run under the recorder come with the call stacks that allocated them.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::support::{
    Fixture, Program, addresses, assert_refused, compile, leaks, leaks_by, leaks_with,
    parse_address, recorded, recorder, rleaks, rleaks_command, text,
};

/// The functions of the fixture that are on the leak's stack, and what stands in the lines they are
/// at.
const STACK: [(&str, &str); 8] = [
    ("g_vasprintf", "char *block = malloc("),
    ("g_strdup_vprintf", "int length = g_vasprintf("),
    ("g_strdup_printf", "char *text = g_strdup_vprintf("),
    ("load_aot_module", "char *path = g_strdup_printf("),
    (
        "mono_assembly_invoke_load_hook",
        "    load_aot_module(assembly);",
    ),
    ("mini_init", "    mono_assembly_invoke_load_hook(assembly);"),
    ("mono_main", "    mini_init(&assembly);"),
    ("main", "    int status = mono_main();"),
];

fn load_aot() -> Fixture {
    Fixture::of(&mut recorded(compile("load_aot.c")))
}

/// The number of the only line of the fixture that has `code` in it.
fn line_of(code: &str) -> usize {
    let source = include_str!("../../fixtures/load_aot.c");
    let lines: Vec<usize> = (1..)
        .zip(source.lines())
        .filter(|(_, line)| line.contains(code))
        .map(|(number, _)| number)
        .collect();
    assert_eq!(lines.len(), 1, "{code}");
    lines[0]
}

/// What rleaks prints of a target that leaks, without what differs between runs and releases of
/// libc.
fn shown(fixture: &Fixture, options: &[&str]) -> String {
    let pid = fixture.pid();
    let output = rleaks(&[&[pid.as_str(), "--quiet"], options].concat());
    assert_eq!(text(&output.stderr), "");
    let out = text(&output.stdout);
    let is_libc = |line: &&str| line.contains("libc.so.6") || line.ends_with("_start + 33");
    let lines = out.lines().filter(|line| !is_libc(line));
    lines.fold(String::new(), |all, line| {
        let line = match line.split_once("| main ") {
            Some((call_stack, rest)) => {
                let (head, _) = call_stack.split_once('|').unwrap();
                format!("{head}| … | main {rest}")
            }
            None => line.to_owned(),
        };
        all + &line.replace(&pid, "PID") + "\n"
    })
}

fn with_filters(check: impl FnOnce()) {
    let mut settings = insta::Settings::clone_current();
    settings.add_filter(r"0x[0-9a-f]+", "0xADDRESS");
    settings.add_filter(r"load_aot-[0-9a-f]{16} +", "load_aot-HASH  ");
    settings.add_filter(r" \+ [0-9]+", " + N");
    settings.bind(check);
}

#[test]
fn leaked_string_has_its_stack_as_text() {
    let fixture = load_aot();
    with_filters(|| insta::assert_snapshot!("load_aot", shown(&fixture, &[])));
    with_filters(|| insta::assert_snapshot!("load_aot_list", shown(&fixture, &["--list"])));
}

#[test]
fn leaked_string_has_its_stack_in_json() {
    let fixture = load_aot();
    for options in [&[][..], &["--snapshot=stream"]] {
        let report = leaks_with(&fixture.pid(), options);
        assert_eq!(report["stack_log"]["mode"], "lite");
        let leak = &report["leaks"][0];
        let address = parse_address(leak["address"].as_str().unwrap());
        assert!(fixture.leaks.contains_key(&address), "{leak}");
        let content = "/home/user/mono/runtime/_tmpinst/lib/mono/4.5//Facades";
        assert_eq!(leak["requested"], content.len() + 1);
        assert_eq!(leak["thread"], fixture.id());
        assert_eq!(leak["content"], format!("\"{content}\""));
        assert_eq!(report["zones"][0]["name"], "glibc main arena");
        assert_eq!(report["groups"][0]["stack"], leak["stack"]);
        assert_stack(&report["stacks"][0]);
    }
}

fn assert_stack(stack: &Value) {
    assert_eq!((&stack["id"], &stack["cut"]), (&0.into(), &false.into()));
    for (frame, (function, code)) in frames(stack).iter().zip(STACK) {
        assert_eq!(frame["function"], function, "{frame}");
        assert_eq!(frame["line"], line_of(code), "{frame}");
        let file = frame["file"].as_str().unwrap();
        assert!(file.ends_with("/fixtures/load_aot.c"), "{frame}");
        let module = frame["module"].as_str().unwrap();
        assert!(module.contains("/load_aot-"), "{frame}");
    }
}

fn frames(stack: &Value) -> &[Value] {
    stack["frames"].as_array().unwrap()
}

#[test]
fn leaked_string_has_its_stack_when_rleaks_starts_the_program() {
    let program = compile("load_aot.c");
    let mut command = rleaks_command();
    let fixture = Fixture::of(command.args(["record", "--"]).arg(&program));
    let report = leaks(&fixture.pid());
    assert_eq!(report["summary"]["leaked_blocks"], 1);
    assert_stack(&report["stacks"][0]);

    let file = tempfile::NamedTempFile::new().unwrap();
    let output = rleaks_command()
        .arg("--at-exit")
        .arg(format!("--json={}", file.path().display()))
        .arg("--")
        .args([program.as_os_str(), "return".as_ref()])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let report: Value = serde_json::from_slice(&fs::read(file.path()).unwrap()).unwrap();
    assert_eq!(report["summary"]["leaked_blocks"], 1);
    assert_stack(&report["stacks"][0]);
}

#[test]
fn stack_is_what_gdb_shows_at_the_allocation() {
    let fixture = load_aot();
    let report = leaks(&fixture.pid());
    let line = line_of(STACK[0].1);
    let output = Command::new("gdb")
        .args(["-batch", "-nx", "-ex", "set confirm off"])
        .args(["-ex", &format!("break load_aot.c:{line}"), "-ex", "run"])
        .args(["-ex", "backtrace -frame-arguments none", "-ex", "kill"])
        .arg(compile("load_aot.c"))
        .env_remove("LD_PRELOAD")
        .output()
        .unwrap();
    let said = text(&output.stdout);
    let by_gdb: Vec<String> = said.lines().filter_map(gdb_frame).collect();
    let all = frames(&report["stacks"][0]).iter();
    let ours: Vec<String> = all
        .map(|frame| {
            let file = frame["file"].as_str().unwrap();
            let function = frame["function"].as_str().unwrap();
            format!("{function} {file}:{}", frame["line"])
        })
        .take(STACK.len())
        .collect();
    assert_eq!(ours, by_gdb, "{said}");
}

/// `#1  0x… in function (…) at file:line`, as `function file:line`.
fn gdb_frame(line: &str) -> Option<String> {
    let frame = line.strip_prefix('#')?;
    let (call, place) = frame.rsplit_once(" at ")?;
    let (function, _) = call.split_once(" (")?;
    let function = function.rsplit_once(' ').map_or(function, |(_, name)| name);
    Some(format!("{function} {place}"))
}

#[test]
fn functions_and_sources_and_stacks_can_be_left_out() {
    let fixture = load_aot();
    let pid = fixture.pid();
    for function in ["load_aot_module", "main", "g_vasprintf"] {
        let option = format!("--exclude={function}");
        let report = leaks_with(&pid, &[&option, "--exclude=other"]);
        assert_eq!(report["leaks"].as_array().map(Vec::len), Some(0));
        assert_eq!(report["summary"]["suppressed_blocks"], 1);
        assert_eq!(report["summary"]["suppressed_bytes"], 56);
        let shown = shown(&fixture, &[&option]);
        assert!(shown.contains("\n1 leak for 56 bytes excluded"), "{shown}");
    }
    let report = leaks_with(&pid, &["--exclude=load_aot", "--exclude=g_vasprint"]);
    assert_eq!(report["summary"]["suppressed_blocks"], 0);

    let report = leaks_with(&pid, &["--no-sources"]);
    let names = frames(&report["stacks"][0]).iter().zip(STACK);
    for (frame, (function, _)) in names {
        assert_eq!(frame["function"], function);
        assert_eq!(frame["line"], Value::Null);
    }
    let report = leaks_with(&pid, &["--no-stacks"]);
    assert_eq!(report["stacks"].as_array().map(Vec::len), Some(0));
    assert_eq!(report["leaks"][0]["stack"], Value::Null);
    assert_eq!(report["leaks"][0]["requested"], 55);
}

#[test]
fn excluding_without_a_log_says_that_it_does_nothing() {
    let fixture = Fixture::start("load_aot.c");
    let report = leaks_with(&fixture.pid(), &["--exclude=load_aot_module"]);
    assert_eq!(report["summary"]["leaked_blocks"], 1);
    assert_eq!(codes(&report), ["no_stack_log"]);
}

fn codes(report: &Value) -> Vec<&str> {
    let warnings = report["warnings"].as_array().unwrap().iter();
    warnings.map(|w| w["code"].as_str().unwrap()).collect()
}

/// Random graphs of blocks: what the recorder keeps hides no leak, and it knows every block.
#[test]
fn recorder_changes_nothing_about_what_is_a_leak() {
    for (file, arguments) in [
        ("generator.c", &["3", "4", "3000"][..]),
        ("generator.c", &["8", "1", "2000"]),
        ("kind_cycle.c", &[]),
        ("kind_indirect.c", &[]),
        ("root_globals.c", &[]),
        ("root_stack.c", &[]),
        ("cpp_types.cpp", &[]),
    ] {
        let fixture = Fixture::of(recorded(compile(file)).args(arguments));
        let report = leaks(&fixture.pid());
        let reported = addresses(&report["leaks"]);
        assert!(
            reported.keys().eq(fixture.leaks.keys()),
            "{file} {arguments:?} {reported:#x?}"
        );
        assert_eq!(codes(&report), [""; 0], "{file}");
        for leak in report["leaks"].as_array().unwrap() {
            assert!(leak["stack"].is_number(), "{file} {leak}");
            let size = leak["size"].as_u64();
            assert!(leak["requested"].as_u64() <= size, "{file} {leak}");
        }
    }
}

/// A Python program that has said `ready`.
fn python(work: &str, environment: &[(&str, &str)]) -> Program {
    let program = format!(
        "import ctypes, os, sys\n\
         libc = ctypes.CDLL(None)\n\
         libc.malloc.restype = libc.__libc_malloc.restype = ctypes.c_void_p\n\
         {work}\n\
         os.write(1, b'ready\\n'); os.read(0, 1)"
    );
    let mut command = recorded("/usr/bin/python3");
    command.args(["-S", "-c", &program]);
    let mut python = Program::start(command.envs(environment.iter().copied()));
    assert_eq!(python.line(), "ready");
    python
}

/// The leaks of 1000 bytes.
fn of_1000_bytes(report: &Value) -> Vec<&Value> {
    let leaks = report["leaks"].as_array().unwrap().iter();
    let mut leaks = leaks.filter(|leak| leak["size"] == 1000);
    leaks.by_ref().collect()
}

#[test]
fn log_and_heap_of_real_programs_agree() {
    let work = "import json, threading; held = list(map(str, range(10**4)))";
    let python = python(work, &[("PYTHONMALLOC", "malloc")]);
    let mut bash = Program::start(recorded("bash").args([
        "-c",
        "declare -A m; for i in {1..2000}; do m[$i]=x$i; done; echo ready; read; echo ${#m[@]}",
    ]));
    assert_eq!(bash.line(), "ready");
    for program in [&python, &bash] {
        let report = leaks(&program.pid());
        assert_eq!(codes(&report), [""; 0]);
        let blocks = report["heap"]["blocks"].as_u64();
        assert!(blocks > Some(1000), "{blocks:?} {}", report["target"]);
    }
    assert_eq!(bash.ask("go on"), "2000");
    assert!(bash.wait().success());
}

#[test]
fn blocks_that_only_the_log_or_only_the_heap_has_are_a_warning() {
    let work = "held = [libc.__libc_malloc(1000) for i in range(7)]\n\
                freed = [libc.malloc(5000 + i) for i in range(3)]\n\
                [libc.__libc_free(ctypes.c_void_p(at)) for at in freed]";
    let report = leaks(&python(work, &[]).pid());
    assert_eq!(
        codes(&report),
        ["log_only_blocks", "unlogged_blocks"],
        "{report}"
    );
    let message = |index: usize| report["warnings"][index]["message"].as_str().unwrap();
    assert!(message(0).starts_with("3 blocks (0x"), "{}", message(0));
    assert!(message(1).starts_with("7 blocks (0x"), "{}", message(1));
    let examples = message(1).split_once(')').unwrap().0;
    assert_eq!(examples.matches("0x").count(), 5, "{}", message(1));
}

#[test]
fn samples_stand_for_all_leaks_of_their_stack() {
    let work = "for i in range(4000): libc.malloc(993)";
    let python = python(work, &[("RLEAKS_STACK_LOG_SAMPLE", "4096")]);
    let report = leaks(&python.pid());
    assert_eq!(report["stack_log"]["sample_bytes"], 4096);
    // Python's dead objects hide a few.
    assert!(of_1000_bytes(&report).len() > 3900);
    let groups = report["groups"].as_array().unwrap().iter();
    let sampled: Vec<&Value> = groups
        .filter(|g| g["estimated_blocks"].is_number())
        .collect();
    let sum = |field: &str| {
        sampled
            .iter()
            .filter_map(|g| g[field].as_u64())
            .sum::<u64>()
    };
    // One block in 4.6 is sampled. The estimate is normal around 4000, with a deviation of 120.
    let samples = sum("blocks");
    assert!((700..1050).contains(&samples), "{samples}");
    let estimated = sum("estimated_blocks");
    assert!((3400..4600).contains(&estimated), "{estimated}");
    assert!((3_400_000..4_600_000).contains(&sum("estimated_bytes")));
}

#[test]
fn log_without_room_says_what_it_dropped() {
    let work = "held = list(map(str, range(10**5)))\nfor i in range(2000): libc.malloc(993)";
    let environment = [("RLEAKS_STACK_LOG_LIMIT", "32"), ("PYTHONMALLOC", "malloc")];
    let report = leaks(&python(work, &environment).pid());
    assert_eq!(codes(&report), ["stack_log_full"]);
    assert!(report["stack_log"]["dropped"].as_u64() > Some(1000));
    assert!(of_1000_bytes(&report).len() > 1900);
}

#[test]
fn log_without_any_memory_is_warned_of() {
    let report = leaks(&python("pass", &[("RLEAKS_STACK_LOG_LIMIT", "1")]).pid());
    assert_eq!(codes(&report), ["stack_log_refused"]);
    let message = report["warnings"][0]["message"].as_str().unwrap();
    assert!(message.contains("had no memory for it"), "{message}");
}

#[test]
fn blocks_of_other_allocators_come_from_the_log() {
    for (name, library) in [
        ("jemalloc", "libjemalloc.so.2"),
        ("tcmalloc", "libtcmalloc_minimal.so.4"),
        ("mimalloc", "libmimalloc.so.2"),
    ] {
        let library = format!("/usr/lib/x86_64-linux-gnu/{library}");
        let preload = format!("{} {library}", recorder().display());
        let work = "for i in range(5000): libc.malloc(1000)";
        let report = leaks(&python(work, &[("LD_PRELOAD", &preload)]).pid());
        assert_eq!(codes(&report), ["blocks_from_stack_log"], "{name}");
        let zone = &report["zones"][0]["name"];
        assert_eq!(*zone, format!("{name} (from the stack log)"));
        // What the allocator keeps of its slabs references the first block of each.
        let found = of_1000_bytes(&report);
        assert!(
            (3000..=5000).contains(&found.len()),
            "{name} {}",
            found.len()
        );
        let stack = found[0]["stack"].as_u64();
        assert!(stack.is_some() && found.iter().all(|leak| leak["stack"].as_u64() == stack));
    }
}

#[test]
fn log_that_does_not_know_all_blocks_cannot_stand_in() {
    let preload = format!(
        "{} /usr/lib/x86_64-linux-gnu/libjemalloc.so.2",
        recorder().display()
    );
    let environment = [
        ("LD_PRELOAD", preload.as_str()),
        ("RLEAKS_STACK_LOG_SAMPLE", "1000"),
    ];
    let python = python("", &environment);
    assert_refused(
        &[&python.pid()],
        " allocates with jemalloc, whose heap rleaks cannot read yet, and its malloc stack log \
         cannot stand in: it has samples only",
    );
}

#[test]
fn doctor_tells_of_the_log() {
    let fixture = load_aot();
    let output = rleaks(&["doctor", &fixture.pid()]);
    let said = text(&output.stdout);
    let line = said.lines().find(|line| line.contains("stack_log"));
    let line = line.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
    assert_eq!(
        line.as_deref(),
        Some("ok stack_log lite, with nothing dropped")
    );
    assert!(!said.contains("recorder.so"), "{said}");
}

#[test]
fn mono_has_the_native_stacks_of_its_leaks() {
    let mut command = recorded("mono-sgen");
    let mut mono = Program::start(command.arg(compile("marshal.cs")).arg("20"));
    assert_eq!(mono.line(), "warm");
    assert_eq!(mono.ask("go on"), "ready");
    let report = leaks_by(rleaks_command().arg(mono.pid()));
    let leaks = report["leaks"].as_array().unwrap();
    assert_eq!(leaks.len(), 20);
    let stack = leaks[0]["stack"].as_u64();
    assert!(stack.is_some() && leaks.iter().all(|leak| leak["stack"].as_u64() == stack));
    let functions: Vec<&str> = frames(&report["stacks"][0])
        .iter()
        .filter_map(|frame| frame["function"].as_str())
        .collect();
    for function in ["mono_jit_exec", "mono_main", "_start"] {
        assert!(functions.contains(&function), "{functions:?}");
    }
    assert_eq!(report["groups"].as_array().map(Vec::len), Some(1));
}

#[test]
fn code_of_unloaded_libraries_has_its_names() {
    let libraries = ["first_library", "second_library"];
    let paths = libraries.map(|name| compile(&format!("{name}.c")));
    let mut command = recorded(compile("unloaded.c"));
    for (path, name) in paths.iter().zip(libraries) {
        command.arg(path).arg(name);
    }
    let fixture = Fixture::of(&mut command);
    let report = leaks(&fixture.pid());
    let stacks = report["stacks"].as_array().unwrap();
    assert_eq!(stacks.len(), 2);
    let of_leak = |requested: u64| {
        let leaks = report["leaks"].as_array().unwrap();
        let leak = leaks
            .iter()
            .find(|leak| leak["requested"] == requested)
            .unwrap();
        let id = leak["stack"].as_u64().unwrap();
        frames(&stacks[usize::try_from(id).unwrap()])
    };
    let mut addresses = Vec::new();
    for ((path, name), requested) in paths.iter().zip(libraries).zip([1001, 1002]) {
        let inner = name.replace("library", "inner");
        for (frame, function) in of_leak(requested).iter().zip([&inner, name]) {
            assert_eq!(frame["function"], function, "{frame}");
            assert_eq!(frame["module"], path.to_str().unwrap());
            let source = Path::new(frame["file"].as_str().unwrap());
            assert!(source.ends_with(format!("fixtures/{name}.c")));
        }
        addresses.push(of_leak(requested)[0]["address"].clone());
    }
    // Else it would be no test: one was where the other one had been.
    assert_eq!(addresses[0], addresses[1]);
}
