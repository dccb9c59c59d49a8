//! Which block an address lies in.
//!
//! Block starts are bits in a bitmap of granules, with ranks: the number of starts at or below an
//! address is one load from the table of pages and one from a leaf, and the block is the one before
//! that number. Nothing is searched but the handful of clusters.

use std::cmp::Reverse;
use std::iter;

use super::filter::prefetch;
use crate::addr::AddrRange;
use crate::heap::Block;

/// Pages between two neighbouring starts, from which on a new cluster begins. A page of the table
/// takes 8 bytes, so a gap costs at most 16 KiB, and a block of many TiB no more than that.
const CLUSTER_GAP: u64 = 2048;
/// A gap between two blocks that may have memory in it to which many words point, as modules are.
const GAP: u64 = 1 << 20;
/// Granules per page, as a power of two: 64 entries of 64 granules.
const PAGE_GRANULES: u32 = 12;
/// The largest granule, as a power of two. Allocators align blocks to 8 or 16 bytes.
const MAX_GRANULE: u32 = 4;

/// More blocks than a [`BlockIndex`] can number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the target has {0} live blocks, rleaks can number 4294967294: scan a smaller target")]
pub struct TooManyBlocks(usize);

/// Finds the block that an address lies in, in constant time.
///
/// It takes about 1/100 of the heap's size, and never more than 20 KiB per block.
#[derive(Debug)]
pub struct BlockIndex<'a> {
    blocks: &'a [Block],
    /// The lowest address in any block.
    lowest: u64,
    /// The distance from there to the end of the highest block.
    span: u64,
    /// The size of a granule, as a power of two: every start is a multiple of it.
    granule: u32,
    clusters: Vec<Cluster>,
    pages: Vec<Page>,
    /// The first leaf has no starts; all pages without starts share it.
    leaves: Vec<Leaf>,
}

/// Neighbouring blocks without a large gap between their starts.
#[derive(Clone, Copy, Debug)]
struct Cluster {
    /// The address of the first page.
    base: u64,
    /// Where its pages are in the table.
    first_page: usize,
    /// The number of its pages. One more follows, which stands for all addresses above them.
    pages: u64,
}

/// 4096 granules of the address space.
#[derive(Clone, Copy, Debug)]
struct Page {
    leaf: u32,
    /// The number of starts below the page.
    rank: u32,
}

/// The starts of a page, in entries of 64 granules.
#[derive(Clone, Copy, Debug)]
struct Leaf {
    bits: [u64; 64],
    /// The number of starts in the entries before each one: less than 4096.
    ranks: [u16; 64],
}

impl Leaf {
    const EMPTY: Self = Self {
        bits: [0; 64],
        ranks: [0; 64],
    };
}

impl<'a> BlockIndex<'a> {
    /// Indexes `blocks`, which are in ascending order and do not overlap.
    ///
    /// # Errors
    ///
    /// There are more than 2³² − 2 blocks.
    pub fn new(blocks: &'a [Block]) -> Result<Self, TooManyBlocks> {
        if blocks.len() >= u32::MAX as usize {
            return Err(TooManyBlocks(blocks.len()));
        }
        debug_assert!(
            blocks
                .windows(2)
                .all(|pair| pair[0].range().end <= pair[1].start)
        );
        let mut builder = Builder::new(granule(blocks));
        for block in blocks {
            builder.add(block.start.0);
        }
        Ok(builder.finish(blocks))
    }

    /// The blocks that are indexed.
    #[must_use]
    pub fn blocks(&self) -> &'a [Block] {
        self.blocks
    }

    /// The index of the block that the address `value` lies in: at its start or inside it, not
    /// one past its end.
    #[must_use]
    pub fn find(&self, value: u64) -> Option<u32> {
        let number = self.may_find(value).then(|| self.candidate(value))?;
        self.holds(number, value).then_some(number)
    }

    /// Says whether `value` is between the lowest and the highest address in any block: a quick
    /// test that sorts out most words.
    #[inline]
    pub(super) fn may_find(&self, value: u64) -> bool {
        value.wrapping_sub(self.lowest) < self.span
    }

    /// The only block that `value` can be in, if [`BlockIndex::may_find`] says yes: the last one
    /// that starts at or below it.
    #[inline(always)]
    pub(super) fn candidate(&self, value: u64) -> u32 {
        let page = self.page(value);
        let (leaf, entry) = (&self.leaves[page.leaf as usize], self.entry(value));
        let below = u64::MAX >> (63 - self.bit(value));
        let rank = page.rank + u32::from(leaf.ranks[entry]);
        (rank + (leaf.bits[entry] & below).count_ones()).saturating_sub(1)
    }

    /// Has what [`BlockIndex::candidate`] will look at for `value` brought into the cache.
    #[inline(always)]
    pub(super) fn prefetch_candidate(&self, value: u64) {
        let (leaf, entry) = (self.page(value).leaf, self.entry(value));
        let leaf = &self.leaves[leaf as usize];
        prefetch(&leaf.bits[entry]);
        prefetch(&leaf.ranks[entry]);
    }

    /// Has what [`BlockIndex::holds`] will look at for `block` brought into the cache.
    #[inline]
    pub(super) fn prefetch_block(&self, block: u32) {
        prefetch(&self.blocks[block as usize]);
    }

    /// The page that `value` belongs to: not below the first cluster.
    #[inline(always)]
    fn page(&self, value: u64) -> Page {
        let after = self.clusters.partition_point(|c| c.base <= value);
        let cluster = self.clusters[after - 1];
        let page = (value - cluster.base) >> (self.granule + PAGE_GRANULES);
        self.pages[cluster.first_page + index(page.min(cluster.pages))]
    }

    /// Says whether `value`, which is not below the block, is in it.
    #[inline(always)]
    pub(super) fn holds(&self, block: u32, value: u64) -> bool {
        let block = self.blocks[block as usize];
        value.wrapping_sub(block.start.0) < block.size
    }

    /// At most `most` ranges that all blocks are in, in ascending order. Between them are the largest gaps that
    /// are as large as [`GAP`].
    pub(super) fn ranges(&self, most: usize) -> Vec<AddrRange> {
        let Some((first, last)) = self.blocks.first().zip(self.blocks.last()) else {
            return Vec::new();
        };
        let mut gaps: Vec<AddrRange> = self.gaps().collect();
        gaps.sort_unstable_by_key(|gap| Reverse(gap.size()));
        gaps.truncate(most - 1);
        gaps.sort_unstable();
        let starts = iter::once(first.start).chain(gaps.iter().map(|gap| gap.end));
        let ends = gaps.iter().map(|gap| gap.start);
        let ends = ends.chain(iter::once(last.range().end));
        starts
            .zip(ends)
            .map(|(start, end)| AddrRange::new(start, end))
            .collect()
    }

    /// The gaps between blocks that are as large as [`GAP`]. Each has a page without starts.
    fn gaps(&self) -> impl Iterator<Item = AddrRange> {
        let mut ranks: Vec<u32> = self
            .pages
            .iter()
            .filter(|page| page.leaf == 0)
            .map(|page| page.rank)
            .collect();
        ranks.dedup();
        let pairs = ranks.into_iter().filter_map(|rank| {
            let before = self.blocks.get((rank as usize).checked_sub(1)?)?;
            let after = self.blocks.get(rank as usize)?;
            Some(AddrRange::new(before.range().end, after.start))
        });
        pairs.filter(|gap| gap.size() >= GAP)
    }

    fn entry(&self, value: u64) -> usize {
        index((value >> (self.granule + 6)) % 64)
    }

    fn bit(&self, value: u64) -> u64 {
        (value >> self.granule) % 64
    }
}

/// The largest power of two, up to [`MAX_GRANULE`], that all starts are multiples of.
fn granule(blocks: &[Block]) -> u32 {
    let all = blocks.iter().fold(0, |bits, block| bits | block.start.0);
    all.trailing_zeros().min(MAX_GRANULE)
}

/// Our index for a number that is known to be small.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the callers' numbers index memory that we hold"
)]
fn index(value: u64) -> usize {
    value as usize
}

/// A [`BlockIndex`] in the making: starts come in ascending order.
struct Builder {
    index: BlockIndex<'static>,
    /// The number of starts so far.
    rank: u32,
}

impl Builder {
    fn new(granule: u32) -> Self {
        let index = BlockIndex {
            blocks: &[],
            lowest: 0,
            span: 0,
            granule,
            clusters: Vec::new(),
            pages: Vec::new(),
            leaves: vec![Leaf::EMPTY],
        };
        Self { index, rank: 0 }
    }

    fn add(&mut self, start: u64) {
        self.enter_page(start);
        let (entry, bit) = (self.index.entry(start), self.index.bit(start));
        if let Some(leaf) = self.index.leaves.last_mut() {
            leaf.bits[entry] |= 1 << bit;
        }
        self.rank += 1;
    }

    /// Makes the page of `start` the last one, with a leaf of its own.
    fn enter_page(&mut self, start: u64) {
        let shift = self.index.granule + PAGE_GRANULES;
        let page = start >> shift;
        let next = self
            .index
            .clusters
            .last()
            .map(|c| (c.base >> shift) + c.pages);
        match next {
            Some(next) if page < next => return,
            Some(next) if page - next < CLUSTER_GAP => {
                for _ in next..page {
                    self.push_page(0);
                }
            }
            _ => self.start_cluster(page << shift),
        }
        self.finish_leaf();
        let leaf = u32::try_from(self.index.leaves.len()).unwrap_or(u32::MAX);
        self.push_page(leaf);
        self.index.leaves.push(Leaf::EMPTY);
    }

    fn push_page(&mut self, leaf: u32) {
        let rank = self.rank;
        self.index.pages.push(Page { leaf, rank });
        if let Some(cluster) = self.index.clusters.last_mut() {
            cluster.pages += 1;
        }
    }

    fn start_cluster(&mut self, base: u64) {
        self.finish_cluster();
        self.index.clusters.push(Cluster {
            base,
            first_page: self.index.pages.len(),
            pages: 0,
        });
    }

    /// Adds the page that stands for all addresses above the cluster's last start.
    fn finish_cluster(&mut self) {
        let rank = self.rank;
        self.index.pages.push(Page { leaf: 0, rank });
    }

    /// Counts the starts before each entry of the last leaf.
    fn finish_leaf(&mut self) {
        let Some(leaf) = self.index.leaves.last_mut() else {
            return;
        };
        let mut before = 0;
        for (rank, bits) in leaf.ranks.iter_mut().zip(&leaf.bits) {
            *rank = before;
            // At most 64 in each of 64 entries.
            before += u16::try_from(bits.count_ones()).unwrap_or(0);
        }
    }

    fn finish<'a>(mut self, blocks: &'a [Block]) -> BlockIndex<'a> {
        self.finish_leaf();
        self.finish_cluster();
        let lowest = blocks.first().map_or(0, |block| block.start.0);
        let end = blocks.last().map_or(0, |block| block.range().end.0);
        BlockIndex {
            blocks,
            lowest,
            span: end.saturating_sub(lowest),
            ..self.index
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::addr::Addr;

    fn block(start: u64, size: u64) -> Block {
        Block {
            start: Addr(start),
            size,
        }
    }

    fn naive(blocks: &[Block], value: u64) -> Option<u32> {
        let found = blocks.iter().position(|b| b.range().contains(Addr(value)));
        found.map(|at| u32::try_from(at).expect("few blocks"))
    }

    /// Compares with the naive search at and around the edges of every block.
    fn check(blocks: &[Block]) {
        let index = BlockIndex::new(blocks).expect("few blocks");
        for block in blocks {
            let range = block.range();
            for edge in [range.start.0, range.end.0, range.start.0 + range.size() / 2] {
                for value in edge.saturating_sub(17)..=edge.saturating_add(17) {
                    assert_eq!(index.find(value), naive(blocks, value), "{value:#x}");
                }
            }
        }
        assert_eq!(index.find(0), naive(blocks, 0));
        assert_eq!(index.find(u64::MAX), naive(blocks, u64::MAX));
    }

    #[test]
    fn every_interior_byte_is_found_and_one_past_the_end_is_not() {
        let blocks = [block(0x1000, 24), block(0x1020, 13)];
        let index = BlockIndex::new(&blocks).expect("few blocks");
        for value in 0xff0..0x1040 {
            assert_eq!(index.find(value), naive(&blocks, value), "{value:#x}");
        }
    }

    #[test]
    fn nothing_is_found_without_blocks() {
        check(&[]);
    }

    #[test]
    fn blocks_at_the_borders_of_pages_and_mebibytes_are_found() {
        check(&[
            block(0x0f_fff0, 32),
            block(0x10_0010, 8),
            block(0x1f_fff0, 16),
            block(0x20_0000, 16),
        ]);
    }

    #[test]
    fn blocks_of_several_clusters_are_found() {
        check(&[
            block(0x5555_0000_0000, 64),
            block(0x5555_0000_1000, 1 << 20),
            block(0x7fff_0000_0010, 16),
            block(0x7fff_1000_0010, 16),
        ]);
    }

    #[test]
    fn starts_that_are_not_aligned_are_found() {
        check(&[block(0x1001, 1), block(0x1002, 3), block(0x1008, 9)]);
        check(&[block(0x1008, 8), block(0x1010, 8), block(0x1018, 80_000)]);
    }

    #[test]
    fn huge_blocks_are_found_and_take_no_memory() {
        let blocks = [
            block(0x1000, 64 << 40),
            block((64 << 40) + 0x2000, 32),
            block((80 << 40) + 16, u64::MAX),
        ];
        check(&blocks);
        let index = BlockIndex::new(&blocks).expect("few blocks");
        assert!(index.pages.len() < 10, "{}", index.pages.len());
    }

    #[test]
    fn blocks_far_apart_take_bounded_memory() {
        let blocks: Vec<_> = (1..1000).map(|i| block(i << 27, 16)).collect();
        check(&blocks);
        let index = BlockIndex::new(&blocks).expect("few blocks");
        assert!(index.pages.len() < 1000 * 2049);
    }

    fn ranges(blocks: &[Block], most: usize) -> Vec<(u64, u64)> {
        let index = BlockIndex::new(blocks).expect("few blocks");
        let ranges = index.ranges(most).into_iter();
        ranges.map(|range| (range.start.0, range.end.0)).collect()
    }

    #[test]
    fn ranges_are_apart_where_the_largest_gaps_are() {
        let blocks = [
            block(0x10_0010, 16),
            block(0x10_0020, 4 << 20), // No gap, but pages without a start.
            block(0x50_0020, 16),
            block(0x60_0030, 16),
            block(0x555_0000_0000, 16),
            block(0x7ff_0000_0000, 16),
            block(0x7ff_0030_0000, 16),
        ];
        let hull = (0x10_0010, 0x7ff_0030_0010);
        assert_eq!(ranges(&blocks, 1), [hull]);
        let brk = (0x10_0010, 0x60_0040);
        let (middle, high) = (
            (0x555_0000_0000, 0x555_0000_0010),
            (0x7ff_0000_0000, hull.1),
        );
        assert_eq!(ranges(&blocks, 3), [brk, middle, high]);
        let high = [
            (0x7ff_0000_0000, 0x7ff_0000_0010),
            (0x7ff_0030_0000, hull.1),
        ];
        assert_eq!(ranges(&blocks, 4), [brk, middle, high[0], high[1]]);
        let low = [(0x10_0010, 0x50_0030), (0x60_0030, 0x60_0040)];
        assert_eq!(
            ranges(&blocks, 9),
            [low[0], low[1], middle, high[0], high[1]]
        );
        assert!(ranges(&[], 4).is_empty());
    }

    /// Heaps of blocks with gaps and sizes of every magnitude.
    fn heaps() -> impl Strategy<Value = Vec<Block>> {
        let step = (0u32..36, any::<u64>(), 0u32..36, any::<u64>());
        (prop::collection::vec(step, 0..60), 0u32..5).prop_map(|(steps, granule)| {
            let (mut at, mut blocks) = (0x1000_u64, Vec::new());
            for (gap_bits, gap, size_bits, size) in steps {
                let start = (at + gap % (1 << gap_bits)).next_multiple_of(1 << granule);
                let size = 1 + size % (1 << size_bits);
                blocks.push(block(start, size));
                at = start + size;
            }
            blocks
        })
    }

    proptest! {
        #[test]
        fn find_is_the_naive_search(blocks in heaps(), values in prop::collection::vec(any::<u64>(), 20)) {
            check(&blocks);
            let index = BlockIndex::new(&blocks).expect("few blocks");
            let end = blocks.last().map_or(1, |b| b.start.0 + b.size);
            for value in values {
                prop_assert_eq!(index.find(value % end), naive(&blocks, value % end));
            }
        }

        #[test]
        fn all_blocks_and_no_large_gap_are_in_few_ranges(blocks in heaps(), most in 1usize..6) {
            let ranges = ranges(&blocks, most);
            let whole = (0..blocks.len()).filter(|at| {
                let range = blocks[*at].range();
                ranges.iter().any(|r| r.0 <= range.start.0 && range.end.0 <= r.1)
            });
            prop_assert_eq!(whole.count(), blocks.len());
            let gaps = blocks.windows(2).map(|pair| pair[1].start.0 - pair[0].range().end.0);
            let mut gaps: Vec<u64> = gaps.filter(|gap| *gap >= GAP).collect();
            gaps.sort_unstable_by_key(|gap| Reverse(*gap));
            gaps.truncate(most - 1);
            gaps.sort_unstable();
            let mut found: Vec<_> = ranges.windows(2).map(|pair| pair[1].0 - pair[0].1).collect();
            found.sort_unstable();
            prop_assert_eq!(found, gaps);
        }
    }
}
