//! The end of the guardian: what it leaves of the target, and of the child.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::fork::{FORK, assert_unaware, fork, signal, wait_until};
use crate::harm::{assert_childless, jitter};
use crate::support::{Fixture, number_from_environment, rleaks_command, text};

/// The guardian that an rleaks has started.
fn guardian() -> Option<String> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let mut names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.find(|name| is_guardian(name))
}

fn is_guardian(pid: &str) -> bool {
    let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line.ends_with("\0guardian\0")
}

#[test]
fn nothing_is_left_of_the_guardian() {
    let fixture = Fixture::start_with("fork.c", &["plain"]);
    fork(&fixture.pid());
    let own_child = || {
        guardian().filter(|pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.contains(&format!(" {} ", std::process::id()))
        })
    };
    assert_eq!(own_child(), None);
    assert_unaware(fixture);
}

/// The child ends with it, and another guardian makes the process forget it.
#[test]
fn guardian_that_is_killed_while_the_child_is_read_leaves_nothing() {
    let mut fixture = Fixture::start_with("generator.c", &["7", "3", "6000"]);
    let pid = fixture.pid();
    for round in 1..=20 {
        let mut scan = rleaks_command()
            .args([&pid, FORK, "--json", "--threads=1"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut killed = None;
        while killed.is_none() && scan.try_wait().unwrap().is_none() {
            // The child is there, and the target runs: the thread that made it is not traced any more.
            killed = child_of(&pid)
                .filter(|_| is_untraced(&pid))
                .and_then(|child| tracer(&child));
            // Soon rleaks knows of the child, and has not yet read all of it.
            killed
                .iter()
                .for_each(|_| sleep(Duration::from_millis(20 * round)));
            killed.iter().for_each(|guardian| signal(guardian, "KILL"));
        }
        let status = scan.wait().unwrap();
        assert_childless(&pid);
        assert!(!has_ended(&pid), "the target was ended");
        if killed.is_some() && status.code() == Some(2) {
            assert_eq!(fixture.finish().0.code(), Some(0));
            return;
        }
    }
    panic!("the guardian was never met");
}

/// At any moment of a guardian's life, and in every other round at one where the process stands still. Either the
/// process is as it was, or, where a thread was making a call for rleaks, it was ended as by `kill -9`: it never goes
/// on with registers that are not its own. No child lives; where nobody has heard of it, it stays as a zombie.
#[test]
fn guardian_that_is_killed_at_any_time_leaves_the_process_whole_or_ends_it() {
    let mut target = Fixture::start_with("fork.c", &["plain"]);
    let start = Instant::now();
    fork(&target.pid());
    let life = u64::try_from(start.elapsed().as_micros()).unwrap();
    let (mut kills, mut ended, mut zombies) = (0, 0, 0);
    for round in 0..number_from_environment("RLEAKS_KILLS", 15) {
        let pid = target.pid();
        let scan = scan(&pid);
        let guardian = guardian_of(&scan.id().to_string());
        if round % 2 == 0 {
            sleep(Duration::from_micros(jitter(round, life)));
        } else {
            wait_for_a_stop(&pid);
            sleep(Duration::from_micros(jitter(round, 800)));
        }
        kills += u32::from(guardian.is_some_and(|guardian| try_signal(&guardian, "KILL")));
        let output = scan.wait_with_output().unwrap();
        let said = text(&output.stderr);
        match output.status.code() {
            Some(0 | 1) => {}
            Some(2) => assert!(said.starts_with("rleaks: "), "{said:?}"),
            code => panic!("round {round}: {code:?}: {said}"),
        }
        if has_ended(&pid) {
            assert_eq!(target.wait().signal(), Some(9), "round {round}: {said}");
            ended += 1;
            target = Fixture::start_with("fork.c", &["plain"]);
        } else {
            wait_until("its child ends", || {
                children(&pid).iter().all(|c| has_ended(c))
            });
            let is_left = !children(&pid).is_empty();
            zombies += u32::from(is_left);
            // The process waits for it to find that out.
            let expected =
                ["ok", "there is a child that the process did not make"][usize::from(is_left)];
            assert_eq!(target.ask("check"), expected, "round {round}: {said}");
        }
    }
    eprintln!(
        "{kills} guardians were killed, {ended} processes with them; {zombies} have a zombie"
    );
    assert!(kills > 0, "no guardian was met");
}

/// Starts a scan that says what goes wrong.
fn scan(pid: &str) -> Child {
    let mut scan = rleaks_command();
    scan.args([pid, FORK, "--json"]);
    let scan = scan.stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    scan.unwrap()
}

/// The guardian that scan `pid` starts, if it does before it ends.
fn guardian_of(pid: &str) -> Option<String> {
    while !has_ended(pid) {
        let of_watched = children(pid).into_iter().flat_map(|child| children(&child));
        if let Some(guardian) = of_watched.into_iter().find(|pid| is_guardian(pid)) {
            return Some(guardian);
        }
    }
    None
}

fn wait_for_a_stop(pid: &str) {
    let deadline = Instant::now() + Duration::from_secs(2);
    let is_stopped = || status_field(pid, "State:").is_some_and(|state| state.starts_with('t'));
    while !is_stopped() && Instant::now() < deadline {}
}

fn try_signal(pid: &str, name: &str) -> bool {
    let kill = Command::new("kill")
        .args([&format!("-{name}"), pid])
        .stderr(Stdio::null())
        .status();
    kill.unwrap().success()
}

/// Says whether there is no such process, or nothing but its exit status.
fn has_ended(pid: &str) -> bool {
    status_field(pid, "State:").is_none_or(|state| state.starts_with(['Z', 'X']))
}

fn status_field(pid: &str, key: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    Some(line.trim().to_owned())
}

fn tracer(pid: &str) -> Option<String> {
    status_field(pid, "TracerPid:").filter(|tracer| tracer != "0")
}

fn is_untraced(pid: &str) -> bool {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let mut tids = tasks.filter_map(|task| task.file_name().into_string().ok());
    tids.all(|tid| tracer(&tid).is_none())
}

fn child_of(pid: &str) -> Option<String> {
    children(pid).into_iter().next()
}

fn children(pid: &str) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"));
    let tasks = tasks.into_iter().flatten().flatten();
    let texts = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let text: String = texts.collect();
    text.split_whitespace().map(str::to_owned).collect()
}
