//! How much memory a scan takes, and what of the target's memory it leaves alone.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::generator::difference;
use crate::support::{
    Fixture, Program, SavedFile, addresses, assert_refused, leaks_with, rleaks_command, text,
};

const MIB: u64 = 1 << 20;

/// The number in a line of a file of `/proc`, in bytes.
fn bytes_in(path: &str, name: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    let kibibytes: u64 = line.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(kibibytes * 1024)
}

/// What tells of pages that a process has: its memory, and the tables of its pages, those of zeros too.
fn pages(pid: &str) -> [Option<u64>; 2] {
    ["RssAnon:", "VmPTE:"].map(|name| bytes_in(&format!("/proc/{pid}/status"), name))
}

#[test]
fn memory_that_was_never_touched_or_only_read_is_not_read() {
    let fixture = Fixture::start("untouched.c");
    let pid = fixture.pid();
    let before = pages(&pid);
    let leak: Vec<_> = fixture.leaks.keys().copied().collect();
    let check = |report: &Value, how: &str| {
        let bytes = report["capture"]["memory_bytes"].as_u64().unwrap();
        assert!(bytes < 4 * MIB, "{how}: {bytes}");
        assert!(
            addresses(&report["leaks"]).keys().eq(leak.iter()),
            "{how}: {report}"
        );
    };
    for method in ["copy", "stream", "fork"] {
        let report = leaks_with(&pid, &[&format!("--snapshot={method}")]);
        assert_eq!(report["capture"]["method"], method, "{report}");
        check(&report, method);
        assert_eq!(pages(&pid), before, "{method}");
    }
    check(&leaks_with(&pid, &["--unaligned"]), "--unaligned");
    for way in [&[][..], &["--compress"], &["--no-content"]] {
        let saved = SavedFile::new(&pid, way);
        let size = fs::metadata(saved.path()).unwrap().blocks() * 512;
        assert!(size < 8 * MIB, "{way:?}: {size}");
        check(&saved.leaks(&[]), "file");
    }
    assert_eq!(pages(&pid), before);
}

/// The anonymous memory of a process and of those that it started.
fn anonymous(pid: u32) -> u64 {
    let own = bytes_in(&format!("/proc/{pid}/status"), "RssAnon:").unwrap_or(0);
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = children.unwrap_or_default();
    let children = children.split_ascii_whitespace();
    own + children
        .map(|child| anonymous(child.parse().unwrap()))
        .sum::<u64>()
}

/// What rleaks says with a limit of its memory, and how much it had at the most.
fn limited(arguments: &[&str], limit: &str) -> (Output, u64) {
    let mut command = rleaks_command();
    command
        .args(arguments)
        .args(["--json", "--memory-limit", limit]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    let pid = child.id();
    let watched = std::thread::spawn(move || child.wait_with_output().unwrap());
    let mut most = 0;
    while !watched.is_finished() {
        most = most.max(anonymous(pid));
        std::thread::sleep(Duration::from_millis(1));
    }
    (watched.join().unwrap(), most)
}

/// The size in a message such as `this target needs at least 37M`.
fn needed(said: &str) -> String {
    let (_, size) = said
        .trim()
        .rsplit_once(" needs at least ")
        .unwrap_or_else(|| panic!("{said}"));
    size.to_owned()
}

/// A limit that is just enough for a scan, its report, and what that took.
fn least(arguments: &[&str]) -> (String, Value, u64) {
    let mut limit = "1M".to_owned();
    for _ in 0..6 {
        let (output, most) = limited(arguments, &limit);
        if matches!(output.status.code(), Some(0 | 1)) {
            return (limit, serde_json::from_slice(&output.stdout).unwrap(), most);
        }
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert_eq!(text(&output.stdout), "");
        let message = format!("rleaks: --memory-limit {limit} is too small: this target");
        assert!(said.contains(&message), "{said}");
        limit = needed(&said);
    }
    panic!("{limit} is still too small");
}

/// A size as it is typed, in bytes.
fn bytes(size: &str) -> u64 {
    let mebibytes: u64 = size.strip_suffix('M').unwrap().parse().unwrap();
    mebibytes * MIB
}

/// What both reports must have in common.
fn found(report: &Value) -> [&Value; 4] {
    ["leaks", "groups", "summary", "heap"].map(|name| &report[name])
}

/// Scans with just enough memory, and with more: the answer is that without a limit.
fn assert_limits_change_nothing(target: &str, options: &[&str]) {
    let expected = leaks_with(target, options);
    let arguments = [&[target], options].concat();
    let (limit, report, most) = least(&arguments);
    assert_eq!(found(&report), found(&expected), "{limit} {options:?}");
    assert!(most <= bytes(&limit), "{limit}: {most}");
    for limit in ["200M", "1G"] {
        let (output, most) = limited(&arguments, limit);
        let said = text(&output.stderr);
        assert!(
            matches!(output.status.code(), Some(0 | 1)),
            "{limit} {options:?}: {said}"
        );
        let report = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(found(&report), found(&expected), "{limit} {options:?}");
        assert!(most <= 1024 * MIB);
    }
}

#[test]
fn leaks_are_the_same_in_little_memory() {
    for file in ["kind_root_leak.c", "kind_cycle.c", "cpp_types.cpp"] {
        let fixture = Fixture::start(file);
        assert_limits_change_nothing(&fixture.pid(), &["--snapshot=stream"]);
        assert_limits_change_nothing(&fixture.pid(), &["--unaligned", "--threads=1"]);
    }
    let fixture = Fixture::start_with("generator.c", &["12", "3", "3000"]);
    let pid = fixture.pid();
    assert_limits_change_nothing(&pid, &[]);
    assert_limits_change_nothing(&pid, &["--snapshot=fork", "--no-roots=stacks"]);
    let saved = SavedFile::new(&pid, &[]);
    assert_limits_change_nothing(saved.path().to_str().unwrap(), &[]);
}

#[test]
fn python_is_scanned_in_little_memory() {
    let script = "import json, ssl, sys\nprint('ready', flush=True)\nsys.stdin.read()";
    let mut python = Program::start(Command::new("/usr/bin/python3").args(["-c", script]));
    assert_eq!(python.line(), "ready");
    assert_limits_change_nothing(&python.pid(), &[]);
}

#[test]
fn heap_of_pointers_is_scanned_in_less_than_its_graph() {
    // 24 MiB; a graph of it takes 12.
    let fixture = Fixture::start_with("pointers.c", &["750", "4194"]);
    let (output, most) = limited(&[&fixture.pid(), "--threads=2"], "12M");
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let truth = fixture.leaks.iter().map(|(&at, leak)| (at, leak.size));
    let reported = addresses(&report["leaks"]);
    assert_eq!(
        difference(&reported, &truth.collect::<BTreeMap<_, _>>()),
        [""; 0]
    );
    assert!(most <= 12 * MIB, "{most}");
    assert_eq!(report["capture"]["method"], "stream");
    let warnings = report["warnings"].as_array().unwrap();
    let streamed = warnings
        .iter()
        .find(|warning| warning["code"] == "streamed")
        .unwrap();
    let message = streamed["message"].as_str().unwrap();
    assert!(
        message.starts_with("--memory-limit leaves too little room for a copy of "),
        "{message}"
    );
}

#[test]
fn limit_that_is_too_small_is_refused_with_one_that_would_do() {
    let fixture = Fixture::start("kind_root_leak.c");
    let pid = fixture.pid();
    let reason = "rleaks: --memory-limit 1M is too small: this target needs at least ";
    assert_refused(&[&pid, "--memory-limit=1M"], reason);
    assert_refused(
        &[&pid, "--memory-limit=1048577"],
        "--memory-limit 1048577 is too small: ",
    );
    let saved = SavedFile::new(&pid, &[]);
    assert_refused(
        &[saved.path().to_str().unwrap(), "--memory-limit=1M"],
        reason,
    );
    assert_refused(&["diff", &pid, &pid, "--memory-limit=1M"], reason);
    let output = rleaks_command()
        .args(["--at-exit", "--memory-limit=1M", "--"])
        .arg(Fixture::program("ends.c"))
        .args(["exit", "0"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(
        text(&output.stderr).contains(reason),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn diff_and_at_exit_and_saving_work_in_little_memory() {
    let fixture = Fixture::start("kind_indirect.c");
    let pid = fixture.pid();
    let output = rleaks_command()
        .args(["diff", &pid, &pid, "--memory-limit=48M"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let saved = SavedFile::new(&pid, &["--memory-limit=48M", "--no-content"]);
    let leaks = saved.leaks(&["--memory-limit=48M"]);
    let reported = addresses(&leaks["leaks"]);
    assert!(reported.keys().eq(fixture.leaks.keys()));
    let program = Fixture::program("ends.c");
    let output = rleaks_command()
        .args(["--at-exit", "--memory-limit=48M", "--json", "--"])
        .arg(program)
        .args(["exit", "0"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
}
