//! The blocks that a log says are alive.
//!
//! A record does not have the address of its block, only the offset in its region: the way to it
//! leads from the heads of the regions along the chains. So the parts of all records that chains
//! need are read first, a chunk at a time, and the chains are followed in our own memory.

use std::fmt;
use std::mem::{offset_of, size_of};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use rayon::prelude::*;

use super::format::{
    AREA_SHIFT, AREAS, BLOCK_CHUNKS, BLOCKS_PER_CHUNK, BlockRecord, HEADS_PER_AREA, OFFSET_MASK,
    OFFSET_SHIFT, REGION_SHIFT, SIZE_SHIFT, STATE_BUSY, STATE_LIVE, STATE_MASK,
};
use super::header::{LogError, u32_at, u64_at};
use super::log::{StackLog, read};
use crate::addr::{Addr, AddrRange};
use crate::memory::Memory;

const RECORD: usize = size_of::<BlockRecord>();
const WORD: usize = size_of::<u64>();
const WORD_BYTES: u64 = 8;
const HEAD: usize = size_of::<u32>();
const HEAD_BYTES: u64 = 4;
/// A log fills its chunks from the start. One that does not is not worth more memory of ours than
/// this, as a multiple of what it takes itself, and some.
const MOST_SPARSE: u64 = 4;
const SPARSE_ALLOWED: u64 = 64 << 20;

/// A block that lives, as the log has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LiveRecord {
    /// Where the block starts.
    pub start: Addr,
    /// The bytes that the program asked for.
    pub requested: u64,
    /// The number of the record, by which the rest of it is found.
    pub record: u32,
}

/// 64 MiB of the target's address space in which there are, or were, blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Area {
    /// The addresses of its blocks.
    pub range: AddrRange,
    /// Where the heads of its regions are.
    heads: Addr,
}

/// What is needed of all records to follow their chains.
pub struct Records<'a> {
    log: &'a StackLog,
    memory: &'a dyn Memory,
    chunks: Vec<Chunk>,
    busy: AtomicU64,
    areas: Vec<Area>,
}

#[derive(Debug, Default)]
struct Chunk {
    keys: Vec<u64>,
    nexts: Vec<u32>,
    /// A bit for each record that a chain has led to: each is in one chain, once.
    seen: Vec<AtomicU64>,
}

impl<'a> Records<'a> {
    /// Reads the records of `log` from `memory`.
    ///
    /// # Errors
    /// Says so when tables name memory that is not the log's, or the same memory twice.
    pub fn read(log: &'a StackLog, memory: &'a dyn Memory) -> Result<Self, LogError> {
        let addresses = chunk_addresses(log, memory)?;
        let sizes = chunk_sizes(memory, &addresses)?;
        let chunks: Vec<Chunk> = addresses
            .par_iter()
            .zip(&sizes)
            .map(|(start, size)| {
                start.map_or_else(Chunk::default, |s| Chunk::read(memory, s, *size))
            })
            .collect();
        Ok(Self {
            log,
            memory,
            chunks,
            busy: AtomicU64::new(0),
            areas: areas(log, memory)?,
        })
    }

    /// The areas with blocks, in ascending order.
    #[must_use]
    pub fn areas(&self) -> &[Area] {
        &self.areas
    }

    /// The number of records that were being written, as far as areas have been asked for.
    #[must_use]
    pub fn busy(&self) -> u64 {
        self.busy.load(Relaxed)
    }

    /// The blocks of one of [`Records::areas`] that live, in ascending order. Each area can be
    /// asked for once.
    ///
    /// # Errors
    /// Says so when a chain leads to a record that does not exist, or that is in another place of
    /// a chain as well.
    pub fn live_in(&self, area: &Area) -> Result<Vec<LiveRecord>, LogError> {
        let mut live = Vec::new();
        let heads = AddrRange::with_size(area.heads, HEADS_SIZE as u64);
        for part in self.memory.resident(heads) {
            let start = part.start.align_down(HEAD_BYTES);
            let size = AddrRange::new(start, part.end).size();
            let bytes = read(self.memory, start, usize::try_from(size).unwrap_or(0));
            let first = start.0.saturating_sub(area.heads.0) / HEAD_BYTES;
            for (region, head) in (first..)
                .zip(words32(&bytes))
                .filter(|(_, head)| *head != 0)
            {
                let region = area.range.start.saturating_add(region << REGION_SHIFT);
                self.follow(region, head, &mut live)?;
            }
        }
        live.dedup_by_key(|block| block.start);
        Ok(live)
    }

    /// Adds the blocks of the chain that begins with record `head` to `live`.
    fn follow(&self, region: Addr, head: u32, live: &mut Vec<LiveRecord>) -> Result<(), LogError> {
        let first = live.len();
        let mut record = head;
        while record != 0 {
            let Some((chunk, at)) = self.chunk_of(record) else {
                let what = format!("a chain leads to record {record}, which does not exist");
                return Err(LogError::damaged(what));
            };
            let (key, next) = chunk.link(at);
            if !chunk.see(at) {
                let what = format!("record {record} is in more than one place");
                return Err(LogError::damaged(what));
            }
            match key & STATE_MASK {
                STATE_LIVE => live.push(LiveRecord {
                    start: region.saturating_add((key >> OFFSET_SHIFT) & OFFSET_MASK),
                    requested: key >> SIZE_SHIFT,
                    record,
                }),
                STATE_BUSY => {
                    self.busy.fetch_add(1, Relaxed);
                }
                _ => {}
            }
            record = next;
        }
        live.get_mut(first..).unwrap_or_default().sort_unstable();
        Ok(())
    }

    /// The chunk of a record that exists, and its place there.
    fn chunk_of(&self, record: u32) -> Option<(&Chunk, usize)> {
        let index = usize::try_from(record).ok()?;
        let chunk = self.chunks.get(index / BLOCKS_PER_CHUNK)?;
        let at = index % BLOCKS_PER_CHUNK;
        (at < chunk.keys.len()).then_some((chunk, at))
    }

    /// The rest of a record: the node of its stack, and the thread. `near` has the records that were read with
    /// the one before.
    #[must_use]
    pub(super) fn rest(&self, record: u32, near: &mut NearRecords) -> Option<RecordRest> {
        let index = usize::try_from(record).ok()?;
        let offset = index % READ_TOGETHER;
        let first = index.saturating_sub(offset);
        if near.first != Some(first) {
            let table = self.log.header.tables.block_chunks;
            let chunk = self.memory.word(entry(table, index / BLOCKS_PER_CHUNK)?)?;
            let at = (first % BLOCKS_PER_CHUNK).checked_mul(RECORD)? as u64;
            let start = Addr(chunk).checked_add(at)?;
            near.bytes = read(self.memory, start, READ_TOGETHER * RECORD);
            near.first = Some(first);
        }
        let at = offset.checked_mul(RECORD)?;
        let bytes = near.bytes.get(at..at.checked_add(RECORD)?)?;
        Some(RecordRest {
            requested: u64_at(bytes, offset_of!(BlockRecord, key)) >> SIZE_SHIFT,
            stack: u32_at(bytes, offset_of!(BlockRecord, stack)),
            thread: u32_at(bytes, offset_of!(BlockRecord, thread)),
            tick: u32_at(bytes, offset_of!(BlockRecord, tick)),
        })
    }
}

/// Records that are read at once: those of blocks that lie near each other are often neighbours, too.
const READ_TOGETHER: usize = 128;
const _: () = assert!(BLOCKS_PER_CHUNK.is_multiple_of(READ_TOGETHER));

/// Some records, one after the other.
#[derive(Debug, Default)]
pub(super) struct NearRecords {
    /// The number of the first.
    first: Option<usize>,
    bytes: Vec<u8>,
}

impl fmt::Debug for Records<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Records")
            .field("chunks", &self.chunks.len())
            .field("areas", &self.areas)
            .finish_non_exhaustive()
    }
}

/// What a record has beside what chains need.
pub(super) struct RecordRest {
    pub(super) requested: u64,
    pub(super) stack: u32,
    pub(super) thread: u32,
    pub(super) tick: u32,
}

const HEADS_SIZE: usize = HEADS_PER_AREA * HEAD;
const CHUNK_SIZE: usize = BLOCKS_PER_CHUNK * RECORD;

impl Chunk {
    fn read(memory: &dyn Memory, start: Addr, size: usize) -> Self {
        let bytes = read(memory, start, size);
        let records = || bytes.chunks_exact(RECORD);
        let words = records().len().div_ceil(64);
        Self {
            keys: records()
                .map(|r| u64_at(r, offset_of!(BlockRecord, key)))
                .collect(),
            nexts: records()
                .map(|r| u32_at(r, offset_of!(BlockRecord, next)))
                .collect(),
            seen: (0..words).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// The key of a record, and the next one of its chain; zeros where there is no such record.
    fn link(&self, at: usize) -> (u64, u32) {
        let key = self.keys.get(at).copied().unwrap_or(0);
        (key, self.nexts.get(at).copied().unwrap_or(0))
    }

    /// Notes that a chain has led to a record, and says whether it is the first that does.
    fn see(&self, at: usize) -> bool {
        let bit = 1 << (at % 64);
        // Relaxed is enough: the bit guards no other memory.
        let word = self.seen.get(at / 64);
        word.is_some_and(|word| word.fetch_or(bit, Relaxed) & bit == 0)
    }
}

/// The address of word `index` of a table.
pub(super) fn entry(table: Addr, index: usize) -> Option<Addr> {
    table.checked_add(index.checked_mul(WORD)? as u64)
}

/// Where the chunks of block records are: those that there are.
fn chunk_addresses(log: &StackLog, memory: &dyn Memory) -> Result<Vec<Option<Addr>>, LogError> {
    let tables = &log.header.tables;
    let used = usize::try_from(tables.blocks_end).unwrap_or(usize::MAX);
    let count = used.div_ceil(BLOCKS_PER_CHUNK);
    if count > BLOCK_CHUNKS {
        return Err(LogError::damaged(format!("it has {used} records")));
    }
    let bytes = read(memory, tables.block_chunks, count.saturating_mul(WORD));
    let words = bytes.chunks_exact(WORD).map(|word| u64_at(word, 0));
    let addresses: Vec<Option<Addr>> = words
        .map(|word| (word != 0).then_some(Addr(word)))
        .collect();
    check_parts(log, addresses.iter().flatten().copied(), CHUNK_SIZE)?;
    Ok(addresses)
}

/// How much of each chunk may hold anything but zeros.
fn chunk_sizes(memory: &dyn Memory, addresses: &[Option<Addr>]) -> Result<Vec<usize>, LogError> {
    let mut resident_bytes = 0_u64;
    let mut sizes = Vec::with_capacity(addresses.len());
    for start in addresses {
        let start = start.unwrap_or_default();
        let parts = memory.resident(AddrRange::with_size(start, CHUNK_SIZE as u64));
        let resident = parts.iter().map(AddrRange::size);
        resident_bytes = resident_bytes.saturating_add(resident.sum());
        let end = parts.last().map_or(start, |part| part.end);
        let size = usize::try_from(AddrRange::new(start, end).size()).unwrap_or(CHUNK_SIZE);
        let whole = size.div_ceil(RECORD).saturating_mul(RECORD);
        sizes.push(whole.min(CHUNK_SIZE));
    }
    let wanted: u64 = sizes.iter().map(|size| *size as u64).sum();
    let allowed = resident_bytes.saturating_mul(MOST_SPARSE);
    if wanted > allowed.saturating_add(SPARSE_ALLOWED) {
        return Err(LogError::damaged("its records are full of holes"));
    }
    Ok(sizes)
}

/// The areas that have heads, in ascending order.
fn areas(log: &StackLog, memory: &dyn Memory) -> Result<Vec<Area>, LogError> {
    let table = log.header.tables.areas;
    let mut areas = Vec::new();
    for part in memory.resident(AddrRange::with_size(table, (AREAS * WORD) as u64)) {
        let bytes = read(
            memory,
            part.start,
            usize::try_from(part.size()).unwrap_or(0),
        );
        let first = part.start.0.saturating_sub(table.0) / WORD_BYTES;
        let words = bytes.chunks_exact(WORD).map(|word| u64_at(word, 0));
        let used = (first..).zip(words).filter(|(_, heads)| *heads != 0);
        areas.extend(used.map(|(index, heads)| Area {
            range: AddrRange::with_size(Addr(index << AREA_SHIFT), 1 << AREA_SHIFT),
            heads: Addr(heads),
        }));
    }
    check_parts(log, areas.iter().map(|area| area.heads), HEADS_SIZE)?;
    Ok(areas)
}

/// Checks that parts of `size` bytes are the log's own and that none overlaps another: a small
/// table could stand for terabytes otherwise.
pub(super) fn check_parts(
    log: &StackLog,
    starts: impl Iterator<Item = Addr>,
    size: usize,
) -> Result<(), LogError> {
    let mut starts: Vec<Addr> = starts.collect();
    starts.sort_unstable();
    let mut end = Addr(0);
    for start in starts {
        if start < end || !log.owns(start, size) {
            let what = format!("its part at {start} is not in its own memory, or in another part");
            return Err(LogError::damaged(what));
        }
        end = start.saturating_add(size as u64);
    }
    Ok(())
}

fn words32(bytes: &[u8]) -> impl Iterator<Item = u32> + '_ {
    let (words, _) = bytes.as_chunks();
    words.iter().map(|word| u32::from_le_bytes(*word))
}

#[cfg(test)]
mod tests {
    use super::super::format::{Header, NODE_NONE};
    use super::super::testing::{HEADER, LogWriter};
    use super::*;

    #[test]
    fn log_that_claims_many_records_takes_memory_for_those_that_there_are() {
        let mut writer = LogWriter::new();
        writer.block(0x5555_0000_0010, 24, NODE_NONE);
        let claimed = BLOCKS_PER_CHUNK * BLOCK_CHUNKS;
        writer.set(offset_of!(Header, blocks_end), claimed as u64);
        let snapshot = writer.snapshot();
        let log = StackLog::find(&snapshot, Addr(HEADER)).expect("a good log");
        let log = log.expect("a log");
        let records = Records::read(&log, &*snapshot.memory).expect("a good log");
        let taken = |chunk: &Chunk| (chunk.keys.len(), chunk.seen.len());
        let (keys, seen) = records
            .chunks
            .iter()
            .map(taken)
            .fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
        assert!(keys > 1 && seen == keys.div_ceil(64), "{keys} {seen}");
        assert_eq!(
            records
                .live_in(&records.areas()[0])
                .expect("a good log")
                .len(),
            1
        );
    }
}
