//! The flat form: every leak for itself, as `leaks -list` shows it.

use std::fmt;
use std::io::{self, Write};

use super::escape::Escaped;
use super::forest::Totals;
use super::size::{Count, Size};
use super::stack;
use super::view::View;
use crate::report::{LeakRef, Stack};

/// Writes a `Leak:` line for each leak and, if it has a stack, a `Call stack:` line.
pub(super) fn write_list(view: &View<'_>, out: &mut dyn Write) -> io::Result<()> {
    let leaks = &view.report.leaks;
    for leak in leaks.iter().take(view.limit()) {
        write_leak(view, leak, out)?;
        if let Some(stack) = view.stack(leak.stack()) {
            write_call_stack(leak, stack, out)?;
        }
    }
    write_rest(view, leaks.iter().skip(view.limit()), out)
}

fn write_leak(view: &View<'_>, leak: LeakRef<'_>, out: &mut dyn Write) -> io::Result<()> {
    write!(out, "Leak: {} size={}", leak.address(), leak.size())?;
    let mut zones = view.report.zones.iter();
    if let Some(zone) = zones.find(|zone| zone.id == leak.here().zone) {
        write!(out, "  zone: {}", Escaped(&zone.name))?;
    }
    if let Some(name) = leak.type_name() {
        write!(out, "  {}", Escaped(name))?;
    }
    let style = view.options.palette.content;
    writeln!(out, "{style}{}{style:#}", Preview(leak))
}

fn write_call_stack(leak: LeakRef<'_>, stack: &Stack, out: &mut dyn Write) -> io::Result<()> {
    write!(out, "\tCall stack:")?;
    if let Some(thread) = leak.thread() {
        write!(out, " [thread {thread}]:")?;
    }
    stack::write_frames_inline(stack, out)?;
    writeln!(out)
}

fn write_rest<'a>(
    view: &View<'_>,
    left_out: impl Iterator<Item = LeakRef<'a>>,
    out: &mut dyn Write,
) -> io::Result<()> {
    let mut totals = Totals::default();
    for leak in left_out {
        totals.add(Totals::of(leak));
    }
    if totals.blocks == 0 {
        return Ok(());
    }
    let leaks = Count(totals.blocks, "more leak", "more leaks");
    let what = format!("{leaks} ({})", Size(totals.bytes));
    view.write_left_out(&what, out)
}

/// The string in a leaked block, if there is one: `  length: 61  "..."`.
pub(super) struct Preview<'a>(pub(super) LeakRef<'a>);

impl fmt::Display for Preview<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let description = self.0.description();
        let Some(content) = description.content else {
            return Ok(());
        };
        if let Some(length) = description.content_length {
            write!(f, "  length: {length}")?;
        }
        write!(f, "  {}", Escaped(content))
    }
}
