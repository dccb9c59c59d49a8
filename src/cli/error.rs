//! What goes to standard error when a command could not do its work.

use std::io::{self, Write};

use super::ExitStatus;
use super::panic::Bug;
use crate::platform::{FindError, ProcessInfo, user_name};
use crate::report::rfc3339;

/// Prints what clap says about wrong usage; help and version, which were asked for, are no error.
pub(crate) fn report_usage(error: &clap::Error) -> ExitStatus {
    // There is nowhere to say that it could not be said.
    let _ = error.print();
    if error.use_stderr() {
        ExitStatus::Failed
    } else {
        ExitStatus::Done
    }
}

/// Prints `error` on standard error: one line per cause, the outermost first.
///
/// A reader of standard output that has seen enough (`rleaks 1234 | head`) is no error.
pub(crate) fn report(error: &anyhow::Error) -> ExitStatus {
    if is_broken_pipe(error) {
        return ExitStatus::Done;
    }
    let _ = io::stderr().lock().write_all(describe(error).as_bytes());
    ExitStatus::Failed
}

/// Prints a bug of rleaks on standard error.
pub(crate) fn report_bug(bug: &Bug) -> ExitStatus {
    let mut text = format!(
        "rleaks: rleaks has a bug: {}; please report it, with the command that led to it\n",
        printable(&bug.message)
    );
    if let Some(backtrace) = &bug.backtrace {
        text.push_str(&backtrace.to_string());
    }
    let _ = io::stderr().lock().write_all(text.as_bytes());
    ExitStatus::Failed
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let io = cause.downcast_ref::<io::Error>().map(io::Error::kind);
        let json = cause.downcast_ref::<serde_json::Error>();
        io.or(json.and_then(serde_json::Error::io_error_kind)) == Some(io::ErrorKind::BrokenPipe)
    })
}

fn describe(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        text.push_str(&format!("rleaks: {}\n", printable(&cause.to_string())));
        if let Some(FindError::Ambiguous { candidates, .. }) = cause.downcast_ref() {
            text.push_str(&table(candidates));
        }
    }
    text
}

/// The processes as a table with a header, in columns.
fn table(processes: &[ProcessInfo]) -> String {
    let mut rows = vec![["PID", "USER", "STARTED", "COMMAND"].map(str::to_owned)];
    rows.extend(processes.iter().map(|process| {
        [
            process.pid.to_string(),
            user_name(process.uid),
            rfc3339(process.started),
            printable(&process.command()),
        ]
    }));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let [pid, user, started] = [0, 1, 2].map(|column| width(column).unwrap_or(0));
    rows.iter()
        .map(|[a, b, c, d]| format!("{a:>pid$}  {b:user$}  {c:started$}  {d}\n"))
        .collect()
}

/// Text that sends no control characters to a terminal: a process chooses its own name.
pub(super) fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use anyhow::Context;

    use super::*;
    use crate::platform::ProcessState;

    fn candidate(pid: u32, argument: &str) -> ProcessInfo {
        ProcessInfo {
            pid,
            parent_pid: 1,
            uid: u32::MAX - 7,
            name: "app".to_owned(),
            executable: None,
            command_line: vec!["./app".to_owned(), argument.to_owned()],
            started: SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_356_191),
            state: ProcessState::Alive,
        }
    }

    #[test]
    fn each_cause_gets_a_line() {
        let error = Err::<(), _>(io::Error::other("a cause")).context("cannot do it");
        let text = describe(&error.expect_err("an error"));
        assert_eq!(text, "rleaks: cannot do it\nrleaks: a cause\n");
    }

    #[test]
    fn several_candidates_are_shown_as_a_table() {
        let error = FindError::Ambiguous {
            name: "app".to_owned(),
            candidates: vec![candidate(7, "a"), candidate(1234, "\u{1b}[2J")],
        };
        let text = describe(&error.into());
        insta::assert_snapshot!(text, @r"
        rleaks: 2 processes are named app: give a pid, or choose with --newest, --oldest or --all
         PID  USER        STARTED               COMMAND
           7  4294967288  2026-11-22T14:03:11Z  ./app a
        1234  4294967288  2026-11-22T14:03:11Z  ./app �[2J
        ");
    }

    #[test]
    fn a_closed_pipe_is_no_error() {
        let pipe = || io::Error::from(io::ErrorKind::BrokenPipe);
        let plain = anyhow::Error::from(pipe()).context("cannot write the report");
        assert_eq!(report(&plain), ExitStatus::Done);
        let json = anyhow::Error::from(serde_json::Error::io(pipe()));
        assert_eq!(report(&json), ExitStatus::Done);
    }
}
