//! The command line: what was typed, and one file per command.

mod args;
mod at_exit;
mod capture;
mod core_file;
mod demo;
mod demo_target;
mod doctor;
mod error;
mod heap;
mod help;
mod leaks;
mod panic;
mod phases;
mod preload;
mod record;
mod reduction;
mod save;
mod saved;
mod schema;
mod stacks;
mod target;

use std::process::ExitCode;

use clap::Parser;

use args::{Args, Command};

use crate::platform::{watched, watched_command};

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
        Some(Command::Demo) => demo::demo(|pid| leaks::scan_and_print(pid, &args.leaks)),
        Some(Command::Doctor(doctor)) => doctor::doctor(&doctor),
        Some(Command::Heap(heap)) => heap::heap(&heap),
        Some(Command::Record(record)) => record::record(&record),
        Some(Command::PreloadPath { install }) => preload::preload_path(install.as_deref()),
        Some(Command::Schema) => schema::schema(),
        Some(Command::Completions { shell }) => help::completions(shell),
        Some(Command::Man) => help::man(),
        Some(Command::DemoTarget) => demo_target::demo_target(),
    }
}
