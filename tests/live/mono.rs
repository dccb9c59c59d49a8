//! A C# program on Mono that drops blocks of `Marshal.AllocHGlobal`.

use std::process::Command;

use serde_json::Value;

use crate::harm::assert_childless;
use crate::support::{Program, compile, leaks, leaks_with, rleaks, text};

const DROPPED: u64 = 20;

fn start() -> Program {
    let mut command = Command::new("mono-sgen");
    let mut mono = Program::start(command.arg(compile("marshal.cs")).arg(DROPPED.to_string()));
    assert_eq!(mono.line(), "warm");
    assert_eq!(mono.ask("go on"), "ready");
    mono
}

/// Exactly the dropped blocks are leaks, each of the size that was asked for or little more.
fn assert_are_dropped(report: &Value) {
    let leaks = report["leaks"].as_array().unwrap();
    let mut sizes: Vec<u64> = leaks
        .iter()
        .map(|leak| leak["size"].as_u64().unwrap())
        .collect();
    sizes.sort_unstable();
    let asked: Vec<u64> = (0..DROPPED).map(|number| 1000 + 48 * number).collect();
    let fits = |(size, asked): (&u64, &u64)| (*asked..=asked + 24).contains(size);
    assert_eq!(sizes.len(), asked.len(), "{sizes:?}");
    assert!(sizes.iter().zip(&asked).all(fits), "{sizes:?}");
    for leak in leaks {
        assert_eq!(leak["kind"], "root_leak", "{leak}");
        let content = leak["content"].as_str().unwrap();
        assert!(content.contains("mmmm"), "{leak}");
    }
}

fn assert_goes_on(mut mono: Program) {
    assert_eq!(mono.ask("go on"), format!("dropped {DROPPED}"));
    assert!(mono.wait().success());
}

/// One test, for processes are found by a name here: no other test must run one of that name.
#[test]
fn dropped_blocks_of_a_mono_program_are_its_leaks() {
    scan_by_pid();
    scan_by_name();
}

fn scan_by_pid() {
    let mono = start();
    assert_are_dropped(&leaks(&mono.pid()));
    assert_are_dropped(&leaks_with(&mono.pid(), &["--snapshot=stream"]));
    let forked = leaks_with(&mono.pid(), &["--snapshot=fork"]);
    assert_eq!(
        forked["capture"]["method"], "fork",
        "{}",
        forked["warnings"]
    );
    assert_are_dropped(&forked);
    assert_childless(&mono.pid());
    assert_goes_on(mono);
}

fn scan_by_name() {
    let by_name = |options: &[&str]| {
        let output = rleaks(&[&["--name", "mono-sgen", "--json"], options].concat());
        let documents = text(&output.stdout);
        let said = text(&output.stderr);
        (documents, said)
    };
    let mono = start();
    let (document, said) = by_name(&["--newest"]);
    let report: Value = serde_json::from_str(&document).unwrap_or_else(|e| panic!("{e}: {said}"));
    assert_eq!(report["target"]["pid"], mono.id());
    assert_eq!(report["target"]["name"], "mono-sgen");
    assert_are_dropped(&report);

    let other = start();
    let (_, said) = by_name(&[]);
    assert!(
        said.contains("processes are named mono-sgen: give a pid, or choose with"),
        "{said}"
    );
    for pid in [mono.pid(), other.pid()] {
        assert!(
            said.lines().any(|line| line.trim().starts_with(&pid)),
            "{said}"
        );
    }
    let (documents, said) = by_name(&["--all"]);
    let reports: Vec<Value> = documents
        .lines()
        .map(|d| serde_json::from_str(d).unwrap())
        .collect();
    for program in [&mono, &other] {
        let report = reports
            .iter()
            .find(|report| report["target"]["pid"] == program.id());
        assert_are_dropped(report.unwrap_or_else(|| panic!("{documents}{said}")));
    }
    assert_goes_on(mono);
    assert_goes_on(other);
}
