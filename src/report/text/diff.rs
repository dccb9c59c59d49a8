//! What `rleaks diff` says, as text.

use std::fmt;
use std::io::{self, BufWriter, Write};

use rustc_hash::FxHashMap;

use super::escape::Escaped;
use super::header::{self, DateTime};
use super::label::Label;
use super::options::TextOptions;
use super::size::{Count, Size};
use super::stack;
use crate::report::compare::{Change, Diff, DiffSide, GroupChange};
use crate::report::{ComparedBy, HeapTotals, Stack};

/// Writes what differs as text: the totals, and a table of the groups that differ.
///
/// # Errors
/// Fails where `out` does.
pub fn write_diff(diff: &Diff, options: &TextOptions, out: &mut dyn Write) -> io::Result<()> {
    let mut out = BufWriter::new(out);
    if !options.quiet {
        write_sides(diff, &mut out)?;
    }
    write_totals(diff, options, &mut out)?;
    let tables = Tables {
        options,
        stacks: diff.stacks.iter().map(|stack| (stack.id, stack)).collect(),
    };
    tables.write("LEAKS", &diff.leaks, &mut out)?;
    if let Some(live) = &diff.live {
        tables.write("MEMORY IN USE, leaked or not", live, &mut out)?;
    }
    if !diff.warnings.is_empty() {
        writeln!(out)?;
        header::write_warnings(&diff.warnings, &options.palette, &mut out)?;
    }
    out.flush()
}

fn write_sides(diff: &Diff, out: &mut dyn Write) -> io::Result<()> {
    header::line(out, "Old:", &SideName(&diff.old))?;
    header::line(out, "New:", &SideName(&diff.new))?;
    header::line(out, "Compared By:", &By(diff.by))?;
    writeln!(out, "----")?;
    writeln!(out)
}

/// `old.json: python3 [4242], 2026-11-22 14:03:11 UTC`.
struct SideName<'a>(&'a DiffSide);

impl fmt::Display for SideName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let DiffSide {
            source,
            target,
            taken_at,
            ..
        } = self.0;
        let name = header::ProcessName(target);
        write!(f, "{}: {name}, {}", Escaped(source), DateTime(taken_at))
    }
}

/// What makes two leaks the same, in words.
pub(super) struct By(pub(super) ComparedBy);

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            ComparedBy::Address => "address (it is the same process)",
            ComparedBy::Stack => "stack, type and size",
            ComparedBy::Type => "type and size",
        })
    }
}

fn write_totals(diff: &Diff, options: &TextOptions, out: &mut dyn Write) -> io::Result<()> {
    let (old, new) = (&diff.old, &diff.new);
    let heap = |heap: &HeapTotals| (heap.blocks, heap.bytes);
    let leaked = |side: &DiffSide| (side.leaked_blocks, side.leaked_bytes);
    let title = options.palette.title;
    let change = Totals(heap(&old.heap), heap(&new.heap), ("block", "blocks"));
    writeln!(out, "In use:  {change}")?;
    let change = Totals(leaked(old), leaked(new), ("leak", "leaks"));
    writeln!(out, "{title}Leaked:  {change}{title:#}")?;
    let summary = &diff.summary;
    let appeared = Count(summary.appeared_blocks, "new leak", "new leaks");
    let appeared_bytes = Size(summary.appeared_bytes);
    let gone_bytes = Size(summary.gone_bytes);
    let (kept, gone) = (summary.kept_blocks, summary.gone_blocks);
    writeln!(
        out,
        "{appeared} ({appeared_bytes}), {kept} old, {gone} gone ({gone_bytes})"
    )
}

/// `120 blocks (4.00K) -> 150 blocks (6.00K): +30, +2.00K`.
struct Totals((u64, u64), (u64, u64), (&'static str, &'static str));

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(old, new, (one, many)) = *self;
        let part = |(blocks, bytes)| format!("{} ({})", Count(blocks, one, many), Size(bytes));
        write!(f, "{} -> {}", part(old), part(new))?;
        let (sign, blocks) = difference(old.0, new.0);
        let (bytes_sign, bytes) = difference(old.1, new.1);
        if (blocks, bytes) == (0, 0) {
            return f.write_str(", no growth");
        }
        let counted = Count(blocks, one, many);
        write!(f, ", {sign}{counted}, {bytes_sign}{}", Size(bytes))
    }
}

/// The sign of the growth, and its amount.
fn difference(old: u64, new: u64) -> (&'static str, u64) {
    let sign = match new.cmp(&old) {
        std::cmp::Ordering::Less => "-",
        std::cmp::Ordering::Equal => "",
        std::cmp::Ordering::Greater => "+",
    };
    (sign, old.abs_diff(new))
}

struct Tables<'a> {
    options: &'a TextOptions,
    stacks: FxHashMap<u32, &'a Stack>,
}

impl Tables<'_> {
    fn write(&self, what: &str, groups: &[GroupChange], out: &mut dyn Write) -> io::Result<()> {
        if groups.is_empty() {
            return Ok(());
        }
        let title = self.options.palette.title;
        writeln!(
            out,
            "\n{title}{:>12} {:>24} {:>18}  {what}{title:#}",
            "GROWTH", "BYTES", "BLOCKS"
        )?;
        let limit = self.options.limit.unwrap_or(usize::MAX);
        let (shown, left_out) = groups.split_at(limit.min(groups.len()));
        for group in shown {
            self.write_group(group, out)?;
        }
        self.write_left_out(left_out, out)
    }

    fn write_group(&self, group: &GroupChange, out: &mut dyn Write) -> io::Result<()> {
        let stack = group.stack.and_then(|id| self.stacks.get(&id)).copied();
        let (sign, bytes) = difference(group.old_bytes, group.new_bytes);
        let growth = format!("{sign}{bytes}");
        let bytes = format!("{} -> {}", group.old_bytes, group.new_bytes);
        let blocks = format!("{} -> {}", group.old_blocks, group.new_blocks);
        let label = Label::new(group.type_name.as_deref(), stack, group.size.unwrap_or(0));
        let what = Happened(group);
        writeln!(
            out,
            "{growth:>12} {bytes:>24} {blocks:>18}  <{label}> {what}"
        )?;
        let Some(stack) = stack else {
            return Ok(());
        };
        write!(out, "{:>12}", "")?;
        stack::write_frames_inline(stack, out)?;
        writeln!(out)
    }

    fn write_left_out(&self, left_out: &[GroupChange], out: &mut dyn Write) -> io::Result<()> {
        if left_out.is_empty() {
            return Ok(());
        }
        let sum =
            |of: &dyn Fn(&GroupChange) -> u64| left_out.iter().map(of).fold(0, u64::saturating_add);
        let (sign, bytes) = difference(sum(&|g| g.old_bytes), sum(&|g| g.new_bytes));
        let note = self.options.palette.note;
        let groups = Count(left_out.len() as u64, "more group", "more groups");
        let size = Size(bytes);
        writeln!(
            out,
            "{note}... {groups} ({sign}{size}) not shown; raise --limit to see more{note:#}"
        )
    }
}

/// What happened to a group, and where it is not plain from the counts, how many came and went.
struct Happened<'a>(&'a GroupChange);

impl fmt::Display for Happened<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0.change {
            Change::Appeared => "appeared",
            Change::Grew => "grew",
            Change::Shrank => "shrank",
            Change::WentAway => "went away",
            Change::Replaced => "were replaced",
        })?;
        match (self.0.appeared_blocks, self.0.gone_blocks) {
            (Some(new @ 1..), Some(gone @ 1..)) => write!(f, " ({new} new, {gone} gone)"),
            _ => Ok(()),
        }
    }
}
