//! `--diff-from`, `--baseline` and `rleaks diff`: what is new, on processes that leak on demand.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::{Program, compile, parse_address, recorded, rleaks, rleaks_command, text};

/// A program that leaks what it is told to.
struct Growing {
    program: Program,
    folder: TempDir,
}

impl Growing {
    fn start() -> Self {
        Self::of(&mut Command::new(compile("growing.c")))
    }

    fn recorded() -> Self {
        Self::of(&mut recorded(compile("growing.c")))
    }

    fn of(command: &mut Command) -> Self {
        Self {
            program: Program::start(command),
            folder: tempfile::tempdir().unwrap(),
        }
    }

    /// Gives it commands, and returns the addresses that it answers.
    fn obey(&mut self, commands: &[&str]) -> BTreeSet<u64> {
        let answers = commands.iter().map(|command| self.program.ask(command));
        let addresses = |answer: String| -> Vec<u64> {
            let rest = answer.strip_prefix("done").unwrap();
            rest.split_whitespace().map(parse_address).collect()
        };
        answers.flat_map(addresses).collect()
    }

    /// Writes a report of it, and returns where that is.
    fn report(&self, name: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        let json = format!("--json={}", path.display());
        let output = rleaks(&[&self.program.pid(), &json]);
        let status = output.status.code();
        assert!(matches!(status, Some(0 | 1)), "{}", text(&output.stderr));
        path
    }

    /// Saves a snapshot of it, and returns where that is.
    fn snapshot(&self, name: &str, options: &[&str]) -> PathBuf {
        let path = self.folder.path().join(name);
        let pid = self.program.pid();
        let save = [&pid, "--output-graph", path.to_str().unwrap()];
        let output = rleaks(&[&save[..], options].concat());
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        path
    }

    /// Scans it, compared as `options` say.
    fn scan(&self, options: &[&str]) -> Scan {
        Scan::of(rleaks(&[&[&*self.program.pid()], options].concat()))
    }

    fn since(&self, old: &Path) -> Scan {
        self.scan(&["--json", "--diff-from", old.to_str().unwrap()])
    }

    fn beside(&self, baseline: &Path) -> Scan {
        self.scan(&["--json", "--baseline", baseline.to_str().unwrap()])
    }
}

/// What came of a comparison.
struct Scan {
    status: Option<i32>,
    report: Value,
}

impl Scan {
    fn of(output: Output) -> Self {
        let report = serde_json::from_slice(&output.stdout);
        let said = || text(&[&*output.stdout, &output.stderr].concat());
        Self {
            status: output.status.code(),
            report: report.unwrap_or_else(|error| panic!("{error}: {}", said())),
        }
    }

    fn new_leaks(&self) -> BTreeSet<u64> {
        let leaks = self.report["leaks"].as_array().unwrap().iter();
        leaks
            .map(|leak| parse_address(leak["address"].as_str().unwrap()))
            .collect()
    }

    /// How many leaks are new, old and gone, and what makes them the same.
    fn counts(&self) -> (u64, u64, u64, &str) {
        let comparison = &self.report["comparison"];
        let count = |name: &str| comparison[name].as_u64().unwrap();
        (
            count("new_blocks"),
            count("old_blocks"),
            count("gone_blocks"),
            comparison["by"].as_str().unwrap(),
        )
    }

    fn warnings(&self) -> Vec<&str> {
        let warnings = self.report["warnings"].as_array().unwrap().iter();
        let codes = warnings.map(|warning| warning["code"].as_str().unwrap());
        codes
            .filter(|code| code.starts_with("comparison"))
            .collect()
    }
}

fn diff(old: &str, new: &str) -> Value {
    let output = rleaks(&["diff", old, new, "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// What happened to the groups of a part of a diff, and how many blocks they had and have.
fn changes(groups: &Value) -> Vec<(&str, u64, u64)> {
    let number = |group: &Value, name: &str| group[name].as_u64().unwrap();
    let groups = groups.as_array().unwrap().iter();
    groups
        .map(|group| {
            let change = group["change"].as_str().unwrap();
            (
                change,
                number(group, "old_blocks"),
                number(group, "new_blocks"),
            )
        })
        .collect()
}

#[test]
fn only_what_leaked_since_an_earlier_report_is_shown() {
    for mut process in [Growing::start(), Growing::recorded()] {
        process.obey(&["s3", "l1", "k5"]);
        let old = process.report("old.json");
        let scan = process.since(&old);
        assert_eq!((scan.status, scan.new_leaks().len()), (Some(0), 0));
        assert_eq!(scan.counts(), (0, 6, 0, "address"));

        let new = process.obey(&["s2", "l1", "k3"]);
        let scan = process.since(&old);
        assert_eq!((scan.status, scan.new_leaks()), (Some(1), new));
        assert_eq!(scan.counts(), (5, 6, 0, "address"));
        assert_eq!(scan.report["summary"]["leaked_blocks"], 5);
        assert_eq!(scan.report["summary"]["suppressed_blocks"], 6);
        assert_eq!(scan.warnings(), [""; 0]);

        process.obey(&["f2"]);
        let scan = process.since(&old);
        assert_eq!(scan.counts(), (3, 6, 0, "address"));
        process.obey(&["f1"]);
        assert_eq!(process.since(&old).counts(), (3, 5, 1, "address"));
    }
}

#[test]
fn a_block_that_was_allocated_again_is_new_where_the_log_says_so() {
    let mut process = Growing::recorded();
    process.obey(&["s4"]);
    let old = process.report("old.json");
    let again = process.obey(&["r1"]);
    let scan = process.since(&old);
    assert_eq!((scan.status, scan.new_leaks()), (Some(1), again));
    assert_eq!(scan.counts(), (1, 3, 1, "address"));
}

#[test]
fn another_process_is_compared_by_stack_type_and_size() {
    let mut before = Growing::recorded();
    before.obey(&["s3", "l2"]);
    let old = before.report("old.json");
    let mut after = Growing::recorded();
    after.obey(&["l1", "s3", "l1"]);
    for scan in [after.since(&old), after.beside(&old)] {
        assert_eq!(scan.counts(), (0, 9, 0, "stack"));
        assert_eq!((scan.status, scan.warnings()), (Some(0), vec![]));
    }
    after.obey(&["s1"]);
    let lists = after.obey(&["l1"]);
    let scan = after.beside(&old);
    assert_eq!(scan.counts(), (4, 9, 0, "stack"));
    assert_eq!(scan.status, Some(1));
    // Of lists that are alike, all nodes of one are new.
    let new = scan.new_leaks();
    let kinds = |kind: &str| {
        let leaks = scan.report["leaks"].as_array().unwrap().iter();
        leaks.filter(|leak| leak["kind"] == kind).count()
    };
    assert_eq!(
        (new.len(), kinds("root_leak"), kinds("indirect")),
        (4, 2, 2)
    );
    assert_eq!(lists.len(), 3);

    let mut other = Growing::recorded();
    other.obey(&["s1"]);
    assert_eq!(other.beside(&old).counts(), (0, 1, 8, "stack"));
}

#[test]
fn a_leak_of_the_same_size_from_elsewhere_is_new() {
    let mut before = Growing::recorded();
    before.obey(&["s2"]);
    let old = before.report("old.json");
    let mut after = Growing::recorded();
    let again = after.obey(&["s2", "r1"]);
    assert_eq!(again.len(), 2);
    let scan = after.beside(&old);
    assert_eq!(scan.counts(), (1, 1, 1, "stack"));
    // Without stacks nobody can tell, and that is said.
    let mut unrecorded = Growing::start();
    unrecorded.obey(&["s2", "r1"]);
    let scan = unrecorded.beside(&old);
    assert_eq!(scan.counts(), (0, 2, 0, "type"));
    assert_eq!(
        (scan.status, scan.warnings()),
        (Some(0), vec!["comparison_without_stacks"])
    );
}

#[test]
fn the_text_says_what_is_new_old_and_gone() {
    let mut process = Growing::recorded();
    process.obey(&["s3"]);
    let old = process.report("old.json");
    process.obey(&["l1", "f1"]);
    let output = rleaks(&[&process.program.pid(), "--diff-from", old.to_str().unwrap()]);
    let said = text(&output.stdout);
    let old = old.display();
    for line in [
        &format!("Compared With:   {old} of 20"),
        "Z, by address (it is the same process)\n",
        "3 new leaks for 216 total leaked bytes.\n",
        &format!("Compared with {old}: 3 new, 2 old (112 bytes, not shown), 1 gone (56 bytes).\n"),
        "STACK OF 1 INSTANCE OF 'ROOT LEAK: <malloc in ",
        "list_node",
    ] {
        let line = line.replace("Z, by", " UTC, by");
        assert!(said.contains(&line), "{line:?} is not in:\n{said}");
    }
}

#[test]
fn a_diff_says_which_leaks_appeared_grew_and_went_away() {
    let mut process = Growing::recorded();
    process.obey(&["s2", "k10"]);
    let old = process.report("old.json");
    process.obey(&["f2", "l4", "k10"]);
    let new = process.report("new.json");
    let (old, new) = (old.to_str().unwrap(), new.to_str().unwrap());
    let there = diff(old, new);
    // Each node of a list comes from a call of its own.
    let node = ("appeared", 0, 4);
    assert_eq!(
        changes(&there["leaks"]),
        [node, node, node, ("went_away", 2, 0)]
    );
    assert_eq!(there["summary"]["appeared_blocks"], 12);
    assert_eq!(there["by"], "address");
    assert_eq!(there["live"], Value::Null);
    let growth = |side: &str| there[side]["heap"]["blocks"].as_u64().unwrap();
    assert_eq!(growth("new") - growth("old"), 20);
    let node = ("went_away", 4, 0);
    let back = diff(new, old);
    assert_eq!(
        changes(&back["leaks"]),
        [("appeared", 0, 2), node, node, node]
    );
    assert_eq!(changes(&diff(new, new)["leaks"]), []);

    let output = text(&rleaks(&["diff", old, new, "--limit", "3"]).stdout);
    assert!(
        output.contains("Compared By:     address (it is the same process)\n"),
        "{output}"
    );
    assert!(
        output.contains("12 new leaks (864 bytes), 0 old, 2 gone (112 bytes)\n"),
        "{output}"
    );
    assert!(
        output.contains("... 1 more group (-112 bytes) not shown"),
        "{output}"
    );
}

#[test]
fn memory_in_use_is_compared_where_both_sides_are_at_hand() {
    let (mut one, mut other) = (Growing::recorded(), Growing::recorded());
    one.obey(&["k5", "s2"]);
    other.obey(&["k9", "s2"]);
    let diff = diff(&one.program.pid(), &other.program.pid());
    assert_eq!(changes(&diff["leaks"]), []);
    assert_eq!(changes(&diff["live"]), [("grew", 5, 9)]);
    let stack = &diff["live"][0]["stack"];
    let stacks = diff["stacks"].as_array().unwrap();
    let shown = stacks.iter().find(|shown| shown["id"] == *stack).unwrap();
    let frames = shown["frames"].as_array().unwrap();
    assert!(
        frames.iter().any(|frame| frame["function"] == "keep"),
        "{shown}"
    );
}

#[test]
fn snapshots_are_compared_as_the_processes_that_they_are_of() {
    for mut process in [Growing::start(), Growing::recorded()] {
        process.obey(&["s3", "k5"]);
        let old = process.snapshot("old.core", &[]);
        let report = process.report("old.json");
        let new = process.obey(&["s2", "l1", "k4"]);
        for old in [&old, &report] {
            let scan = process.since(old);
            assert_eq!(scan.counts(), (5, 3, 0, "address"));
            assert_eq!(scan.new_leaks(), new);
        }
        for options in [&[][..], &["--no-content"]] {
            let later = process.snapshot("new.core", options);
            let later = later.to_str().unwrap();
            let scan = [later, "--json", "--diff-from", old.to_str().unwrap()];
            let scan = Scan::of(rleaks(&scan));
            assert_eq!((scan.status, scan.new_leaks()), (Some(1), new.clone()));
            assert_eq!(scan.counts(), (5, 3, 0, "address"));
            let (old, report) = (old.to_str().unwrap(), report.to_str().unwrap());
            let both = diff(old, later);
            let kept = ("grew", 5, 9);
            assert!(changes(&both["live"]).contains(&kept), "{}", both["live"]);
            assert_eq!(both["leaks"], diff(old, &process.program.pid())["leaks"]);
            let half = diff(report, later);
            assert_eq!(
                (&half["live"], &half["leaks"]),
                (&Value::Null, &both["leaks"])
            );
        }
    }
}

#[test]
fn memory_in_use_goes_by_type_and_size_without_stacks() {
    let (mut one, mut other) = (Growing::start(), Growing::start());
    one.obey(&["k5", "l2"]);
    other.obey(&["k9", "l1"]);
    let diff = diff(&one.program.pid(), &other.program.pid());
    assert_eq!(diff["by"], "type");
    let live = changes(&diff["live"]);
    assert_eq!(live, [("grew", 5, 9), ("shrank", 6, 3)]);
    assert_eq!(diff["live"][0]["size"], 200);
}

/// Runs the program at its end, with commands for it, and with options of rleaks.
fn at_exit(options: &[&str], commands: &[&str]) -> Command {
    let mut command = rleaks_command();
    command.arg("--at-exit").args(options).arg("--");
    command.arg(compile("growing.c")).args(commands);
    command
}

#[test]
fn a_program_in_ci_fails_for_what_its_baseline_does_not_have() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("baseline.json");
    let (json, file) = (format!("--json={}", file.display()), file.to_str().unwrap());
    let status = |command: &mut Command| command.output().unwrap().status.code();
    assert_eq!(status(&mut at_exit(&[&json], &["s3", "l1"])), Some(1));
    let baseline = ["--baseline", file];
    assert_eq!(status(&mut at_exit(&baseline, &["s3", "l1"])), Some(0));
    assert_eq!(
        status(&mut at_exit(&baseline, &["l1", "s2", "k3"])),
        Some(0)
    );
    assert_eq!(status(&mut at_exit(&baseline, &["s4", "l1"])), Some(1));
    let other = [&baseline[..], &["--leak-status", "42"]].concat();
    assert_eq!(status(&mut at_exit(&other, &["s3", "l2"])), Some(42));
    let said = text(&at_exit(&baseline, &["s4"]).output().unwrap().stdout);
    let line = format!(
        "Compared with {file}: 1 new, 3 known (168 bytes, not shown), 3 not found (216 bytes)."
    );
    assert!(said.contains(&line), "{said}");
}

#[test]
fn a_baseline_may_be_of_several_processes_and_of_several_runs() {
    let folder = tempfile::tempdir().unwrap();
    let program = compile("growing.c").display().to_string();
    let script = |commands: &str| format!("{program} {commands}; {program} s1; true");
    let run = |options: &[&str], commands: &str| {
        let mut command = rleaks_command();
        command
            .args(["--at-exit", "--follow-children"])
            .args(options);
        command.args(["--", "bash", "-c", &script(commands)]);
        command.output().unwrap()
    };
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (one, two) = (path("one.json"), path("two.json"));
    run(&[&format!("--json={one}")], "s3");
    run(&[&format!("--json={two}")], "l1");
    let reports = fs::read_to_string(&one).unwrap();
    assert_eq!(reports.lines().count(), 3, "{reports}");
    let with = |files: &[&String], commands: &str| {
        let options: Vec<&str> = files.iter().flat_map(|file| ["--baseline", file]).collect();
        run(&options, commands).status.code()
    };
    assert_eq!(with(&[&one], "s3"), Some(0));
    assert_eq!(with(&[&one], "s3 l1"), Some(1));
    assert_eq!(with(&[&one, &two], "s3 l1"), Some(0));
    assert_eq!(with(&[&one, &two], "s3 l2"), Some(1));
}

#[test]
fn a_python_program_leaks_the_same_when_it_is_started_again() {
    // Each call of the C library's malloc is a leak: nothing keeps what it returns.
    let script = "
import ctypes, sys
malloc = ctypes.CDLL(None).malloc
malloc.restype, malloc.argtypes = None, [ctypes.c_size_t]
def forget(count):
    for _ in range(count):
        malloc(3000)
for line in sys.stdin:
    forget(int(line))
    print('done', flush=True)
";
    let start = || Growing::of(recorded("python3").args(["-c", script]));
    let mut before = start();
    before.obey(&["20"]);
    let old = before.report("old.json");
    let mut after = start();
    after.obey(&["20"]);
    let scan = after.beside(&old);
    let (new, known, _, by) = scan.counts();
    // What a stale word hides may differ by a block.
    assert!(
        new <= 1 && known >= 18 && by == "stack",
        "{:?}",
        scan.counts()
    );
    after.obey(&["20"]);
    let scan = after.beside(&old);
    assert_eq!(scan.status, Some(1));
    assert!(scan.counts().0 >= 18, "{:?}", scan.counts());
}

#[test]
fn files_that_are_no_reports_are_refused_with_the_place() {
    let mut process = Growing::start();
    process.obey(&["s3"]);
    let report = fs::read_to_string(process.report("report.json")).unwrap();
    let path = process.folder.path().join("bad.json");
    let path = path.to_str().unwrap();
    let refused = |arguments: &[&str], reason: &str| {
        let output = rleaks(arguments);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(
            output.stdout.is_empty() && said.contains(reason),
            "{reason:?}: {said}"
        );
        assert!(said.contains(path), "{said}");
    };
    let cut = report.len() / 2;
    let line = report[..cut].lines().count();
    let version = report.replace("\"schema_version\": 1", "\"schema_version\": 2");
    for (content, reason) in [
        ("", "it is empty"),
        (&report[..cut], &*format!("line {line}, column ")),
        (&version, "schema version 2"),
        (
            "{\"schema_version\": 1}",
            "line 1, column 21: missing field `rleaks_version`",
        ),
        ("\u{7f}ELF", "line 1, column 1: expected value"),
        (&format!("{report}{report}"), "has 2 reports"),
    ] {
        fs::write(path, content).unwrap();
        let good = process.report("report.json");
        refused(&["diff", path, good.to_str().unwrap()], reason);
        refused(&["diff", good.to_str().unwrap(), path], reason);
        if !reason.contains("2 reports") {
            refused(&[&process.program.pid(), "--baseline", path], reason);
            refused(&[&process.program.pid(), "--diff-from", path], reason);
            refused(&["--at-exit", "--baseline", path, "--", "true"], reason);
        }
    }
    fs::remove_file(path).unwrap();
    refused(&["diff", path, path], "cannot open");
    let endless = rleaks(&["diff", "/dev/zero", "/dev/zero"]);
    assert_eq!(endless.status.code(), Some(2), "{}", text(&endless.stderr));
}
