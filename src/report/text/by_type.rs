//! The table of types.

use std::cmp::Reverse;
use std::io::{self, Write};

use rustc_hash::FxHashMap;

use super::forest::Totals;
use super::label::Label;
use super::size::{Count, Size};
use super::view::View;
use crate::report::LeakRef;

/// One line of the table.
struct Row {
    name: String,
    totals: Totals,
}

/// Writes a table of all leaked blocks, of whatever kind, by their type. Blocks whose type is not
/// known go by the function that allocated them or, without stacks, by their size: that tells more
/// than one line that adds all of them up.
pub(super) fn write_table(view: &View<'_>, out: &mut dyn Write) -> io::Result<()> {
    let rows = rows(view);
    let (shown, left_out) = view.split_at_limit(&rows);
    let title = view.options.palette.title;
    writeln!(
        out,
        "{title}{:>10}  {:>14}  TYPE{title:#}",
        "COUNT", "BYTES"
    )?;
    for Row { name, totals } in shown {
        writeln!(out, "{:>10}  {:>14}  {name}", totals.blocks, totals.bytes)?;
    }
    write_rest(view, left_out, out)
}

/// What blocks on one line have in common.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Alike {
    /// The number of their type.
    Type(u32),
    /// The id of the stack that allocated them, and their size: it names them where the stack has no frames.
    Allocated(Option<u32>, u64),
}

impl Alike {
    fn of(leak: LeakRef<'_>) -> Self {
        match leak.type_number() {
            Some(number) => Self::Type(number),
            None => Self::Allocated(leak.stack(), leak.size()),
        }
    }

    fn name(self, view: &View<'_>) -> String {
        let label = match self {
            Self::Type(number) => Label::Type(view.report.leaks.type_name(number)),
            Self::Allocated(stack, size) => Label::new(None, view.stack(stack), size),
        };
        label.to_string()
    }
}

/// The lines of the table, the one with most bytes first.
fn rows(view: &View<'_>) -> Vec<Row> {
    // There may be millions of leaks, and have few names.
    let mut alike: FxHashMap<Alike, Totals> = FxHashMap::default();
    for leak in view.report.leaks.iter() {
        alike
            .entry(Alike::of(leak))
            .or_default()
            .add(Totals::of(leak));
    }
    let mut types: FxHashMap<String, Totals> = FxHashMap::default();
    for (alike, totals) in alike {
        types.entry(alike.name(view)).or_default().add(totals);
    }
    let row = |(name, totals)| Row { name, totals };
    let mut rows: Vec<_> = types.into_iter().map(row).collect();
    rows.sort_by(|a, b| {
        let key = |row: &Row| Reverse((row.totals.bytes, row.totals.blocks));
        key(a).cmp(&key(b)).then_with(|| a.name.cmp(&b.name))
    });
    rows
}

fn write_rest(view: &View<'_>, left_out: &[Row], out: &mut dyn Write) -> io::Result<()> {
    if left_out.is_empty() {
        return Ok(());
    }
    let mut totals = Totals::default();
    for row in left_out {
        totals.add(row.totals);
    }
    let types = Count(left_out.len() as u64, "more type", "more types");
    let leaks = Count(totals.blocks, "leak", "leaks");
    let what = format!("{types} with {leaks} ({})", Size(totals.bytes));
    view.write_left_out(&what, out)
}
