//! All live blocks: a compact list, and an index of it at once.
//!
//! Block starts are bits in a bitmap of granules, with ranks: which block an address lies in is one
//! load from the table of pages, one from a leaf and one from the list of sizes. Nothing is searched but the
//! handful of clusters.
#![expect(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "indices and sums are of tables that are made here, and blocks do not reach over the end of addresses"
)]

mod leaf;
mod run;
mod sizes;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::iter;
use std::mem;
use std::ops::{Range, RangeInclusive};

use rayon::prelude::*;

pub(crate) use run::Run;

use super::Block;
use crate::addr::{Addr, AddrRange};
use leaf::{Before, Entry, FAR, GRANULES, Leaf, Place, Starts};
use sizes::Sizes;

/// Pages between two neighbouring starts, from which on a new cluster begins. A page of the table
/// takes 8 bytes, so a gap costs at most 16 KiB, and a block of many TiB no more than that.
const CLUSTER_GAP: u64 = 2048;
/// A gap between two blocks that may have memory in it to which many words point, as modules are.
const GAP: u64 = 1 << 20;
/// The entry of one in as many blocks is remembered.
const HINT: usize = 64;

/// The live blocks of a target, in ascending order; they do not overlap, and have numbers from 0 on.
///
/// They take about 1.6 % of the memory that they lie in, and two bytes each.
#[derive(Clone, Default)]
pub struct Blocks {
    /// The size of a granule, as a power of two: every start is a multiple of it.
    granule: u32,
    clusters: Vec<Cluster>,
    pages: Vec<Page>,
    /// The pages with starts.
    leaves: Vec<Leaf>,
    /// The number of each leaf's page, counted from address 0.
    leaf_pages: Vec<u64>,
    /// The entry of each block whose number is a multiple of [`HINT`], counted through all leaves.
    hints: Vec<u64>,
    sizes: Sizes,
    /// From the start of the lowest block to the end of the highest.
    hull: AddrRange,
}

/// Neighbouring blocks without a large gap between their starts.
#[derive(Clone, Copy, Debug)]
struct Cluster {
    /// The number of its first page, counted from address 0.
    page: u64,
    /// Where its pages are in the table.
    first_page: usize,
    /// The number of its pages. One more follows, which stands for all addresses above them.
    pages: u64,
}

/// 4096 granules of the address space.
#[derive(Clone, Copy, Debug)]
struct Page {
    /// Its leaf, or [`NO_LEAF`].
    leaf: u32,
    /// The number of starts below the page.
    rank: u32,
}

/// No block starts in a page.
const NO_LEAF: u32 = u32::MAX;

/// The only block that an address can lie in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// The number of the block.
    pub(crate) block: u32,
    start: u64,
}

impl Blocks {
    /// More blocks than this have no numbers.
    pub const MAX: usize = u32::MAX as usize - 1;

    /// The number of blocks.
    #[must_use]
    pub fn len(&self) -> usize {
        self.sizes.len()
    }

    /// Says whether there are no blocks.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sizes.is_empty()
    }

    /// From the start of the lowest block to the end of the highest; empty without blocks.
    #[must_use]
    pub fn hull(&self) -> AddrRange {
        self.hull
    }

    /// The block with this number.
    #[must_use]
    pub fn get(&self, number: usize) -> Option<Block> {
        self.range(number..number.checked_add(1)?).next()
    }

    /// The block with this number.
    ///
    /// # Panics
    /// There is no such block.
    #[must_use]
    pub fn block(&self, number: u32) -> Block {
        #[expect(clippy::expect_used, reason = "as with an index of a vector")]
        self.get(number as usize).expect("a number of a block")
    }

    /// The size of the block with this number, in bytes; 0 if there is no such block.
    #[must_use]
    pub fn size(&self, number: usize) -> u64 {
        if number < self.len() {
            self.sizes.get(number)
        } else {
            0
        }
    }

    /// All blocks.
    #[must_use]
    pub fn iter(&self) -> Iter<'_> {
        self.range(0..self.len())
    }

    /// The blocks with these numbers, as far as there are such.
    #[must_use]
    pub fn range(&self, numbers: Range<usize>) -> Iter<'_> {
        let end = numbers.end.min(self.len());
        let mut iter = Iter {
            blocks: self,
            leaf: 0,
            entry: 0,
            bits: 0,
            number: numbers.start.min(end),
            end,
        };
        if iter.number < end {
            iter.seek();
        }
        iter
    }

    /// The blocks of which an address lies in `range`.
    pub fn within(&self, range: AddrRange) -> impl Iterator<Item = Block> + '_ {
        let first = self.ending_after(range.start);
        let blocks = self.range(first..self.len());
        // An empty range can lie inside a block, and has no address of it.
        blocks.take_while(move |block| block.start < range.end && !range.is_empty())
    }

    /// The number of blocks that start below `addr`: that of the first one which does not.
    #[must_use]
    pub fn starting_below(&self, addr: Addr) -> usize {
        let last = addr.0.checked_sub(1);
        last.and_then(|last| self.last_start(last))
            .map_or(0, |last| last.block as usize + 1)
    }

    /// The number of blocks that end at or below `addr`: that of the first one which does not.
    #[must_use]
    pub fn ending_after(&self, addr: Addr) -> usize {
        match self.last_start(addr.0) {
            None => 0,
            Some(last) => last.block as usize + usize::from(!self.holds(last, addr.0)),
        }
    }

    /// The block that starts at `addr`.
    #[must_use]
    pub fn starting_at(&self, addr: Addr) -> Option<Block> {
        let found = self.last_start(addr.0)?;
        (found.start == addr.0).then(|| Block {
            start: addr,
            size: self.sizes.get(found.block as usize),
        })
    }

    /// The number of the block that the address `value` lies in: at its start or inside it, not
    /// one past its end.
    #[must_use]
    pub fn find(&self, value: u64) -> Option<u32> {
        let candidate = self.may_find(value).then(|| self.candidate(value))?;
        self.holds(candidate, value).then_some(candidate.block)
    }

    /// Says whether `value` is between the lowest and the highest address in any block: a quick
    /// test that sorts out most words.
    #[inline]
    pub(crate) fn may_find(&self, value: u64) -> bool {
        value.wrapping_sub(self.hull.start.0) < self.hull.size()
    }

    /// The only block that `value` can be in, if [`Blocks::may_find`] says yes: the last one
    /// that starts at or below it.
    #[inline(always)]
    pub(crate) fn candidate(&self, value: u64) -> Candidate {
        let place = Place::of(value, self.granule);
        let page = self.page(place.page);
        let Some(leaf) = self.leaves.get(page.leaf as usize) else {
            return self.far(page.rank);
        };
        let entry = leaf[place.entry];
        let below = entry.starts & (u64::MAX >> (63 - place.bit));
        let block = (entry.rank + below.count_ones()).wrapping_sub(1);
        let first = (value >> (self.granule + 6)) << 6;
        let start = if below != 0 {
            first + u64::from(63 - below.leading_zeros())
        } else if entry.back != FAR {
            first - u64::from(entry.back)
        } else {
            return self.far(block.wrapping_add(1));
        };
        Candidate {
            block,
            start: start << self.granule,
        }
    }

    /// What [`Blocks::candidate`] will look at for `value`, if that lies in memory of its own.
    #[inline(always)]
    pub(crate) fn entry_of(&self, value: u64) -> Option<&u64> {
        let place = Place::of(value, self.granule);
        let leaf = self.leaves.get(self.page(place.page).leaf as usize);
        leaf.map(|leaf| &leaf[place.entry].starts)
    }

    /// What [`Blocks::holds`] will look at for this block.
    #[inline(always)]
    pub(crate) fn size_of(&self, block: u32) -> Option<&u16> {
        self.sizes.place(block as usize)
    }

    /// Says whether `value`, for which the candidate is this one, is in that block.
    #[inline(always)]
    pub(crate) fn holds(&self, candidate: Candidate, value: u64) -> bool {
        value.wrapping_sub(candidate.start) < self.sizes.get(candidate.block as usize)
    }

    /// The sum of the sizes of the blocks with these numbers.
    #[must_use]
    pub fn bytes(&self, numbers: Range<usize>) -> u64 {
        let end = numbers.end.min(self.len());
        self.sizes.sum(numbers.start.min(end)..end)
    }

    /// The blocks whose sizes are in `wanted`.
    pub(crate) fn of_size(&self, wanted: &RangeInclusive<u64>) -> impl Iterator<Item = Block> + '_ {
        let numbers = self.sizes.find(wanted).into_iter();
        numbers.filter_map(|number| self.get(number))
    }

    /// At most `most` ranges that all blocks are in, in ascending order. Between them are the largest gaps that
    /// are as large as [`GAP`].
    pub(crate) fn spans(&self, most: usize) -> Vec<AddrRange> {
        if self.is_empty() {
            return Vec::new();
        }
        let mut gaps: Vec<AddrRange> = self.gaps().collect();
        gaps.sort_unstable_by_key(|gap| Reverse(gap.size()));
        gaps.truncate(most.saturating_sub(1));
        gaps.sort_unstable();
        let starts = iter::once(self.hull.start).chain(gaps.iter().map(|gap| gap.end));
        let ends = gaps.iter().map(|gap| gap.start);
        let ends = ends.chain(iter::once(self.hull.end));
        let pairs = starts.zip(ends);
        pairs
            .map(|(start, end)| AddrRange::new(start, end))
            .collect()
    }

    /// The gaps between blocks that are as large as [`GAP`]. Each has a page without starts.
    fn gaps(&self) -> impl Iterator<Item = AddrRange> + '_ {
        let pages = self.pages.iter().filter(|page| page.leaf == NO_LEAF);
        let mut ranks: Vec<u32> = pages.map(|page| page.rank).collect();
        ranks.dedup();
        let pairs = ranks.into_iter().filter_map(|rank| {
            let before = self.get((rank as usize).checked_sub(1)?)?;
            let after = self.get(rank as usize)?;
            Some(AddrRange::new(before.range().end, after.start))
        });
        pairs.filter(|gap| gap.size() >= GAP)
    }

    /// The numbers of those of the blocks `numbers` that are larger than `size` bytes, 64 KiB or more.
    pub(crate) fn larger_than(
        &self,
        size: u64,
        numbers: Range<usize>,
    ) -> impl Iterator<Item = usize> + '_ {
        self.sizes.larger_than(size, numbers)
    }

    /// Says whether no two neighbours among the blocks `numbers`, of which there is one at least, are as far as
    /// `gap` bytes apart. It may say no where a large block only looks like a gap.
    pub(crate) fn are_close(&self, numbers: Range<usize>, gap: u64) -> bool {
        // So many entries without a start lie between such neighbours.
        let least = (gap >> (self.granule + 6)).saturating_sub(1);
        let first = self.range(numbers.clone());
        let leaves = self.leaves[first.leaf..].iter();
        let pages = &self.leaf_pages[first.leaf..];
        let mut without = 0;
        for ((leaf, page), number) in leaves.zip(pages).zip(0..) {
            let skipped = if number == 0 { first.entry } else { 0 };
            for entry in &leaf[skipped..] {
                if entry.rank as usize >= numbers.end {
                    return true;
                }
                without = if entry.starts == 0 { without + 1 } else { 0 };
                if without >= least {
                    return false;
                }
            }
            if pages.get(number + 1).is_some_and(|next| *next != page + 1) {
                let is_last = self.leaves.get(first.leaf + number + 1);
                return is_last.is_none_or(|next| next[0].rank as usize >= numbers.end);
            }
        }
        true
    }

    #[inline(always)]
    fn page(&self, page: u64) -> Page {
        let after = self.clusters.partition_point(|c| c.page <= page);
        let cluster = self.clusters[after - 1];
        self.pages[cluster.first_page + index((page - cluster.page).min(cluster.pages))]
    }

    /// The block before the one with the number `rank`: its start is far away.
    #[inline(never)]
    fn far(&self, rank: u32) -> Candidate {
        let Some(block) = rank.checked_sub(1) else {
            // Before the first block. No address is in one of which the start is this.
            let start = u64::MAX;
            return Candidate { block: 0, start };
        };
        let start = match self.sizes.large(block as usize) {
            Some(large) => large.start,
            // It is in front of a gap.
            None => self.get(block as usize).map_or(u64::MAX, |b| b.start.0),
        };
        Candidate { block, start }
    }

    /// The last block that starts at or below `addr`.
    fn last_start(&self, addr: u64) -> Option<Candidate> {
        (addr >= self.hull.start.0 && !self.is_empty()).then(|| self.candidate(addr))
    }
}

/// Blocks in ascending order.
#[derive(Clone)]
pub struct Iter<'a> {
    blocks: &'a Blocks,
    leaf: usize,
    entry: usize,
    /// The starts of the entry that are still to come.
    bits: u64,
    number: usize,
    end: usize,
}

impl std::fmt::Debug for Iter<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Iter")
            .field("number", &self.number)
            .field("end", &self.end)
            .finish_non_exhaustive()
    }
}

impl Iter<'_> {
    /// Goes to the start of the block `self.number`, which there is.
    fn seek(&mut self) {
        let Blocks { hints, leaves, .. } = self.blocks;
        let is_behind = |entry: &Entry| entry.rank as usize <= self.number;
        let hint = index(hints[self.number / HINT]);
        (self.leaf, self.entry) = (hint / 64, hint % 64);
        while leaves
            .get(self.leaf + 1)
            .is_some_and(|leaf| is_behind(&leaf[0]))
        {
            (self.leaf, self.entry) = (self.leaf + 1, 0);
        }
        let leaf = &leaves[self.leaf];
        while leaf.get(self.entry + 1).is_some_and(is_behind) {
            self.entry += 1;
        }
        let entry = leaf[self.entry];
        self.bits = entry.starts;
        for _ in entry.rank as usize..self.number {
            self.bits &= self.bits - 1;
        }
    }
}

impl Iterator for Iter<'_> {
    type Item = Block;

    #[inline]
    fn next(&mut self) -> Option<Block> {
        if self.number == self.end {
            return None;
        }
        while self.bits == 0 {
            self.entry += 1;
            if self.entry == 64 {
                (self.leaf, self.entry) = (self.leaf + 1, 0);
            }
            self.bits = self.blocks.leaves[self.leaf][self.entry].starts;
        }
        let bit = u64::from(self.bits.trailing_zeros());
        self.bits &= self.bits - 1;
        let page = self.blocks.leaf_pages[self.leaf] << GRANULES;
        let start = (page + ((self.entry as u64) << 6) + bit) << self.blocks.granule;
        let size = self.blocks.sizes.get(self.number);
        self.number += 1;
        Some(Block {
            start: Addr(start),
            size,
        })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.end - self.number, Some(self.end - self.number))
    }
}

impl ExactSizeIterator for Iter<'_> {}

impl<'a> IntoIterator for &'a Blocks {
    type Item = Block;
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

/// Blocks in ascending order, which do not overlap.
impl FromIterator<Block> for Blocks {
    fn from_iter<I: IntoIterator<Item = Block>>(blocks: I) -> Self {
        Self::joined(vec![blocks.into_iter().collect()])
    }
}

impl PartialEq for Blocks {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for Blocks {}

impl std::fmt::Debug for Blocks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self).finish()
    }
}

impl Blocks {
    /// The blocks of `runs`, of which each begins behind the end of the one before.
    pub(crate) fn joined(mut runs: Vec<Run>) -> Self {
        runs.retain(|run| run.end().is_some());
        let granule = runs.iter().map(|run| run.granule).min().unwrap_or(0);
        for run in &mut runs {
            if run.granule > granule {
                run.refine(granule);
            }
        }
        let (Some(first), Some(end)) = (
            runs.first().and_then(Run::start),
            runs.last().and_then(Run::end),
        ) else {
            return Self::default();
        };
        // What is joined is gone before the next is: nothing is there twice.
        let sizes = runs.iter_mut().map(|run| mem::take(&mut run.sizes));
        let mut blocks = Self {
            granule,
            sizes: Sizes::joined(sizes.collect()),
            hull: AddrRange::new(first, end),
            ..Self::default()
        };
        blocks.add_leaves(&runs);
        drop(runs);
        blocks.number();
        blocks
    }

    /// Adds a leaf for each page of `runs`. A page can be the last one of a run and the first one of the next.
    fn add_leaves(&mut self, runs: &[Run]) {
        let pages = runs
            .iter()
            .flat_map(|run| run.pages.iter().zip(&run.starts));
        let pages: Vec<(&u64, &Starts)> = pages.collect();
        let same: Vec<_> = pages
            .chunk_by(|(page, _), (next, _)| page == next)
            .collect();
        self.leaf_pages = same.iter().map(|same| *same[0].0).collect();
        let leaves = same.par_iter();
        self.leaves = leaves
            .map(|same| leaf::leaf(same.iter().map(|(_, starts)| *starts)))
            .collect();
    }

    /// Numbers all starts, and makes the table of pages.
    fn number(&mut self) {
        let leaves = self.leaves.par_iter().zip(&self.leaf_pages);
        let counted: Vec<Before> = leaves
            .map(|(leaf, page)| leaf::after(leaf, *page, Before::default()))
            .collect();
        let mut before = Before::default();
        let befores: Vec<Before> = counted
            .iter()
            .map(|leaf| {
                let this = before;
                before.rank = before.rank.wrapping_add(leaf.rank);
                before.last = leaf.last.or(before.last);
                this
            })
            .collect();
        let leaves = self.leaves.par_iter_mut().zip(&self.leaf_pages);
        leaves
            .zip(&befores)
            .for_each(|((leaf, page), before)| leaf::number(leaf, *page, *before));
        let leaves = self.leaves.par_iter().enumerate();
        let hints = leaves.flat_map_iter(|(number, leaf)| leaf::hints(leaf, number, HINT));
        self.hints = hints.collect();
        self.clusters.clear();
        self.pages.clear();
        for (number, before) in (0..).zip(&befores) {
            self.add_page(number, before.rank);
        }
        self.end_cluster(before.rank);
    }

    /// Adds the page of the leaf with this number, before which there are `rank` starts.
    fn add_page(&mut self, leaf: u32, rank: u32) {
        let page = self.leaf_pages[leaf as usize];
        let next = self.clusters.last().map(|c| c.page + c.pages);
        match next.and_then(|next| page.checked_sub(next)) {
            Some(gap) if gap < CLUSTER_GAP => {
                let leaf = NO_LEAF;
                self.pages.extend((0..gap).map(|_| Page { leaf, rank }));
            }
            _ => {
                self.end_cluster(rank);
                self.clusters.push(Cluster {
                    page,
                    first_page: self.pages.len(),
                    pages: 0,
                });
            }
        }
        self.pages.push(Page { leaf, rank });
        if let Some(cluster) = self.clusters.last_mut() {
            cluster.pages = page - cluster.page + 1;
        }
    }

    /// Adds the page that stands for all addresses above the cluster's last page.
    fn end_cluster(&mut self, rank: u32) {
        let leaf = NO_LEAF;
        self.pages.push(Page { leaf, rank });
    }

    /// Removes the blocks that start at these addresses: those of them that there are.
    pub(crate) fn remove(&mut self, starts: impl Iterator<Item = Addr>) {
        let found = starts.filter_map(|start| {
            let found = self.last_start(start.0)?;
            (found.start == start.0).then_some(found)
        });
        let mut removed: Vec<(usize, u64)> = found.map(|f| (f.block as usize, f.start)).collect();
        removed.sort_unstable();
        removed.dedup();
        if removed.is_empty() {
            return;
        }
        for (_, start) in &removed {
            let place = Place::of(*start, self.granule);
            let leaf = self.page(place.page).leaf as usize;
            self.leaves[leaf][place.entry].starts &= !(1 << place.bit);
        }
        let numbers: Vec<usize> = removed.into_iter().map(|(number, _)| number).collect();
        self.sizes.remove(&numbers);
        self.number();
        let (first, last) = (self.get(0), self.len().checked_sub(1));
        let last = last.and_then(|last| self.get(last));
        self.hull = match (first, last) {
            (Some(first), Some(last)) => AddrRange::new(first.start, last.range().end),
            _ => AddrRange::default(),
        };
    }
}

/// Our index for a number that is known to be small.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the callers' numbers index memory that we hold"
)]
fn index(value: u64) -> usize {
    value as usize
}
