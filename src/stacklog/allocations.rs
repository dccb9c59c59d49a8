//! What a log knows of some blocks: read while the memory is at hand, and complete without it.

use rayon::prelude::*;
use rustc_hash::{FxHashMap, FxHashSet};

use super::header::LogError;
use super::image::Image;
use super::log::StackLog;
use super::records::Records;
use super::stack::{Allocation, AllocationReader, CallStack, StackReader};
use crate::memory::Memory;

/// Blocks whose records one task reads.
const READ_TOGETHER: usize = 16 << 10;

/// The allocations of some blocks, with their stacks and the images that these lead through.
#[derive(Clone, Debug, Default)]
pub struct Allocations {
    /// The numbers that whoever asked gave the blocks, in ascending order.
    blocks: Vec<u32>,
    /// What is known of each of them.
    allocations: Vec<Allocation>,
    stacks: FxHashMap<u32, CallStack>,
    images: FxHashMap<u32, Image>,
}

impl Allocations {
    /// Reads what `log` knows of `blocks`: the number of each, in ascending order, and that of its record.
    ///
    /// # Errors
    /// Says so when the log's table of frames is damaged. Single frames that are end their stack.
    pub fn read(
        log: &StackLog,
        records: &Records<'_>,
        memory: &dyn Memory,
        blocks: &[(u32, u32)],
    ) -> Result<Self, LogError> {
        let parts = blocks.par_chunks(READ_TOGETHER).map(|part| {
            let mut reader = AllocationReader::new(records);
            let known = |(block, record): &(u32, u32)| Some((*block, reader.read(*record)?));
            part.iter().filter_map(known).unzip()
        });
        let parts: Vec<(Vec<u32>, Vec<Allocation>)> = parts.collect();
        let (mut blocks, mut allocations) = (Vec::new(), Vec::new());
        for (numbers, known) in parts {
            blocks.extend(numbers);
            allocations.extend(known);
        }
        let stacks = allocations.iter().filter_map(|known| known.stack);
        let used: FxHashSet<u32> = stacks.collect();
        let mut reader = StackReader::new(log, memory)?;
        let stacks = used
            .into_iter()
            .map(|number| (number, reader.stack(number)));
        let stacks: FxHashMap<u32, CallStack> = stacks.collect();
        let frames = stacks.values().flat_map(|stack| &stack.frames);
        let used: FxHashSet<u32> = frames.filter_map(|frame| frame.image).collect();
        let image = |number| Some((number, log.image(memory, number)?));
        Ok(Self {
            images: used.into_iter().filter_map(image).collect(),
            blocks,
            allocations,
            stacks,
        })
    }

    /// What is known of a block.
    #[must_use]
    pub fn of_block(&self, block: u32) -> Option<&Allocation> {
        let index = self.blocks.binary_search(&block).ok()?;
        self.allocations.get(index)
    }

    /// The stack with this number.
    #[must_use]
    pub fn stack(&self, number: u32) -> Option<&CallStack> {
        self.stacks.get(&number)
    }

    /// All stacks, in no particular order, each once.
    pub fn stacks(&self) -> impl Iterator<Item = (u32, &CallStack)> {
        self.stacks.iter().map(|(number, stack)| (*number, stack))
    }

    /// All images that frames are in, in no particular order, each once.
    pub fn images(&self) -> impl Iterator<Item = (u32, &Image)> {
        self.images.iter().map(|(number, image)| (*number, image))
    }
}
