//! What each leak is to the others: kinds, parents, and trees of what they hold.

use super::components::{LeakGraph, components};
use super::graph::Graph;
use super::leak::{Leak, LeakKind};
use super::mark::Marks;
use crate::heap::Block;

/// The leaks among `blocks`, the blocks of `graph`, in ascending order: those without a mark.
#[must_use]
pub fn leaks(graph: &Graph, marks: &Marks, blocks: &[Block]) -> Vec<Leak> {
    let graph = LeakGraph::new(graph, marks);
    let mut leaks = classify(&graph);
    let order = plant(&graph, &mut leaks);
    add_up(&order, &mut leaks, blocks);
    for leak in &mut leaks {
        leak.tree_parent = leak.tree_parent.map(|above| graph.blocks[above as usize]);
    }
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
pub fn summarize(leaks: &[Leak], blocks: &[Block]) -> LeakSummary {
    let mut summary = LeakSummary::default();
    for leak in leaks {
        let size = blocks[leak.block as usize].size;
        summary.blocks += 1;
        summary.bytes = summary.bytes.saturating_add(size);
        match leak.kind {
            LeakKind::RootLeak => summary.root_leaks += 1,
            LeakKind::RootCycle => summary.root_cycles += u64::from(leak.tree_parent.is_none()),
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
    let mut parents = vec![None; graph.len()];
    for leak in graph.leaks() {
        for target in graph.references(leak) {
            let component = component_of[*target as usize];
            if component == component_of[leak as usize] {
                components[component as usize].cycle = true;
            } else {
                components[component as usize].held = true;
            }
            if *target != leak {
                parents[*target as usize].get_or_insert(graph.blocks[leak as usize]);
            }
        }
    }
    let kinds = component_of.iter().map(|c| components[*c as usize].kind());
    let leaks = graph.blocks.iter().zip(kinds).zip(parents);
    leaks
        .map(|((block, kind), parent)| new_leak(*block, kind, parent))
        .collect()
}

fn new_leak(block: u32, kind: LeakKind, parent: Option<u32>) -> Leak {
    Leak {
        block,
        kind,
        parent: parent.filter(|_| kind == LeakKind::Indirect),
        tree_parent: None,
        held_blocks: 0,
        held_bytes: 0,
    }
}

/// Grows the trees, and returns the leaks' numbers from the top of the first tree to the leaves of
/// the last one. Tree parents are numbers in `graph` from here on, not blocks.
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
                    leaks[*target as usize].tree_parent = Some(leak);
                    order.push(*target);
                }
            }
        }
    }
    order
}

/// Adds up what each leak holds, from the leaves of the trees to their tops.
fn add_up(order: &[u32], leaks: &mut [Leak], blocks: &[Block]) {
    for leak in order.iter().rev() {
        let leak = &mut leaks[*leak as usize];
        let Some(above) = leak.tree_parent else {
            continue;
        };
        let (mut held_blocks, mut held_bytes) = (leak.held_blocks, leak.held_bytes);
        if leak.kind == LeakKind::Indirect {
            held_blocks += 1;
            held_bytes = held_bytes.saturating_add(blocks[leak.block as usize].size);
        } else {
            // The lowest block of a root cycle speaks for all.
            (leak.held_blocks, leak.held_bytes) = (0, 0);
        }
        let above = &mut leaks[above as usize];
        above.held_blocks += held_blocks;
        above.held_bytes = above.held_bytes.saturating_add(held_bytes);
    }
}
