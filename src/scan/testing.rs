//! What the tests of this folder share.

use std::collections::BTreeSet;

use super::graph::Graph;
use crate::addr::{Addr, AddrRange};
use crate::heap::Block;
use crate::memory::{FakeMemory, Memory};

/// Several ranges of bytes; everything between them is unreadable.
#[derive(Clone, Debug, Default)]
pub(super) struct RangesMemory {
    pub(super) ranges: Vec<FakeMemory>,
    /// What the target never touched, though it can be read.
    pub(super) untouched: Vec<AddrRange>,
}

impl RangesMemory {
    /// Zeros in each of the ranges.
    pub(super) fn zeroed(ranges: &[(u64, usize)]) -> Self {
        let ranges = ranges
            .iter()
            .map(|(base, size)| FakeMemory::zeroed(*base, *size));
        Self {
            ranges: ranges.collect(),
            untouched: Vec::new(),
        }
    }

    pub(super) fn set_word(&mut self, addr: u64, value: u64) {
        let range = self.ranges.iter_mut().find(|range| {
            addr.checked_sub(range.base)
                .is_some_and(|at| at + 8 <= range.bytes.len() as u64)
        });
        range.expect("readable memory").set_word(addr, value);
    }
}

impl Memory for RangesMemory {
    fn read(&self, addr: Addr, buf: &mut [u8]) -> usize {
        let mut count = 0;
        while count < buf.len() {
            let from = addr.saturating_add(count as u64);
            let counts = self.ranges.iter().map(|r| r.read(from, &mut buf[count..]));
            match counts.max() {
                None | Some(0) => break,
                Some(more) => count += more,
            }
        }
        count
    }

    fn resident(&self, range: AddrRange) -> Vec<AddrRange> {
        let untouched: crate::addr::RangeSet = self.untouched.iter().copied().collect();
        untouched.gaps(range)
    }
}

/// Blocks at the given addresses, of the given sizes.
pub(super) fn blocks(ranges: &[(u64, u64)]) -> Vec<Block> {
    let block = |(start, size): &(u64, u64)| Block {
        start: Addr(*start),
        size: *size,
    };
    ranges.iter().map(block).collect()
}

/// Runs `work` on a pool of as many threads.
pub(super) fn in_threads<T: Send>(threads: usize, work: impl FnOnce() -> T + Send) -> T {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    pool.expect("threads can be started").install(work)
}

/// The blocks that `from` and what they reference reach, found the naive way.
pub(super) fn reached_from(graph: &Graph, from: &[u32]) -> BTreeSet<u32> {
    fn visit(graph: &Graph, blocks: &[u32], seen: &mut BTreeSet<u32>) {
        for block in blocks {
            if seen.insert(*block) {
                visit(graph, graph.references(*block), seen);
            }
        }
    }
    let mut seen = BTreeSet::new();
    visit(graph, from, &mut seen);
    seen
}

/// The blocks that the roots reach, in ascending order.
pub(super) fn reached(graph: &Graph) -> Vec<u32> {
    let roots: Vec<u32> = (0..graph.roots())
        .flat_map(|root| graph.root_references(root))
        .copied()
        .collect();
    reached_from(graph, &roots).into_iter().collect()
}
