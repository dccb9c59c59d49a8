//! A thread that is blocked in a system call does not notice that it was stopped.
//!
//! The kernel restarts most calls after a stop by itself. Those that it ends with EINTR (signal(7), "Interruption
//! of system calls and library functions by stop signals", and what a look at the kernel adds) are restarted because
//! rleaks asks for it. A restarted call takes its arguments anew. What then becomes of a finite timeout:
//!
//! | call | timeout after a stop |
//! |---|---|
//! | futex, poll | goes on: the kernel keeps the end |
//! | `nanosleep`, `clock_nanosleep` | goes on: the kernel keeps the end |
//! | select, pselect, ppoll | goes on: the kernel writes the rest into the argument |
//! | `clock_nanosleep` with `TIMER_ABSTIME`, `futex_waitv`, `mq_timed*` | goes on: it is a point in time |
//! | `epoll_wait`, `epoll_pwait`, `epoll_pwait2` | may start afresh |
//! | sigtimedwait, semtimedop | may start afresh |
//! | socket calls with `SO_RCVTIMEO` or `SO_SNDTIMEO` | may start afresh |
//! | `io_getevents`, `io_uring_enter` with a timeout | may start afresh |
//!
//! Afresh means from the end of the last scan on: such a call ends at most its timeout later. No call ends early.
//!
//! A call that has done a part of its work when the stop comes (a write of more than fits, `MSG_WAITALL`) returns
//! how much it did. That is no error, no byte is lost, and every stop of any kind does it: see `parts`.

use std::time::{Duration, Instant};

use crate::support::{Build, Fixture, leaks_with};

/// How a call is tried: by a program of which width, and scanned how often while it is blocked.
#[derive(Clone, Copy, Debug)]
struct Trial {
    build: Build,
    scans: usize,
    /// The way to scan that must be taken, if one is asked for.
    method: Option<&'static str>,
}

const SCANNED: Trial = Trial {
    build: Build::Usual,
    scans: 3,
    method: None,
};
/// The thread that is blocked makes the child itself, in the middle of its call.
const FORKED: Trial = Trial {
    method: Some("fork"),
    ..SCANNED
};
const UNDISTURBED: Trial = Trial {
    build: Build::Usual,
    scans: 0,
    method: None,
};
/// Its calls have other numbers, some are parts of others, and some have a second number.
const I386: Trial = Trial {
    build: Build::I386,
    scans: 1,
    method: None,
};
/// They have the kernel work in the background, or cannot be stopped: of such a process no child is made.
const NEVER_FORKED: [&str; 5] = [
    "io_getevents",
    "io_getevents_timeout",
    "io_uring_enter",
    "io_uring_enter_timeout",
    "vfork_parent",
];

/// How late the end of a call may be noticed on a loaded machine.
const SLACK: Duration = Duration::from_secs(4);
/// As Linux numbers them on x86-64.
const SIGUSR2: i64 = 12;
const EINTR: i64 = 4;
const EAGAIN: i64 = 11;
const ETIME: i64 = 62;
const ETIMEDOUT: i64 = 110;

/// What a call returned: its value, `errno` if that is -1, and how often the signal handler ran.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    value: i64,
    error: i64,
    handled: i64,
}

impl Outcome {
    fn value(value: i64) -> Self {
        Self {
            value,
            error: 0,
            handled: 0,
        }
    }

    fn error(error: i64) -> Self {
        Self {
            value: -1,
            error,
            handled: 0,
        }
    }

    /// What a signal with a handler does to a call that is never restarted.
    fn interrupted() -> Self {
        Self {
            value: -1,
            error: EINTR,
            handled: 1,
        }
    }
}

/// Lets the blocked call end in the way that `command` names.
fn end(mut blocked: Fixture, command: &str) -> (Outcome, Duration) {
    let answer = blocked.ask(command);
    let numbers: Vec<i64> = answer
        .strip_prefix("result ")
        .unwrap_or_else(|| panic!("blocked said {answer:?}"))
        .split(' ')
        .map(|number| number.parse().unwrap())
        .collect();
    let [value, error, elapsed, handled] = *numbers else {
        panic!("blocked said {answer:?}");
    };
    let outcome = Outcome {
        value,
        error,
        handled,
    };
    (outcome, Duration::from_nanos(elapsed.cast_unsigned()))
}

/// Scans, or does not: the control must come to the same result.
fn scan(blocked: &Fixture, call: &str, trial: Trial) {
    let option = trial.method.map(|method| format!("--snapshot={method}"));
    let options: Vec<&str> = option.as_deref().into_iter().collect();
    for scan in 0..trial.scans {
        let report = leaks_with(&blocked.pid(), &options);
        let capture = &report["capture"];
        let pause = capture["pause_seconds"].as_f64();
        assert!(pause > Some(0.0), "scan {scan}: {report}");
        if let Some(method) = trial.method {
            let is_forked = capture["method"] == method;
            assert_eq!(is_forked, !NEVER_FORKED.contains(&call), "{call}: {report}");
        }
    }
}

fn check_end(call: &str, trial: Trial, command: &str, expected: &Outcome) {
    let blocked = Fixture::start_built("blocked.c", trial.build, &[call]);
    scan(&blocked, call, trial);
    let (outcome, _) = end(blocked, command);
    assert_eq!(outcome, *expected, "{call} {trial:?}");
}

fn finishes(call: &str, trial: Trial, expected: &Outcome) {
    check_end(call, trial, "finish", expected);
}

fn is_signalled(call: &str, trial: Trial, expected: &Outcome) {
    check_end(call, trial, "signal", expected);
}

/// The timeout ends no earlier than it must, and no later than documented.
fn check_timeout(call: &str, trial: Trial, starts_afresh: bool, expected: &Outcome) {
    let timeout = Duration::from_millis(500 + 700 * trial.scans as u64);
    let milliseconds = timeout.as_millis().to_string();
    let start = Instant::now();
    let blocked = Fixture::start_built("blocked.c", trial.build, &[call, &milliseconds]);
    scan(&blocked, call, trial);
    let scanned = start.elapsed();
    let (outcome, elapsed) = end(blocked, "wait");
    assert_eq!(outcome, *expected, "{call} {trial:?}");
    let begin = if starts_afresh {
        scanned
    } else {
        Duration::ZERO
    };
    assert!(
        elapsed >= timeout && elapsed < begin + timeout + SLACK,
        "{call} took {elapsed:?} with a timeout of {timeout:?}, {trial:?} until {scanned:?}"
    );
}

fn keeps_time(call: &str, trial: Trial, expected: &Outcome) {
    check_timeout(call, trial, false, expected);
}

fn keeps_time_or_starts_afresh(call: &str, trial: Trial, expected: &Outcome) {
    check_timeout(call, trial, true, expected);
}

/// The call returns how much it did, and no error.
fn returns_a_count(call: &str, trial: Trial, whole: &Outcome) {
    let blocked = Fixture::start_built("blocked.c", trial.build, &[call]);
    scan(&blocked, call, trial);
    let (outcome, _) = end(blocked, "finish");
    assert!(
        outcome.value > 0 && outcome.value <= whole.value && outcome.error == 0,
        "{call} {trial:?}: {outcome:?}"
    );
    assert!(trial.scans > 0 || outcome == *whole, "{call}: {outcome:?}");
}

/// A test with scans for each call, one without scans for all of them, one in which each makes a child, and one of i386.
macro_rules! each {
    ($check:ident: $($call:ident $expected:expr;)+) => {
        $(
            #[test]
            fn $call() {
                $check(stringify!($call), SCANNED, &$expected);
            }
        )+

        #[test]
        fn without_scans() {
            $($check(stringify!($call), UNDISTURBED, &$expected);)+
        }

        #[test]
        fn forked() {
            $($check(stringify!($call), FORKED, &$expected);)+
        }

        #[test]
        fn on_i386() {
            $($check(stringify!($call), I386, &$expected);)+
        }
    };
}

mod finished {
    use super::*;

    each! { finishes:
        read_pipe Outcome::value(1);
        read_tty Outcome::value(2);
        write_full_pipe Outcome::value(1);
        open_fifo Outcome::value(0);
        flock Outcome::value(0);
        fcntl_setlkw Outcome::value(0);
        fcntl_ofd_setlkw Outcome::value(0);
        futex_wait Outcome::value(0);
        futex_wait_timeout Outcome::value(0);
        futex_wait_bitset Outcome::value(0);
        futex_waitv Outcome::value(0);
        futex_lock_pi Outcome::value(0);
        poll Outcome::value(1);
        poll_timeout Outcome::value(1);
        ppoll Outcome::value(1);
        select Outcome::value(1);
        select_timeout Outcome::value(1);
        pselect Outcome::value(1);
        epoll_wait Outcome::value(1);
        epoll_wait_timeout Outcome::value(1);
        epoll_pwait Outcome::value(1);
        epoll_pwait2 Outcome::value(1);
        pause Outcome::interrupted();
        sigsuspend Outcome::interrupted();
        sigtimedwait Outcome::value(SIGUSR2);
        sigwaitinfo Outcome::value(SIGUSR2);
        wait4 Outcome::value(0);
        waitid Outcome::value(0);
        vfork_parent Outcome::value(0);
        accept Outcome::value(0);
        accept_timeout Outcome::value(0);
        connect Outcome::value(0);
        connect_timeout Outcome::value(0);
        recv Outcome::value(1);
        recv_timeout Outcome::value(1);
        recvmsg_timeout Outcome::value(1);
        recvmmsg_timeout Outcome::value(1);
        read_socket_timeout Outcome::value(1);
        write_socket_timeout Outcome::value(1);
        send_timeout Outcome::value(1);
        sendmsg_timeout Outcome::value(1);
        semop Outcome::value(0);
        semtimedop Outcome::value(0);
        msgrcv Outcome::value(1024);
        msgsnd Outcome::value(0);
        mq_timedreceive Outcome::value(1);
        mq_timedsend Outcome::value(0);
        io_getevents Outcome::value(1);
        io_getevents_timeout Outcome::value(1);
        io_uring_enter Outcome::value(0);
        io_uring_enter_timeout Outcome::value(0);
        inotify_read Outcome::value(16);
        signalfd_read Outcome::value(128);
        timerfd_read Outcome::value(8);
        eventfd_read Outcome::value(8);
    }
}

mod expired {
    use super::*;

    each! { keeps_time:
        futex_wait_timeout Outcome::error(ETIMEDOUT);
        futex_wait_bitset Outcome::error(ETIMEDOUT);
        futex_waitv Outcome::error(ETIMEDOUT);
        poll_timeout Outcome::value(0);
        ppoll Outcome::value(0);
        select_timeout Outcome::value(0);
        pselect Outcome::value(0);
        nanosleep Outcome::value(0);
        clock_nanosleep Outcome::value(0);
        clock_nanosleep_abs Outcome::value(0);
        mq_timedreceive Outcome::error(ETIMEDOUT);
        mq_timedsend Outcome::error(ETIMEDOUT);
        timerfd_read Outcome::value(8);
    }
}

mod expired_later {
    use super::*;

    each! { keeps_time_or_starts_afresh:
        epoll_wait_timeout Outcome::value(0);
        epoll_pwait Outcome::value(0);
        epoll_pwait2 Outcome::value(0);
        sigtimedwait Outcome::error(EAGAIN);
        semtimedop Outcome::error(EAGAIN);
        accept_timeout Outcome::error(EAGAIN);
        connect_timeout Outcome::error(EAGAIN);
        recv_timeout Outcome::error(EAGAIN);
        recvmsg_timeout Outcome::error(EAGAIN);
        recvmmsg_timeout Outcome::error(EAGAIN);
        read_socket_timeout Outcome::error(EAGAIN);
        write_socket_timeout Outcome::error(EAGAIN);
        send_timeout Outcome::error(EAGAIN);
        sendmsg_timeout Outcome::error(EAGAIN);
        io_getevents_timeout Outcome::value(0);
        io_uring_enter_timeout Outcome::error(ETIME);
    }
}

/// A handler ends these calls, with `SA_RESTART` too: rleaks must not have them restarted for good.
mod signalled {
    use super::*;

    each! { is_signalled:
        poll Outcome::interrupted();
        poll_timeout Outcome::interrupted();
        ppoll Outcome::interrupted();
        select Outcome::interrupted();
        pselect Outcome::interrupted();
        epoll_wait Outcome::interrupted();
        epoll_wait_timeout Outcome::interrupted();
        epoll_pwait Outcome::interrupted();
        epoll_pwait2 Outcome::interrupted();
        nanosleep Outcome::interrupted();
        clock_nanosleep_abs Outcome::interrupted();
        sigtimedwait Outcome::interrupted();
        sigwaitinfo Outcome::interrupted();
        accept_timeout Outcome::interrupted();
        connect_timeout Outcome::interrupted();
        recv_timeout Outcome::interrupted();
        recvmsg_timeout Outcome::interrupted();
        recvmmsg_timeout Outcome::interrupted();
        read_socket_timeout Outcome::interrupted();
        write_socket_timeout Outcome::interrupted();
        send_timeout Outcome::interrupted();
        sendmsg_timeout Outcome::interrupted();
        semop Outcome::interrupted();
        semtimedop Outcome::interrupted();
        msgrcv Outcome::interrupted();
        msgsnd Outcome::interrupted();
        io_getevents Outcome::interrupted();
        io_uring_enter Outcome::interrupted();
    }
}

mod parts {
    use super::*;

    each! { returns_a_count:
        write_more_than_fits Outcome::value(256 * 1024);
        send_more_than_fits Outcome::value(256 * 1024);
        recv_waitall Outcome::value(8);
    }
}

/// i386 has these beside those with 32-bit times.
mod time64 {
    use super::*;

    #[test]
    fn calls_finish() {
        for (call, expected) in [
            ("futex_time64", Outcome::value(0)),
            ("ppoll_time64", Outcome::value(1)),
            ("pselect_time64", Outcome::value(1)),
            ("sigtimedwait_time64", Outcome::value(SIGUSR2)),
            ("semtimedop_time64", Outcome::value(0)),
            ("recvmmsg_time64", Outcome::value(1)),
            ("io_pgetevents_time64", Outcome::value(1)),
        ] {
            finishes(call, I386, &expected);
        }
    }

    #[test]
    fn calls_expire() {
        keeps_time("futex_time64", I386, &Outcome::error(ETIMEDOUT));
        for call in ["ppoll_time64", "pselect_time64", "clock_nanosleep_time64"] {
            keeps_time(call, I386, &Outcome::value(0));
        }
        for call in [
            "sigtimedwait_time64",
            "semtimedop_time64",
            "recvmmsg_time64",
        ] {
            keeps_time_or_starts_afresh(call, I386, &Outcome::error(EAGAIN));
        }
        keeps_time_or_starts_afresh("io_pgetevents_time64", I386, &Outcome::value(0));
    }

    #[test]
    fn calls_are_signalled() {
        for call in [
            "ppoll_time64",
            "pselect_time64",
            "sigtimedwait_time64",
            "semtimedop_time64",
            "recvmmsg_time64",
            "io_pgetevents_time64",
        ] {
            is_signalled(call, I386, &Outcome::interrupted());
        }
    }
}
