//! Blocks and zones: what every walker produces.

use super::blocks::Blocks;
use crate::addr::{Addr, AddrRange, RangeSet};

/// One live allocation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Block {
    /// The address that the program got from its allocator.
    pub start: Addr,
    /// The bytes that the program may use (`malloc_usable_size`), at least 1.
    pub size: u64,
}

impl Block {
    /// The addresses of the block.
    #[must_use]
    pub fn range(&self) -> AddrRange {
        AddrRange::with_size(self.start, self.size)
    }
}

/// An allocator, or one arena of it, that owns blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zone {
    /// The name for people: `glibc main arena`.
    pub name: String,
    /// The allocator and its version, as far as it is known: `glibc 2.36`.
    pub allocator: String,
    /// The number of live blocks.
    pub blocks: u64,
    /// The sum of their usable sizes.
    pub bytes: u64,
}

/// All live blocks of a target.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heap {
    /// The live blocks.
    pub blocks: Blocks,
    /// The zones; a zone's id is its index.
    pub zones: Vec<Zone>,
    /// Which zone owns which addresses, in ascending order and without overlaps.
    pub zone_ranges: Vec<(AddrRange, u32)>,
    /// All memory that the allocators own: blocks, free chunks and metadata. None of it is a root.
    pub owned: RangeSet,
}

impl Heap {
    /// The id of the zone that owns `addr`.
    #[must_use]
    pub fn zone_at(&self, addr: Addr) -> Option<u32> {
        let after = self.zone_ranges.partition_point(|(r, _)| r.start <= addr);
        let (range, zone) = self.zone_ranges.get(after.checked_sub(1)?)?;
        range.contains(addr).then_some(*zone)
    }

    /// The sum of all blocks' usable sizes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.zones.iter().map(|zone| zone.bytes).sum()
    }
}
