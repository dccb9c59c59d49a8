//! The trees of leaks, made from each leak's `tree_parent`.

use std::ops::Range;

use crate::report::LeakRef;
use crate::report::leaks::{Leaks, NONE, number};

/// Blocks and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) blocks: u64,
    pub(super) bytes: u64,
}

impl Totals {
    pub(super) fn of(leak: LeakRef<'_>) -> Self {
        Self {
            blocks: 1,
            bytes: leak.size(),
        }
    }

    pub(super) fn add(&mut self, other: Self) {
        self.blocks = self.blocks.saturating_add(other.blocks);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }

    pub(super) fn without(self, other: Self) -> Self {
        Self {
            blocks: self.blocks.saturating_sub(other.blocks),
            bytes: self.bytes.saturating_sub(other.bytes),
        }
    }
}

/// The trees of a report's leaks, which are named by their rows.
///
/// A leak whose `tree_parent` is not in the report begins a tree of its own. Nothing here recurses:
/// a leaked list is a tree as deep as the list is long.
pub(super) struct Forest {
    /// The row above each row, or itself where a tree begins, or [`NONE`] where it is no leak of the report.
    parents: Vec<u32>,
    /// Where each leak's children begin in `children`; one more at the end.
    first_child: Vec<u32>,
    children: Vec<u32>,
    totals: Vec<Totals>,
}

impl Forest {
    pub(super) fn new(leaks: &Leaks) -> Self {
        let parents = parents(leaks);
        let first_child = first_children(&parents);
        Self {
            children: children(&parents, &first_child),
            totals: totals(leaks, &parents, &first_child),
            parents,
            first_child,
        }
    }

    /// Says whether a tree begins with a leak.
    pub(super) fn is_root(&self, leak: u32) -> bool {
        self.parents[leak as usize] == leak
    }

    /// The leaks that stand directly below `leak`.
    pub(super) fn children(&self, leak: u32) -> &[u32] {
        &self.children[children_of(&self.first_child, leak)]
    }

    /// What the tree that begins with `leak` adds up to.
    pub(super) fn totals(&self, leak: u32) -> Totals {
        self.totals[leak as usize]
    }
}

fn parents(leaks: &Leaks) -> Vec<u32> {
    let mut parents = vec![NONE; leaks.rows()];
    for leak in leaks.iter() {
        parents[leak.row() as usize] = leak.row();
    }
    for leak in leaks.iter() {
        let above = leak.row_above();
        if let Some(above) = above.filter(|above| parents[*above as usize] != NONE) {
            parents[leak.row() as usize] = above;
        }
    }
    parents
}

/// The rows that have one above them, and that one.
fn links(parents: &[u32]) -> impl Iterator<Item = (u32, u32)> {
    let links = (0..).zip(parents.iter().copied());
    links.filter(|(leak, parent)| *parent != NONE && parent != leak)
}

fn first_children(parents: &[u32]) -> Vec<u32> {
    let mut first = vec![0; parents.len() + 1];
    for (_, parent) in links(parents) {
        first[parent as usize + 1] += 1;
    }
    for i in 1..first.len() {
        first[i] += first[i - 1];
    }
    first
}

fn children_of(first_child: &[u32], leak: u32) -> Range<usize> {
    let leak = leak as usize;
    first_child[leak] as usize..first_child[leak + 1] as usize
}

fn children(parents: &[u32], first_child: &[u32]) -> Vec<u32> {
    let mut next = first_child.to_vec();
    let mut children = vec![0; first_child.last().map_or(0, |end| *end as usize)];
    for (leak, parent) in links(parents) {
        let next = &mut next[parent as usize];
        children[*next as usize] = leak;
        *next += 1;
    }
    children
}

/// Adds each leak to its parent once all of its own children are in it.
fn totals(leaks: &Leaks, parents: &[u32], first_child: &[u32]) -> Vec<Totals> {
    let mut totals = vec![Totals::default(); parents.len()];
    for leak in leaks.iter() {
        totals[leak.row() as usize] = Totals::of(leak);
    }
    let mut missing: Vec<u32> = first_child.windows(2).map(|w| w[1] - w[0]).collect();
    for leaf in (0..number(parents.len())).filter(|leak| parents[*leak as usize] != NONE) {
        if !children_of(first_child, leaf).is_empty() {
            continue;
        }
        let mut leak = leaf;
        while parents[leak as usize] != leak {
            let parent = parents[leak as usize];
            let complete = totals[leak as usize];
            totals[parent as usize].add(complete);
            missing[parent as usize] -= 1;
            if missing[parent as usize] > 0 {
                break;
            }
            leak = parent;
        }
    }
    totals
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::addr::Addr;
    use crate::report::Leak;

    fn leaks(parents: &[Option<u64>]) -> Leaks {
        let leak = |(i, parent): (u64, &Option<u64>)| Leak {
            address: Addr(i),
            size: i + 1,
            tree_parent: parent.map(Addr),
            ..Leak::default()
        };
        (0..).zip(parents).map(leak).collect()
    }

    fn roots(forest: &Forest, leaks: &Leaks) -> Vec<u32> {
        leaks
            .iter()
            .map(LeakRef::row)
            .filter(|row| forest.is_root(*row))
            .collect()
    }

    proptest! {
        #[test]
        fn the_trees_have_every_leak_once(
            picks in prop::collection::vec(prop::option::of(any::<prop::sample::Index>()), 1..50),
            left_out in prop::collection::vec(any::<bool>(), 50),
        ) {
            let parent = |(i, pick): (usize, &Option<prop::sample::Index>)| {
                pick.filter(|_| i > 0).map(|pick| pick.index(i) as u64)
            };
            let parents: Vec<_> = picks.iter().enumerate().map(parent).collect();
            let mut leaks = leaks(&parents);
            leaks.retain(|leak| !left_out[leak.row() as usize]);
            let forest = Forest::new(&leaks);

            let mut ahead = roots(&forest, &leaks);
            let (mut visited, mut totals, mut expected) = (0, Totals::default(), Totals::default());
            ahead.iter().for_each(|root| totals.add(forest.totals(*root)));
            leaks.iter().for_each(|leak| expected.add(Totals::of(leak)));
            while let Some(leak) = ahead.pop() {
                visited += 1;
                ahead.extend(forest.children(leak));
            }
            prop_assert_eq!(visited, leaks.len());
            prop_assert_eq!(totals, expected);
        }
    }

    #[test]
    fn parents_in_a_circle_are_in_no_tree_and_do_no_harm() {
        let leaks = leaks(&[Some(1), Some(0), Some(99), Some(2)]);
        let forest = Forest::new(&leaks);
        assert_eq!(roots(&forest, &leaks), [2]);
        assert_eq!(forest.children(2), [3]);
    }
}
