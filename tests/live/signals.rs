//! Signals to rleaks and to its target, and readers that do not read: the target goes on.

use std::fs;
use std::io::Read;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harm::{assert_ends_well, assert_goes_on};
use crate::support::{Fixture, addresses, leaks_with, text};

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
fn assert_is_released(pid: u32) {
    assert!(!state(pid).contains(&'t'), "{:?}", state(pid));
    assert!(
        threads(pid, "TracerPid:")
            .iter()
            .all(|tracer| tracer == "0")
    );
}

/// A process with so much memory that a scan of it takes its time.
fn busy() -> Fixture {
    Fixture::start_with("busy.c", &["100000"])
}

/// Starts rleaks on `pid` and waits until it holds all threads.
fn scan_that_holds(pid: u32) -> Child {
    let mut scan = Command::new(env!("CARGO_BIN_EXE_rleaks"))
        .args([&pid.to_string(), "--snapshot=stream", "--json"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let tracer = scan.id().to_string();
    loop {
        let stopped = state(pid).iter().all(|state| *state == 't');
        if stopped
            && threads(pid, "TracerPid:")
                .iter()
                .all(|held_by| *held_by == tracer)
        {
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
        assert_is_released(busy.id());
        assert_goes_on(&mut busy);
    }
    assert_ends_well(busy);
}

/// What Ctrl-Z and a background job's use of the terminal do. Whether they stop rleaks afterwards
/// depends on its process group; while it holds the target they must not.
#[test]
fn scan_that_is_to_stop_lets_its_target_go_on_first() {
    let mut busy = busy();
    for signal in [Signal::SIGTSTP, Signal::SIGTTIN, Signal::SIGTTOU] {
        let mut scan = scan_that_holds(busy.id());
        send(scan.id(), signal);
        let ended = loop {
            let ended = scan.try_wait().unwrap();
            if ended.is_some() || state(scan.id()).iter().all(|state| *state == 'T') {
                break ended;
            }
            std::thread::yield_now();
        };
        assert_is_released(busy.id());
        assert_goes_on(&mut busy);
        if ended.is_none() {
            send(scan.id(), Signal::SIGCONT);
        }
        let output = scan.wait_with_output().unwrap();
        assert!(
            matches!(output.status.code(), Some(0 | 1)),
            "{signal}: {output:?}"
        );
    }
    assert_ends_well(busy);
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
        assert_is_released(fixture.id());
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
        assert_is_released(fixture.id());
        assert!(state(fixture.id()).iter().all(|state| *state == 'T'));
        send(fixture.id(), Signal::SIGCONT);
        assert!(fixture.finish().0.success());
    }
}
