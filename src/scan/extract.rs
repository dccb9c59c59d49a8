//! References from memory: every word of blocks and roots, read once through small buffers.
//!
//! Rows are cut into pieces of a few MiB, which are extracted in parallel, and a piece is read in
//! windows: a run of neighbouring blocks, or a part of one large row.

use std::ops::Range;

use super::graph::{Alignment, Interrupted};
use super::index::BlockIndex;
use super::root::{Root, RootSource};
use super::window::{Reader, WINDOW, Window, widened};
use crate::addr::{Addr, AddrRange};
use crate::memory::Memory;

/// The bytes of blocks in a piece. Large rows are cut at multiples of it.
const PIECE: u64 = 4 << 20;
/// A gap between two blocks from which on they are read apart.
const GAP: u64 = 4096;

/// What an extraction is of.
pub(super) struct Source<'a> {
    pub(super) memory: &'a dyn Memory,
    pub(super) index: &'a BlockIndex<'a>,
    pub(super) roots: &'a [Root],
    pub(super) alignment: Alignment,
    pub(super) interrupted: &'a (dyn Fn() -> bool + Sync),
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
        self.index.blocks().len() + self.roots.len()
    }

    /// The memory of a row: empty for a root whose words are not in memory.
    fn range(&self, row: usize) -> AddrRange {
        let blocks = self.index.blocks();
        match blocks.get(row) {
            Some(block) => block.range(),
            None => match &self.roots[row - blocks.len()].source {
                RootSource::Memory(range) => *range,
                RootSource::Words(_) => AddrRange::default(),
            },
        }
    }

    /// The words of a root that are not in memory.
    fn words(&self, row: usize) -> &[u64] {
        match &self.roots[row - self.index.blocks().len()].source {
            RootSource::Memory(_) => &[],
            RootSource::Words(words) => words,
        }
    }

    /// The number of bytes by which a word can reach over the end of the part it begins in.
    fn reach(&self) -> u64 {
        match self.alignment {
            Alignment::Words => 0,
            Alignment::Bytes => 7,
        }
    }
}

/// Cuts `rows` into pieces, in ascending order.
pub(super) fn plan(source: &Source<'_>, rows: Range<usize>) -> Vec<Piece> {
    let blocks = source.index.blocks().len();
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
    let (mut first, mut bytes) = (rows.start, 0);
    for row in rows.clone() {
        let size = source.range(row).size();
        if size > WINDOW || bytes + size > PIECE {
            pieces.push(Piece::Blocks(first..row));
            (first, bytes) = (row, 0);
        }
        if size > WINDOW {
            pieces.extend(parts(source, row));
            first = row + 1;
        } else {
            bytes += size;
        }
    }
    pieces.push(Piece::Blocks(first..rows.end));
    pieces.retain(|piece| !matches!(piece, Piece::Blocks(rows) if rows.is_empty()));
    pieces
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
        edges: Edges::new(source.index, piece),
    };
    match piece {
        Piece::Blocks(rows) => extractor.blocks(rows.clone())?,
        Piece::Part { row, part } => extractor.part(*row, *part)?,
        Piece::Words { row } => extractor.edges.take(0, source.words(*row).iter().copied()),
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
        let blocks = &self.source.index.blocks()[rows.clone()];
        let mut range = blocks[0].range();
        let close = blocks.iter().take_while(|block| {
            let next = block.range();
            let close = next.start.0.saturating_sub(range.end.0) < GAP
                && next.end.0 - range.start.0 <= WINDOW;
            if close {
                range.end = next.end;
            }
            close
        });
        let count = close.count();
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
        for segment in self.reader.segments() {
            for (row, part) in rows_in(self.source, window, segment.range) {
                let row = self.edges.number(row);
                let bytes = segment.bytes(part);
                match self.source.alignment {
                    Alignment::Words => self.edges.take_words(row, part.start, bytes),
                    Alignment::Bytes => self.edges.take_bytes(row, bytes),
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
        self.edges.flush(self.edges.taken);
        self.edges.found
    }
}

/// The rows of `window` that have memory in `range`, with the part of them that is in it.
fn rows_in<'a>(
    source: &'a Source<'a>,
    window: &Window,
    range: AddrRange,
) -> impl Iterator<Item = (usize, AddrRange)> + 'a {
    let blocks = source.index.blocks();
    let before = blocks.get(window.rows.clone()).map_or(0, |rows| {
        rows.partition_point(|b| b.range().end <= range.start)
    });
    (window.rows.start + before..window.rows.end)
        .map(move |row| (row, source.range(row)))
        .take_while(move |(_, all)| all.start < range.end)
        .map(move |(row, all)| (row, all.intersection(&range)))
}

/// The references of a piece in the making.
///
/// Words that may be references are collected first and looked up together: the misses of one
/// lookup's loads overlap with those of the next.
struct Edges<'a> {
    index: &'a BlockIndex<'a>,
    values: [u64; BATCH],
    /// The row of each value, from the first of the piece.
    rows: [u32; BATCH],
    taken: usize,
    /// The row and the target of the last edge.
    last: Option<(u32, u32)>,
    found: Found,
}

/// The words in a batch of lookups.
const BATCH: usize = 64;

impl<'a> Edges<'a> {
    fn new(index: &'a BlockIndex<'a>, piece: &Piece) -> Self {
        let rows = match piece {
            Piece::Blocks(rows) => rows.clone(),
            Piece::Part { row, .. } | Piece::Words { row } => *row..row + 1,
        };
        Self {
            index,
            values: [0; BATCH],
            rows: [0; BATCH],
            taken: 0,
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

    /// Takes the words of `bytes`, which are at `start`, whose addresses are multiples of 8.
    fn take_words(&mut self, row: u32, start: Addr, bytes: &[u8]) {
        let skipped = (start.0.wrapping_neg() % 8) as usize;
        let (words, _) = bytes.get(skipped..).unwrap_or_default().as_chunks();
        self.take(row, words.iter().map(|word| u64::from_le_bytes(*word)));
    }

    /// Takes the words at all positions in `bytes`.
    fn take_bytes(&mut self, row: u32, bytes: &[u8]) {
        let words = bytes.array_windows();
        self.take(row, words.map(|word| u64::from_le_bytes(*word)));
    }

    /// Takes words of a row. Each is stored in any case: that is cheaper than a branch that the
    /// processor cannot foresee.
    #[inline]
    fn take(&mut self, row: u32, words: impl Iterator<Item = u64>) {
        let index = self.index;
        let mut taken = self.taken;
        for word in words {
            self.values[taken % BATCH] = word;
            self.rows[taken % BATCH] = row;
            taken += usize::from(index.may_find(word));
            if taken == BATCH {
                self.flush(taken);
                taken = 0;
            }
        }
        self.taken = taken;
    }

    /// Looks up the first `taken` words, and adds those that are references.
    #[inline(never)]
    fn flush(&mut self, taken: usize) {
        let values = &self.values[..taken];
        // Two short loops: more loads that miss are under way at once than in a long one.
        let mut targets = [0; BATCH];
        for (target, value) in targets.iter_mut().zip(values) {
            *target = self.index.candidate(*value);
        }
        for ((target, value), row) in targets.iter().zip(values).zip(&self.rows) {
            let edge = Some((*row, *target));
            if self.index.holds(*target, *value) && self.last != edge {
                self.last = edge;
                self.found.edges.push(*target);
                self.found.counts[*row as usize] += 1;
            }
        }
    }
}
