//! All live blocks of a captured target, those that are alike together: what a diff compares.

use rayon::prelude::*;
use rustc_hash::FxHashMap;

use super::args::OutputArgs;
use super::capture::Captured;
use super::stacks;
use crate::heap::{Blocks, Recorded};
use crate::memory::Memory;
use crate::platform::TargetFiles;
use crate::report::compare::{LiveGroup, LiveMemory};
use crate::report::{CallStacks, CodeImages};
use crate::stacklog::{AllocationReader, Allocations, LogError, Records, StackLog};
use crate::symbolize::{Describer, Symbolizer};

/// What blocks of a group have in common. The stack has its number in the log.
type Alike = (Option<u32>, Option<String>, u64);
type Counts = FxHashMap<Alike, u64>;

/// The memory that [`live`] takes for each block, where a log has its stack: its record and its stack, each
/// with what is read to find it.
const LOGGED_BLOCK: u64 = 40;

/// The memory that [`live`] takes, as far as it follows from the number of blocks.
pub(super) fn memory(captured: &Captured) -> u64 {
    let is_logged = captured.stopped.is_none() && captured.log.is_some();
    let blocks = captured.heap.blocks.len() as u64;
    if is_logged { blocks * LOGGED_BLOCK } else { 0 }
}

/// Groups all live blocks of `captured` by stack, type and size. `None` where the target stands
/// still until its memory has been read: that must not take so long. The files are handed back.
pub(super) fn live(
    captured: &Captured,
    files: TargetFiles,
    output: &OutputArgs,
) -> anyhow::Result<(Option<LiveMemory>, TargetFiles)> {
    if captured.stopped.is_some() {
        return Ok((None, files));
    }
    let Captured { snapshot, heap, .. } = captured;
    let memory = &*snapshot.memory;
    // A log that is damaged is warned of where the leaks are looked up in it.
    let logged = captured.log.as_ref();
    let logged = logged.and_then(|log| Logged::read(captured, log).ok());
    let (stacks, images, files) = match &logged {
        Some(logged) => {
            let allocations = logged.one_of_each_stack()?;
            let (stacks, images, files, _) = stacks::resolve(&allocations, snapshot, files, output);
            (stacks, images, files)
        }
        None => (CallStacks::default(), CodeImages::default(), files),
    };
    let symbolizer = Symbolizer::new(&snapshot.modules, memory, files);
    let describer = Describer::new(memory, snapshot.width, &symbolizer, heap);
    let stacks_of_blocks = logged.as_ref().map_or(&[][..], |logged| &logged.stacks);
    let counts = counts(&heap.blocks, &describer, stacks_of_blocks);
    let live = live_memory(counts, &stacks, &images);
    Ok((Some(live), symbolizer.into_files()))
}

/// Blocks that one task counts.
const PART: usize = 4096;

fn counts(blocks: &Blocks, describer: &Describer<'_>, stacks: &[Option<u32>]) -> Counts {
    let parts = (0..blocks.len().div_ceil(PART)).into_par_iter();
    let counted = parts.fold(Counts::default, |mut counts, part| {
        let numbers = part * PART..(part + 1) * PART;
        for (number, block) in numbers.clone().zip(blocks.range(numbers)) {
            let alike = (
                stacks.get(number).copied().flatten(),
                describer.type_name(&block),
                block.size,
            );
            *counts.entry(alike).or_default() += 1;
        }
        counts
    });
    counted.reduce(Counts::default, |mut all, part| {
        for (alike, blocks) in part {
            *all.entry(alike).or_default() += blocks;
        }
        all
    })
}

fn live_memory(counts: Counts, stacks: &CallStacks, images: &CodeImages) -> LiveMemory {
    let mut counts: Vec<(Alike, u64)> = counts.into_iter().collect();
    // The same snapshot gives the same document.
    counts.sort_unstable();
    let groups = counts
        .into_iter()
        .map(|((stack, type_name, size), blocks)| LiveGroup {
            stack,
            type_name,
            size,
            blocks,
        });
    LiveMemory {
        groups: groups.collect(),
        stacks: stacks.all(),
        modules: images.modules().collect(),
    }
}

/// What the malloc stack log knows of the live blocks.
struct Logged<'a> {
    memory: &'a dyn Memory,
    log: &'a StackLog,
    records: Records<'a>,
    /// The record of each stack's first block.
    first: FxHashMap<u32, u32>,
    /// The number of each block's stack.
    stacks: Vec<Option<u32>>,
}

impl<'a> Logged<'a> {
    fn read(captured: &'a Captured, log: &'a StackLog) -> Result<Self, LogError> {
        let memory = &*captured.snapshot.memory;
        let records = Records::read(log, memory)?;
        let recorded = Recorded::find(&captured.heap, &records)?;
        let known: Vec<Option<(u32, u32)>> = (0..captured.heap.blocks.len())
            .into_par_iter()
            .map_init(
                || AllocationReader::new(&records),
                |reader, block| {
                    let record = recorded.record(block)?;
                    Some((reader.read(record)?.stack?, record))
                },
            )
            .collect();
        let mut first = FxHashMap::default();
        for (stack, record) in known.iter().flatten() {
            first.entry(*stack).or_insert(*record);
        }
        Ok(Self {
            memory,
            log,
            records,
            first,
            stacks: known.into_iter().map(|known| Some(known?.0)).collect(),
        })
    }

    /// One allocation of each stack: enough to learn the stack from.
    fn one_of_each_stack(&self) -> Result<Allocations, LogError> {
        let records: Vec<(u32, u32)> = (0..).zip(self.first.values().copied()).collect();
        Allocations::read(self.log, &self.records, self.memory, &records)
    }
}
