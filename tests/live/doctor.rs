//! `rleaks doctor` on real processes. Some need root, to start processes of other users.

use std::collections::BTreeMap;
use std::process::{Command, Output};

use serde_json::Value;

use crate::support::{Container, Fixture, Root, Shared, leaks, rleaks_command, unprivileged};

fn document(command: &mut Command) -> Value {
    let output = command.arg("--json").output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The state of each check.
fn statuses(checks: &Value) -> BTreeMap<&str, &str> {
    let checks = checks.as_array().unwrap();
    checks
        .iter()
        .map(|check| {
            (
                check["id"].as_str().unwrap(),
                check["status"].as_str().unwrap(),
            )
        })
        .collect()
}

fn message<'a>(checks: &'a Value, id: &str) -> &'a str {
    let mut checks = checks.as_array().unwrap().iter();
    let check = checks.find(|check| check["id"] == id).unwrap();
    check["message"].as_str().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn the_system_is_looked_at_without_a_target() {
    let found = document(rleaks_command().arg("doctor"));
    assert_eq!(found["schema_version"], 1);
    assert_eq!(found["target"], Value::Null);
    let statuses = statuses(&found["checks"]);
    for id in [
        "privileges",
        "yama",
        "seccomp",
        "copying",
        "memory",
        "debug_files",
    ] {
        assert!(statuses.contains_key(id), "{id}: {statuses:?}");
    }
    // The tests of real processes need both.
    assert_eq!(
        (statuses["ptrace"], statuses["pagemap"] != "failed"),
        ("ok", true)
    );
}

#[test]
fn a_target_is_looked_at_without_being_stopped() {
    let target = Fixture::start("kind_cycle.c");
    // What a tracer holds can be read and cannot be stopped: it is read, and that is said.
    let tracer = Fixture::start_with("obstacle.c", &["trace", &target.pid()]);
    let found = document(rleaks_command().args(["doctor", &target.pid()]));
    let checks = &found["target"]["checks"];
    let expected = format!("is already being traced by process {}", tracer.pid());
    assert!(
        message(checks, "permission").contains(&expected),
        "{checks}"
    );
    assert_eq!(statuses(checks)["permission"], "failed");
    assert!(
        message(checks, "allocator").starts_with("glibc 2."),
        "{checks}"
    );
}

#[test]
fn what_the_doctor_expects_is_what_a_scan_finds() {
    let target = Fixture::start_with("generator.c", &["3", "4", "2000"]);
    let found = document(rleaks_command().args(["doctor", &target.pid()]));
    let report = leaks(&target.pid());
    let (expected, taken) = (&found["target"], &report["capture"]);
    assert_eq!(expected["pid"].to_string(), target.pid());
    assert_eq!(expected["threads"], taken["threads"]);
    assert_eq!(expected["memory_bytes"], taken["memory_bytes"]);
    let allocator = message(&expected["checks"], "allocator");
    assert_eq!(report["zones"][0]["allocator"], allocator);
    let statuses = statuses(&expected["checks"]);
    assert_eq!((statuses["permission"], statuses["pause"]), ("ok", "ok"));
    assert_eq!(statuses["stack_log"], "limited");
    let ids: Vec<_> = statuses.into_keys().collect();
    let all = [
        "allocator",
        "debug_info",
        "memory",
        "pause",
        "permission",
        "stack_log",
        "symbols",
        "threads",
    ];
    assert_eq!(ids, all);
}

#[test]
fn text_is_one_screen_of_aligned_lines_without_colour() {
    let target = Fixture::start("kind_cycle.c");
    let text = stdout(
        &rleaks_command()
            .args(["doctor", &target.pid()])
            .output()
            .unwrap(),
    );
    assert!(text.lines().count() <= 40, "{text}");
    assert!(!text.contains('\u{1b}'), "{text}");
    assert!(
        text.contains(&format!("\nProcess {} (kind_cycle", target.pid())),
        "{text}"
    );
    let mut colored = rleaks_command();
    let colored = colored.args(["doctor", "--color=always"]).output().unwrap();
    assert!(stdout(&colored).contains('\u{1b}'));
}

#[test]
fn a_target_that_may_not_be_scanned_is_an_answer() {
    let (_shared, rleaks) = Shared::with_rleaks();
    let target = Fixture::start("kind_cycle.c");
    let found = document(unprivileged(&rleaks).args(["doctor", &target.pid()]));
    assert_eq!(statuses(&found["checks"])["privileges"], "limited");
    let target = &found["target"];
    assert_eq!(statuses(&target["checks"])["permission"], "failed");
    assert!(message(&target["checks"], "permission").contains("uid 0: run rleaks with sudo"));
    assert_eq!(target["memory_bytes"], Value::Null);
}

#[test]
fn a_filter_is_seen_on_rleaks_own_child() {
    let mut rleaks = Command::new(Fixture::program("obstacle.c"));
    let error = nix::libc::EPERM.to_string();
    rleaks.args(["filter", &error, "ptrace"]);
    rleaks.args([env!("CARGO_BIN_EXE_rleaks"), "doctor"]);
    let found = document(&mut rleaks);
    assert_eq!(statuses(&found["checks"])["ptrace"], "failed");
    assert!(message(&found["checks"], "ptrace").starts_with("a seccomp filter"));
}

#[test]
fn a_container_is_looked_at_from_outside_and_from_inside() {
    let container = Container::start(Root::Tmpfs, "kind_cycle.c", &[]);
    let outside = document(rleaks_command().args(["doctor", &container.fixture.pid()]));
    let inside = document(container.rleaks().args(["doctor", "1"]));
    for found in [outside, inside] {
        let checks = &found["target"]["checks"];
        assert_eq!(statuses(checks)["permission"], "ok", "{found}");
        assert!(
            message(checks, "allocator").starts_with("glibc 2."),
            "{found}"
        );
    }
}

#[test]
fn a_target_that_is_not_found_is_not_done() {
    let output = rleaks_command()
        .args(["doctor", "4194305"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(output.stdout.is_empty());
}
