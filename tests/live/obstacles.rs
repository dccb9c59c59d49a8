//! What keeps rleaks from a process, each for real: the message names it and says what to do.
//!
//! They need root, to start processes of other users, and a kernel with Landlock. Yama and other
//! security modules cannot be switched on by a test: the tables in `platform/linux/obstacles.rs` have them.

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::{Container, Fixture, Root, Shared, addresses, rleaks_command, unprivileged};

/// `command` ends with status 2, prints nothing on standard output, and says `expected`.
fn assert_refused(command: &mut Command, expected: &str) {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains(expected), "{expected:?} is not in {said:?}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(output.stdout.is_empty());
}

/// A process of `uid` 65534 that runs `program` with the argument `what`.
fn unprivileged_fixture(shared: &Shared, file: &str, what: &[&str]) -> Fixture {
    let program = shared.add(&Fixture::program(file), "fixture");
    Fixture::start_by(unprivileged(&program).args(what))
}

#[test]
fn no_such_process_is_said() {
    assert_refused(
        rleaks_command().arg("4194305"),
        "no process has pid 4194305",
    );
}

#[test]
fn zombie_is_said() {
    let mut child = Command::new("true").stdout(Stdio::piped()).spawn().unwrap();
    // The pipe is closed while the child ends, a moment before it is a zombie.
    child
        .stdout
        .take()
        .unwrap()
        .read_to_end(&mut Vec::new())
        .unwrap();
    let stat = format!("/proc/{}/stat", child.id());
    while !fs::read_to_string(&stat).unwrap().contains(") Z ") {
        std::thread::yield_now();
    }
    let mut rleaks = rleaks_command();
    assert_refused(
        rleaks.arg(child.id().to_string()),
        "(true) has ended and its memory is gone",
    );
    child.wait().unwrap();
}

#[test]
fn kernel_thread_is_said() {
    let is_kernel_thread = |pid: &String| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // Its parent is kthreadd, or it is kthreadd.
        stat.starts_with("2 (kthreadd) ")
            || stat
                .rsplit(") ")
                .next()
                .is_some_and(|rest| rest.split(' ').nth(1) == Some("2"))
    };
    let pids = fs::read_dir("/proc").unwrap();
    let mut pids = pids.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let Some(pid) = pids.find(is_kernel_thread) else {
        panic!("no kernel thread is visible here: run the test outside of a pid namespace");
    };
    assert_refused(
        rleaks_command().arg(pid),
        "is a kernel thread: it has no memory",
    );
}

#[test]
fn own_process_is_said() {
    let script = format!("exec {} $$", env!("CARGO_BIN_EXE_rleaks"));
    let mut shell = Command::new("sh");
    assert_refused(shell.args(["-c", &script]), "is this rleaks itself");
}

#[test]
fn ancestor_is_not_meant_by_its_name_but_named() {
    let shared = Shared::new();
    let shell = shared.add(Path::new("/bin/sh"), "rleaks-ancestor");
    let script = format!(
        "{} --name rleaks-ancestor; exit $?",
        env!("CARGO_BIN_EXE_rleaks")
    );
    assert_refused(
        Command::new(shell).args(["-c", &script]),
        "no process is named rleaks-ancestor but rleaks itself or those that it was started from",
    );
}

#[test]
fn process_of_another_user_is_said_with_the_uid() {
    let (_shared, rleaks) = Shared::with_rleaks();
    let target = Fixture::start("kind_cycle.c");
    assert_refused(
        unprivileged(&rleaks).arg(target.pid()),
        "belongs to another user, uid 0: run rleaks with sudo, or give it the capability",
    );
}

#[test]
fn root_without_the_capability_is_told_so() {
    let shared = Shared::new();
    let target = unprivileged_fixture(&shared, "kind_cycle.c", &[]);
    let mut rleaks = Command::new("setpriv");
    rleaks.args(["--inh-caps=-all", "--bounding-set=-sys_ptrace"]);
    rleaks.args([env!("CARGO_BIN_EXE_rleaks"), &target.pid()]);
    assert_refused(
        &mut rleaks,
        "uid 65534: rleaks runs as root, but without the capability cap_sys_ptrace; in a \
         container, start that with --cap-add=SYS_PTRACE",
    );
}

#[test]
fn process_with_more_capabilities_is_said() {
    let target = Fixture::start("kind_cycle.c");
    let mut rleaks = Command::new("setpriv");
    rleaks.args(["--inh-caps=-all", "--bounding-set=-sys_ptrace"]);
    rleaks.args([env!("CARGO_BIN_EXE_rleaks"), &target.pid()]);
    assert_refused(
        &mut rleaks,
        "has capabilities that rleaks lacks: rleaks runs as root, but without",
    );
}

#[test]
fn set_uid_program_of_the_same_user_is_said() {
    let (shared, rleaks) = Shared::with_rleaks();
    let program = shared.add(&Fixture::program("kind_cycle.c"), "fixture");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o4755)).unwrap();
    let target = Fixture::start_by(&mut unprivileged(&program));
    assert_refused(
        unprivileged(&rleaks).arg(target.pid()),
        "belongs to another user, uid 0: run rleaks with sudo",
    );
}

#[test]
fn own_process_of_an_unprivileged_user_is_scanned() {
    let (shared, rleaks) = Shared::with_rleaks();
    let target = unprivileged_fixture(&shared, "kind_cycle.c", &[]);
    let output = unprivileged(&rleaks).arg(target.pid()).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
}

#[test]
fn undumpable_process_of_the_same_user_is_said() {
    let (shared, rleaks) = Shared::with_rleaks();
    let target = unprivileged_fixture(&shared, "obstacle.c", &["undumpable"]);
    assert_refused(
        unprivileged(&rleaks).arg(target.pid()),
        "is protected from being read (it is set-uid or set-gid, has file capabilities, or called \
         prctl(PR_SET_DUMPABLE, 0)): run rleaks with sudo",
    );
}

#[test]
fn tracer_is_named() {
    let target = Fixture::start("kind_cycle.c");
    let tracer = Fixture::start_with("obstacle.c", &["trace", &target.pid()]);
    let expected = format!(
        "is already being traced by process {} (obstacle",
        tracer.pid()
    );
    assert_refused(rleaks_command().arg(target.pid()), &expected);
}

#[test]
fn tracer_outside_of_the_container_is_suspected_inside() {
    let container = Container::start(Root::Tmpfs, "kind_cycle.c", &[]);
    let _tracer = Fixture::start_with("obstacle.c", &["trace", &container.fixture.pid()]);
    assert_refused(
        container.rleaks().arg("1"),
        "does not let rleaks trace process 1, though it has the capability cap_sys_ptrace: a \
         tracer outside of this container may hold the process",
    );
}

#[test]
fn hidden_process_is_said() {
    let (_shared, rleaks) = Shared::with_rleaks();
    let target = Fixture::start("kind_cycle.c");
    let script = format!(
        "mount -t proc -o hidepid=2 proc /proc && exec setpriv --reuid=65534 --regid=65534 \
         --clear-groups --inh-caps=-all --bounding-set=-all {} {}",
        rleaks.display(),
        target.pid()
    );
    let mut hidden = Command::new("unshare");
    assert_refused(
        hidden.args(["--mount", "sh", "-c", &script]),
        "belongs to another user and is hidden (/proc is mounted with hidepid)",
    );
}

/// rleaks, started through the fixture that puts something in its way.
fn hindered(how: &[&str], pid: &str) -> Command {
    let mut command = Command::new(Fixture::program("obstacle.c"));
    command.args(how).args([env!("CARGO_BIN_EXE_rleaks"), pid]);
    command
}

#[test]
fn seccomp_filter_on_rleaks_is_said() {
    let target = Fixture::start("kind_cycle.c");
    for error in [nix::libc::EPERM, nix::libc::EACCES, nix::libc::ENOSYS] {
        let mut rleaks = hindered(&["filter", &error.to_string(), "ptrace"], &target.pid());
        assert_refused(
            &mut rleaks,
            "a seccomp filter keeps rleaks from tracing process",
        );
    }
}

/// It reads through `/proc/PID/mem` then.
#[test]
fn seccomp_filter_against_reading_memory_is_no_obstacle() {
    let target = Fixture::start("kind_cycle.c");
    for error in [nix::libc::EPERM, nix::libc::ENOSYS] {
        let how = ["filter", &error.to_string(), "process_vm_readv"];
        let output = hindered(&how, &target.pid())
            .arg("--json")
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let found = addresses(&report["leaks"]);
        assert!(found.keys().eq(target.leaks.keys()), "{found:x?}");
    }
}

#[test]
fn landlock_around_rleaks_is_said() {
    let target = Fixture::start("kind_cycle.c");
    let expected = "Landlock keeps rleaks from tracing process";
    assert_refused(&mut hindered(&["landlock"], &target.pid()), expected);

    let (shared, rleaks) = Shared::with_rleaks();
    let obstacle = shared.add(&Fixture::program("obstacle.c"), "obstacle");
    let target = unprivileged_fixture(&shared, "kind_cycle.c", &[]);
    let mut command = unprivileged(&obstacle);
    command.arg("landlock").arg(rleaks).arg(target.pid());
    assert_refused(&mut command, expected);
}

/// With a filter that does not forbid ptrace, Landlock is still what it is.
#[test]
fn landlock_is_told_from_a_filter() {
    let target = Fixture::start("kind_cycle.c");
    let program = Fixture::program("obstacle.c");
    let error = nix::libc::EPERM.to_string();
    for (inner, expected) in [
        ("process_vm_readv", "Landlock keeps rleaks from tracing"),
        ("ptrace", "Landlock keeps rleaks from tracing"),
    ] {
        let filter = [
            "filter",
            &error,
            inner,
            program.to_str().unwrap(),
            "landlock",
        ];
        assert_refused(&mut hindered(&filter, &target.pid()), expected);
    }
}

#[test]
fn sandbox_that_hides_the_contents_of_proc_is_said() {
    let target = Fixture::start("kind_cycle.c");
    let folder = Path::new(env!("CARGO_BIN_EXE_rleaks")).parent().unwrap();
    let how = ["landlock-files", folder.to_str().unwrap()];
    assert_refused(
        &mut hindered(&how, &target.pid()),
        "rleaks may not read the files of /proc, although they are there: a sandbox (Landlock)",
    );
}

#[test]
fn user_namespace_without_rights_is_said() {
    let expected = "is in another user namespace, in which rleaks has no rights";
    let outside = Fixture::start("kind_cycle.c");
    let in_a_namespace = |program: &Path| {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user"]).arg(program);
        command
    };
    let beside = Fixture::start_by(&mut in_a_namespace(&Fixture::program("kind_cycle.c")));
    for target in [outside, beside] {
        let mut rleaks = in_a_namespace(Path::new(env!("CARGO_BIN_EXE_rleaks")));
        assert_refused(rleaks.arg(target.pid()), expected);
    }
}

#[test]
fn emulator_is_said() {
    let shared = Shared::new();
    let emulator = shared.add(&Fixture::program("kind_cycle.c"), "qemu-aarch64");
    let target = Fixture::start_by(&mut Command::new(emulator));
    assert_refused(
        rleaks_command().arg(target.pid()),
        "is run by the emulator qemu-aarch64",
    );
}
