//! A C# program on Mono that drops blocks of `Marshal.AllocHGlobal`.

use std::process::Command;

use serde_json::Value;

use crate::support::{Program, assert_refused, compile, leaks, leaks_with, rleaks, text};

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
    let mut sizes: Vec<u64> = leaks.iter().map(|leak| leak["size"].as_u64().unwrap()).collect();
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

#[test]
fn dropped_blocks_of_a_mono_program_are_its_leaks() {
    let mono = start();
    assert_are_dropped(&leaks(&mono.pid()));
    assert_are_dropped(&leaks_with(&mono.pid(), &["--snapshot=stream"]));
    assert_goes_on(mono);
}

/// Other processes of the name may run here: they are started before ours and in other tests
/// after it, so this one tells them apart by their pids.
#[test]
fn mono_program_is_found_by_its_name() {
    let mono = start();
    let output = rleaks(&["--name", "mono-sgen", "--all", "--json"]);
    let said = text(&output.stdout);
    let documents = said.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let mut ours = documents.filter(|report| report["target"]["pid"] == mono.id());
    let report = ours.next().unwrap_or_else(|| panic!("{said}{}", text(&output.stderr)));
    assert_eq!(report["target"]["name"], "mono-sgen");
    assert_are_dropped(&report);
    assert_goes_on(mono);
}

#[test]
fn mono_program_is_the_newest_or_one_of_several_of_its_name() {
    let (older, mono) = (start(), start());
    assert_refused(&["--name", "mono-sgen"], "processes are named mono-sgen: give a pid");
    let output = rleaks(&["--name", "mono-sgen", "--newest", "--json"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_ne!(report["target"]["pid"], older.id());
    assert_are_dropped(&report);
    assert_goes_on(older);
    assert_goes_on(mono);
}
