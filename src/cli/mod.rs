//! The command line: what was typed, and one file per command.

mod args;
mod at_exit;
mod capture;
mod compare;
mod core_file;
mod demo;
mod demo_target;
mod diff;
mod doctor;
mod error;
mod heap;
mod help;
mod leaks;
mod live;
mod memory_limit;
mod panic;
mod phases;
mod preload;
mod record;
mod reduction;
mod report_file;
mod save;
mod saved;
mod schema;
mod side;
mod stacks;
mod target;

use std::process::ExitCode;

use clap::Parser;

use args::{Args, Command};

use crate::platform::{guardian, watched, watched_command};

/// What a command came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ExitStatus {
    /// The command did its work, and where it looks for leaks, it found none.
    Done,
    /// The command found leaks.
    Leaks,
    /// A program that the command has run says this; it is neither of the others.
    Program(u8),
    /// The command could not do its work.
    Failed,
}

impl From<ExitStatus> for ExitCode {
    fn from(status: ExitStatus) -> Self {
        Self::from(match status {
            ExitStatus::Done => 0,
            ExitStatus::Leaks => 1,
            ExitStatus::Program(status) => status,
            ExitStatus::Failed => 2,
        })
    }
}

/// Runs the command that the arguments of this process name.
#[must_use]
pub fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(usage) => return error::report_usage(&usage).into(),
    };
    args.leaks.output.color.apply();
    if let Some(Command::Guardian) = args.command {
        return guardian();
    }
    // Another process watches that no target is stopped for too long.
    match args.command {
        // This process becomes the program.
        Some(Command::DemoTarget | Command::Record(_)) => work(args).into(),
        None if args.leaks.at_exit.at_exit => watched_command(|| work(args).into()),
        _ => watched(|| work(args).into()),
    }
}

fn work(args: Args) -> ExitStatus {
    match panic::catch(|| run(args)) {
        Ok(Ok(status)) => status,
        Ok(Err(error)) => error::report(&error),
        Err(bug) => error::report_bug(&bug),
    }
}

fn run(args: Args) -> anyhow::Result<ExitStatus> {
    match args.command {
        None if args.leaks.at_exit.at_exit => at_exit::at_exit(&args.leaks),
        None => leaks::leaks(&args.leaks),
        Some(Command::Demo) => demo::demo(|pid| leaks::scan_and_print(pid, &args.leaks, None)),
        Some(Command::Doctor(doctor)) => doctor::doctor(&doctor),
        Some(Command::Diff(diff)) => diff::diff(&diff),
        Some(Command::Heap(heap)) => heap::heap(&heap),
        Some(Command::Record(record)) => record::record(&record),
        Some(Command::PreloadPath { install }) => preload::preload_path(install.as_deref()),
        Some(Command::Schema { of }) => schema::schema(of),
        Some(Command::Completions { shell }) => help::completions(shell),
        Some(Command::Man) => help::man(),
        Some(Command::DemoTarget) => demo_target::demo_target(),
        Some(Command::Guardian) => unreachable!("it is no command of this process"),
    }
}
