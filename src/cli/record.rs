//! `rleaks record -- CMD`: becomes a program that remembers its allocations.

use std::ffi::OsString;
use std::io::Write;

use anyhow::Context;

use super::ExitStatus;
use super::args::RecordArgs;
use super::error::printable;
use super::preload;
use crate::platform::{CommandLine, Disposition, Limit, ProgramFile};
use crate::stacklog::format;

/// Becomes the program. Returns only where that fails.
pub(crate) fn record(args: &RecordArgs) -> anyhow::Result<ExitStatus> {
    let word = args.command.first().context("no program is named")?;
    let program = ProgramFile::find(word)?;
    let limit = program.limit();
    if let Some(limit) = &limit {
        say_limit(&word.to_string_lossy(), limit);
    }
    let mut variables = settings(args)?;
    if limit.is_none_or(|limit| limit.bears_the_recorder()) {
        variables.push(preload::preloading(&preload::library()?)?);
    }
    let command = CommandLine {
        words: args.command.clone(),
        variables,
    };
    let error = command.become_it(&Disposition::current());
    Err(error).with_context(|| format!("cannot run {}", word.to_string_lossy()))
}

/// Says that a program is not recorded, and that it runs all the same.
pub(super) fn say_limit(name: &str, limit: &Limit) {
    let text = format!(
        "rleaks: {} is not recorded: {limit}; it runs, and a scan of it shows no call stacks\n",
        printable(name)
    );
    // There is nowhere to say that it could not be said.
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
}

/// The recorder's settings. Those that are not named here keep what the environment says.
fn settings(args: &RecordArgs) -> anyhow::Result<Vec<(OsString, OsString)>> {
    let number = |name, value: Option<u64>| value.map(|value| (name, value.to_string().into()));
    let mut settings: Vec<(&str, OsString)> = Vec::new();
    if let Some(file) = &args.history {
        // The program may change its directory.
        let file = std::path::absolute(file)?;
        settings.push((format::MODE_VARIABLE, "full".into()));
        settings.push((format::HISTORY_VARIABLE, file.into_os_string()));
    }
    settings.extend(number(format::SAMPLE_VARIABLE, args.sample));
    settings.extend(number(format::DEPTH_VARIABLE, args.depth.map(u64::from)));
    if args.scribble {
        settings.push((format::SCRIBBLE_VARIABLE, "1".into()));
    }
    let settings = settings.into_iter();
    Ok(settings.map(|(name, value)| (name.into(), value)).collect())
}
