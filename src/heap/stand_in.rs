//! The live blocks of an allocator that has no walker, as the malloc stack log knows them.

use rayon::prelude::*;

use super::block::{Block, Heap, Zone};
use super::{HeapError, Walk};
use crate::addr::{Addr, AddrRange};
use crate::snapshot::Snapshot;
use crate::stacklog::{LogError, Records, StackLog};
use crate::warning::{Bias, Warning};

/// Allocators that check programs: they see more, or less, than what passes the recorder.
const CHECKERS: [&str; 3] = ["AddressSanitizer", "LeakSanitizer", "Valgrind"];

/// Lists the blocks of `allocator`, which is in the module at `path`, as `log` has them.
///
/// # Errors
/// Says so when there is no log, and why one that there is does not know all blocks.
pub(super) fn walk(
    snapshot: &Snapshot,
    log: Option<&StackLog>,
    allocator: &str,
    path: &str,
) -> Result<Walk, HeapError> {
    let log = log.filter(|_| !CHECKERS.contains(&allocator));
    let (allocator, path) = (allocator.to_owned(), path.to_owned());
    let Some(log) = log else {
        return Err(HeapError::ForeignAllocator { allocator, path });
    };
    match recorded_blocks(snapshot, log) {
        Ok(blocks) => Ok(Walk {
            warnings: vec![warning(&allocator)],
            heap: heap(blocks, &allocator),
            problems: Vec::new(),
        }),
        Err(why) => Err(HeapError::IncompleteLog {
            allocator,
            path,
            why,
        }),
    }
}

fn recorded_blocks(snapshot: &Snapshot, log: &StackLog) -> Result<Vec<Block>, String> {
    if let Some(why) = log.header.lack() {
        return Err(why);
    }
    let records = Records::read(log, &*snapshot.memory).map_err(|error| error.to_string())?;
    let mut blocks = blocks(&records).map_err(|error| error.to_string())?;
    let lost = records.busy();
    if log.header.is_forked && lost > 0 {
        return Err(format!(
            "{lost} allocations were under way when the process was forked"
        ));
    }
    // What a thread was about to record is where another block was, or is not there yet.
    let mut end = Addr(0);
    blocks.retain(|block| {
        let is_free = block.start >= end;
        end = end.max(block.range().end);
        is_free
    });
    Ok(blocks)
}

fn blocks(records: &Records<'_>) -> Result<Vec<Block>, LogError> {
    let areas: Vec<Vec<Block>> = records
        .areas()
        .par_iter()
        .map(|area| {
            let live = records.live_in(area)?.into_iter();
            Ok(live
                .map(|record| Block {
                    start: record.start,
                    size: record.requested.max(1),
                })
                .collect())
        })
        .collect::<Result<_, LogError>>()?;
    Ok(areas.into_iter().flatten().collect())
}

/// A heap of one zone. It owns its blocks and nothing else: where the allocator keeps its lists, or
/// what it took from the system for later, is not known.
fn heap(blocks: Vec<Block>, allocator: &str) -> Heap {
    let span = match (blocks.first(), blocks.last()) {
        (Some(first), Some(last)) => AddrRange::new(first.start, last.range().end),
        _ => AddrRange::default(),
    };
    let bytes = blocks.iter().map(|block| block.size);
    Heap {
        zones: vec![Zone {
            name: format!("{allocator} (from the stack log)"),
            allocator: allocator.to_owned(),
            blocks: blocks.len() as u64,
            bytes: bytes.fold(0, u64::saturating_add),
        }],
        zone_ranges: vec![(span, 0)],
        owned: blocks.iter().map(Block::range).collect(),
        blocks: blocks.into_iter().collect(),
    }
}

fn warning(allocator: &str) -> Warning {
    Warning::new(
        "blocks_from_stack_log",
        format!(
            "rleaks cannot read the heap of {allocator}: the malloc stack log says which blocks \
             live, with the sizes that the program asked for. What {allocator} keeps beside the \
             blocks counts as a root, and lists of its own may hide leaks"
        ),
        Bias::MissedLeaks,
    )
}
