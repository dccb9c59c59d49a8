//! The memory of a target that stays stopped while it is read.

use super::process_memory::ProcessMemory;
use crate::addr::{Addr, AddrRange};
use crate::memory::Memory;
use crate::snapshot::Extent;

/// Reads the stopped target itself, and of it only what the extent names.
pub(super) struct StreamedMemory {
    extent: Extent,
    memory: ProcessMemory,
}

impl StreamedMemory {
    pub(super) fn new(extent: Extent, memory: ProcessMemory) -> Self {
        Self { extent, memory }
    }
}

impl Memory for StreamedMemory {
    fn read(&self, addr: Addr, buf: &mut [u8]) -> usize {
        self.extent.read(addr, buf, |index, offset, part| {
            let at = self.extent.resident[index].start.saturating_add(offset);
            self.memory.read(at, part)
        })
    }

    fn resident(&self, range: AddrRange) -> Vec<AddrRange> {
        self.extent.resident_within(range)
    }

    fn readable(&self, range: AddrRange) -> Vec<AddrRange> {
        self.extent.readable.within(range).collect()
    }
}
