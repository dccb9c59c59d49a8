//! The command line as a user meets it: help, usage errors, and which process is meant.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use tempfile::TempDir;

fn rleaks(arguments: &[&str]) -> Output {
    rleaks_in(Path::new("."), arguments)
}

fn rleaks_in(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rleaks"));
    let command = command
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::null());
    command.output().expect("rleaks starts")
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Asserts that rleaks could not do its work, printed no result, and gave `reason`.
#[track_caller]
fn assert_refused(output: &Output, reason: &str) {
    let said = stderr(output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert_eq!(stdout(output), "");
    assert!(said.contains(reason), "{reason:?} is not in:\n{said}");
}

/// A program under a name that nothing else has, and the processes that run it.
struct Program {
    folder: TempDir,
    name: String,
    running: Vec<Child>,
}

impl Program {
    /// A copy of `cat`, which waits until its standard input is closed.
    fn new(name: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        // The names of two runs of the tests at the same time differ.
        let name = format!("{name}-{}", std::process::id());
        // Another process copies it: a test that starts a process at the same moment would inherit
        // the open file of a copy made here, and a file that is open for writing cannot be run.
        let copied = Command::new("cp")
            .arg("/bin/cat")
            .arg(folder.path().join(&name))
            .status();
        assert!(copied.expect("cp starts").success());
        let running = Vec::new();
        Self {
            folder,
            name,
            running,
        }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join(&self.name)
    }

    /// Starts it, waits until it runs its own code, and returns its pid.
    fn start(&mut self, argument: &str) -> u32 {
        let mut child = Command::new(self.path())
            .args(["/dev/null", argument, "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the copy of cat starts");
        // It complains of `argument`, which is no file.
        let mut complaint = [0; 1];
        let mut said = child.stderr.take().expect("a pipe");
        said.read_exact(&mut complaint).expect("a complaint");
        child.stderr = Some(said);
        let pid = child.id();
        self.running.push(child);
        pid
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        for child in &mut self.running {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The pids of the table that rleaks prints, in its order.
fn listed_pids(said: &str) -> Vec<u32> {
    let first_words = said
        .lines()
        .filter_map(|line| line.split_whitespace().next());
    first_words.filter_map(|word| word.parse().ok()).collect()
}

#[test]
fn help_is_no_error_and_goes_to_standard_output() {
    for flag in ["--help", "-h"] {
        let output = rleaks(&[flag]);
        assert_eq!(output.status.code(), Some(0));
        assert!(stdout(&output).contains("Exit status:\n  0  no leaks were found"));
        assert_eq!(stderr(&output), "");
    }
    let version = stdout(&rleaks(&["--version"]));
    assert_eq!(version, format!("rleaks {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn without_arguments_the_help_goes_to_standard_error() {
    assert_refused(&rleaks(&[]), "Usage: rleaks");
}

#[test]
fn wrong_usage_is_exit_status_2() {
    for (arguments, reason) in [
        (&["--no-such-option"][..], "--no-such-option"),
        (&["--newest"], "required"),
        (&["1", "--name", "app"], "cannot be used with"),
        (&["app", "--newest", "--oldest"], "cannot be used with"),
        (&["app", "--all", "--newest"], "cannot be used with"),
        (
            &["1", "--no-roots=heap"],
            "[possible values: globals, stacks",
        ),
        (&["schema", "--json"], "unexpected argument"),
        (&["schema", "extra"], "[possible values: report, diff]"),
        (&["demo", "extra"], "unexpected argument"),
        (&["heap"], "required"),
        (&["--at-exit"], "required"),
        (&["--at-exit", "1"], "cannot be used with"),
        (&["--at-exit", "--all", "--", "app"], "cannot be used with"),
        (&["--", "app"], "--at-exit"),
        (&["record", "app"], "unexpected argument"),
        (&["record"], "required"),
        (&["completions", "cmd"], "[possible values: bash"),
    ] {
        assert_refused(&rleaks(arguments), reason);
    }
}

#[test]
fn a_pid_that_no_process_has_is_refused() {
    for digits in ["4194305", "0", "99999999999999999999"] {
        assert_refused(
            &rleaks(&[digits]),
            &format!("rleaks: no process has pid {digits}: "),
        );
    }
}

#[test]
fn a_name_that_no_process_has_is_refused() {
    assert_refused(
        &rleaks(&["no-such-process-here"]),
        "no process is named no-such-process-here",
    );
    assert_refused(
        &rleaks(&["--name", "4194305"]),
        "no process is named 4194305",
    );
    assert_refused(&rleaks(&["--list", "demo"]), "the command demo comes first");
    assert_refused(
        &rleaks(&["heap", "no-such-process-here"]),
        "no process is named",
    );
}

#[test]
fn a_file_that_is_no_snapshot_is_refused() {
    let reason = "cannot scan ";
    assert_refused(&rleaks(&["./somewhere"]), &format!("{reason}./somewhere"));

    let folder = tempfile::tempdir().expect("a folder");
    let mut core = *b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x04\0\x3e\0";
    fs::write(folder.path().join("core.77"), core).expect("a core file");
    core[16] = 3;
    fs::write(folder.path().join("library"), core).expect("another file");
    let refused = rleaks_in(folder.path(), &["core.77"]);
    assert_refused(&refused, &format!("{reason}core.77"));
    let refused = rleaks_in(folder.path(), &["library"]);
    assert_refused(&refused, "no process is named library");
    let refused = rleaks_in(folder.path(), &["--name", "core.77"]);
    assert_refused(&refused, "no process is named core.77");
}

#[test]
fn several_processes_of_a_name_are_shown_as_a_table() {
    // The name is longer than what the kernel keeps of it.
    let mut program = Program::new("rleaks-test-table");
    let pids = [program.start("first"), program.start("second")];
    let output = rleaks(&[&program.name]);
    let name = &program.name;
    assert_refused(
        &output,
        &format!("rleaks: 2 processes are named {name}: give a pid, or choose"),
    );
    let said = stderr(&output);
    assert!(
        said.contains("  PID  USER") || said.contains("PID  USER"),
        "{said}"
    );
    assert!(said.contains("first") && said.contains("second"), "{said}");
    let mut listed = listed_pids(&said);
    listed.sort_unstable();
    let mut expected = pids;
    expected.sort_unstable();
    assert_eq!(listed, expected);
}

#[test]
fn newest_oldest_and_all_choose_by_start() {
    let mut program = Program::new("rleaks-test-choice");
    let pids = [program.start("first"), program.start("second")];
    let meant = |option: &str| {
        let output = rleaks(&["--name", &program.name, option]);
        let said = stdout(&output) + &stderr(&output);
        pids.map(|pid| said.contains(&format!("rocess {pid}")))
    };
    // Two processes of the same clock tick are ordered by pid.
    let [newest, oldest] = [meant("--newest"), meant("--oldest")];
    assert_ne!(newest, oldest);
    assert_eq!(
        newest.iter().chain(&oldest).filter(|meant| **meant).count(),
        2
    );
}

#[test]
fn a_choice_among_no_processes_is_refused() {
    for option in ["--newest", "--oldest", "--all"] {
        let output = rleaks(&["no-such-process-here", option]);
        assert_refused(&output, "no process is named no-such-process-here");
    }
}

#[test]
fn a_process_whose_file_was_removed_keeps_its_name() {
    let mut program = Program::new("rleaks-test-removed");
    program.start("first");
    program.start("second");
    fs::remove_file(program.path()).expect("the file is removed");
    assert_refused(&rleaks(&[&program.name]), "2 processes are named");
}

#[test]
fn completions_and_manual_page_are_printed() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = rleaks(&["completions", shell]);
        assert_eq!(output.status.code(), Some(0), "{shell}");
        assert!(stdout(&output).contains("no-content"), "{shell}");
        assert!(!stdout(&output).contains("panic"), "{shell}");
    }
    let page = stdout(&rleaks(&["man"]));
    assert!(page.contains(".TH rleaks 1"), "{page}");
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_rleaks"))
        .arg("man")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("rleaks starts");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(stderr(&output), "");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn the_demo_target_says_what_it_leaks_and_waits() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_rleaks"))
        .arg("demo-target")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    drop(child.stdin.take());
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(0));
    insta::assert_snapshot!(stdout(&output), @r"
    a string of 67 bytes
    a string of 61 bytes
    a string of 36 bytes
    a linked list of 4 nodes with a name each
    2 objects that reference each other, with a name each
    ready
    ");
}

#[test]
fn the_readme_names_every_command_and_option() {
    let help = stdout(&rleaks(&["--help"]));
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let readme = fs::read_to_string(path).expect("README.md");
    let is_name = |c: char| c.is_ascii_lowercase() || c == '-';
    for line in help.lines().map(str::trim_start) {
        let Some(at) = line.find("--").filter(|_| line.starts_with('-')) else {
            continue;
        };
        let end = line[at..].find(|c| !is_name(c)).unwrap_or(line.len() - at);
        let option = &line[at..at + end];
        let described_by_itself = ["--help", "--version"].contains(&option);
        assert!(
            described_by_itself || readme.contains(option),
            "README.md lacks {option}"
        );
    }
    for command in [
        "demo",
        "doctor",
        "heap",
        "record",
        "preload-path",
        "schema",
        "completions",
        "man",
    ] {
        let call = format!("rleaks {command}");
        assert!(readme.contains(&call), "README.md lacks {call}");
    }
}
