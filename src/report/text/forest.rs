//! The trees of leaks, made from each leak's `tree_parent`.

use rustc_hash::FxHashMap;

use crate::addr::Addr;
use crate::report::Leak;

/// Blocks and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) blocks: u64,
    pub(super) bytes: u64,
}

impl Totals {
    pub(super) fn of(leak: &Leak) -> Self {
        Self {
            blocks: 1,
            bytes: leak.size,
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

/// The trees of a report's leaks, which are named by their index in the report.
///
/// A leak whose `tree_parent` is not in the report begins a tree of its own. Nothing here recurses:
/// a leaked list is a tree as deep as the list is long.
pub(super) struct Forest {
    index: FxHashMap<Addr, usize>,
    parents: Vec<Option<usize>>,
    /// Where each leak's children begin in `children`; one more at the end.
    first_child: Vec<usize>,
    children: Vec<usize>,
    totals: Vec<Totals>,
}

impl Forest {
    pub(super) fn new(leaks: &[Leak]) -> Self {
        let index: FxHashMap<_, _> = (0..)
            .zip(leaks)
            .map(|(i, leak)| (leak.address, i))
            .collect();
        let parents: Vec<_> = leaks
            .iter()
            .map(|leak| index.get(&leak.tree_parent?).copied())
            .collect();
        let first_child = first_children(&parents);
        Self {
            children: children(&parents, &first_child),
            totals: totals(leaks, &parents, &first_child),
            index,
            parents,
            first_child,
        }
    }

    /// The index of the leak at `address`, if a tree begins with it.
    pub(super) fn root_at(&self, address: Addr) -> Option<usize> {
        let leak = *self.index.get(&address)?;
        self.parents[leak].is_none().then_some(leak)
    }

    /// The leaks that stand directly below `leak`.
    pub(super) fn children(&self, leak: usize) -> &[usize] {
        &self.children[self.first_child[leak]..self.first_child[leak + 1]]
    }

    /// What the tree that begins with `leak` adds up to.
    pub(super) fn totals(&self, leak: usize) -> Totals {
        self.totals[leak]
    }
}

fn first_children(parents: &[Option<usize>]) -> Vec<usize> {
    let mut first = vec![0; parents.len() + 1];
    for parent in parents.iter().flatten() {
        first[parent + 1] += 1;
    }
    for i in 1..first.len() {
        first[i] += first[i - 1];
    }
    first
}

fn children(parents: &[Option<usize>], first_child: &[usize]) -> Vec<usize> {
    let mut next = first_child.to_vec();
    let mut children = vec![0; first_child.last().copied().unwrap_or(0)];
    for (leak, parent) in parents.iter().enumerate() {
        if let Some(parent) = *parent {
            children[next[parent]] = leak;
            next[parent] += 1;
        }
    }
    children
}

/// Adds each leak to its parent once all of its own children are in it.
fn totals(leaks: &[Leak], parents: &[Option<usize>], first_child: &[usize]) -> Vec<Totals> {
    let mut totals: Vec<_> = leaks.iter().map(Totals::of).collect();
    let mut missing: Vec<_> = first_child.windows(2).map(|w| w[1] - w[0]).collect();
    for leaf in 0..leaks.len() {
        if first_child[leaf] != first_child[leaf + 1] {
            continue;
        }
        let mut leak = leaf;
        while let Some(parent) = parents[leak] {
            let complete = totals[leak];
            totals[parent].add(complete);
            missing[parent] -= 1;
            if missing[parent] > 0 {
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
    use crate::report::fixture::leaky;

    fn leaks(parents: &[Option<u64>]) -> Vec<Leak> {
        let leak = leaky().leaks.remove(0);
        let leak = |(i, parent): (u64, &Option<u64>)| Leak {
            address: Addr(i),
            size: i + 1,
            tree_parent: parent.map(Addr),
            ..leak.clone()
        };
        (0..).zip(parents).map(leak).collect()
    }

    proptest! {
        #[test]
        fn the_trees_have_every_leak_once(
            picks in prop::collection::vec(prop::option::of(any::<prop::sample::Index>()), 1..50)
        ) {
            let parent = |(i, pick): (usize, &Option<prop::sample::Index>)| {
                pick.filter(|_| i > 0).map(|pick| pick.index(i) as u64)
            };
            let parents: Vec<_> = picks.iter().enumerate().map(parent).collect();
            let leaks = leaks(&parents);
            let forest = Forest::new(&leaks);

            let mut ahead: Vec<_> = leaks.iter().filter_map(|l| forest.root_at(l.address)).collect();
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
        let leaks = leaks(&[Some(1), Some(0), Some(2), Some(99)]);
        let forest = Forest::new(&leaks);
        let roots: Vec<_> = (0..4).filter_map(|i| forest.root_at(Addr(i))).collect();
        assert_eq!(roots, [3]);
    }
}
