//! The text from top to bottom.

use std::io::{self, BufWriter, Write};

use rustc_hash::FxHashMap;

use super::label::Label;
use super::options::{Layout, TextOptions};
use super::{by_type, header, list, tree};
use crate::report::{LeakRef, Report, Stack};

/// Writes the report as text.
///
/// Strings of the target never send control characters. Only the styles of
/// [`TextOptions::palette`] are escape sequences.
///
/// # Errors
/// Fails where `out` does.
pub fn write(report: &Report, options: &TextOptions, out: &mut dyn Write) -> io::Result<()> {
    let mut out = BufWriter::new(out);
    if !options.quiet {
        header::write_header(report, &mut out)?;
    }
    header::write_totals(report, &options.palette, &mut out)?;
    if report.has_leaks() {
        write_leaks(&View::new(report, options), &mut out)?;
    }
    if !report.warnings.is_empty() {
        writeln!(out)?;
        header::write_warnings(&report.warnings, &options.palette, &mut out)?;
    }
    out.flush()
}

fn write_leaks(view: &View<'_>, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out)?;
    match view.options.layout {
        Layout::Trees => tree::write_groups(view, out),
        Layout::List => list::write_list(view, out),
        Layout::Types => by_type::write_table(view, out),
    }
}

/// A report, and what every layout needs to show its leaks.
pub(super) struct View<'a> {
    pub(super) report: &'a Report,
    pub(super) options: &'a TextOptions,
    stacks: FxHashMap<u32, &'a Stack>,
}

impl<'a> View<'a> {
    fn new(report: &'a Report, options: &'a TextOptions) -> Self {
        Self {
            report,
            options,
            stacks: report.stacks.iter().map(|s| (s.id, s)).collect(),
        }
    }

    /// The stack with an id.
    pub(super) fn stack(&self, id: Option<u32>) -> Option<&'a Stack> {
        self.stacks.get(&id?).copied()
    }

    /// What a leak is called.
    pub(super) fn label(&self, leak: LeakRef<'a>) -> Label<'a> {
        Label::new(leak.type_name(), self.stack(leak.stack()), leak.size())
    }

    /// Splits what a layout shows from what the limit leaves out.
    pub(super) fn split_at_limit<'s, T>(&self, entries: &'s [T]) -> (&'s [T], &'s [T]) {
        entries.split_at(self.limit().min(entries.len()))
    }

    /// How many entries a layout shows.
    pub(super) fn limit(&self) -> usize {
        self.options.limit.unwrap_or(usize::MAX)
    }

    /// Writes what the limit leaves out, and how to see it.
    pub(super) fn write_left_out(&self, what: &str, out: &mut dyn Write) -> io::Result<()> {
        let note = self.options.palette.note;
        writeln!(
            out,
            "{note}... {what} not shown; raise --limit to see more{note:#}"
        )
    }
}
