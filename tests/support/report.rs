//! rleaks' own answers.

use std::collections::BTreeMap;
use std::process::{Command, Output};

use serde_json::Value;

/// Runs rleaks to its end.
pub(crate) fn rleaks(arguments: &[&str]) -> Output {
    rleaks_command().args(arguments).output().unwrap()
}

/// rleaks, without arguments.
pub(crate) fn rleaks_command() -> Command {
    Command::new(env!("CARGO_BIN_EXE_rleaks"))
}

/// The document of `rleaks PID --json`, whose exit status must agree with what it says.
pub(crate) fn leaks(pid: &str) -> Value {
    leaks_by(rleaks_command().arg(pid))
}

/// The same without one class of roots.
pub(crate) fn leaks_without_roots(pid: &str, class: &str) -> Value {
    leaks_by(rleaks_command().args([pid, &format!("--no-roots={class}")]))
}

/// The document of `rleaks PID --json` with more options.
pub(crate) fn leaks_with(pid: &str, options: &[&str]) -> Value {
    leaks_by(rleaks_command().arg(pid).args(options))
}

/// Asserts that rleaks could not do its work, printed no result, and gave `reason`.
#[track_caller]
pub(crate) fn assert_refused(arguments: &[&str], reason: &str) {
    let output = rleaks(arguments);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
    assert_eq!(text(&output.stdout), "", "{arguments:?}");
    assert!(said.contains(reason), "{reason:?} is not in:\n{said}");
}

/// The document of `rleaks heap PID --json`.
pub(crate) fn heap(pid: &str) -> Value {
    heap_by(&mut rleaks_command(), pid)
}

/// The same, of an rleaks that `command` starts.
pub(crate) fn heap_by(command: &mut Command, pid: &str) -> Value {
    let output = command.args(["heap", pid, "--json"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    parse(&output)
}

/// The addresses and sizes of an array of blocks or leaks.
pub(crate) fn addresses(array: &Value) -> BTreeMap<u64, u64> {
    let block = |block: &Value| {
        (
            parse_address(block["address"].as_str()?),
            block["size"].as_u64()?,
        )
            .into()
    };
    array
        .as_array()
        .and_then(|blocks| blocks.iter().map(block).collect())
        .unwrap_or_else(|| panic!("not an array of blocks: {array}"))
}

/// An address as JSON and fixtures have it: `0x55...`.
pub(crate) fn parse_address(text: &str) -> u64 {
    text.strip_prefix("0x")
        .and_then(|digits| u64::from_str_radix(digits, 16).ok())
        .unwrap_or_else(|| panic!("not an address: {text}"))
}

/// The document of the rleaks that `command` starts, whose arguments name the target.
///
/// The environment variable `RLEAKS_SNAPSHOT` names another way to keep the target's memory than the usual one.
pub(crate) fn leaks_by(command: &mut Command) -> Value {
    let has_method = command
        .get_args()
        .any(|argument| argument.to_string_lossy().starts_with("--snapshot"));
    if let (Ok(method), false) = (std::env::var("RLEAKS_SNAPSHOT"), has_method) {
        command.arg(format!("--snapshot={method}"));
    }
    let output = command.arg("--json").output().unwrap();
    let status = output.status.code();
    assert!(
        matches!(status, Some(0 | 1)),
        "{status:?}: {}",
        text(&output.stderr)
    );
    let report = parse(&output);
    let found = report["leaks"]
        .as_array()
        .is_some_and(|leaks| !leaks.is_empty());
    assert_eq!(
        status,
        Some(found.into()),
        "the exit status does not agree with the report"
    );
    report
}

/// The functions of the stack that allocated `leak`, a part of `report`, the innermost first.
pub(crate) fn functions(report: &Value, leak: &Value) -> Vec<String> {
    let is_its = |stack: &&Value| stack["id"] == leak["stack"];
    let mut stacks = report["stacks"].as_array().unwrap().iter();
    let stack = stacks
        .find(is_its)
        .unwrap_or_else(|| panic!("no stack: {leak}"));
    let frames = stack["frames"].as_array().unwrap().iter();
    frames
        .map(|frame| frame["function"].as_str().unwrap_or("?").to_owned())
        .collect()
}

fn parse(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!(
            "{error} in {}{}",
            text(&output.stdout),
            text(&output.stderr)
        )
    })
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
