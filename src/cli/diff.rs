//! `rleaks diff OLD NEW`: how two targets, or a target at two times, differ.

use std::io::{self, BufWriter, Write};
use std::path::Path;

use anyhow::Context;

use super::ExitStatus;
use super::args::DiffArgs;
use super::{leaks, side};
use crate::report::compare::Diff;
use crate::report::{json, text};

/// Compares the two, and prints what differs.
pub(crate) fn diff(args: &DiffArgs) -> anyhow::Result<ExitStatus> {
    let old = side::side(&args.old, args)?;
    let new = side::side(&args.new, args)?;
    let diff = Diff::new(&old, &new);
    // They may be large.
    drop((old, new));
    print(&diff, args)?;
    Ok(ExitStatus::Done)
}

fn print(diff: &Diff, args: &DiffArgs) -> anyhow::Result<()> {
    let file = args.json.as_deref().filter(|path| *path != Path::new("-"));
    if let Some(path) = file {
        let mut out = BufWriter::new(leaks::create(path)?);
        return json::write_value(diff, &mut out)
            .and_then(|()| out.flush())
            .with_context(|| format!("cannot write {}", path.display()));
    }
    let written: io::Result<()> = match args.json {
        Some(_) => json::write_value(diff, &mut io::stdout().lock()),
        None => {
            let mut out = BufWriter::new(anstream::stdout().lock());
            text::write_diff(diff, &options(args), &mut out).and_then(|()| out.flush())
        }
    };
    written.context("cannot write the differences")
}

fn options(args: &DiffArgs) -> text::TextOptions {
    text::TextOptions {
        quiet: args.quiet,
        limit: Some(args.limit.unwrap_or(text::DEFAULT_LIMIT)),
        palette: text::Palette::colored(),
        ..text::TextOptions::default()
    }
}
