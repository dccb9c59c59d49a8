//! However a scan is done and shown, it finds the same.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rleaks::scan::Filter;
use serde_json::Value;

use crate::generator::difference;
use crate::support::{
    Build, Fixture, Program, addresses, assert_refused, compile, compile_as, leaks, leaks_with,
    parse_address, rleaks, text,
};

fn generated() -> Fixture {
    Fixture::start_with("generator.c", &["11", "3", "3000"])
}

/// Asserts that the leaks are true, and that they were found with `method`.
fn assert_finds_the_truth(fixture: &Fixture, method: &str, options: &[&str]) -> Value {
    let truth = fixture.leaks.iter().map(|(&at, leak)| (at, leak.size));
    let report = leaks_with(&fixture.pid(), options);
    let reported = addresses(&report["leaks"]);
    assert_eq!(
        difference(&reported, &truth.collect()),
        [""; 0],
        "{options:?}"
    );
    assert_eq!(report["capture"]["method"], method, "{options:?}");
    report
}

/// What rleaks prints for people, of a target that leaks.
fn shown(fixture: &Fixture, options: &[&str]) -> String {
    let output = rleaks(&[&[fixture.pid().as_str()], options].concat());
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    assert_eq!(text(&output.stderr), "");
    text(&output.stdout)
}

#[test]
fn every_way_to_scan_finds_the_same_leaks() {
    let fixture = generated();
    assert_finds_the_truth(&fixture, "copy", &["--snapshot=copy"]);
    assert_finds_the_truth(&fixture, "stream", &["--snapshot=stream"]);
    assert_finds_the_truth(&fixture, "stream", &["--snapshot=stream", "--threads=1"]);
    assert_finds_the_truth(&fixture, "copy", &["--unaligned"]);
    let single = assert_finds_the_truth(&fixture, "copy", &["--threads=1"]);
    let many = assert_finds_the_truth(&fixture, "copy", &["--threads=8"]);
    assert_eq!(single["leaks"], many["leaks"]);
    assert_eq!(single["groups"], many["groups"]);
}

#[test]
fn report_depends_neither_on_vectors_nor_on_threads_nor_on_the_method() {
    let fixture = Fixture::start_with("generator.c", &["11", "3", "8000"]);
    let mut first: Option<Value> = None;
    for filter in Filter::all() {
        for threads in [1, 2, 5] {
            for method in ["copy", "stream"] {
                let options = [
                    format!("--vector={}", filter.name()),
                    format!("--threads={threads}"),
                    format!("--snapshot={method}"),
                ];
                let options = options.each_ref().map(String::as_str);
                let mut report = assert_finds_the_truth(&fixture, method, &options);
                // What is of the scan itself: times, and the method.
                report["capture"].take();
                let first = first.get_or_insert_with(|| report.clone());
                assert!(report == *first, "{options:?}: {first}\n{report}");
            }
        }
    }
    let report = first.expect("one filter is portable");
    assert!(report["heap"]["blocks"].as_u64() > Some(2000), "{report}");
    let mut leaks = report["leaks"].as_array().unwrap().iter();
    assert!(leaks.any(|leak| leak["held_blocks"].as_u64() > Some(0)));
    assert_refused(
        &[&fixture.pid(), "--vector=abacus"],
        "this processor has portable",
    );
}

/// The times of the phases that `--verbose` shows: milliseconds and names.
fn phases(said: &str) -> Vec<(f64, &str)> {
    let lines = said.lines().filter_map(|line| line.strip_prefix("rleaks:"));
    let phases = lines.filter_map(|line| line.trim().split_once(" ms  "));
    phases
        .map(|(time, name)| (time.parse().unwrap(), name))
        .collect()
}

#[test]
fn streamed_target_stands_still_until_its_memory_was_read() {
    let fixture = generated();
    let output = rleaks(&[&fixture.pid(), "--json", "--snapshot=stream", "--verbose"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let seconds = |name: &str| report["capture"][name].as_f64().unwrap();
    let said = text(&output.stderr);
    let reading = ["extract references", "mark"].map(|wanted| {
        let phases = phases(&said);
        let phase = phases.iter().find(|(_, name)| *name == wanted);
        phase.unwrap_or_else(|| panic!("no {wanted} in {said}")).0 / 1e3
    });
    let read = reading.iter().sum::<f64>();
    assert!(seconds("longest_pause_seconds") >= read, "{said}{report}");
    assert!(
        seconds("pause_seconds") <= seconds("total_seconds"),
        "{report}"
    );
}

#[test]
fn contents_are_left_out_on_request() {
    let fixture = Fixture::start("cpp_types.cpp");
    let contents = |report: &Value| -> Vec<Value> {
        let leaks = report["leaks"].as_array().unwrap().iter();
        leaks.map(|leak| leak["content"].clone()).collect()
    };
    assert!(
        contents(&leaks(&fixture.pid()))
            .iter()
            .any(Value::is_string)
    );
    for options in [
        &["--no-content"][..],
        &["--no-content", "--snapshot=stream"],
    ] {
        let report = leaks_with(&fixture.pid(), options);
        assert_eq!(contents(&report), [Value::Null, Value::Null, Value::Null]);
    }
    let shown = shown(&fixture, &["--list", "--no-content"]);
    assert!(!shown.contains("xxxx"), "{shown}");
}

#[test]
fn report_goes_to_the_file_that_json_names() {
    let fixture = Fixture::start("kind_indirect.c");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report.json");
    let output = rleaks(&[&fixture.pid(), &format!("--json={}", path.display())]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "");
    let report: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    assert!(addresses(&report["leaks"]).keys().eq(fixture.leaks.keys()));

    let nowhere = folder.path().join("no folder").join("report.json");
    let option = format!("--json={}", nowhere.display());
    assert_refused(&[&fixture.pid(), &option], "cannot create ");
}

/// Programs under one name that nothing else has. Dropping it removes the name.
struct Namesakes(tempfile::TempDir);

impl Namesakes {
    /// In the folder of the compiled fixtures: their names are hard links.
    fn new() -> Self {
        Self(
            tempfile::Builder::new()
                .prefix("namesake")
                .tempdir_in(env!("CARGO_TARGET_TMPDIR"))
                .unwrap(),
        )
    }

    fn name(&self) -> String {
        let folder = self.0.path().file_name().unwrap().to_str().unwrap();
        folder.replace('.', "-")
    }

    /// Gives `program` the name, in a folder of its own.
    fn link(&self, program: &Path) -> PathBuf {
        let folder = self.0.path().join(program.file_name().unwrap());
        fs::create_dir_all(&folder).unwrap();
        let link = folder.join(self.name());
        if !link.exists() {
            fs::hard_link(program, &link).unwrap();
        }
        link
    }

    fn fixture(&self) -> Fixture {
        Fixture::of(&mut Command::new(self.link(&compile("kind_root_leak.c"))))
    }
}

/// The documents of `--all --json`, one a line, and the exit status.
fn all(name: &str) -> (Vec<Value>, Option<i32>, String) {
    let output = rleaks(&["--name", name, "--all", "--json"]);
    let said = text(&output.stdout);
    let documents = said.lines().map(|line| serde_json::from_str(line).unwrap());
    (
        documents.collect(),
        output.status.code(),
        text(&output.stderr),
    )
}

fn assert_each_is_reported(documents: &[Value], fixtures: &[Fixture]) {
    let pids: Vec<_> = documents
        .iter()
        .map(|d| d["target"]["pid"].as_u64())
        .collect();
    let expected: Vec<_> = fixtures.iter().map(|f| Some(f.id().into())).collect();
    assert_eq!(
        pids.iter().collect::<BTreeSet<_>>(),
        expected.iter().collect()
    );
    assert_eq!(pids.len(), expected.len());
    for fixture in fixtures {
        let document = documents
            .iter()
            .find(|d| d["target"]["pid"] == fixture.id());
        let reported = addresses(&document.unwrap()["leaks"]);
        assert!(reported.keys().eq(fixture.leaks.keys()), "{reported:x?}");
    }
}

#[test]
fn each_of_several_processes_gets_a_document() {
    let namesakes = Namesakes::new();
    let fixtures = [(); 3].map(|()| namesakes.fixture());
    let (documents, status, said) = all(&namesakes.name());
    assert_eq!(status, Some(1), "{said}");
    assert_each_is_reported(&documents, &fixtures);

    let path = namesakes.0.path().join("reports");
    let output = format!("--json={}", path.display());
    let name = namesakes.name();
    let status = rleaks(&["--name", &name, "--all", &output]).status;
    assert_eq!(status.code(), Some(1));
    let documents = fs::read_to_string(&path).unwrap();
    let documents = documents
        .lines()
        .map(|line| serde_json::from_str(line).unwrap());
    assert_each_is_reported(&documents.collect::<Vec<_>>(), &fixtures);
}

#[test]
fn process_that_cannot_be_scanned_does_not_hide_the_others() {
    let namesakes = Namesakes::new();
    let before = namesakes.fixture();
    let foreign = namesakes.link(&compile_as("echo.c", Build::Musl));
    let mut foreign = Program::start(Command::new(foreign).arg("9"));
    assert_eq!(foreign.line(), "ready");
    let fixtures = [before, namesakes.fixture()];
    let (documents, status, said) = all(&namesakes.name());
    assert_eq!(status, Some(2), "{said}");
    let complaint = format!("rleaks: cannot scan process {}\n", foreign.id());
    assert!(said.contains(&complaint), "{said}");
    assert_each_is_reported(&documents, &fixtures);

    let output = rleaks(&["heap", &namesakes.name(), "--all"]);
    assert_eq!(output.status.code(), Some(2));
    let (listed, said) = (text(&output.stdout), text(&output.stderr));
    for fixture in &fixtures {
        let line = format!("Process {}: ", fixture.pid());
        assert!(listed.contains(&line), "{listed}{said}");
    }
    assert_eq!(foreign.ask("still there?"), "still there?");
}

#[test]
fn process_that_a_debugger_holds_is_refused_by_the_name_of_the_cause() {
    let fixture = Fixture::start("kind_cycle.c");
    let pid = fixture.pid();
    let mut gdb = Command::new("gdb");
    let gdb = Program::start(gdb.args(["-nx", "-q", "-p", &pid]));
    let status = format!("/proc/{pid}/status");
    let traced = format!("TracerPid:\t{}\n", gdb.id());
    while !fs::read_to_string(&status).unwrap().contains(&traced) {
        std::thread::yield_now();
    }
    let reason = format!(
        "process {pid} is already being traced by process {}",
        gdb.id()
    );
    assert_refused(&[&pid], &reason);
    drop(gdb);
}

#[test]
fn list_has_a_line_for_each_leak() {
    let fixture = Fixture::start("cpp_types.cpp");
    let shown = shown(&fixture, &["--list"]);
    let leaks = shown.lines().filter_map(|line| line.strip_prefix("Leak: "));
    let listed = leaks.map(|line| {
        let (address, rest) = line.split_once(" size=").unwrap();
        let size = rest.split(' ').next().unwrap();
        (parse_address(address), size.parse().unwrap())
    });
    let truth = fixture.leaks.iter().map(|(&at, leak)| (at, leak.size));
    assert_eq!(difference(&listed.collect(), &truth.collect()), [""; 0]);
    assert!(
        shown.contains("  zone: glibc main arena  zoo::Tiger\n"),
        "{shown}"
    );
    assert!(shown.contains("  length: 60  \"xxxxxxxx"), "{shown}");
}

#[test]
fn types_and_sizes_have_a_line_each() {
    let fixture = Fixture::start("cpp_types.cpp");
    let shown = shown(&fixture, &["--group-by-type"]);
    let rows: Vec<_> = shown
        .lines()
        .skip_while(|line| !line.contains("COUNT"))
        .collect();
    let words = |row: &str| {
        row.split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let rows: Vec<_> = rows.into_iter().map(words).collect();
    assert_eq!(rows.len(), 4, "{shown}");
    assert_eq!(rows[0], ["COUNT", "BYTES", "TYPE"]);
    assert!(
        rows.contains(&["1", "24", "zoo::Tiger"].map(str::to_owned).to_vec()),
        "{shown}"
    );
}

#[test]
fn quiet_report_begins_with_the_totals() {
    let fixture = Fixture::start("cpp_types.cpp");
    let shown = shown(&fixture, &["--quiet"]);
    let start = format!("Process {}: ", fixture.pid());
    let lines: Vec<_> = shown.lines().take(2).collect();
    assert!(lines.iter().all(|line| line.starts_with(&start)), "{shown}");
    assert!(
        lines[1].contains(": 3 leaks for 136 total leaked bytes."),
        "{shown}"
    );
    assert!(!shown.contains("Analysis Tool"), "{shown}");
}

#[test]
fn limit_says_what_it_leaves_out() {
    let fixture = Fixture::start("cpp_types.cpp");
    let shown_one = shown(&fixture, &["--limit=1"]);
    assert_eq!(shown_one.matches("INSTANCE OF").count(), 1, "{shown_one}");
    assert!(
        shown_one.ends_with(
            "... 1 more group with 1 leak (24 bytes) not shown; raise --limit to see more\n"
        ),
        "{shown_one}"
    );
    let shown_all = shown(&fixture, &["--limit=2"]);
    assert_eq!(shown_all.matches("INSTANCE OF").count(), 2, "{shown_all}");
    assert!(!shown_all.contains("not shown"), "{shown_all}");
    assert!(shown_all.contains("<zoo::Tiger 0x"), "{shown_all}");
}
