//! Memory that is in files.

use std::sync::Arc;

use super::FileBytes;
use crate::addr::{Addr, AddrRange, RangeSet};
use crate::memory::Memory;
use crate::snapshot::Extent;

/// Memory that is in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Where it was in the target.
    pub range: AddrRange,
    /// Which of the files has it.
    pub file: usize,
    /// Where its first byte is in the file.
    pub offset: u64,
}

/// Memory in files, and what beside it reads as zeros.
pub struct CoreMemory {
    files: Arc<[Arc<dyn FileBytes>]>,
    extent: Extent,
    /// Which file has each resident range, and where it begins in it.
    places: Vec<(usize, u64)>,
}

impl CoreMemory {
    /// The memory of `parts`, which are in ascending order and do not overlap. What of `zeros` is in none
    /// of them reads as zeros; all else cannot be read.
    #[must_use]
    pub fn new(files: Arc<[Arc<dyn FileBytes>]>, parts: &[Part], zeros: &RangeSet) -> Self {
        let resident: Vec<AddrRange> = parts.iter().map(|part| part.range).collect();
        let readable = resident.iter().chain(zeros.ranges()).copied();
        Self {
            files,
            places: parts.iter().map(|part| (part.file, part.offset)).collect(),
            extent: Extent {
                readable: readable.collect(),
                resident,
            },
        }
    }

    /// The bytes that are not zeros.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.extent.bytes()
    }
}

impl Memory for CoreMemory {
    fn read(&self, addr: Addr, buf: &mut [u8]) -> usize {
        self.extent.read(addr, buf, |index, offset, part| {
            let place = self.places.get(index).and_then(|(file, start)| {
                Some((self.files.get(*file)?, start.checked_add(offset)?))
            });
            place.map_or(0, |(file, at)| file.read_at(at, part))
        })
    }

    fn resident(&self, range: AddrRange) -> Vec<AddrRange> {
        self.extent.resident_within(range)
    }

    fn readable(&self, range: AddrRange) -> Vec<AddrRange> {
        self.extent.readable.within(range).collect()
    }
}

impl std::fmt::Debug for CoreMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CoreMemory")
            .field("bytes", &self.bytes())
            .finish_non_exhaustive()
    }
}
