//! What each leak is to the others: kinds, parents, and trees of what they hold.

use super::components::{LeakGraph, components};
use super::graph::Graph;
use super::leak::{Leak, LeakKind, Link};
use super::mark::Marks;
use crate::heap::Blocks;

/// The leaks among `blocks`, the blocks of `graph`, in ascending order: those without a mark.
#[must_use]
pub fn leaks(graph: &Graph, marks: &Marks, blocks: &Blocks) -> Vec<Leak> {
    let graph = LeakGraph::new(graph, marks);
    let mut leaks = classify(&graph);
    let order = plant(&graph, &mut leaks);
    drop(graph);
    add_up(&order, &mut leaks, blocks);
    leaks
}

/// How many leaks there are, and of which kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeakSummary {
    /// The number of leaked blocks.
    pub blocks: u64,
    /// The sum of their sizes.
    pub bytes: u64,
    /// Blocks that no leak references.
    pub root_leaks: u64,
    /// Cycles that no leak outside them references, each counted once.
    pub root_cycles: u64,
    /// Blocks that other leaks hold.
    pub indirect: u64,
}

/// Counts `leaks`, which are leaks among `blocks`.
#[must_use]
pub fn summarize(leaks: &[Leak], blocks: &Blocks) -> LeakSummary {
    let mut summary = LeakSummary::default();
    for leak in leaks {
        let size = blocks.size(leak.block as usize);
        summary.blocks += 1;
        summary.bytes = summary.bytes.saturating_add(size);
        match leak.kind {
            LeakKind::RootLeak => summary.root_leaks += 1,
            LeakKind::RootCycle => summary.root_cycles += u64::from(leak.tree_parent == Link::NONE),
            LeakKind::Indirect => summary.indirect += 1,
        }
    }
    summary
}

/// A strongly connected component of the leaks.
#[derive(Clone, Copy, Default)]
struct Component {
    /// A leak in it references a leak in it.
    cycle: bool,
    /// A leak outside it references a leak in it.
    held: bool,
}

impl Component {
    fn kind(self) -> LeakKind {
        match self {
            Self { held: true, .. } => LeakKind::Indirect,
            Self { cycle: true, .. } => LeakKind::RootCycle,
            Self { .. } => LeakKind::RootLeak,
        }
    }
}

/// The leaks with their kinds and parents, without trees.
fn classify(graph: &LeakGraph) -> Vec<Leak> {
    let component_of = components(graph);
    let mut components = vec![Component::default(); graph.len()];
    let new = |block: &u32| Leak {
        block: *block,
        parent: Link::NONE,
        tree_parent: Link::NONE,
        held_blocks: 0,
        held_bytes: 0,
        kind: LeakKind::RootLeak,
    };
    let mut leaks: Vec<Leak> = graph.blocks.iter().map(new).collect();
    for leak in graph.leaks() {
        for target in graph.references(leak) {
            let component = component_of[*target as usize];
            if component == component_of[leak as usize] {
                components[component as usize].cycle = true;
            } else {
                components[component as usize].held = true;
            }
            let parent = &mut leaks[*target as usize].parent;
            if *target != leak && *parent == Link::NONE {
                *parent = Link::to(leak);
            }
        }
    }
    for (leak, component) in leaks.iter_mut().zip(component_of) {
        leak.kind = components[component as usize].kind();
        if leak.kind != LeakKind::Indirect {
            leak.parent = Link::NONE;
        }
    }
    leaks
}

/// Grows the trees, and returns the leaks from the top of the first tree to the leaves of the last one.
fn plant(graph: &LeakGraph, leaks: &mut [Leak]) -> Vec<u32> {
    let mut order = Vec::with_capacity(leaks.len());
    let mut planted = vec![false; leaks.len()];
    for top in graph.leaks() {
        // The other blocks of a root cycle are planted by the time they come up here.
        if leaks[top as usize].kind == LeakKind::Indirect || planted[top as usize] {
            continue;
        }
        planted[top as usize] = true;
        let mut next = order.len();
        order.push(top);
        while let Some(leak) = order.get(next).copied() {
            next += 1;
            for target in graph.references(leak) {
                if !planted[*target as usize] {
                    planted[*target as usize] = true;
                    leaks[*target as usize].tree_parent = Link::to(leak);
                    order.push(*target);
                }
            }
        }
    }
    order
}

/// Adds up what each leak holds, from the leaves of the trees to their tops.
fn add_up(order: &[u32], leaks: &mut [Leak], blocks: &Blocks) {
    for leak in order.iter().rev() {
        let leak = &mut leaks[*leak as usize];
        let Some(above) = leak.tree_parent.get() else {
            continue;
        };
        let (mut held_blocks, mut held_bytes) = (leak.held_blocks, leak.held_bytes);
        if leak.kind == LeakKind::Indirect {
            held_blocks += 1;
            held_bytes = held_bytes.saturating_add(blocks.size(leak.block as usize));
        } else {
            // The lowest block of a root cycle speaks for all.
            (leak.held_blocks, leak.held_bytes) = (0, 0);
        }
        let above = &mut leaks[above as usize];
        above.held_blocks += held_blocks;
        above.held_bytes = above.held_bytes.saturating_add(held_bytes);
    }
}

#[cfg(test)]
mod tests {
    use LeakKind::{Indirect, RootCycle, RootLeak};
    use proptest::prelude::*;

    use super::super::mark::mark;
    use super::super::testing::{self, reached_from};
    use super::*;

    fn listed(ranges: &[(u64, u64)]) -> Blocks {
        testing::blocks(ranges).into_iter().collect()
    }

    /// Block `i` has 10^i bytes, so that sums tell what was added.
    fn sized(blocks: u32) -> Blocks {
        let ranges = (0..blocks).map(|i| (0x1000 + u64::from(i) * (1 << 20), 10_u64.pow(i)));
        listed(&ranges.collect::<Vec<_>>())
    }

    /// Kind, parent, tree parent, held blocks, held bytes.
    type Shape = (LeakKind, Option<u32>, Option<u32>, u32, u64);

    /// The leaks of a graph without roots.
    fn shape(blocks: u32, edges: &[(u32, u32)]) -> Vec<Shape> {
        let graph = Graph::from_edges(blocks, edges, &[]);
        leaks(&graph, &mark(&graph), &sized(blocks))
            .iter()
            .map(|l| {
                let (parent, tree_parent) = (l.parent.get(), l.tree_parent.get());
                (l.kind, parent, tree_parent, l.held_blocks, l.held_bytes)
            })
            .collect()
    }

    #[test]
    fn a_block_without_references_is_a_root_leak() {
        assert_eq!(shape(1, &[]), [(RootLeak, None, None, 0, 0)]);
    }

    #[test]
    fn a_chain_is_held_by_its_first_block() {
        assert_eq!(
            shape(3, &[(2, 1), (1, 0)]),
            [
                (Indirect, Some(1), Some(1), 0, 0),
                (Indirect, Some(2), Some(2), 1, 1),
                (RootLeak, None, None, 2, 11),
            ]
        );
    }

    #[test]
    fn a_block_with_two_parents_belongs_to_the_lowest() {
        assert_eq!(
            shape(3, &[(1, 0), (2, 0)]),
            [
                (Indirect, Some(1), Some(1), 0, 0),
                (RootLeak, None, None, 1, 1),
                (RootLeak, None, None, 0, 0),
            ]
        );
    }

    #[test]
    fn a_diamond_is_counted_once() {
        assert_eq!(
            shape(4, &[(0, 2), (0, 1), (1, 3), (2, 3)]),
            [
                (RootLeak, None, None, 3, 1110),
                (Indirect, Some(0), Some(0), 0, 0),
                (Indirect, Some(0), Some(0), 1, 1000), // The root's first word.
                (Indirect, Some(1), Some(2), 0, 0),
            ]
        );
    }

    #[test]
    fn the_lowest_block_speaks_for_a_cycle_and_its_tails() {
        assert_eq!(
            shape(5, &[(0, 2), (2, 1), (1, 0), (1, 3), (3, 4)]),
            [
                (RootCycle, None, None, 2, 11_000),
                (RootCycle, None, Some(2), 0, 0),
                (RootCycle, None, Some(0), 0, 0),
                (Indirect, Some(1), Some(1), 1, 10_000),
                (Indirect, Some(3), Some(3), 0, 0),
            ]
        );
    }

    #[test]
    fn a_block_that_references_itself_is_a_cycle_of_one() {
        assert_eq!(shape(1, &[(0, 0)]), [(RootCycle, None, None, 0, 0)]);
    }

    #[test]
    fn cycles_that_another_leak_holds_are_indirect() {
        assert_eq!(
            shape(4, &[(0, 1), (1, 0), (2, 1), (2, 3), (3, 3)]),
            [
                (Indirect, Some(1), Some(1), 0, 0),
                (Indirect, Some(0), Some(2), 1, 1),
                (RootLeak, None, None, 3, 1011),
                (Indirect, Some(2), Some(2), 0, 0),
            ]
        );
    }

    #[test]
    fn what_is_reached_neither_leaks_nor_holds() {
        let graph = Graph::from_edges(4, &[(0, 1), (2, 1), (2, 3)], &[&[0]]);
        let found = leaks(&graph, &mark(&graph), &sized(4));
        let found: Vec<_> = found
            .iter()
            .map(|l| (l.block, l.held_blocks, l.parent.get()))
            .collect();
        assert_eq!(found, [(2, 1, None), (3, 0, Some(0))]);
    }

    #[test]
    fn the_summary_counts_a_cycle_once() {
        let graph = Graph::from_edges(5, &[(0, 1), (1, 0), (2, 3), (4, 4)], &[]);
        let blocks = sized(5);
        let found = leaks(&graph, &mark(&graph), &blocks);
        let expected = LeakSummary {
            blocks: 5,
            bytes: 11_111,
            root_leaks: 1,
            root_cycles: 2,
            indirect: 1,
        };
        assert_eq!(summarize(&found, &blocks), expected);
    }

    #[test]
    fn a_chain_of_a_million_leaks_is_held_by_its_first_block() {
        let edges: Vec<_> = (1..1_000_000).map(|i| (i, i - 1)).collect();
        let graph = Graph::from_edges(1_000_000, &edges, &[]);
        let ranges: Vec<_> = (1..=1_000_000).map(|i| (i * 16, 2)).collect();
        let found = leaks(&graph, &mark(&graph), &listed(&ranges));
        let last = found[999_999];
        assert_eq!(
            (last.kind, last.held_blocks, last.held_bytes),
            (RootLeak, 999_999, 1_999_998)
        );
        assert_eq!(found[0].parent, Link::to(1));
    }

    /// The kind of a leak by its definition: who reaches it and whom it reaches.
    fn naive_kind(graph: &Graph, leaked: &[u32], leak: u32) -> LeakKind {
        let reaches =
            |from: u32, to: u32| reached_from(graph, graph.references(from)).contains(&to);
        let mut holders = leaked
            .iter()
            .filter(|from| reaches(**from, leak))
            .peekable();
        if holders.peek().is_none() {
            return RootLeak;
        }
        if holders.all(|holder| reaches(leak, *holder)) {
            return RootCycle;
        }
        Indirect
    }

    proptest! {
        #[test]
        fn kinds_and_sums_follow_their_definitions(
            edges in prop::collection::vec((0u32..30, 0u32..30), 0..40),
            roots in prop::collection::vec(0u32..30, 0..3),
        ) {
            let graph = Graph::from_edges(30, &edges, &[&roots]);
            let ranges: Vec<_> = (1..=30).map(|i| (i * 256, i)).collect();
            let blocks = listed(&ranges);
            let found = leaks(&graph, &mark(&graph), &blocks);
            let reached = testing::reached(&graph);
            let leaked: Vec<_> = (0..30).filter(|block| !reached.contains(block)).collect();
            prop_assert_eq!(found.iter().map(|l| l.block).collect::<Vec<_>>(), leaked.clone());

            let mut held = 0;
            for leak in &found {
                prop_assert_eq!(leak.kind, naive_kind(&graph, &leaked, leak.block));
                let lowest = leaked.iter().copied().find(|from| {
                    *from != leak.block && graph.references(*from).contains(&leak.block)
                });
                let parent = leak.parent.get().map(|parent| leaked[parent as usize]);
                prop_assert_eq!(parent, lowest.filter(|_| leak.kind == Indirect));
                if let Some(above) = leak.tree_parent.get() {
                    let above = leaked[above as usize];
                    prop_assert!(graph.references(above).contains(&leak.block));
                }
                held += if leak.kind == Indirect { 0 } else { 1 };
                held += if leak.tree_parent == Link::NONE { leak.held_blocks } else { 0 };
            }
            prop_assert_eq!(held as usize, found.len());
        }

        #[test]
        fn held_is_what_the_lower_trees_do_not_hold(
            edges in prop::collection::vec((0u32..30, 0u32..30), 0..40),
        ) {
            let graph = Graph::from_edges(30, &edges, &[]);
            let ranges: Vec<_> = (1..=30).map(|i| (i * 256, i)).collect();
            let blocks = listed(&ranges);
            let found = leaks(&graph, &mark(&graph), &blocks);
            let mut taken = std::collections::BTreeSet::new();
            for top in found.iter().filter(|leak| leak.tree_parent == Link::NONE) {
                let mut below = reached_from(&graph, graph.references(top.block));
                below.retain(|block| {
                    found[*block as usize].kind == Indirect && taken.insert(*block)
                });
                let bytes: u64 = below.iter().map(|block| blocks.size(*block as usize)).sum();
                prop_assert_eq!((top.held_blocks as usize, top.held_bytes), (below.len(), bytes));
            }
        }
    }
}
