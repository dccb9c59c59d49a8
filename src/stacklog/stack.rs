//! Who allocated a block: the thread, and its call stack.

use std::fmt;
use std::mem::{offset_of, size_of};

use rustc_hash::FxHashMap;

use super::format::{
    IMAGE_SHIFT, NODE_CHUNKS, NODE_CUT, NODE_EXACT, NODE_FIRST, NODE_NONE, NODES_PER_CHUNK,
    NodeRecord, TICK_NANOSECONDS,
};
use super::header::{LogError, u32_at, u64_at};
use super::log::{StackLog, read};
use super::records::{NearRecords, Records, check_parts};
use crate::addr::Addr;
use crate::memory::Memory;

const NODE: usize = size_of::<NodeRecord>();
/// The address is in the bits below those that say which image it is in.
const ADDRESS: u64 = (1 << IMAGE_SHIFT) - 1;

/// What a log knows of the allocation of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allocation {
    /// The bytes that the program asked for.
    pub requested: u64,
    /// The thread that did, in the target's own pid namespace.
    pub thread: u32,
    /// The stack, by its number in the log; `None` where the recorder could not keep it.
    pub stack: Option<u32>,
    /// When it did, in ticks since the start of the log.
    pub tick: u32,
}

impl Allocation {
    /// When the program did, in milliseconds since the start of the log.
    #[must_use]
    pub fn milliseconds(&self) -> u64 {
        u64::from(self.tick).saturating_mul(TICK_NANOSECONDS) / 1_000_000
    }
}

/// Reads what a log knows of allocations: quickly if their records are near each other.
#[derive(Debug)]
pub struct AllocationReader<'a> {
    records: &'a Records<'a>,
    near: NearRecords,
}

impl<'a> AllocationReader<'a> {
    /// A reader of `records`.
    #[must_use]
    pub fn new(records: &'a Records<'a>) -> Self {
        Self {
            records,
            near: NearRecords::default(),
        }
    }

    /// What the log knows of the block with this record.
    pub fn read(&mut self, record: u32) -> Option<Allocation> {
        let rest = self.records.rest(record, &mut self.near)?;
        Some(Allocation {
            requested: rest.requested,
            thread: rest.thread,
            stack: (rest.stack >= NODE_FIRST).then_some(rest.stack),
            tick: rest.tick,
        })
    }
}

/// A function call of a stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CodeFrame {
    /// The address of the code.
    pub addr: Addr,
    /// The number of the image that it was in when the block was allocated.
    pub image: Option<u32>,
    /// The address is that of an instruction, not the one after a call.
    pub is_exact: bool,
}

/// A call stack.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CallStack {
    /// Its frames, from the innermost to the outermost.
    pub frames: Vec<CodeFrame>,
    /// Frames outside of the last one are missing.
    pub is_cut: bool,
}

/// Reads call stacks.
pub struct StackReader<'a> {
    log: &'a StackLog,
    memory: &'a dyn Memory,
    chunks: Vec<u64>,
    /// Nodes that were read: the outer frames are those of many stacks.
    nodes: FxHashMap<u32, (CodeFrame, u32)>,
}

impl<'a> StackReader<'a> {
    /// A reader of the stacks of `log`.
    ///
    /// # Errors
    /// Says so when the table of frames names memory that is not the log's.
    pub fn new(log: &'a StackLog, memory: &'a dyn Memory) -> Result<Self, LogError> {
        let tables = &log.header.tables;
        let used = usize::try_from(tables.nodes_end).unwrap_or(usize::MAX);
        let count = used.div_ceil(NODES_PER_CHUNK);
        if count > NODE_CHUNKS {
            return Err(LogError::damaged(format!("it has {used} frames")));
        }
        let bytes = read(
            memory,
            tables.node_chunks,
            count.saturating_mul(size_of::<u64>()),
        );
        let chunks: Vec<u64> = bytes.chunks_exact(8).map(|word| u64_at(word, 0)).collect();
        let used = chunks.iter().filter(|chunk| **chunk != 0);
        let size = NODES_PER_CHUNK.saturating_mul(NODE);
        check_parts(log, used.map(|chunk| Addr(*chunk)), size)?;
        Ok(Self {
            log,
            memory,
            chunks,
            nodes: FxHashMap::default(),
        })
    }

    /// The stack with this number. It is cut where a frame cannot be read, or where there are more
    /// than the recorder keeps.
    pub fn stack(&mut self, number: u32) -> CallStack {
        let mut stack = CallStack::default();
        let depth = usize::try_from(self.log.header.depth).unwrap_or(0);
        let mut node = number;
        while node >= NODE_FIRST {
            let Some((frame, parent)) = self.node(node).filter(|_| stack.frames.len() < depth)
            else {
                node = NODE_CUT;
                break;
            };
            stack.frames.push(frame);
            node = parent;
        }
        stack.is_cut = node != NODE_NONE;
        stack
    }

    fn node(&mut self, index: u32) -> Option<(CodeFrame, u32)> {
        if let Some(known) = self.nodes.get(&index) {
            return Some(*known);
        }
        let read = self.read_node(index)?;
        self.nodes.insert(index, read);
        Some(read)
    }

    fn read_node(&self, index: u32) -> Option<(CodeFrame, u32)> {
        let index = usize::try_from(index).ok()?;
        let chunk = *self.chunks.get(index / NODES_PER_CHUNK)?;
        let at = (index % NODES_PER_CHUNK).checked_mul(NODE)? as u64;
        let start = Addr(chunk).checked_add(at).filter(|_| chunk != 0)?;
        let mut bytes = [0; NODE];
        if self.memory.read(start, &mut bytes) < NODE {
            return None;
        }
        let code = u64_at(&bytes, offset_of!(NodeRecord, code));
        let image = u32::try_from(code >> IMAGE_SHIFT).ok()?;
        let frame = CodeFrame {
            addr: Addr(code & ADDRESS),
            image: image.checked_sub(1),
            is_exact: u32_at(&bytes, offset_of!(NodeRecord, next)) & NODE_EXACT != 0,
        };
        // A frame without an address was never written.
        let parent = u32_at(&bytes, offset_of!(NodeRecord, parent));
        (frame.addr != Addr(0)).then_some((frame, parent))
    }
}

impl fmt::Debug for StackReader<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StackReader")
            .field("nodes", &self.nodes.len())
            .finish_non_exhaustive()
    }
}
