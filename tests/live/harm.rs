//! Whatever happens to rleaks, the target goes on.
//!
//! `RLEAKS_ROUNDS=1000` and `RLEAKS_KILLS=200` make these tests as long as the project promises.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{
    Fixture, addresses, leaks, leaks_with, number_from_environment, rleaks, text,
};

/// The options of a scan.
const USUAL: &[&str] = &[];
const FORK: &[&str] = &["--snapshot=fork"];

/// The rounds that each kind of work of `busy.c` has done.
fn progress(busy: &mut Fixture) -> BTreeMap<String, u64> {
    let answer = busy.ask("progress");
    let counts = answer
        .strip_prefix("progress ")
        .unwrap_or_else(|| panic!("busy said {answer:?}"));
    counts
        .split(' ')
        .map(|count| {
            let (name, rounds) = count.split_once('=').unwrap();
            (name.to_owned(), rounds.parse().unwrap())
        })
        .collect()
}

/// Every kind of work goes on: it is given time, for other tests want the processors too.
pub(crate) fn assert_goes_on(busy: &mut Fixture) {
    let before = progress(busy);
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let now = progress(busy);
        let stuck: Vec<_> = now
            .iter()
            .filter(|(name, rounds)| **rounds <= before[*name])
            .collect();
        if stuck.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "these do not go on: {stuck:?}");
        sleep(Duration::from_millis(10));
    }
}

pub(crate) fn assert_ends_well(mut busy: Fixture) {
    assert_goes_on(&mut busy);
    let answer = busy.ask("stop");
    assert!(answer.starts_with("ok "), "busy said {answer:?}");
    assert!(busy.wait().success());
}

/// The states of all threads of a process: `S` sleeps, `T` is stopped by job control, `t` by a tracer.
fn states(pid: &str) -> Vec<char> {
    let state = |status: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix("State:\t"))?
            .chars()
            .next()
    };
    let folder = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    // A thread can end meanwhile.
    let statuses =
        folder.filter_map(|task| fs::read_to_string(task.ok()?.path().join("status")).ok());
    statuses.filter_map(|status| state(&status)).collect()
}

/// Nobody traces any thread of it, at the latest a moment after the tracer's death.
fn assert_untraced(pid: &str) {
    let is_traced = || {
        let folder = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        let mut statuses =
            folder.filter_map(|task| fs::read_to_string(task.ok()?.path().join("status")).ok());
        statuses.any(|status| !status.contains("TracerPid:\t0\n") || status.contains("State:\tt"))
    };
    wait_until("the target is traced for ever", || !is_traced());
}

/// No child is left of those that rleaks made: the process itself has none, or only such as have executed
/// something or are about to end.
pub(crate) fn assert_childless(pid: &str) {
    let own = fs::read_link(format!("/proc/{pid}/exe")).unwrap();
    let is_copy = |child: &str| {
        let status = fs::read_to_string(format!("/proc/{child}/status")).unwrap_or_default();
        let is_zombie = status.contains("State:\tZ");
        let is_traced = !status.contains("TracerPid:\t0\n");
        is_zombie
            || is_traced && fs::read_link(format!("/proc/{child}/exe")).is_ok_and(|exe| exe == own)
    };
    wait_until("a child is left", || {
        let folder = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        let tasks = folder.filter_map(Result::ok);
        let children =
            tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
        !children.collect::<String>().split_whitespace().any(is_copy)
    });
}

fn wait_until(otherwise: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "{otherwise}");
        sleep(Duration::from_millis(1));
    }
}

fn start_scan(pid: &str, options: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_rleaks"))
        .args([pid, "--json"])
        .args(options)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// A number below `limit`, in no simple order, and not the same in every run.
pub(crate) fn jitter(round: u64, limit: u64) -> u64 {
    (u64::from(std::process::id()) * 911 + round.wrapping_mul(6_364_136_223_846_793_005) / 65_536)
        % limit.max(1)
}

fn signal(pid: &str, name: &str) {
    let status = Command::new("kill")
        .args([&format!("-{name}"), pid])
        .status();
    assert!(status.unwrap().success(), "kill -{name} {pid}");
}

/// Scans a process that checks itself. Where that fails, both sides are heard: rleaks, and the last
/// line of the process, which says so where it found something wrong and ended.
fn scan(busy: &mut Fixture, options: &[&str], round: u64) {
    let output = rleaks(&[&[busy.pid().as_str(), "--json"], options].concat());
    if !matches!(output.status.code(), Some(0 | 1)) {
        let (said, answer) = (text(&output.stderr), last_line(busy));
        let status = output.status;
        panic!("round {round}: {status}: rleaks said {said:?}, the process {answer:?}");
    }
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let pause = report["capture"]["pause_seconds"].as_f64();
    assert!(pause > Some(0.0), "round {round}: {report}");
}

/// What a process that checks itself answers now, or said at its end.
fn last_line(busy: &mut Fixture) -> String {
    // It may have ended, and then it reads nothing any more.
    let _ = busy.try_tell("progress");
    busy.last_line()
}

fn goes_on_through_many_scans(file: &str, options: &[&str]) {
    let mut busy = Fixture::start(file);
    for round in 0..number_from_environment("RLEAKS_ROUNDS", 30) {
        sleep(Duration::from_micros(jitter(round, 20_000)));
        scan(&mut busy, options, round);
        if round % 20 == 0 {
            assert_goes_on(&mut busy);
        }
    }
    assert_ends_well(busy);
}

/// Kills are spread over the whole life of rleaks, which is measured first.
fn goes_on_when_rleaks_is_killed(file: &str, options: &[&str]) {
    let mut busy = Fixture::start_with(file, &["killed"]);
    let start = Instant::now();
    leaks_with(&busy.pid(), options);
    let life = u64::try_from(start.elapsed().as_micros()).unwrap();
    let mut in_time = 0;
    for kill in 0..number_from_environment("RLEAKS_KILLS", 15) {
        let mut scan = start_scan(&busy.pid(), options);
        sleep(Duration::from_micros(jitter(kill, life)));
        in_time += u32::from(scan.try_wait().unwrap().is_none());
        scan.kill().unwrap();
        scan.wait().unwrap();
        assert_untraced(&busy.pid());
        assert_childless(&busy.pid());
        if kill % 5 == 0 {
            assert_goes_on(&mut busy);
        }
    }
    assert_ne!(in_time, 0, "rleaks always ended before it could be killed");
    assert_ends_well(busy);
}

#[test]
fn busy_process_goes_on_through_many_scans() {
    goes_on_through_many_scans("busy.c", USUAL);
}

#[test]
fn process_that_waits_for_events_goes_on_through_many_scans() {
    goes_on_through_many_scans("busy_events.c", USUAL);
}

#[test]
fn busy_process_goes_on_when_rleaks_is_killed() {
    goes_on_when_rleaks_is_killed("busy.c", USUAL);
}

#[test]
fn process_that_waits_for_events_goes_on_when_rleaks_is_killed() {
    goes_on_when_rleaks_is_killed("busy_events.c", USUAL);
}

#[test]
fn busy_process_goes_on_through_many_forks() {
    goes_on_through_many_scans("busy.c", FORK);
}

#[test]
fn process_that_waits_for_events_goes_on_through_many_forks() {
    goes_on_through_many_scans("busy_events.c", FORK);
}

#[test]
fn busy_process_goes_on_when_rleaks_is_killed_that_forks_it() {
    goes_on_when_rleaks_is_killed("busy.c", FORK);
}

#[test]
fn process_that_waits_for_events_goes_on_when_rleaks_is_killed_that_forks_it() {
    goes_on_when_rleaks_is_killed("busy_events.c", FORK);
}

#[test]
fn stopped_process_stays_stopped() {
    let mut busy = Fixture::start("busy.c");
    let pid = busy.pid();
    signal(&pid, "STOP");
    wait_until("it does not stop", || {
        states(&pid).iter().all(|state| *state == 'T')
    });
    for round in 0..3 {
        leaks(&pid);
        wait_until("it is not stopped any more", || {
            states(&pid).iter().all(|state| *state == 'T')
        });
        let mut scan = start_scan(&pid, USUAL);
        sleep(Duration::from_micros(jitter(round, 100_000)));
        scan.kill().unwrap();
        scan.wait().unwrap();
        assert_untraced(&pid);
        wait_until("it is not stopped any more", || {
            states(&pid).iter().all(|state| *state == 'T')
        });
    }
    signal(&pid, "CONT");
    assert_goes_on(&mut busy);
    assert_ends_well(busy);
}

#[test]
fn process_that_is_stopped_and_continued_meanwhile_goes_on() {
    goes_on_when_it_is_stopped_and_continued(USUAL);
}

#[test]
fn process_that_is_stopped_and_continued_while_it_is_forked_goes_on() {
    goes_on_when_it_is_stopped_and_continued(FORK);
}

fn goes_on_when_it_is_stopped_and_continued(options: &[&str]) {
    let mut busy = Fixture::start("busy.c");
    let pid = busy.pid();
    for round in 0..10 {
        let mut scan = start_scan(&pid, options);
        while scan.try_wait().unwrap().is_none() {
            signal(&pid, "STOP");
            sleep(Duration::from_micros(jitter(round, 5000)));
            signal(&pid, "CONT");
            sleep(Duration::from_micros(jitter(round + 1, 5000)));
        }
        assert!(matches!(scan.wait().unwrap().code(), Some(0 | 1)));
    }
    assert_goes_on(&mut busy);
    assert_ends_well(busy);
}

/// Either a report, or an error that says why; and never a wait without end.
fn assert_clear_outcome(pid: &str, options: &[&str]) {
    let start = Instant::now();
    let output = rleaks(&[&[pid, "--json"], options].concat());
    let message = String::from_utf8_lossy(&output.stderr);
    match output.status.code() {
        Some(0 | 1) => {}
        Some(2) => assert!(message.starts_with("rleaks: "), "{message:?}"),
        code => panic!("{code:?} {:?}: {message}", output.status.signal()),
    }
    assert!(!message.contains("panicked"), "{message}");
    assert!(start.elapsed() < Duration::from_secs(20));
}

#[test]
fn process_that_executes_another_program_meanwhile_goes_on() {
    goes_on_when_it_executes_another_program(USUAL);
}

#[test]
fn process_that_executes_another_program_while_it_is_forked_goes_on() {
    goes_on_when_it_executes_another_program(FORK);
}

fn goes_on_when_it_executes_another_program(options: &[&str]) {
    let mut fixture = Fixture::start("exec_loop.c");
    for round in 0..30 {
        sleep(Duration::from_micros(jitter(round, 5000)));
        assert_clear_outcome(&fixture.pid(), options);
        assert_untraced(&fixture.pid());
    }
    assert_goes_on(&mut fixture);
}

#[test]
fn process_that_ends_meanwhile_is_a_clear_outcome() {
    end_is_a_clear_outcome(USUAL);
}

#[test]
fn process_that_ends_while_it_is_forked_is_a_clear_outcome() {
    end_is_a_clear_outcome(FORK);
}

/// It ends by itself, or by SIGTERM, or by SIGKILL.
fn end_is_a_clear_outcome(options: &'static [&'static str]) {
    for round in 0..21 {
        let mut target = Fixture::start_with("blocked.c", &["eventfd_read"]);
        let pid = target.pid();
        let delay = Duration::from_micros(jitter(round, 60_000));
        let scan = std::thread::spawn(move || assert_clear_outcome(&pid, options));
        sleep(delay);
        match round % 3 {
            0 => {
                signal(&target.pid(), "KILL");
                assert_eq!(target.wait().signal(), Some(9));
            }
            1 => {
                signal(&target.pid(), "TERM");
                assert_eq!(target.wait().signal(), Some(15));
            }
            _ => {
                assert!(target.ask("finish").starts_with("result 8 0 "));
                assert!(target.wait().success());
            }
        }
        scan.join().unwrap();
    }
}

/// The shortest of the longest pauses of some scans: what other tests do at the same time counts little.
fn shortest_pause(pid: &str, threads: u64) -> f64 {
    let pauses = (0..5).map(|_| {
        let capture = leaks(pid)["capture"].clone();
        assert_eq!(capture["threads"], threads);
        capture["longest_pause_seconds"].as_f64().unwrap()
    });
    pauses.fold(f64::INFINITY, f64::min)
}

#[test]
fn thousands_of_threads_are_scanned() {
    let mut fixture = Fixture::start_with("many_threads.c", &["3000", "sleep"]);
    let pause = shortest_pause(&fixture.pid(), 3001);
    eprintln!("3000 threads: pause {pause} s");
    assert!(pause < 0.5, "{pause}");
    assert_eq!(fixture.ask(""), "alive");
}

#[test]
fn hundred_running_threads_are_stopped_in_milliseconds() {
    let mut fixture = Fixture::start_with("many_threads.c", &["100", "spin"]);
    let pause = shortest_pause(&fixture.pid(), 101);
    eprintln!("100 running threads: pause {pause} s");
    assert!(pause < 0.1, "{pause}");
    assert_eq!(fixture.ask(""), "alive");
}

/// A thread that sleeps where a call of malloc seems to wait is looked at twice, not at each of twenty
/// stops.
#[test]
fn thread_that_sleeps_above_a_stale_call_of_malloc_costs_one_more_stop() {
    let fixture = Fixture::start("stale_call.c");
    let report = leaks(&fixture.pid());
    assert_eq!(report["capture"]["stops"], 2, "{}", report["capture"]);
    assert!(addresses(&report["leaks"]).keys().eq(fixture.leaks.keys()));
    assert!(
        !report["warnings"].to_string().contains("heap_in_flux"),
        "{report}"
    );
}

/// Two threads wait for the lock of an arena for ever, in malloc and in free: the heap is whole.
#[test]
fn threads_that_wait_for_a_lock_of_malloc_for_ever_cost_one_more_stop() {
    let fixture = Fixture::start_with("stale_call.c", &["locked"]);
    let report = leaks(&fixture.pid());
    assert_eq!(report["capture"]["stops"], 2, "{}", report["capture"]);
    assert!(addresses(&report["leaks"]).keys().eq(fixture.leaks.keys()));
}

#[test]
fn process_without_main_thread_is_scanned_exactly() {
    let fixture = Fixture::start("main_exited.c");
    let truth = fixture
        .leaks
        .iter()
        .map(|(&at, leak)| (at, leak.size))
        .collect();
    assert_eq!(
        addresses(&leaks(&fixture.pid())["leaks"]),
        truth,
        "{fixture:#x?}"
    );
}

/// Its state is D until the child executes a program: it cannot be stopped, and is scanned nevertheless.
#[test]
fn parent_in_vfork_is_scanned_with_a_warning() {
    let mut fixture = Fixture::start_with("blocked.c", &["vfork_parent"]);
    let report = leaks(&fixture.pid());
    let warnings = report["warnings"].to_string();
    assert!(warnings.contains("thread_asleep"), "{warnings}");
    let answer = fixture.ask("finish");
    assert!(answer.starts_with("result 0 0 "), "{answer}");
}
