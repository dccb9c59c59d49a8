//! Writes logs for tests, as the recorder does.

use std::collections::BTreeMap;
use std::mem::{offset_of, size_of};

use super::format::{
    AREA_SHIFT, AREAS, BLOCK_CHUNKS, BLOCKS_PER_CHUNK, BlockRecord, HEADS_PER_AREA, Header,
    IMAGE_SHIFT, IMAGES, ImageRecord, MAGIC, MODE_LITE, MappingRecord, NODE_CHUNKS, NODE_EXACT,
    NODE_FIRST, NODES_PER_CHUNK, NodeRecord, OFFSET_MASK, OFFSET_SHIFT, REGION_SHIFT, SIZE_SHIFT,
    STATE_LIVE, VERSION,
};
use super::stack::CodeFrame;
use crate::addr::{Addr, AddrRange};
use crate::memory::Memory;
use crate::snapshot::{Region, Snapshot};

const PAGE: u64 = 4096;
/// Where the header and the log's memory are.
pub(crate) const HEADER: u64 = 0x7f00_0000_0000;
pub(crate) const LOG: u64 = 0x7e00_0000_0000;
const RECORD_SIZE: u64 = 64;

/// Zeros, of which only the pages that were written take memory.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pages {
    pub(crate) mapped: Vec<AddrRange>,
    pages: BTreeMap<u64, Vec<u8>>,
}

impl Pages {
    pub(crate) fn write(&mut self, addr: u64, bytes: &[u8]) {
        for (at, byte) in (addr..).zip(bytes) {
            let page = self.pages.entry(at / PAGE).or_insert_with(|| vec![0; 4096]);
            page[usize::try_from(at % PAGE).expect("in a page")] = *byte;
        }
    }

    pub(crate) fn set_word(&mut self, addr: u64, value: u64) {
        self.write(addr, &value.to_le_bytes());
    }

    pub(crate) fn set_word32(&mut self, addr: u64, value: u32) {
        self.write(addr, &value.to_le_bytes());
    }

    /// The addresses of all pages that were written.
    pub(crate) fn written(&self) -> Vec<u64> {
        self.pages.keys().map(|page| page * PAGE).collect()
    }
}

impl Memory for Pages {
    fn read(&self, addr: Addr, buf: &mut [u8]) -> usize {
        let Some(range) = self.mapped.iter().find(|range| range.contains(addr)) else {
            return 0;
        };
        let left = AddrRange::new(addr, range.end).size();
        let count = buf.len().min(usize::try_from(left).expect("64 bits"));
        let mut at = addr.0;
        let mut rest = &mut buf[..count];
        while !rest.is_empty() {
            let offset = usize::try_from(at % PAGE).expect("in a page");
            let (part, after) = rest.split_at_mut(rest.len().min(4096 - offset));
            match self.pages.get(&(at / PAGE)) {
                Some(page) => part.copy_from_slice(&page[offset..offset + part.len()]),
                None => part.fill(0),
            }
            at += part.len() as u64;
            rest = after;
        }
        count
    }

    fn resident(&self, range: AddrRange) -> Vec<AddrRange> {
        let first = range.start.0 / PAGE;
        let last = range.end.0.div_ceil(PAGE).max(first);
        let pages = self.pages.range(first..last);
        pages
            .map(|(page, _)| AddrRange::with_size(Addr(page * PAGE), PAGE).intersection(&range))
            .collect()
    }
}

/// A log as it grows.
#[derive(Clone, Debug)]
pub(crate) struct LogWriter {
    pub(crate) memory: Pages,
    /// Where the next mapping will be.
    next: u64,
    blocks: u32,
    nodes: u32,
    images: u32,
    pub(crate) areas: u64,
    pub(crate) block_chunks: u64,
    pub(crate) node_chunks: u64,
    pub(crate) image_table: u64,
}

impl LogWriter {
    /// A log of nothing.
    pub(crate) fn new() -> Self {
        let mut log = Self {
            memory: Pages::default(),
            next: LOG,
            blocks: 1,
            nodes: NODE_FIRST,
            images: 0,
            areas: 0,
            block_chunks: 0,
            node_chunks: 0,
            image_table: 0,
        };
        log.memory
            .mapped
            .push(AddrRange::with_size(Addr(HEADER), PAGE));
        log.memory.write(HEADER, &MAGIC);
        log.set32(offset_of!(Header, version), VERSION);
        log.set32(offset_of!(Header, size), size_u32::<Header>());
        log.set32(offset_of!(Header, mode), MODE_LITE);
        log.set32(offset_of!(Header, pid), 4242);
        log.set32(offset_of!(Header, depth), 64);
        let word = size_of::<u64>();
        log.areas = log.map(AREAS * word);
        log.block_chunks = log.map(BLOCK_CHUNKS * word);
        log.node_chunks = log.map(NODE_CHUNKS * word);
        log.image_table = log.map(IMAGES * size_of::<ImageRecord>());
        log.set(offset_of!(Header, areas), log.areas);
        log.set(offset_of!(Header, block_chunks), log.block_chunks);
        log.set(offset_of!(Header, node_chunks), log.node_chunks);
        log.set(offset_of!(Header, images), log.image_table);
        log.count();
        log
    }

    /// Sets a field of the header.
    pub(crate) fn set(&mut self, field: usize, value: u64) {
        self.memory.set_word(HEADER + field as u64, value);
    }

    pub(crate) fn set32(&mut self, field: usize, value: u32) {
        self.memory.set_word32(HEADER + field as u64, value);
    }

    fn get(&self, field: usize) -> u64 {
        let word = self.memory.word(Addr(HEADER + field as u64));
        word.expect("a header")
    }

    fn count(&mut self) {
        self.set(offset_of!(Header, blocks_end), self.blocks.into());
        self.set(offset_of!(Header, nodes_end), self.nodes.into());
        self.set(offset_of!(Header, images_len), self.images.into());
    }

    /// Maps memory, as the recorder does.
    pub(crate) fn map(&mut self, size: usize) -> u64 {
        let size = RECORD_SIZE + size as u64;
        let at = self.next;
        // Mappings do not touch, so that each stands for itself.
        self.next += (size + 2 * PAGE) / PAGE * PAGE;
        self.memory
            .mapped
            .push(AddrRange::with_size(Addr(at), size.next_multiple_of(PAGE)));
        let previous = self.get(offset_of!(Header, mappings));
        let field = |offset: usize| at + offset as u64;
        self.memory
            .set_word(field(offset_of!(MappingRecord, previous)), previous);
        self.memory
            .set_word(field(offset_of!(MappingRecord, size)), size);
        self.set(offset_of!(Header, mappings), at);
        let bytes = self.get(offset_of!(Header, mapped_bytes));
        self.set(offset_of!(Header, mapped_bytes), bytes + size);
        at + RECORD_SIZE
    }

    /// What word `index` of a table leads to, which is mapped where nothing was.
    fn part(&mut self, table: u64, index: u64, size: usize) -> u64 {
        let word = table + 8 * index;
        let known = self.memory.word(Addr(word)).expect("a table");
        if known != 0 {
            return known;
        }
        let at = self.map(size);
        self.memory.set_word(word, at);
        at
    }

    /// Where a record of blocks is.
    pub(crate) fn record(&mut self, index: u32) -> u64 {
        let per_chunk = u32::try_from(BLOCKS_PER_CHUNK).expect("few");
        let size = size_of::<BlockRecord>();
        let chunk = self.part(
            self.block_chunks,
            (index / per_chunk).into(),
            BLOCKS_PER_CHUNK * size,
        );
        chunk + u64::from(index % per_chunk) * size as u64
    }

    /// Where the head of the chain of `address` is.
    pub(crate) fn head(&mut self, address: u64) -> u64 {
        let heads = self.part(self.areas, address >> AREA_SHIFT, HEADS_PER_AREA * 4);
        heads + 4 * ((address >> REGION_SHIFT) % HEADS_PER_AREA as u64)
    }

    /// Records a live block, and returns the number of its record.
    pub(crate) fn block(&mut self, address: u64, requested: u64, stack: u32) -> u32 {
        self.block_in_state(address, requested, stack, STATE_LIVE)
    }

    pub(crate) fn block_in_state(
        &mut self,
        address: u64,
        requested: u64,
        stack: u32,
        state: u64,
    ) -> u32 {
        let index = self.blocks;
        self.blocks += 1;
        let record = self.record(index);
        let head = self.head(address);
        let next = self.memory.word32(Addr(head)).expect("a head");
        let key = requested << SIZE_SHIFT | (address & OFFSET_MASK) << OFFSET_SHIFT | state;
        let field = |offset: usize| record + offset as u64;
        self.memory
            .set_word(field(offset_of!(BlockRecord, key)), key);
        self.memory
            .set_word32(field(offset_of!(BlockRecord, next)), next);
        self.memory
            .set_word32(field(offset_of!(BlockRecord, stack)), stack);
        self.memory
            .set_word32(field(offset_of!(BlockRecord, thread)), 4242);
        self.memory.set_word32(head, index);
        self.count();
        index
    }

    /// Where a frame is.
    pub(crate) fn node(&mut self, index: u32) -> u64 {
        let per_chunk = u32::try_from(NODES_PER_CHUNK).expect("few");
        let size = size_of::<NodeRecord>();
        let chunk = self.part(
            self.node_chunks,
            (index / per_chunk).into(),
            NODES_PER_CHUNK * size,
        );
        chunk + u64::from(index % per_chunk) * size as u64
    }

    /// Records a frame inside of `parent`, and returns its number.
    pub(crate) fn frame(&mut self, frame: CodeFrame, parent: u32) -> u32 {
        let index = self.nodes;
        self.nodes += 1;
        let node = self.node(index);
        let image = frame.image.map_or(0, |image| u64::from(image) + 1);
        let field = |offset: usize| node + offset as u64;
        self.memory.set_word(
            field(offset_of!(NodeRecord, code)),
            image << IMAGE_SHIFT | frame.addr.0,
        );
        self.memory
            .set_word32(field(offset_of!(NodeRecord, parent)), parent);
        let next = if frame.is_exact { NODE_EXACT | 7 } else { 7 };
        self.memory
            .set_word32(field(offset_of!(NodeRecord, next)), next);
        self.count();
        index
    }

    /// Records a stack, the innermost frame first, outside of which is `end`.
    pub(crate) fn stack(&mut self, frames: &[CodeFrame], end: u32) -> u32 {
        let frames = frames.iter().rev();
        frames.fold(end, |parent, frame| self.frame(*frame, parent))
    }

    /// Records an image, and returns its number.
    pub(crate) fn image(&mut self, path: &str, bias: u64, build_id: &[u8]) -> u32 {
        let number = self.images;
        self.images += 1;
        let record = self.image_table + u64::from(number) * size_of::<ImageRecord>() as u64;
        let text = self.map(path.len());
        self.memory.write(text, path.as_bytes());
        let field = |offset: usize| record + offset as u64;
        let memory = &mut self.memory;
        memory.set_word(field(offset_of!(ImageRecord, path)), text);
        let length = |bytes: usize| u32::try_from(bytes).expect("short");
        memory.set_word32(field(offset_of!(ImageRecord, path_len)), length(path.len()));
        memory.set_word32(
            field(offset_of!(ImageRecord, build_id_len)),
            length(build_id.len()),
        );
        memory.set_word(field(offset_of!(ImageRecord, bias)), bias);
        memory.set_word(field(offset_of!(ImageRecord, start)), bias);
        memory.set_word(field(offset_of!(ImageRecord, end)), bias + 0x10000);
        memory.write(field(offset_of!(ImageRecord, build_id)), build_id);
        self.count();
        number
    }

    /// A snapshot of a process with this log.
    pub(crate) fn snapshot(self) -> Snapshot {
        let regions = self.memory.mapped.iter().map(|range| Region {
            range: AddrRange::new(range.start, range.end.align_up(PAGE).expect("low")),
            readable: true,
            writable: true,
            ..Region::default()
        });
        let mut regions: Vec<Region> = regions.collect();
        regions.sort_by_key(|region| region.range.start);
        Snapshot {
            regions,
            ..Snapshot::of_memory(Box::new(self.memory))
        }
    }
}

fn size_u32<T>() -> u32 {
    u32::try_from(size_of::<T>()).expect("small")
}
