//! Whatever happens to rleaks, the target goes on.
//!
//! `RLEAKS_ROUNDS=200` and `RLEAKS_KILLS=50` make these tests as long as the project promises.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::support::{Fixture, leaks, number_from_environment};

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

#[test]
fn busy_process_goes_on_through_many_scans() {
    let mut busy = Fixture::start("busy.c");
    for round in 0..number_from_environment("RLEAKS_ROUNDS", 40) {
        let report = leaks(&busy.pid());
        let pause = report["capture"]["pause_seconds"].as_f64();
        assert!(pause > Some(0.0), "round {round}: {report}");
        if round % 20 == 0 {
            assert_goes_on(&mut busy);
        }
    }
    assert_ends_well(busy);
}

#[test]
fn busy_process_goes_on_when_rleaks_is_killed() {
    let mut busy = Fixture::start("busy.c");
    let kills = number_from_environment("RLEAKS_KILLS", 15);
    let mut in_time = 0;
    for kill in 0..kills {
        let mut scan = Command::new(env!("CARGO_BIN_EXE_rleaks"))
            .args([&busy.pid(), "--json"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Spread over the first 30 ms in no simple order, and not the same in every run.
        let jitter = u64::from(std::process::id()) * 911 + kill * 7_919;
        sleep(Duration::from_micros(jitter % 30_000));
        in_time += u32::from(scan.try_wait().unwrap().is_none());
        scan.kill().unwrap();
        scan.wait().unwrap();
        if kill % 5 == 0 {
            assert_goes_on(&mut busy);
        }
    }
    assert_ne!(in_time, 0, "rleaks always ended before it could be killed");
    assert_ends_well(busy);
}
