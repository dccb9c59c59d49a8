//! The memory of a target that stays stopped while it is read.

use super::plan::Plan;
use super::process_memory::ProcessMemory;
use crate::addr::{Addr, AddrRange};
use crate::memory::Memory;

/// Reads the stopped target itself, and of it only what the plan names.
pub(super) struct StreamedMemory {
    plan: Plan,
    memory: ProcessMemory,
}

impl StreamedMemory {
    pub(super) fn new(plan: Plan, memory: ProcessMemory) -> Self {
        Self { plan, memory }
    }
}

impl Memory for StreamedMemory {
    fn read(&self, addr: Addr, buf: &mut [u8]) -> usize {
        self.plan.read(addr, buf, |index, offset, part| {
            let at = self.plan.resident[index].start.saturating_add(offset);
            self.memory.read(at, part)
        })
    }

    fn resident(&self, range: AddrRange) -> Vec<AddrRange> {
        self.plan.resident_within(range)
    }
}
