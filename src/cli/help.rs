//! `rleaks completions` and `rleaks man`: the command line's definition in other forms.

use std::io::{self, Write};

use clap::CommandFactory;
use clap_complete::Shell;

use super::ExitStatus;
use super::args::Args;

/// Prints the completion script for `shell`.
pub(crate) fn completions(shell: Shell) -> anyhow::Result<ExitStatus> {
    // The generator panics if it cannot write, so it writes into memory, where it always can.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "rleaks", &mut script);
    io::stdout().lock().write_all(&script)?;
    Ok(ExitStatus::Done)
}

/// Prints the manual page.
pub(crate) fn man() -> anyhow::Result<ExitStatus> {
    let mut page = Vec::new();
    clap_mangen::Man::new(Args::command()).render(&mut page)?;
    io::stdout().lock().write_all(&page)?;
    Ok(ExitStatus::Done)
}
