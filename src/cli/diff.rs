//! `rleaks diff OLD NEW`: how two targets, or a target at two times, differ.

use std::io::{self, BufWriter, Write};
use std::path::Path;

use anyhow::{Context, bail};

use super::ExitStatus;
use super::args::DiffArgs;
use super::{leaks, report_file, target};
use crate::report::compare::{Diff, Side};
use crate::report::{json, text};

/// Compares the two, and prints what differs.
pub(crate) fn diff(args: &DiffArgs) -> anyhow::Result<ExitStatus> {
    let old = side(&args.old, args)?;
    let new = side(&args.new, args)?;
    let diff = Diff::new(&old, &new);
    // They may be large.
    drop((old, new));
    print(&diff, args)?;
    Ok(ExitStatus::Done)
}

/// What a word names: a file, or else a process.
fn side(word: &str, args: &DiffArgs) -> anyhow::Result<Side> {
    let path = Path::new(word);
    if path.exists() || word.contains('/') {
        return of_report(word, path);
    }
    let found = target::find(&DiffArgs::target(word));
    let processes = found.with_context(|| format!("{word} is no file, nor is it a process"))?;
    let [process] = processes.as_slice() else {
        unreachable!("without --all, a word names one process");
    };
    leaks::side(word, process.pid, (&DiffArgs::scan(), &args.output()))
}

fn of_report(word: &str, path: &Path) -> anyhow::Result<Side> {
    let mut reports = report_file::read(path)?;
    let count = reports.len();
    let Some(report) = reports.pop().filter(|_| count == 1) else {
        bail!(
            "{word} has {count} reports, and two single ones can be compared: take one out, such as the \
             second by `sed -n 2p {word}`"
        );
    };
    Ok(Side {
        source: word.to_owned(),
        report,
        live: None,
    })
}

fn print(diff: &Diff, args: &DiffArgs) -> anyhow::Result<()> {
    let file = args.json.as_deref().filter(|path| *path != Path::new("-"));
    if let Some(path) = file {
        let mut out = BufWriter::new(leaks::create(path)?);
        return json::write_value(diff, &mut out)
            .and_then(|()| out.flush())
            .with_context(|| format!("cannot write {}", path.display()));
    }
    let mut out = BufWriter::new(anstream::stdout().lock());
    let written: io::Result<()> = match args.json {
        Some(_) => json::write_value(diff, &mut out),
        None => text::write_diff(diff, &options(args), &mut out),
    };
    written
        .and_then(|()| out.flush())
        .context("cannot write the differences")
}

fn options(args: &DiffArgs) -> text::TextOptions {
    text::TextOptions {
        quiet: args.quiet,
        limit: Some(args.limit.unwrap_or(text::DEFAULT_LIMIT)),
        palette: text::Palette::colored(),
        ..text::TextOptions::default()
    }
}
