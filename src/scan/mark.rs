//! Marking: which blocks the roots reach.

use std::ops::Range;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use rayon::Scope;

use super::graph::Graph;

/// The blocks that roots reach, one bit each.
#[derive(Debug)]
pub struct Marks {
    /// The bits above the last block are set.
    bits: Vec<AtomicU64>,
    blocks: usize,
}

/// Marks every block that a root reaches, over any number of references.
///
/// It runs in parallel, and the result does not depend on how.
#[must_use]
pub fn mark(graph: &Graph) -> Marks {
    let marks = Marks::none(graph.blocks());
    rayon::scope(|scope| {
        let mut task = Task::new(graph, &marks);
        for root in 0..graph.roots() {
            task.take(scope, graph.root_references(root));
        }
        task.run(scope);
    });
    marks
}

impl Marks {
    pub(super) fn none(blocks: usize) -> Self {
        let mut bits: Vec<_> = (0..blocks.div_ceil(64))
            .map(|_| AtomicU64::new(0))
            .collect();
        if let Some(last) = bits.last_mut().filter(|_| !blocks.is_multiple_of(64)) {
            // There are no blocks above the last one, so they are not leaked either.
            *last.get_mut() = u64::MAX << (blocks % 64);
        }
        Self { bits, blocks }
    }

    /// Says whether a root reaches `block`.
    #[must_use]
    pub fn contains(&self, block: u32) -> bool {
        self.bits[block as usize / 64].load(Relaxed) & (1 << (block % 64)) != 0
    }

    /// The number of blocks that roots reach.
    #[must_use]
    pub fn count(&self) -> usize {
        let unreached = self.unreached().map(|bits| bits.count_ones() as usize);
        self.blocks - unreached.sum::<usize>()
    }

    /// The number of blocks, reached or not.
    #[must_use]
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// Takes `blocks` out of what leaks, without what they reference.
    pub fn exclude(&self, blocks: impl Iterator<Item = u32>) {
        blocks.for_each(|block| {
            self.mark(block);
        });
    }

    /// The blocks that no root reaches, in words of 64 from block 0 on.
    pub(super) fn unreached(&self) -> impl Iterator<Item = u64> {
        self.bits.iter().map(|bits| !bits.load(Relaxed))
    }

    /// Those of the blocks `rows` that no root reaches.
    pub(super) fn unreached_in(&self, rows: Range<usize>) -> impl Iterator<Item = usize> + '_ {
        ones(rows, |word| !self.bits[word].load(Relaxed))
    }

    /// Marks `block`, and says whether this call was the one that did: the caller that hears
    /// `true` follows the block's references, so every block is followed once.
    pub(super) fn mark(&self, block: u32) -> bool {
        let bit = 1 << (block % 64);
        let bits = &self.bits[block as usize / 64];
        // Most references lead to blocks that are marked already, and a load is cheaper. Relaxed
        // is enough: the bit guards no other memory, and the end of the scope publishes all.
        bits.load(Relaxed) & bit == 0 && bits.fetch_or(bit, Relaxed) & bit == 0
    }
}

/// The bits of `range` that are set when it is their turn, in a bitmap of words of 64 bits.
pub(super) fn ones(
    range: Range<usize>,
    word: impl Fn(usize) -> u64,
) -> impl Iterator<Item = usize> {
    let mut next = range.start;
    std::iter::from_fn(move || {
        while next < range.end {
            let bits = word(next / 64) >> (next % 64);
            if bits == 0 {
                next = (next / 64 + 1) * 64;
                continue;
            }
            let found = next + bits.trailing_zeros() as usize;
            next = found + 1;
            return (found < range.end).then_some(found);
        }
        None
    })
}

/// The blocks on a task's stack from which on half of it becomes a task of its own.
const SPLIT: usize = 2048;
/// Rows that are looked up together, so that the misses of their loads overlap.
const BATCH: usize = 16;

/// A stack of marked blocks whose references have yet to be followed.
///
/// Stacks are split by size, not by level of the graph: a long chain costs no more than a wide
/// tree.
struct Task<'a> {
    graph: &'a Graph,
    marks: &'a Marks,
    stack: Vec<u32>,
}

impl<'a> Task<'a> {
    fn new(graph: &'a Graph, marks: &'a Marks) -> Self {
        Self {
            graph,
            marks,
            stack: Vec::new(),
        }
    }

    fn run(mut self, scope: &Scope<'a>) {
        let mut rows: [&[u32]; BATCH] = [&[]; BATCH];
        while !self.stack.is_empty() {
            let batch = self.stack.len().saturating_sub(BATCH);
            let batch = self.stack.drain(batch..);
            let count = batch.len();
            for (row, block) in rows.iter_mut().zip(batch) {
                *row = self.graph.references(block);
            }
            for row in &rows[..count] {
                self.take(scope, row);
            }
        }
    }

    /// Marks `targets`, and puts those on the stack that were not marked.
    fn take(&mut self, scope: &Scope<'a>, targets: &[u32]) {
        for target in targets {
            if self.marks.mark(*target) {
                self.stack.push(*target);
                if self.stack.len() == SPLIT {
                    self.split(scope);
                }
            }
        }
    }

    fn split(&mut self, scope: &Scope<'a>) {
        let half = Self {
            stack: self.stack.split_off(SPLIT / 2),
            ..*self
        };
        scope.spawn(|scope| half.run(scope));
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{in_threads, reached};
    use super::*;
    use proptest::prelude::*;

    fn marked(graph: &Graph) -> Vec<u32> {
        let marks = mark(graph);
        let blocks = u32::try_from(marks.blocks()).expect("few blocks");
        (0..blocks).filter(|block| marks.contains(*block)).collect()
    }

    #[test]
    fn what_roots_reference_is_marked_transitively() {
        let graph = Graph::from_edges(6, &[(0, 1), (1, 2), (3, 2), (4, 4)], &[&[0], &[5, 5]]);
        assert_eq!(marked(&graph), [0, 1, 2, 5]);
        assert_eq!(mark(&graph).count(), 4);
    }

    #[test]
    fn nothing_is_marked_without_roots_or_blocks() {
        assert!(marked(&Graph::from_edges(2, &[(0, 1)], &[])).is_empty());
        assert!(marked(&Graph::from_edges(0, &[], &[&[]])).is_empty());
    }

    #[test]
    fn unreached_has_no_bits_beyond_the_last_block() {
        for blocks in [0, 1, 63, 64, 65, 128] {
            let marks = mark(&Graph::from_edges(blocks, &[], &[]));
            let leaked: u32 = marks.unreached().map(u64::count_ones).sum();
            assert_eq!(leaked, blocks);
        }
    }

    #[test]
    fn ones_are_the_set_bits_of_the_range() {
        let words = [1 | 1 << 63, 0, 1 << 5];
        let found = |range| ones(range, |word| words[word]).collect::<Vec<_>>();
        assert_eq!(found(0..192), [0, 63, 133]);
        assert_eq!(found(1..133), [63]);
        assert_eq!(found(133..134), [133]);
        assert!(found(134..192).is_empty() && found(5..5).is_empty());
    }

    #[test]
    fn a_chain_of_a_million_blocks_is_marked() {
        let edges: Vec<_> = (1..1_000_000).map(|i| (i - 1, i)).collect();
        let graph = Graph::from_edges(1_000_000, &edges, &[&[0]]);
        assert_eq!(mark(&graph).count(), 1_000_000);
    }

    #[test]
    fn a_wide_tree_is_marked_by_several_tasks() {
        let edges: Vec<_> = (1..100_000).map(|i| ((i - 1) / 5000, i)).collect();
        let graph = Graph::from_edges(100_000, &edges, &[&[0]]);
        assert_eq!(in_threads(4, || mark(&graph).count()), 100_000);
    }

    proptest! {
        #[test]
        fn marks_are_what_the_roots_reach_for_any_number_of_threads(
            edges in prop::collection::vec((0u32..300, 0u32..300), 0..600),
            roots in prop::collection::vec(0u32..300, 0..4),
        ) {
            let graph = Graph::from_edges(300, &edges, &[&roots]);
            let expected = reached(&graph);
            prop_assert_eq!(&in_threads(1, || marked(&graph)), &expected);
            prop_assert_eq!(&in_threads(3, || marked(&graph)), &expected);
        }
    }
}
