//! The memory of a snapshot in a file.

use std::sync::Arc;

use crate::addr::{Addr, AddrRange, RangeSet};
use crate::memory::Memory;
use crate::snapshot::Extent;
use crate::snapshot::core::FileBytes;

/// Memory that is in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Where it was in the target.
    pub range: AddrRange,
    /// Where its first byte is in the file.
    pub offset: u64,
}

/// Memory in a file, and what beside it reads as zeros.
pub struct SavedMemory {
    file: Arc<dyn FileBytes>,
    extent: Extent,
    /// Where each resident range begins in the file.
    offsets: Vec<u64>,
}

impl SavedMemory {
    /// The memory of `stored`, which are in ascending order and do not overlap; other parts of
    /// `readable` read as zeros.
    pub(super) fn new<'a>(
        file: &Arc<dyn FileBytes>,
        stored: impl Iterator<Item = &'a Stored> + Clone,
        readable: RangeSet,
    ) -> Self {
        Self {
            file: Arc::clone(file),
            offsets: stored.clone().map(|part| part.offset).collect(),
            extent: Extent {
                readable,
                resident: stored.map(|part| part.range).collect(),
            },
        }
    }
}

impl Memory for SavedMemory {
    fn read(&self, addr: Addr, buf: &mut [u8]) -> usize {
        self.extent.read(addr, buf, |index, offset, part| {
            let start = self.offsets.get(index);
            let at = start.and_then(|start| start.checked_add(offset));
            at.map_or(0, |at| self.file.read_at(at, part))
        })
    }

    fn resident(&self, range: AddrRange) -> Vec<AddrRange> {
        self.extent.resident_within(range)
    }

    fn readable(&self, range: AddrRange) -> Vec<AddrRange> {
        self.extent.readable.within(range).collect()
    }
}

impl std::fmt::Debug for SavedMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SavedMemory")
            .field("bytes", &self.extent.bytes())
            .finish_non_exhaustive()
    }
}
