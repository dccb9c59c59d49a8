//! Signals to rleaks and to its target, and readers that do not read: the target goes on.

use std::fs;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use crate::harm::{assert_ends_well, assert_goes_on};
use crate::support::{Fixture, addresses, leaks, leaks_with, number_from_environment, text};

fn send(pid: u32, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal).unwrap();
}

/// The value of a line of `/proc/.../status`, for each thread of process `pid`.
fn threads(pid: u32, line: &str) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    // A thread may end while its line is read.
    let texts = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("status")).ok());
    let value = |text: String| {
        Some(
            text.lines()
                .find_map(|l| l.strip_prefix(line))?
                .trim()
                .to_owned(),
        )
    };
    texts.filter_map(value).collect()
}

fn state(pid: u32) -> Vec<char> {
    threads(pid, "State:")
        .iter()
        .filter_map(|state| state.chars().next())
        .collect()
}

/// No thread is stopped by a tracer, nor traced.
fn is_released(pid: u32) -> bool {
    !state(pid).contains(&'t')
        && threads(pid, "TracerPid:")
            .iter()
            .all(|tracer| tracer == "0")
}

/// A process with so much memory that a scan of it takes its time.
fn busy() -> Fixture {
    Fixture::start_with("busy.c", &["100000"])
}

/// Says whether a thread is one of process `pid` or of a child of it: rleaks is two processes.
fn belongs_to(tid: &str, pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{tid}/status")).unwrap_or_default();
    ["Tgid", "PPid"]
        .iter()
        .any(|line| status.contains(&format!("\n{line}:\t{pid}\n")))
}

/// Starts rleaks on `pid` and waits until it holds all threads.
fn scan_that_holds(pid: u32) -> Child {
    let mut scan = Command::new(env!("CARGO_BIN_EXE_rleaks"))
        .args([&pid.to_string(), "--snapshot=stream", "--json"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .unwrap();
    loop {
        let stopped = state(pid).iter().all(|state| *state == 't');
        let tracers = threads(pid, "TracerPid:");
        if stopped && tracers.iter().all(|tracer| belongs_to(tracer, scan.id())) {
            return scan;
        }
        assert_eq!(
            scan.try_wait().unwrap(),
            None,
            "it ended before it was seen to hold the target"
        );
        std::thread::yield_now();
    }
}

#[test]
fn interrupted_scan_lets_its_target_go_on() {
    let mut busy = busy();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let scan = scan_that_holds(busy.id());
        send(scan.id(), signal);
        let output = scan.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{signal}: {output:?}");
        let said = text(&output.stderr);
        assert!(said.ends_with("interrupted\n"), "{said}");
        assert!(is_released(busy.id()), "{:?}", state(busy.id()));
        assert_goes_on(&mut busy);
    }
    assert_ends_well(busy);
}

/// What Ctrl-Z and a background job's use of the terminal do, to all processes of a job. Whether
/// they stop rleaks depends on its session; while it holds the target they must not.
#[test]
fn scan_that_is_to_stop_lets_its_target_go_on_first() {
    let mut busy = busy();
    for signal in [Signal::SIGTSTP, Signal::SIGTTIN, Signal::SIGTTOU] {
        let mut scan = scan_that_holds(busy.id());
        let job = Pid::from_raw(i32::try_from(scan.id()).unwrap());
        killpg(job, signal).unwrap();
        // For ever, if rleaks stopped as it was asked to.
        while !is_released(busy.id()) {
            std::thread::yield_now();
        }
        assert_goes_on(&mut busy);
        while scan.try_wait().unwrap().is_none() {
            killpg(job, Signal::SIGCONT).unwrap();
            std::thread::yield_now();
        }
        let status = scan.wait().unwrap().code();
        assert!(matches!(status, Some(0 | 1)), "{signal}: {status:?}");
    }
    assert_ends_well(busy);
}

/// The worker of an rleaks: the one child that it has.
fn worker(scan: &Child) -> u32 {
    let path = format!("/proc/{0}/task/{0}/children", scan.id());
    fs::read_to_string(path).unwrap().trim().parse().unwrap()
}

/// A bug, or a page fault that is never served, would do the same as this stop of the worker.
#[test]
fn scan_that_hangs_is_ended_and_its_target_goes_on() {
    let mut busy = busy();
    let scan = scan_that_holds(busy.id());
    send(worker(&scan), Signal::SIGSTOP);
    assert!(!is_released(busy.id()), "it let go before it was stopped");
    let output = scan.wait_with_output().unwrap();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(
        said.starts_with("rleaks: the target was stopped for too long, so it was let go"),
        "{said}"
    );
    assert!(is_released(busy.id()), "{:?}", state(busy.id()));
    assert_goes_on(&mut busy);
    assert_ends_well(busy);
}

/// Signals that the process ignores, and that are dropped without anybody's notice, are queued while
/// threads are traced: no call of another thread may end for it.
#[test]
fn ignored_signals_end_no_call_of_any_thread() {
    let mut fixture = Fixture::start_with("ignored_signals.c", &["blocked"]);
    for _ in 0..number_from_environment("RLEAKS_SPRAYS", 10) {
        leaks(&fixture.pid());
    }
    let answer = fixture.ask("stop");
    assert!(answer.starts_with("ok "), "{answer}");
}

#[test]
fn reader_that_does_not_read_holds_rleaks_and_not_the_target() {
    for method in ["--snapshot=copy", "--snapshot=stream"] {
        let mut fixture = Fixture::start_with("generator.c", &["5", "3", "4000"]);
        let mut scan = Command::new(env!("CARGO_BIN_EXE_rleaks"))
            .args([&fixture.pid(), method, "--json"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut pipe = scan.stdout.take().unwrap();
        let mut document = vec![0];
        pipe.read_exact(&mut document).unwrap();
        // It writes now, more than a pipe holds.
        assert!(is_released(fixture.id()), "{:?}", state(fixture.id()));
        assert!(fixture.finish().0.success());
        assert_eq!(
            scan.try_wait().unwrap(),
            None,
            "all of the report went into the pipe"
        );
        pipe.read_to_end(&mut document).unwrap();
        assert!(document.len() > 1 << 16, "{} bytes", document.len());
        let report: serde_json::Value = serde_json::from_slice(&document).unwrap();
        assert_eq!(addresses(&report["leaks"]).len(), fixture.leaks.len());
        assert_eq!(scan.wait().unwrap().code(), Some(1));
    }
}

#[test]
fn stopped_target_is_scanned_and_stays_stopped() {
    for method in ["--snapshot=copy", "--snapshot=stream"] {
        let mut fixture = Fixture::start_with("generator.c", &["6", "3", "1000"]);
        send(fixture.id(), Signal::SIGSTOP);
        while !state(fixture.id()).iter().all(|state| *state == 'T') {
            std::thread::yield_now();
        }
        let report = leaks_with(&fixture.pid(), &[method]);
        let reported = addresses(&report["leaks"]);
        assert!(reported.keys().eq(fixture.leaks.keys()), "{method}");
        assert!(is_released(fixture.id()), "{:?}", state(fixture.id()));
        assert!(state(fixture.id()).iter().all(|state| *state == 'T'));
        send(fixture.id(), Signal::SIGCONT);
        assert!(fixture.finish().0.success());
    }
}
