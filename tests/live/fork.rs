//! A child of the target as its snapshot: the same answer as with a copy, and no trace of it afterwards.
//!
//! `fixtures/fork.c` is a process of which a child must not be made, or not without care. The tests of control
//! groups need root.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::generator::assert_leaks_are_exact;
use crate::harm::{assert_childless, assert_ends_well};
use crate::support::{
    Build, Container, Fixture, Program, Root, Shared, addresses, assert_refused, leaks, leaks_by,
    leaks_with, text, unprivileged,
};

pub(crate) const FORK: &str = "--snapshot=fork";

pub(crate) fn fork(pid: &str) -> Value {
    leaks_with(pid, &[FORK])
}

/// Why the target was not forked.
fn refusal(report: &Value) -> Option<String> {
    let warnings = report["warnings"].as_array().unwrap();
    let warning = warnings.iter().find(|w| w["code"] == "fork_not_used")?;
    assert_eq!(warning["bias"], "none");
    Some(warning["message"].as_str().unwrap().to_owned())
}

#[track_caller]
fn assert_forked(report: &Value) {
    assert_eq!(refusal(report), None);
    assert_eq!(report["capture"]["method"], "fork");
}

#[track_caller]
fn assert_copied(report: &Value, reason: &str) {
    let refusal = refusal(report).unwrap_or_else(|| panic!("it was forked: {report}"));
    assert!(refusal.contains(reason), "{refusal}");
    assert_eq!(report["capture"]["method"], "copy");
}

/// The process has not noticed anything.
#[track_caller]
pub(crate) fn assert_unaware(mut fixture: Fixture) {
    assert_eq!(fixture.ask("check"), "ok");
}

/// A process of this kind is forked, and the leaks are exact.
fn is_forked(kind: &str) {
    let fixture = Fixture::start_with("fork.c", &[kind]);
    let report = fork(&fixture.pid());
    assert_forked(&report);
    assert_leaks_are_exact(&fixture, &report, kind);
    assert_childless(&fixture.pid());
    assert_unaware(fixture);
}

/// A process of this kind is copied instead, for this reason.
fn is_copied(kind: &str, reason: &str) {
    let fixture = Fixture::start_with("fork.c", &[kind]);
    let report = fork(&fixture.pid());
    assert_copied(&report, reason);
    assert_leaks_are_exact(&fixture, &report, kind);
    assert_unaware(fixture);
}

#[test]
fn leaks_of_random_graphs_are_those_of_a_copy() {
    for seed in 1..4 {
        let [seed, threads] = [seed, seed * 2].map(|number| number.to_string());
        let fixture = Fixture::start_with("generator.c", &[&seed, &threads, "2000"]);
        let report = fork(&fixture.pid());
        assert_forked(&report);
        assert_leaks_are_exact(&fixture, &report, &seed);
        assert_eq!(report["leaks"], leaks(&fixture.pid())["leaks"]);
    }
}

#[test]
fn pause_is_that_of_both_stops() {
    let fixture = Fixture::start_with("fork.c", &["plain"]);
    let capture = fork(&fixture.pid())["capture"].clone();
    assert_eq!(capture["stops"], 2, "{capture}");
    let [pause, longest] =
        ["pause_seconds", "longest_pause_seconds"].map(|name| capture[name].as_f64().unwrap());
    assert!(pause > longest && longest > 0.0, "{capture}");
}

#[test]
fn memory_that_a_child_does_not_get_is_copied() {
    for kind in ["dontfork", "wipeonfork", "shared", "written_file"] {
        is_forked(kind);
    }
}

#[test]
fn wait_for_a_child_finds_its_own() {
    is_forked("waits");
}

#[test]
fn thread_that_waits_for_any_child_is_left_alone() {
    is_copied("waits_for_all", "waits for children of any kind (__WALL)");
}

/// As root: the filter is suspended. The target would be killed otherwise.
#[test]
fn seccomp_filter_is_suspended() {
    is_forked("seccomp_kill");
    is_forked("seccomp_error");
}

#[test]
fn seccomp_filter_that_may_not_be_suspended_is_left_alone() {
    let (shared, rleaks) = Shared::with_rleaks();
    let program = shared.add(&Fixture::program("fork.c"), "fork");
    for kind in ["seccomp_kill", "seccomp_error"] {
        let fixture = Fixture::of(unprivileged(&program).arg(kind));
        let report = leaks_by(unprivileged(&rleaks).args([&fixture.pid(), FORK]));
        assert_copied(&report, "a seccomp filter is on it");
        assert_leaks_are_exact(&fixture, &report, kind);
        assert_unaware(fixture);
    }
}

#[test]
fn process_of_the_same_user_is_forked_without_privileges() {
    let (shared, rleaks) = Shared::with_rleaks();
    let program = shared.add(&Fixture::program("fork.c"), "fork");
    let fixture = Fixture::of(unprivileged(&program).arg("plain"));
    let report = leaks_by(unprivileged(&rleaks).args([&fixture.pid(), FORK]));
    assert_forked(&report);
    assert_unaware(fixture);
}

#[test]
fn process_that_may_have_no_more_processes_is_copied() {
    let (shared, rleaks) = Shared::with_rleaks();
    let program = shared.add(&Fixture::program("fork.c"), "fork");
    let fixture = Fixture::of(unprivileged(&program).arg("few_processes"));
    let report = leaks_by(unprivileged(&rleaks).args([&fixture.pid(), FORK]));
    assert_copied(&report, "there may be no more processes");
    assert_leaks_are_exact(&fixture, &report, "few_processes");
    assert_unaware(fixture);
}

#[test]
fn process_that_handles_its_system_calls_is_copied() {
    is_copied("dispatch", "syscall user dispatch");
}

#[test]
fn process_that_handles_page_faults_is_copied() {
    is_copied("faults", "userfaultfd");
}

#[test]
fn process_with_background_work_is_copied() {
    is_copied("aio", "asynchronous input and output under way (aio)");
    let fixture = Fixture::start("root_io_uring.c");
    let report = fork(&fixture.pid());
    assert_copied(
        &report,
        "asynchronous input and output under way (io_uring)",
    );
}

#[test]
fn process_whose_children_are_in_another_namespace_is_copied() {
    is_copied("namespace", "its children are in another pid namespace");
}

#[test]
fn process_that_is_in_no_system_call_is_copied() {
    let fixture = Fixture::start_with("fork.c", &["spins"]);
    assert_copied(
        &fork(&fixture.pid()),
        "no thread of it was found in a system call",
    );
}

#[test]
fn process_that_runs_before_all_others_is_forked() {
    is_forked("real_time");
}

#[test]
fn process_of_32_bits_is_copied() {
    let fixture = Fixture::start_built("generator.c", Build::I386, &["3", "2", "1000"]);
    let report = fork(&fixture.pid());
    assert_copied(&report, "it is not a 64-bit program");
    assert_leaks_are_exact(&fixture, &report, "i386");
}

#[test]
fn parent_in_vfork_is_copied() {
    let mut fixture = Fixture::start_with("blocked.c", &["vfork_parent"]);
    assert_copied(
        &fork(&fixture.pid()),
        "sleeps in the kernel and could not be stopped",
    );
    let answer = fixture.ask("finish");
    assert!(answer.starts_with("result 0 0 "), "{answer}");
}

#[test]
fn process_that_job_control_has_stopped_is_copied() {
    let fixture = Fixture::start_with("fork.c", &["plain"]);
    let pid = fixture.pid();
    signal(&pid, "STOP");
    wait_for_state(&pid, 'T');
    assert_copied(&fork(&pid), "job control has stopped it");
    wait_for_state(&pid, 'T');
    signal(&pid, "CONT");
    assert_unaware(fixture);
}

pub(crate) fn signal(pid: &str, name: &str) {
    let status = Command::new("kill")
        .args([&format!("-{name}"), pid])
        .status();
    assert!(status.unwrap().success(), "kill -{name} {pid}");
}

fn wait_for_state(pid: &str, state: char) {
    let wanted = format!("State:\t{state}");
    wait_until(&wanted, || {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        status.contains(&wanted)
    });
}

pub(crate) fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "never: {what}");
        sleep(Duration::from_millis(1));
    }
}

/// A tracer of the kernel's own has breakpoints in the code, one of them where the thread returns to that makes the
/// child: they go on counting.
#[test]
fn process_with_probes_is_forked() {
    is_forked("probes");
    let mut fixture = Fixture::start_with("fork.c", &["probes"]);
    for _ in 0..5 {
        assert_forked(&fork(&fixture.pid()));
    }
    let (status, _) = fixture.finish();
    assert!(status.success(), "the thread did not return: {status}");
}

#[test]
fn threads_that_come_and_go_do_not_keep_it_from_being_forked() {
    let fixture = Fixture::start_with("fork.c", &["storm"]);
    let mut forks = 0;
    for _ in 0..5 {
        forks += u32::from(refusal(&fork(&fixture.pid())).is_none());
    }
    assert!(forks > 0, "it was never forked");
    assert_childless(&fixture.pid());
    assert_unaware(fixture);
}

/// Each signal arrives once, in order, whatever is going on.
#[test]
fn signals_arrive_once_and_in_order() {
    let fixture = Fixture::start_with("fork.c", &["signals"]);
    let mut forks = 0;
    for _ in 0..20 {
        let report = fork(&fixture.pid());
        forks += u32::from(report["capture"]["method"] == "fork");
    }
    assert!(forks > 0, "it was never forked");
    assert_unaware(fixture);
}

#[test]
fn registers_are_what_they_were() {
    let mut fixture = Fixture::start("busy.c");
    for _ in 0..5 {
        fork(&fixture.pid());
    }
    assert_eq!(fixture.ask("progress").split(' ').next(), Some("progress"));
    assert_ends_well(fixture);
}

/// Inside, the child has another id than outside.
#[test]
fn container_is_forked_from_outside_and_from_inside() {
    let container = Container::start(Root::Tmpfs, "generator.c", &["11", "4", "2000"]);
    let fixture = &container.fixture;
    let outside = fork(&fixture.pid());
    assert_forked(&outside);
    assert_leaks_are_exact(fixture, &outside, "outside");
    let inside = leaks_by(container.rleaks().args(["1", FORK]));
    assert_forked(&inside);
    assert_leaks_are_exact(fixture, &inside, "inside");
    assert_childless(&fixture.pid());
}

/// A control group of the kernel's second or first version. It is removed when it is dropped.
struct Group(PathBuf);

impl Group {
    fn new(controller: &str) -> Self {
        let own = format!("/sys/fs/cgroup/{controller}");
        let root = if Path::new(&own).exists() {
            own
        } else {
            "/sys/fs/cgroup".to_owned()
        };
        let name = format!("rleaks-test-{controller}-{}", std::process::id());
        let folder = Path::new(&root).join(name);
        fs::create_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        Self(folder)
    }

    fn limit(&self, files: &[&str], value: u64) {
        let file = files
            .iter()
            .map(|file| self.0.join(file))
            .find(|file| file.exists());
        let file = file.expect("a kernel with this controller, and root");
        fs::write(file, value.to_string()).unwrap();
    }

    fn add(&self, pid: &str) {
        fs::write(self.0.join("cgroup.procs"), pid).unwrap();
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // It may be in use for a moment after the end of its last process.
        let deadline = Instant::now() + Duration::from_secs(5);
        while fs::remove_dir(&self.0).is_err() && Instant::now() < deadline {
            sleep(Duration::from_millis(5));
        }
    }
}

#[test]
fn full_control_group_is_left_alone() {
    let group = Group::new("pids");
    let fixture = Fixture::start_with("fork.c", &["plain"]);
    group.add(&fixture.pid());
    group.limit(&["pids.max"], 2);
    let report = fork(&fixture.pid());
    assert_copied(
        &report,
        "its control group has room for 1 more processes only",
    );
    assert_unaware(fixture);
}

#[test]
fn control_group_with_too_little_memory_is_left_alone() {
    let group = Group::new("memory");
    let fixture = Fixture::start_with("generator.c", &["5", "2", "5000"]);
    group.add(&fixture.pid());
    // What was there before is charged to whom it was.
    group.limit(&["memory.max", "memory.limit_in_bytes"], 1 << 20);
    let report = fork(&fixture.pid());
    assert_copied(&report, "and its control group has");
    assert_leaks_are_exact(&fixture, &report, "a control group");
}

/// Strict overcommit is a setting of the whole system: rleaks is shown another one.
#[test]
fn strict_overcommit_is_left_alone() {
    let fixture = Fixture::start_with("fork.c", &["plain"]);
    let script = "f=$(mktemp) && echo 2 > $f && mount --bind $f /proc/sys/vm/overcommit_memory && \
                  rm $f; exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script, "sh"]);
    command.args([env!("CARGO_BIN_EXE_rleaks"), &fixture.pid(), FORK]);
    assert_copied(&leaks_by(&mut command), "vm.overcommit_memory is 2");
}

/// Real programs of others go on, and are not left with a child.
fn other_program_is_forked(command: &mut Command, is_ready: impl Fn(&str) -> bool) {
    let mut program = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let pid = program.id().to_string();
    wait_until("it is ready", || is_ready(&pid));
    let report = fork(&pid);
    let copy = leaks(&pid);
    assert_childless(&pid);
    assert_eq!(program.try_wait().unwrap(), None, "it has ended");
    program.kill().unwrap();
    program.wait().unwrap();
    assert_forked(&report);
    assert_eq!(addresses(&report["leaks"]), addresses(&copy["leaks"]));
}

fn threads(pid: &str) -> usize {
    fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count)
}

#[test]
fn python_with_threads_is_forked() {
    const SCRIPT: &str = "import threading, time\n\
                          data = [bytearray(1000) for _ in range(10000)]\n\
                          for _ in range(4): threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()\n\
                          time.sleep(1000)";
    // Not a shell script that stands for it.
    let found = Command::new("python3")
        .args(["-c", "import sys; print(sys.executable)"])
        .output();
    let python = text(&found.unwrap().stdout).trim().to_owned();
    other_program_is_forked(Command::new(python).args(["-c", SCRIPT]), |pid| {
        threads(pid) == 5
    });
}

#[test]
fn bash_is_forked() {
    let mut bash = Program::start(Command::new("bash").args(["--norc", "-s"]));
    let mut ask = || {
        bash.tell("sleep 0.01 & wait $!; echo $? $(echo sub)");
        bash.line()
    };
    assert_eq!(ask(), "0 sub");
    let pid = bash.pid();
    assert_forked(&fork(&pid));
    let mut ask = || {
        bash.tell("sleep 0.01 & wait $!; echo $? $(echo sub)");
        bash.line()
    };
    assert_eq!(ask(), "0 sub");
    assert_childless(&pid);
}

/// A process with so much memory that a copy takes longer than a child.
fn large_process() -> Program {
    const SCRIPT: &str = "b = b'x' * (400 << 20); print('ready', flush=True); input()";
    let found = Command::new("python3")
        .args(["-c", "import sys; print(sys.executable)"])
        .output();
    let python = text(&found.unwrap().stdout).trim().to_owned();
    let mut program = Program::start(Command::new(python).args(["-c", SCRIPT]));
    assert_eq!(program.line(), "ready");
    program
}

#[test]
fn pause_that_is_too_long_is_refused_with_what_would_be_short_enough() {
    let program = large_process();
    let pid = program.pid();
    assert_refused(&[&pid, "--max-pause=30"], ": --snapshot=fork allows that");
    assert_refused(
        &[&pid, "--max-pause=30", "--snapshot=stream"],
        "stops it for 30 ms at most: copy for about",
    );
    let report = leaks_with(&pid, &["--max-pause=30", FORK]);
    assert_forked(&report);
    let report = leaks_with(&pid, &["--max-pause=600000"]);
    assert_eq!(report["capture"]["method"], "copy");
}

#[test]
fn pause_that_nothing_keeps_to_is_refused() {
    let fixture = Fixture::start_with("fork.c", &["plain"]);
    for options in [&["--max-pause=1"][..], &["--max-pause=1", FORK]] {
        assert_refused(
            &[&[fixture.pid().as_str()], options].concat(),
            "stops it for 1 ms at most",
        );
    }
    assert_unaware(fixture);
}
