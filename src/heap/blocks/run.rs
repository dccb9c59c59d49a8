//! Blocks in the order in which a walk finds them.

use super::leaf::{GRANULES, Place, Starts};
use super::sizes::Sizes;
use crate::addr::Addr;
use crate::heap::Block;

/// The largest granule, as a power of two. Allocators align blocks to 8 or 16 bytes.
pub(super) const MAX_GRANULE: u32 = 4;

/// Some blocks in ascending order.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    /// The size of a granule, as a power of two: every start is a multiple of it.
    pub(super) granule: u32,
    /// The numbers of the pages with starts, in ascending order.
    pub(super) pages: Vec<u64>,
    /// The starts in each of these pages.
    pub(super) starts: Vec<Starts>,
    pub(super) sizes: Sizes,
    /// The start of the first block.
    first: Addr,
    /// The end of the last block.
    end: Addr,
}

impl Default for Run {
    fn default() -> Self {
        Self {
            granule: MAX_GRANULE,
            pages: Vec::new(),
            starts: Vec::new(),
            sizes: Sizes::default(),
            first: Addr(u64::MAX),
            end: Addr(0),
        }
    }
}

impl Run {
    /// Adds a block, which does not start before the end of the last one.
    #[inline]
    pub(crate) fn push(&mut self, block: Block) {
        debug_assert!(block.start >= self.end);
        let unaligned = block.start.0.trailing_zeros();
        if unaligned < self.granule {
            self.refine(unaligned);
        }
        let place = Place::of(block.start.0, self.granule);
        if self.pages.last() != Some(&place.page) {
            self.pages.push(place.page);
            self.starts.push([0; 64]);
        }
        if let Some(starts) = self.starts.last_mut() {
            starts[place.entry] |= 1 << place.bit;
        }
        self.sizes.push(block.start.0, block.size);
        self.first = self.first.min(block.start);
        self.end = block.range().end;
    }

    /// The start of the first block, if there is one.
    pub(crate) fn start(&self) -> Option<Addr> {
        (!self.sizes.is_empty()).then_some(self.first)
    }

    /// The end of the last block, if there is one.
    pub(crate) fn end(&self) -> Option<Addr> {
        (!self.sizes.is_empty()).then_some(self.end)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Block> + '_ {
        let pages = self.pages.iter().zip(&self.starts);
        let starts = pages.flat_map(move |(page, starts)| {
            (0..).zip(starts).flat_map(move |(entry, bits)| {
                let first = (*page << GRANULES) + (entry << 6);
                bits_of(*bits).map(move |bit| Addr((first + u64::from(bit)) << self.granule))
            })
        });
        starts
            .zip(self.sizes.iter())
            .map(|(start, size)| Block { start, size })
    }

    /// Goes over to a smaller granule.
    #[cold]
    pub(super) fn refine(&mut self, granule: u32) {
        let mut finer = Self {
            granule,
            ..Self::default()
        };
        self.iter().for_each(|block| finer.push(block));
        *self = finer;
    }
}

impl FromIterator<Block> for Run {
    fn from_iter<I: IntoIterator<Item = Block>>(blocks: I) -> Self {
        let mut run = Self::default();
        blocks.into_iter().for_each(|block| run.push(block));
        run
    }
}

/// The numbers of the bits that are set, in ascending order.
fn bits_of(mut bits: u64) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        let bit = bits.trailing_zeros();
        bits &= bits.wrapping_sub(1);
        (bit < 64).then_some(bit)
    })
}
