//! What the malloc stack log says about the live blocks, beside what a walker found.
//!
//! The walker decides which blocks live. The log tells more about them, and where the two differ a
//! warning says so.

use std::ops::Range;

use rayon::prelude::*;

use super::block::{Block, Heap};
use super::blocks::{Blocks, Iter as BlockIter};
use crate::addr::Addr;
use crate::stacklog::{Area, LiveRecord, LogError, Records};

/// How many addresses of a kind a warning names.
const EXAMPLES: usize = 5;

/// The records of the blocks of a heap.
#[derive(Clone, Debug, Default)]
pub struct Recorded {
    /// The number of each block's record, or 0 where it has none.
    records: Vec<u32>,
    /// Blocks that live in the log and not in the heap.
    pub only_in_log: Examples,
    /// Blocks that live in the heap and not in the log.
    pub only_in_heap: Examples,
    /// Blocks of which the program asked for more than they have.
    pub too_large: Examples,
}

/// Some of the blocks that have something in common.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Examples {
    /// How many they are.
    pub count: u64,
    /// The lowest of them.
    pub lowest: Vec<Addr>,
}

impl Examples {
    fn add(&mut self, addr: Addr) {
        self.count = self.count.saturating_add(1);
        if self.lowest.len() < EXAMPLES {
            self.lowest.push(addr);
        }
    }

    /// Adds those of higher addresses.
    fn append(&mut self, higher: Self) {
        self.count = self.count.saturating_add(higher.count);
        let room = EXAMPLES.saturating_sub(self.lowest.len());
        self.lowest.extend(higher.lowest.into_iter().take(room));
    }
}

impl Recorded {
    /// Finds the records of `heap`'s blocks.
    ///
    /// # Errors
    /// Says so when the log is damaged.
    pub fn find(heap: &Heap, records: &Records<'_>) -> Result<Self, LogError> {
        let parts: Vec<(&Area, Range<usize>)> = records
            .areas()
            .iter()
            .map(|area| (area, blocks_in(&heap.blocks, area)))
            .collect();
        let found: Vec<Self> = parts
            .par_iter()
            .map(|(area, range)| {
                let blocks = heap.blocks.range(range.clone());
                Ok(Self::compare(blocks, &records.live_in(area)?))
            })
            .collect::<Result<_, LogError>>()?;
        let mut all = Self::default();
        for ((_, range), part) in parts.iter().zip(found) {
            all.append_unrecorded(&heap.blocks, range.start);
            all.append(part);
        }
        all.append_unrecorded(&heap.blocks, heap.blocks.len());
        Ok(all)
    }

    /// The number of the record of block `block`, if it has one.
    #[must_use]
    pub fn record(&self, block: usize) -> Option<u32> {
        self.records
            .get(block)
            .copied()
            .filter(|record| *record != 0)
    }

    /// Compares blocks with records, both in ascending order.
    fn compare(blocks: BlockIter<'_>, live: &[LiveRecord]) -> Self {
        let mut found = Self::default();
        let mut live = live.iter().peekable();
        for block in blocks {
            while let Some(other) = live.next_if(|record| record.start < block.start) {
                found.only_in_log.add(other.start);
            }
            match live.next_if(|record| record.start == block.start) {
                Some(record) => {
                    if record.requested > block.size {
                        found.too_large.add(block.start);
                    }
                    found.records.push(record.record);
                }
                None => found.add_unrecorded(&block),
            }
        }
        live.for_each(|other| found.only_in_log.add(other.start));
        found
    }

    fn add_unrecorded(&mut self, block: &Block) {
        self.only_in_heap.add(block.start);
        self.records.push(0);
    }

    /// Adds the blocks from where this ends up to `end`: they are in no area.
    fn append_unrecorded(&mut self, blocks: &Blocks, end: usize) {
        let blocks = blocks.range(self.records.len()..end);
        blocks.for_each(|block| self.add_unrecorded(&block));
    }

    fn append(&mut self, higher: Self) {
        self.records.extend(higher.records);
        self.only_in_log.append(higher.only_in_log);
        self.only_in_heap.append(higher.only_in_heap);
        self.too_large.append(higher.too_large);
    }
}

fn blocks_in(blocks: &Blocks, area: &Area) -> Range<usize> {
    blocks.starting_below(area.range.start)..blocks.starting_below(area.range.end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stacklog::StackLog;
    use crate::stacklog::format::NODE_NONE;
    use crate::stacklog::testing::{HEADER, LogWriter};

    fn compare(blocks: &[(u64, u64)], logged: &[(u64, u64)]) -> Recorded {
        let mut log = LogWriter::new();
        for (start, requested) in logged {
            log.block(*start, *requested, NODE_NONE);
        }
        let snapshot = log.snapshot();
        let log = StackLog::find(&snapshot, Addr(HEADER));
        let log = log.expect("a good log").expect("a log");
        let records = Records::read(&log, &*snapshot.memory).expect("a good log");
        let block = |(start, size): &(u64, u64)| Block {
            start: Addr(*start),
            size: *size,
        };
        let heap = Heap {
            blocks: blocks.iter().map(block).collect(),
            ..Heap::default()
        };
        Recorded::find(&heap, &records).expect("a good log")
    }

    #[test]
    fn each_block_has_its_record_and_differences_are_counted() {
        const FAR: u64 = 1 << 40;
        let blocks = [
            (0x10, 24),
            (0x40, 24),
            (0x80, 24),
            (FAR, 24),
            (FAR + 0x40, 24),
        ];
        let logged = [(FAR, 24), (0x40, 25), (0x10, 24), (0x60, 1), (2 * FAR, 1)];
        let recorded = compare(&blocks, &logged);
        let records: Vec<_> = (0..6).map(|block| recorded.record(block)).collect();
        assert_eq!(records, [Some(3), Some(2), None, Some(1), None, None]);
        let lowest = |examples: &Examples| (examples.count, examples.lowest.clone());
        assert_eq!(
            lowest(&recorded.only_in_log),
            (2, vec![Addr(0x60), Addr(2 * FAR)])
        );
        assert_eq!(
            lowest(&recorded.only_in_heap),
            (2, vec![Addr(0x80), Addr(FAR + 0x40)])
        );
        assert_eq!(lowest(&recorded.too_large), (1, vec![Addr(0x40)]));
    }

    #[test]
    fn of_many_differences_the_lowest_are_named() {
        let blocks: Vec<_> = (1..100).map(|number| (number << 26, 8)).collect();
        let recorded = compare(&blocks, &[(64 << 26, 8)]);
        assert_eq!(recorded.only_in_heap.count, 98);
        let lowest: Vec<_> = (1..6).map(|number| Addr(number << 26)).collect();
        assert_eq!(recorded.only_in_heap.lowest, lowest);
        assert_eq!(recorded.record(63), Some(1));
    }
}
