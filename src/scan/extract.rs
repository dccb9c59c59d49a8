//! References from memory: every word of blocks and roots, read once through small buffers.
//!
//! Rows are cut into pieces of a few MiB, which are extracted in parallel, and a piece is read in
//! windows: a run of neighbouring blocks, or a part of one large row.

use std::fmt;
use std::ops::Range;

use super::filter::{BATCH, Filter, Hits, MOST_HITS, MOST_RANGES, Ranges, Words, prefetch};
use super::graph::{Alignment, Interrupted};
use super::root::{Root, RootSource};
use super::window::{Reader, Segment, WINDOW, Window, widened};
use crate::addr::{Addr, AddrRange};
use crate::heap::{Blocks, Candidate};
use crate::memory::{Memory, Width};

/// The bytes of blocks in a piece. Large rows are cut at multiples of it.
pub(super) const PIECE: u64 = 4 << 20;
/// A gap between two blocks from which on they are read apart.
pub(super) const GAP: u64 = 4096;

/// What an extraction is of.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    pub(super) memory: &'a dyn Memory,
    /// The first rows.
    pub(super) blocks: &'a Blocks,
    /// The rows after those of the blocks.
    pub(super) roots: &'a [Root],
    pub(super) words: Words,
    pub(super) filter: Filter,
    /// Values that may be references: those outside lie in no block.
    pub(super) ranges: Ranges,
    pub(super) interrupted: &'a (dyn Fn() -> bool + Sync),
}

impl<'a> Source<'a> {
    /// The words of `blocks` and `roots`, which have this width and alignment, in `memory`.
    ///
    /// `interrupted` says whether to stop. It is asked for every window of at most 256 KiB, from any thread.
    pub fn new(
        memory: &'a dyn Memory,
        blocks: &'a Blocks,
        roots: &'a [Root],
        (width, alignment): (Width, Alignment),
        interrupted: &'a (dyn Fn() -> bool + Sync),
    ) -> Self {
        Self {
            memory,
            blocks,
            roots,
            words: Words { width, alignment },
            filter: Filter::best(),
            ranges: Ranges::new(&blocks.spans(MOST_RANGES)),
            interrupted,
        }
    }

    /// The same words, tested in another way than the fastest.
    #[must_use]
    pub fn with_filter(self, filter: Filter) -> Self {
        Self { filter, ..self }
    }
}

/// What one thread extracts at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// Blocks that fit in a window each.
    Blocks(Range<usize>),
    /// A part of a larger block or of a root.
    Part { row: usize, part: AddrRange },
    /// A root whose words are not in memory.
    Words { row: usize },
}

/// The references of a piece.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) first_row: usize,
    /// The number of references of each row from there.
    pub(super) counts: Vec<u32>,
    pub(super) edges: Vec<u32>,
    /// Bytes of the rows that could not be read.
    pub(super) unreadable: u64,
}

impl Source<'_> {
    /// The number of rows: blocks and then roots.
    pub(super) fn rows(&self) -> usize {
        self.blocks.len() + self.roots.len()
    }

    /// The memory of a row: empty for a root whose words are not in memory.
    fn range(&self, row: usize) -> AddrRange {
        match self.blocks.get(row) {
            Some(block) => block.range(),
            None => match &self.roots[row - self.blocks.len()].source {
                RootSource::Memory(range) => *range,
                RootSource::Words(_) => AddrRange::default(),
            },
        }
    }

    /// The words of a root that are not in memory.
    fn words(&self, row: usize) -> &[u64] {
        match &self.roots[row - self.blocks.len()].source {
            RootSource::Memory(_) => &[],
            RootSource::Words(words) => words,
        }
    }

    /// The number of bytes by which a word can reach over the end of the part it begins in.
    fn reach(&self) -> u64 {
        match self.words.alignment {
            Alignment::Words => 0,
            Alignment::Bytes => self.words.width.bytes() - 1,
        }
    }
}

impl fmt::Debug for Source<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source")
            .field("blocks", &self.blocks.len())
            .field("roots", &self.roots.len())
            .field("words", &self.words)
            .field("filter", &self.filter)
            .finish_non_exhaustive()
    }
}

/// Cuts `rows` into pieces, in ascending order.
pub(super) fn plan(source: &Source<'_>, rows: Range<usize>) -> Vec<Piece> {
    let blocks = source.blocks.len();
    let mut pieces = plan_blocks(source, rows.start..rows.end.min(blocks));
    for row in rows.start.max(blocks)..rows.end {
        if source.words(row).is_empty() {
            pieces.extend(parts(source, row));
        } else {
            pieces.push(Piece::Words { row });
        }
    }
    pieces
}

fn plan_blocks(source: &Source<'_>, rows: Range<usize>) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut first = rows.start;
    for row in source.blocks.larger_than(WINDOW, rows.clone()) {
        plan_small(source, first..row, &mut pieces);
        pieces.extend(parts(source, row));
        first = row + 1;
    }
    plan_small(source, first..rows.end, &mut pieces);
    pieces
}

/// Cuts `rows` into runs of blocks in at most [`PIECE`] bytes of addresses. Each of them is smaller than that.
fn plan_small(source: &Source<'_>, mut rows: Range<usize>, pieces: &mut Vec<Piece>) {
    while let Some(block) = source.blocks.range(rows.clone()).next() {
        let next = source
            .blocks
            .ending_after(block.start.saturating_add(PIECE));
        let next = next.clamp(rows.start + 1, rows.end);
        pieces.push(Piece::Blocks(rows.start..next));
        rows.start = next;
    }
}

/// Cuts a row at multiples of [`PIECE`], and leaves out what the target never touched.
fn parts(source: &Source<'_>, row: usize) -> impl Iterator<Item = Piece> {
    let range = source.range(row);
    let mut parts: Vec<AddrRange> = Vec::new();
    for resident in source.memory.resident(range) {
        let resident = widened(resident, source.reach()).intersection(&range);
        let mut start = resident.start.align_down(PIECE);
        while start < resident.end {
            let part = AddrRange::with_size(start, PIECE).intersection(&range);
            if parts.last() != Some(&part) {
                parts.push(part);
            }
            start = start.saturating_add(PIECE);
        }
    }
    parts.into_iter().map(move |part| Piece::Part { row, part })
}

/// Reads a piece and finds the references in it.
pub(super) fn extract(source: &Source<'_>, piece: &Piece) -> Result<Found, Interrupted> {
    let mut extractor = Extractor {
        source,
        reader: Reader::new(source.memory, source.reach()),
        edges: Edges::new(source, piece),
    };
    match piece {
        Piece::Blocks(rows) => extractor.blocks(rows.clone())?,
        Piece::Part { row, part } => extractor.part(*row, *part)?,
        Piece::Words { row } => extractor
            .edges
            .take(*row, source.words(*row), &source.ranges),
    }
    Ok(extractor.finish())
}

/// Extracts one piece.
struct Extractor<'a> {
    source: &'a Source<'a>,
    reader: Reader<'a>,
    edges: Edges<'a>,
}

impl<'a> Extractor<'a> {
    fn blocks(&mut self, mut rows: Range<usize>) -> Result<(), Interrupted> {
        while !rows.is_empty() {
            let window = self.run(rows.clone());
            rows.start = window.rows.end;
            self.window(&window)?;
        }
        Ok(())
    }

    /// The window of as many blocks, from the first of `rows`, as lie close together.
    fn run(&self, rows: Range<usize>) -> Window {
        let all = self.source.blocks;
        let mut blocks = all.range(rows.clone());
        let mut range = blocks.next().unwrap_or_default().range();
        let next = all.ending_after(range.start.saturating_add(WINDOW));
        let near = rows.start..next.clamp(rows.start + 1, rows.end);
        if all.are_close(near.clone(), GAP) {
            range.end = all
                .get(near.end - 1)
                .map_or(range.end, |last| last.range().end);
            return Window {
                rows: near,
                range,
                end: range.end,
            };
        }
        let close = blocks.take_while(|block| {
            let next = block.range();
            let close = next.start.0.saturating_sub(range.end.0) < GAP
                && next.end.0 - range.start.0 <= WINDOW;
            if close {
                range.end = next.end;
            }
            close
        });
        let count = 1 + close.count();
        Window {
            rows: rows.start..rows.start + count,
            range,
            end: range.end,
        }
    }

    fn part(&mut self, row: usize, part: AddrRange) -> Result<(), Interrupted> {
        let end = self.source.range(row).end;
        let mut start = part.start;
        while start < part.end {
            let next = start.align_down(WINDOW).saturating_add(WINDOW);
            let range = AddrRange::new(start, next.min(part.end));
            self.window(&Window {
                rows: row..row + 1,
                range,
                end: range.end.saturating_add(self.source.reach()).min(end),
            })?;
            start = range.end;
        }
        Ok(())
    }

    fn window(&mut self, window: &Window) -> Result<(), Interrupted> {
        if (self.source.interrupted)() {
            return Err(Interrupted);
        }
        self.reader.read(window);
        let Source { filter, words, .. } = self.source;
        for segment in self.reader.segments() {
            let Segment { range, bytes } = segment;
            let mut at = words.first(range.start);
            while at < bytes.len() {
                at = filter.find(*words, &self.source.ranges, bytes, at, &mut self.edges.hits);
                if window.rows.len() == 1 {
                    self.edges.assign(window.rows.start);
                } else {
                    self.edges.assign_by_address(range.start, words.width);
                }
            }
        }
        for hole in &self.reader.unreadable {
            let rows = rows_in(self.source, window, *hole);
            self.edges.found.unreadable += rows.map(|(_, part)| part.size()).sum::<u64>();
        }
        Ok(())
    }

    fn finish(mut self) -> Found {
        self.edges.flush();
        self.edges.found
    }
}

/// The rows of `window` that have memory in `range`, with the part of them that is in it.
fn rows_in<'a>(
    source: &'a Source<'a>,
    window: &Window,
    range: AddrRange,
) -> impl Iterator<Item = (usize, AddrRange)> + 'a {
    let first = source.blocks.ending_after(range.start);
    let first = first.clamp(window.rows.start, window.rows.end);
    let blocks = source.blocks.range(first..window.rows.end);
    let root = (window.rows.start >= source.blocks.len()).then(|| source.range(window.rows.start));
    let rows = (first..).zip(blocks.map(|block| block.range()));
    rows.chain(root.map(|root| (window.rows.start, root)))
        .take_while(move |(_, all)| all.start < range.end)
        .map(move |(row, all)| (row, all.intersection(&range)))
}

/// The references of a piece in the making.
///
/// Words that may be references are collected first and looked up together: the misses of one
/// lookup's loads overlap with those of the next.
struct Edges<'a> {
    blocks: &'a Blocks,
    filter: Filter,
    hits: Hits,
    /// The row of each hit, from the first of the piece.
    rows: [u32; MOST_HITS],
    /// The number of hits that have a row. The others are those of the last search.
    assigned: usize,
    /// The row and the target of the last edge.
    last: Option<(u32, u32)>,
    found: Found,
}

impl<'a> Edges<'a> {
    fn new(source: &Source<'a>, piece: &Piece) -> Self {
        let rows = match piece {
            Piece::Blocks(rows) => rows.clone(),
            Piece::Part { row, .. } | Piece::Words { row } => *row..row + 1,
        };
        Self {
            blocks: source.blocks,
            filter: source.filter,
            hits: Hits::new(),
            rows: [0; MOST_HITS],
            assigned: 0,
            last: None,
            found: Found {
                first_row: rows.start,
                counts: vec![0; rows.len()],
                edges: Vec::new(),
                unreadable: 0,
            },
        }
    }

    /// The number of a row in the piece.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "a piece has no more rows than a chunk"
    )]
    fn number(&self, row: usize) -> u32 {
        (row - self.found.first_row) as u32
    }

    /// Takes those of `values`, which are words of `row`, that are in `ranges`.
    fn take(&mut self, row: usize, values: &[u64], ranges: &Ranges) {
        for value in values.iter().filter(|value| ranges.contains(**value)) {
            self.hits.push(*value);
            self.assign(row);
        }
    }

    /// Says that the last search was of `row`.
    fn assign(&mut self, row: usize) {
        let row = self.number(row);
        self.rows[self.assigned..self.hits.count].fill(row);
        self.assigned = self.hits.count;
        self.flush_batch();
    }

    /// Says that the last search was of memory at `start`, which begins and ends in blocks of the piece. Hits
    /// between these and across their ends are dropped.
    ///
    /// The block of an address is found as that of a reference is. To go along with the blocks instead would take
    /// branches, as many as there are blocks, that the processor cannot foresee.
    #[inline(never)]
    fn assign_by_address(&mut self, start: Addr, width: Width) {
        self.filter.compiled_for(
            #[inline(always)]
            || self.look_rows_up(start, width),
        );
        self.flush_batch();
    }

    #[inline(always)]
    fn look_rows_up(&mut self, start: Addr, width: Width) {
        let mut assigned = self.assigned;
        for hit in self.assigned..self.hits.count {
            let at = start.0 + u64::from(self.hits.positions[hit]);
            let block = self.blocks.candidate(at);
            self.rows[assigned] = self.number(block.block as usize);
            self.hits.values[assigned] = self.hits.values[hit];
            assigned += usize::from(self.blocks.holds(block, at + width.bytes() - 1));
        }
        self.assigned = assigned;
        self.hits.count = assigned;
    }

    /// Looks the hits up where they are enough for that.
    fn flush_batch(&mut self) {
        if self.assigned >= BATCH {
            self.flush();
        }
    }

    /// Looks the hits up, and adds those that are references.
    #[inline(never)]
    fn flush(&mut self) {
        self.filter.compiled_for(
            #[inline(always)]
            || self.look_up(),
        );
        self.assigned = 0;
        self.hits.count = 0;
    }

    #[inline(always)]
    fn look_up(&mut self) {
        let values = &self.hits.values[..self.assigned];
        // Short loops, each of which has the next one's memory fetched: many misses are under way at once.
        let mut targets = [Candidate::default(); MOST_HITS];
        for value in values {
            self.blocks.entry_of(*value).into_iter().for_each(prefetch);
        }
        for (target, value) in targets.iter_mut().zip(values) {
            *target = self.blocks.candidate(*value);
            let size = self.blocks.size_of(target.block);
            size.into_iter().for_each(prefetch);
        }
        for ((target, value), row) in targets.iter().zip(values).zip(&self.rows) {
            let edge = Some((*row, target.block));
            if self.blocks.holds(*target, *value) && self.last != edge {
                self.last = edge;
                self.found.edges.push(target.block);
                self.found.counts[*row as usize] += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::graph::Graph;
    use super::super::mark::mark;
    use super::super::root::RootKind;
    use super::super::testing::{RangesMemory, blocks, in_threads, reached};
    use super::*;
    use crate::heap::Block;

    const MIB: u64 = 1 << 20;

    fn root(source: RootSource) -> Root {
        Root {
            kind: RootKind::Globals,
            source,
            name: String::new(),
        }
    }

    fn root_at(start: u64, size: u64) -> Root {
        root(RootSource::Memory(AddrRange::with_size(Addr(start), size)))
    }

    fn graph(memory: &RangesMemory, blocks: &[Block], roots: &[Root], at: Alignment) -> Graph {
        let blocks = blocks.iter().copied().collect();
        let mut graphs = Filter::all().into_iter().map(|filter| {
            let source = Source::new(memory, &blocks, roots, (Width::Eight, at), &|| false);
            Graph::extract(&source.with_filter(filter)).expect("nothing interrupts")
        });
        let first = graphs.next().expect("one is portable");
        for graph in graphs {
            assert_eq!(graph, first);
        }
        first
    }

    /// The targets of a word with each value between `from` and `to`, in a root of its own.
    fn targets(blocks: &[Block], values: Range<u64>) -> Vec<Vec<u32>> {
        let roots: Vec<_> = values.map(|v| root(RootSource::Words(vec![v]))).collect();
        let graph = graph(&RangesMemory::default(), blocks, &roots, Alignment::Words);
        let rows = (0..roots.len()).map(|root| graph.root_references(root).to_vec());
        rows.collect()
    }

    #[test]
    fn a_reference_is_any_byte_of_a_block_but_not_one_past_its_end() {
        let blocks = blocks(&[(0x1000, 24), (0x1020, 16)]);
        let found = targets(&blocks, 0xfff..0x1031);
        for (value, targets) in (0xfff_u64..).zip(found) {
            let expected = match value {
                0x1000..0x1018 => vec![0],
                0x1020..0x1030 => vec![1],
                _ => vec![],
            };
            assert_eq!(targets, expected, "{value:#x}");
        }
    }

    #[test]
    fn words_of_blocks_and_roots_are_edges_and_words_between_them_are_not() {
        let blocks = blocks(&[(0x1000, 24), (0x1020, 24), (0x1040, 24)]);
        let mut memory = RangesMemory::zeroed(&[(0x1000, 0x60), (0x8000, 0x20)]);
        memory.set_word(0x1000, 0x1048);
        memory.set_word(0x1010, 0x1020);
        memory.set_word(0x1018, 0x1000); // Between the blocks.
        memory.set_word(0x1020, 0x1020); // The block itself.
        memory.set_word(0x8008, 0x1030);
        let graph = graph(&memory, &blocks, &[root_at(0x8000, 0x20)], Alignment::Words);
        assert_eq!(graph.references(0), [2, 1]);
        assert_eq!(graph.references(1), [1]);
        assert!(graph.references(2).is_empty());
        assert_eq!(graph.root_references(0), [1]);
    }

    #[test]
    fn only_complete_words_count() {
        let blocks = blocks(&[(0x1000, 12), (0x1010, 15)]);
        let mut memory = RangesMemory::zeroed(&[(0x1000, 0x40)]);
        memory.set_word(0x1008, 0x1000); // 4 bytes of it are in the first block.
        memory.set_word(0x1018, 0x1000); // 7 bytes of it are in the second one.
        memory.set_word(0x1034, 0x1000); // Not aligned.
        let roots = [root_at(0x1031, 15)];
        let words = graph(&memory, &blocks, &roots, Alignment::Words);
        assert_eq!(words.edges(), 0);
        let bytes = graph(&memory, &blocks, &roots, Alignment::Bytes);
        assert_eq!(bytes.edges(), 1);
        assert_eq!(bytes.root_references(0), [0]);
    }

    #[test]
    fn words_are_aligned_in_blocks_that_are_not() {
        let blocks = blocks(&[(0x1003, 14)]);
        let mut memory = RangesMemory::zeroed(&[(0x1000, 0x20)]);
        memory.set_word(0x1008, 0x1004);
        assert_eq!(
            graph(&memory, &blocks, &[], Alignment::Words).references(0),
            [0]
        );
    }

    #[test]
    fn no_position_is_lost_where_windows_and_pieces_meet() {
        let size = PIECE + WINDOW + 40;
        let blocks = blocks(&[(MIB, size), (64 * MIB, 16)]).into_iter().collect();
        let length = usize::try_from(size).expect("some MiB");
        // Each filter finds the same where there is less to search.
        let mut filters = Filter::all().into_iter().cycle();
        for border in [WINDOW, PIECE - MIB, size - 4] {
            for at in [0, 1, 4, 7, 8, 9, 16].map(|distance| border - 8 + distance) {
                let filter = filters.next().expect("one is portable");
                let graph = |memory: &RangesMemory, alignment| {
                    let words = (Width::Eight, alignment);
                    let source = Source::new(memory, &blocks, &[], words, &|| false);
                    Graph::extract(&source.with_filter(filter)).expect("nothing interrupts")
                };
                let mut memory = RangesMemory::zeroed(&[(MIB, length + 16)]);
                memory.set_word(MIB + at, 64 * MIB);
                let inside = at + 8 <= size;
                let bytes = graph(&memory, Alignment::Bytes);
                assert_eq!(bytes.edges(), usize::from(inside), "{at:#x}");
                let words = graph(&memory, Alignment::Words);
                assert_eq!(words.edges(), usize::from(inside && at % 8 == 0), "{at:#x}");
                assert_eq!(words.unreadable_bytes() + bytes.unreadable_bytes(), 16 + 16);
            }
        }
    }

    #[test]
    fn unreadable_pages_are_skipped_and_counted() {
        let blocks = blocks(&[(0x1000, 0x3000), (0x4010, 16), (0x9000, 16)]);
        let mut memory = RangesMemory::zeroed(&[(0x1000, 0x1000), (0x3000, 0x2000)]);
        memory.set_word(0x1ff8, 0x4010);
        memory.set_word(0x3000, 0x4018);
        memory.set_word(0x4010, 0x1234);
        let graph = graph(&memory, &blocks, &[root_at(0x100, 8)], Alignment::Words);
        // The two words are neighbours in the row, and the same.
        assert_eq!(graph.references(0), [1]);
        assert_eq!(graph.references(1), [0]);
        assert_eq!(graph.unreadable_bytes(), 0x1000 + 16 + 8);
    }

    #[test]
    fn a_huge_block_that_was_never_touched_costs_nothing() {
        let blocks = blocks(&[(MIB, 16 << 40), (32 << 40, 16)]);
        let mut memory = RangesMemory::zeroed(&[(8 << 40, 4096)]);
        memory.untouched = vec![
            AddrRange::new(Addr(0), Addr(8 << 40)),
            AddrRange::new(Addr((8 << 40) + 4096), Addr(32 << 40)),
        ];
        memory.set_word(8 << 40, (32 << 40) + 8);
        let graph = graph(&memory, &blocks, &[], Alignment::Words);
        assert_eq!(graph.references(0), [1]);
        assert_eq!(graph.unreadable_bytes(), 16);
    }

    #[test]
    fn an_interrupted_extraction_is_an_error() {
        let blocks = blocks(&[(0x1000, 16)]);
        let blocks = blocks.into_iter().collect();
        let memory = RangesMemory::zeroed(&[(0x1000, 16)]);
        let words = (Width::Eight, Alignment::Words);
        let graph = Graph::extract(&Source::new(&memory, &blocks, &[], words, &|| true));
        assert_eq!(graph.err(), Some(Interrupted));
    }

    /// The references of a row, found the naive way.
    fn naive(memory: &RangesMemory, blocks: &[Block], range: AddrRange, at: Alignment) -> Vec<u32> {
        let last = range.end.0.saturating_sub(7);
        let positions = (range.start.0..last).filter(|p| at == Alignment::Bytes || p % 8 == 0);
        let words = positions.filter_map(|p| memory.word(Addr(p)));
        let block = |word| blocks.iter().position(|b| b.range().contains(Addr(word)));
        let mut targets: Vec<_> = words
            .filter_map(block)
            .map(|b| u32::try_from(b).expect("few blocks"))
            .collect();
        targets.dedup();
        targets
    }

    /// A heap in two clusters, and memory for most of it that is full of references to it.
    fn heaps() -> impl Strategy<Value = (Vec<Block>, RangesMemory)> {
        let layout = prop::collection::vec((0u64..3000, 1u64..2000, any::<bool>()), 1..40);
        let words = prop::collection::vec((any::<u64>(), any::<u64>()), 0..400);
        let holes = prop::collection::vec(0u64..24, 0..6);
        (layout, words, holes, 0u32..5).prop_map(|(layout, words, holes, align)| {
            let mut ends = [0x10_0000_u64, 0x7f00_0010_0000];
            let mut ranges = Vec::new();
            for (gap, size, cluster) in layout {
                let end = &mut ends[usize::from(cluster)];
                let start = (*end + gap).next_multiple_of(1 << align);
                ranges.push((start, size));
                *end = start + size;
            }
            ranges.sort_unstable();
            let blocks = blocks(&ranges);
            (blocks.clone(), memory(&blocks, &words, &holes))
        })
    }

    /// Pages of 4 KiB from both clusters' starts on, but for the `holes`, with `words` in them.
    fn memory(blocks: &[Block], words: &[(u64, u64)], holes: &[u64]) -> RangesMemory {
        let pages = (0..24).filter(|page| !holes.contains(page));
        let pages: Vec<_> = [0x10_0000, 0x7f00_0010_0000]
            .into_iter()
            .flat_map(|base| pages.clone().map(move |page| (base + page * 4096, 4096)))
            .collect();
        let mut memory = RangesMemory::zeroed(&pages);
        for (at, target) in words {
            let (base, size) = pages[usize::try_from(at % 37).expect("small") % pages.len()];
            let block = blocks[usize::try_from(target % blocks.len() as u64).expect("small")];
            let value = block.start.0 + (target >> 32) % (block.size + 1);
            let at = at >> 16;
            let at = if at & 0x1000 == 0 { at & !7 } else { at };
            memory.set_word(base + at % (size as u64 - 7), value);
        }
        memory
    }

    proptest! {
        // The naive search is slow.
        #![proptest_config(ProptestConfig::with_cases(40))]

        #[test]
        fn rows_are_what_the_naive_search_finds((blocks, memory) in heaps(), bytes: bool) {
            let at = if bytes { Alignment::Bytes } else { Alignment::Words };
            let roots = [root_at(0x10_0001, 0x2003), root_at(0x7f00_0010_0000, 0x4001)];
            let graph = graph(&memory, &blocks, &roots, at);
            for (row, block) in (0..).zip(&blocks) {
                prop_assert_eq!(graph.references(row), naive(&memory, &blocks, block.range(), at));
            }
            for (root, start, size) in [(0, 0x10_0001, 0x2003), (1, 0x7f00_0010_0000, 0x4001)] {
                let range = AddrRange::with_size(Addr(start), size);
                prop_assert_eq!(graph.root_references(root), naive(&memory, &blocks, range, at));
            }
        }

        #[test]
        fn adding_a_root_never_adds_leaks_for_any_number_of_threads(
            (blocks, memory) in heaps(),
            roots in prop::collection::vec((0u64..0x18000, 0u64..600), 1..4),
        ) {
            let roots: Vec<_> = roots.iter().map(|(at, size)| root_at(0x10_0000 + at, *size)).collect();
            let all = graph(&memory, &blocks, &roots, Alignment::Words);
            let fewer = graph(&memory, &blocks, &roots[1..], Alignment::Words);
            for threads in [1, 3] {
                let (all_marks, fewer_marks) = in_threads(threads, || (mark(&all), mark(&fewer)));
                let count = u32::try_from(blocks.len()).expect("few blocks");
                let marked: Vec<_> = (0..count).filter(|b| all_marks.contains(*b)).collect();
                prop_assert_eq!(marked, reached(&all));
                prop_assert!((0..count).all(|b| all_marks.contains(b) >= fewer_marks.contains(b)));
            }
        }
    }

    #[test]
    fn the_graph_is_the_same_for_every_number_of_threads() {
        let ranges: Vec<_> = (0..40_000).map(|i| (MIB + i * 48, 40)).collect();
        let blocks = blocks(&ranges);
        let mut memory = RangesMemory::zeroed(&[(MIB, 48 * 40_000)]);
        for i in 0..40_000 {
            memory.set_word(MIB + i * 48 + i % 5 * 8, MIB + i * 7919 % 40_000 * 48);
        }
        let rows = |threads| {
            let graph = in_threads(threads, || graph(&memory, &blocks, &[], Alignment::Words));
            let rows = (0..40_000).map(|row| graph.references(row).to_vec());
            rows.collect::<Vec<_>>()
        };
        let one = rows(1);
        assert_eq!(one[39_999], [39_999 * 7919 % 40_000]);
        assert_eq!(one, rows(3));
    }
}
