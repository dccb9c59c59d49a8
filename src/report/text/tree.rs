//! Trees of leaks, those that are alike together.

use std::cmp::Reverse;
use std::io::{self, Write};

use rustc_hash::FxHashMap;

use super::forest::{Forest, Totals};
use super::label::{Label, kind_name};
use super::list::Preview;
use super::size::{Count, Size};
use super::stack;
use super::view::View;
use crate::addr::Addr;
use crate::report::group::Alike;
use crate::report::{Group, LeakRef};
use crate::scan::LeakKind;

/// How many trees of a group are shown.
const MAX_INSTANCES: usize = 5;
/// How many lines of a tree are shown.
const MAX_LINES: u64 = 20;
/// How many levels of a tree are shown.
const MAX_DEPTH: usize = 12;

/// The indentation of a group's trees, and that of each level below.
const INDENT: usize = 4;
const INDENT_BELOW_TOTAL: usize = 2;
const INDENT_OF_LEVEL: usize = 3;

/// The trees that begin with the leaks of a group.
struct Trees<'a> {
    group: &'a Group,
    /// How many they are.
    count: u64,
    /// The leaks that the largest of them begin with, those that are shown.
    largest: Vec<u32>,
    totals: Totals,
}

/// Writes the groups whose leaks begin trees, those with the largest trees first.
///
/// A tree is cut where it would tell a person no more. What is cut is counted, so that nothing is
/// left out in silence.
pub(super) fn write_groups(view: &View<'_>, out: &mut dyn Write) -> io::Result<()> {
    let forest = Forest::new(&view.report.leaks);
    let groups = groups_of_trees(view, &forest);
    let (shown, left_out) = view.split_at_limit(&groups);
    let writer = TreeWriter { view, forest };
    for (number, trees) in shown.iter().enumerate() {
        if number > 0 {
            writeln!(out)?;
        }
        writer.write_group(trees, out)?;
    }
    if !shown.is_empty() && !left_out.is_empty() {
        writeln!(out)?;
    }
    write_rest(view, left_out, out)
}

/// The trees of each group, but for groups without any: all of their leaks may stand below others.
fn groups_of_trees<'a>(view: &View<'a>, forest: &Forest) -> Vec<Trees<'a>> {
    let report = view.report;
    let groups = report.groups.iter();
    let by_first: FxHashMap<Addr, &Group> = groups
        .filter_map(|group| Some((*group.leaks.first()?, group)))
        .collect();
    // The first leak of a group is the first that comes up here.
    let mut roots: FxHashMap<Alike, (Addr, Vec<u32>)> = FxHashMap::default();
    for leak in report.leaks.iter() {
        let first = || (leak.address(), Vec::new());
        let (_, roots) = roots.entry(Alike::of(leak)).or_insert_with(first);
        if forest.is_root(leak.row()) {
            roots.push(leak.row());
        }
    }
    let trees = roots.into_values().filter_map(|(first, roots)| {
        let group = by_first.get(&first)?;
        (!roots.is_empty()).then(|| Trees::new(group, roots, forest))
    });
    let mut trees: Vec<Trees<'a>> = trees.collect();
    trees.sort_unstable_by_key(|trees| (Reverse(trees.totals.bytes), trees.largest[0]));
    trees
}

impl<'a> Trees<'a> {
    fn new(group: &'a Group, mut roots: Vec<u32>, forest: &Forest) -> Self {
        let mut totals = Totals::default();
        for root in &roots {
            totals.add(forest.totals(*root));
        }
        let count = roots.len() as u64;
        // Equal ones are in the order of their addresses, which is that of the rows.
        leave_largest(&mut roots, MAX_INSTANCES, |root| {
            (Reverse(forest.totals(*root).bytes), *root)
        });
        Self {
            group,
            count,
            largest: roots,
            totals,
        }
    }
}

/// Leaves the first `count` of `leaks`, in order of their keys: there may be millions.
fn leave_largest<K: Ord>(leaks: &mut Vec<u32>, count: usize, key: impl Fn(&u32) -> K) {
    if leaks.len() > count {
        leaks.select_nth_unstable_by_key(count, &key);
        leaks.truncate(count);
        leaks.shrink_to_fit();
    }
    leaks.sort_unstable_by_key(key);
}

fn write_rest(view: &View<'_>, left_out: &[Trees<'_>], out: &mut dyn Write) -> io::Result<()> {
    if left_out.is_empty() {
        return Ok(());
    }
    let mut totals = Totals::default();
    for trees in left_out {
        totals.add(trees.totals);
    }
    let groups = Count(left_out.len() as u64, "more group", "more groups");
    let leaks = Count(totals.blocks, "leak", "leaks");
    let what = format!("{groups} with {leaks} ({})", Size(totals.bytes));
    view.write_left_out(&what, out)
}

struct TreeWriter<'a> {
    view: &'a View<'a>,
    forest: Forest,
}

impl TreeWriter<'_> {
    fn write_group(&self, trees: &Trees<'_>, out: &mut dyn Write) -> io::Result<()> {
        self.write_group_header(trees, out)?;
        let Totals { blocks, bytes } = trees.totals;
        let mut indent = INDENT;
        if trees.count > 1 {
            let size = Size(bytes);
            writeln!(out, "{:indent$}{blocks} ({size}) << TOTAL >>", "")?;
            indent += INDENT_BELOW_TOTAL;
        }
        let mut shown = Totals::default();
        for root in &trees.largest {
            self.write_tree(*root, indent, out)?;
            shown.add(self.forest.totals(*root));
        }
        let more = trees.count - trees.largest.len() as u64;
        self.write_more_trees(more, trees.totals.without(shown), indent, out)
    }

    /// Writes what the trees of a group are, and the stack if they have one. Without a stack the
    /// line says `1 INSTANCE OF` instead of `STACK OF 1 INSTANCE OF`.
    fn write_group_header(&self, trees: &Trees<'_>, out: &mut dyn Write) -> io::Result<()> {
        let size = self.leak(trees.largest[0]).size();
        let group = trees.group;
        let stack = self.view.stack(group.stack);
        let prefix = if stack.is_some() { "STACK OF " } else { "" };
        let instances = Count(trees.count, "INSTANCE", "INSTANCES");
        let kind = kind_name(group.kind);
        let label = Label::new(group.type_name.as_deref(), stack, size);
        let title = self.view.options.palette.title;
        writeln!(
            out,
            "{title}{prefix}{instances} OF '{kind}: <{label}>':{title:#}"
        )?;
        if let Some(stack) = stack {
            stack::write_frames(stack, out)?;
            writeln!(out, "====")?;
        }
        self.write_estimate(group, out)
    }

    /// Writes how many leaks the samples of a group stand for, where they are samples.
    fn write_estimate(&self, group: &Group, out: &mut dyn Write) -> io::Result<()> {
        let (Some(blocks), Some(bytes)) = (group.estimated_blocks, group.estimated_bytes) else {
            return Ok(());
        };
        let note = self.view.options.palette.note;
        let samples = Count(group.blocks, "sample stands", "samples stand");
        let blocks = Count(blocks, "block", "blocks");
        let size = Size(bytes);
        writeln!(
            out,
            "{:INDENT$}{note}{samples} for about {blocks} ({size}){note:#}",
            ""
        )
    }

    /// Writes a tree from the top, the largest branch first, until it has enough lines.
    fn write_tree(&self, root: u32, indent: usize, out: &mut dyn Write) -> io::Result<()> {
        let mut shown = Totals::default();
        let mut ahead = vec![(root, 0)];
        while let Some((node, depth)) = ahead.pop()
            && shown.blocks < MAX_LINES
        {
            self.write_node(node, depth == 0, indent + depth * INDENT_OF_LEVEL, out)?;
            shown.add(Totals::of(self.leak(node)));
            if depth + 1 < MAX_DEPTH {
                let children = self.largest_children(node).into_iter().rev();
                ahead.extend(children.map(|child| (child, depth + 1)));
            }
        }
        let hidden = self.forest.totals(root).without(shown);
        self.write_hidden(hidden, indent + INDENT_OF_LEVEL, out)
    }

    /// The leaks directly below `node` that a tree may show, the largest first.
    fn largest_children(&self, node: u32) -> Vec<u32> {
        let mut children = self.forest.children(node).to_vec();
        let most = usize::try_from(MAX_LINES).unwrap_or(usize::MAX);
        leave_largest(&mut children, most, |child| {
            (Reverse(self.forest.totals(*child).bytes), *child)
        });
        children
    }

    fn leak(&self, row: u32) -> LeakRef<'_> {
        self.view.report.leaks.at(row)
    }

    /// Writes `COUNT (SIZE) ROOT LEAK: <TYPE ADDRESS> [BYTES]  length: N  "content"`.
    fn write_node(
        &self,
        node: u32,
        is_root: bool,
        indent: usize,
        out: &mut dyn Write,
    ) -> io::Result<()> {
        let leak = self.leak(node);
        let Totals { blocks, bytes } = self.forest.totals(node);
        write!(out, "{:indent$}{blocks} ({}) ", "", Size(bytes))?;
        if is_root || leak.kind() == LeakKind::RootCycle {
            let style = self.view.options.palette.kind;
            write!(out, "{style}{}:{style:#} ", kind_name(leak.kind()))?;
        }
        self.write_name(leak, out)?;
        let style = self.view.options.palette.content;
        writeln!(out, " [{}]{style}{}{style:#}", leak.size(), Preview(leak))
    }

    /// Writes `<TYPE ADDRESS>`, or the address alone where nothing is known but the size, which
    /// follows anyway.
    fn write_name(&self, leak: LeakRef<'_>, out: &mut dyn Write) -> io::Result<()> {
        match self.view.label(leak) {
            Label::Size(_) => write!(out, "{}", leak.address()),
            label => write!(out, "<{label} {}>", leak.address()),
        }
    }

    fn write_hidden(&self, hidden: Totals, indent: usize, out: &mut dyn Write) -> io::Result<()> {
        if hidden.blocks == 0 {
            return Ok(());
        }
        let note = self.view.options.palette.note;
        let blocks = Count(hidden.blocks, "more block", "more blocks");
        let size = Size(hidden.bytes);
        writeln!(
            out,
            "{:indent$}{note}... {blocks} ({size}) not shown{note:#}",
            ""
        )
    }

    fn write_more_trees(
        &self,
        count: u64,
        totals: Totals,
        indent: usize,
        out: &mut dyn Write,
    ) -> io::Result<()> {
        if count == 0 {
            return Ok(());
        }
        let note = self.view.options.palette.note;
        let instances = Count(count, "more instance", "more instances");
        let blocks = Count(totals.blocks, "block", "blocks");
        let size = Size(totals.bytes);
        writeln!(
            out,
            "{:indent$}{note}... {instances} with {blocks} ({size}) not shown{note:#}",
            ""
        )
    }
}
