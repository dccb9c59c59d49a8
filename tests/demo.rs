//! `rleaks demo`, as a newcomer runs it.

use std::process::Command;

#[test]
fn the_demo_shows_each_kind_of_leak_and_ends_its_program() {
    let output = Command::new(env!("CARGO_BIN_EXE_rleaks"))
        .arg("demo")
        .output()
        .expect("rleaks runs");
    let text = String::from_utf8(output.stdout).expect("text in UTF-8");
    assert!(output.status.success(), "{text}");
    for expected in [
        "length: 67  \"Dear Ada, this letter was never sent, and nobody knows where it is.\"",
        "length: 61  \"Dear Grace, a copy of this one was kept. It is not this copy.\"",
        "length: 36  \"Dear Barbara, who owned this string?\"",
        "length: 9  \"Northgate\"",
        "length: 7  \"Airport\"",
        "ROOT CYCLE: 0x",
        "15 leaks for ",
        "To scan a program of your own",
    ] {
        assert!(text.contains(expected), "no {expected:?} in:\n{text}");
    }
    let pid = text.split_whitespace().nth(1).expect("a pid");
    assert!(!std::fs::exists(format!("/proc/{pid}")).expect("an answer"));
}
