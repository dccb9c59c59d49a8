//! The reference graph: which blocks each block and each root references.

use std::ops::Range;

use rayon::prelude::*;

use super::extract::{self, Found, Source};
use super::room::Room;

/// Which positions are looked at for references.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Alignment {
    /// The addresses that are multiples of a word's size: where compilers put pointers.
    #[default]
    Words,
    /// Every address: packed structures too, at the price of more words that look like references.
    Bytes,
}

/// The scan was told to stop before it was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the scan was interrupted")]
pub struct Interrupted;

/// Why an extraction ended before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stopped {
    Interrupted,
    /// There is no room for the references.
    Full,
}

impl From<Interrupted> for Stopped {
    fn from(Interrupted: Interrupted) -> Self {
        Self::Interrupted
    }
}

/// The blocks that each block and each root references, in compressed sparse rows.
///
/// A reference is a word whose value lies in a block, at its start or inside it. A row holds the
/// targets in the order of the words' addresses; a target may occur more than once, and a block
/// that references itself is in its own row. Contents are not kept.
#[derive(Debug, PartialEq, Eq)]
pub struct Graph {
    /// The rows of blocks and then those of roots, [`CHUNK`] in each chunk.
    chunks: Vec<Chunk>,
    blocks: usize,
    roots: usize,
    unreadable_bytes: u64,
}

/// Rows per chunk. Chunks are extracted independently of each other.
pub(super) const CHUNK: usize = 16 * 1024;

/// Some consecutive rows.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Chunk {
    offsets: Offsets,
    edges: Vec<u32>,
}

/// Where each row of a chunk begins in the edges, and last the number of edges.
#[derive(Debug, PartialEq, Eq)]
enum Offsets {
    /// The rows that have references, by their number in the chunk, and where these end: few.
    Sparse(Vec<(u16, usize)>),
    /// Up to 65,535 references: nearly always.
    Short(Vec<u16>),
    Narrow(Vec<u32>),
    /// More than 2³² references: a hash table of 40 GiB is enough for that.
    Wide(Vec<u64>),
}

impl Graph {
    /// Reads all blocks and roots once, in address order and in parallel, and keeps the references.
    ///
    /// Memory that the target never touched is not read. Pages that cannot be read hold no
    /// references: [`Graph::unreadable_bytes`] counts them. The result depends neither on the
    /// number of threads nor on the filter.
    ///
    /// # Errors
    ///
    /// `source` says that it was interrupted.
    pub fn extract(source: &Source<'_>) -> Result<Self, Interrupted> {
        match Self::extract_within(source, &Room::unlimited()) {
            Ok(graph) => Ok(graph),
            Err(Stopped::Interrupted) => Err(Interrupted),
            Err(Stopped::Full) => unreachable!("there is no limit"),
        }
    }

    /// The same, as long as there is room for the references: they are counted while they are found.
    pub(super) fn extract_within(source: &Source<'_>, room: &Room) -> Result<Self, Stopped> {
        let rows = source.rows();
        let chunks: Vec<(Chunk, u64)> = (0..rows.div_ceil(CHUNK))
            .into_par_iter()
            .map(|i| Chunk::extract(source, i * CHUNK..rows.min((i + 1) * CHUNK), room))
            .collect::<Result<_, _>>()?;
        let unreadable_bytes = chunks.iter().map(|(_, unreadable)| unreadable).sum();
        Ok(Self {
            chunks: chunks.into_iter().map(|(chunk, _)| chunk).collect(),
            blocks: source.blocks.len(),
            roots: source.roots.len(),
            unreadable_bytes,
        })
    }

    /// A graph of the rows of `blocks` blocks, without roots.
    pub(super) fn of_chunks(chunks: Vec<Chunk>, blocks: usize, unreadable_bytes: u64) -> Self {
        Self {
            chunks,
            blocks,
            roots: 0,
            unreadable_bytes,
        }
    }

    /// The same graph, of which so many bytes could not be read.
    pub(super) fn with_unreadable_bytes(self, unreadable_bytes: u64) -> Self {
        Self {
            unreadable_bytes,
            ..self
        }
    }

    /// The number of blocks. A block's row is its number.
    #[must_use]
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// The number of roots. Their rows are in the order in which they were given.
    #[must_use]
    pub fn roots(&self) -> usize {
        self.roots
    }

    /// The blocks that `block` references.
    #[must_use]
    pub fn references(&self, block: u32) -> &[u32] {
        let block = block as usize;
        debug_assert!(block < self.blocks);
        self.row(block)
    }

    /// The blocks that the root with the index `root` references.
    #[must_use]
    pub fn root_references(&self, root: usize) -> &[u32] {
        debug_assert!(root < self.roots);
        self.row(self.blocks + root)
    }

    /// The number of references, those of roots included.
    #[must_use]
    pub fn edges(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.edges.len()).sum()
    }

    /// The bytes of blocks and roots that could not be read. References in them are missing from
    /// the graph, so what they hold may look leaked.
    #[must_use]
    pub fn unreadable_bytes(&self) -> u64 {
        self.unreadable_bytes
    }

    pub(super) fn row(&self, row: usize) -> &[u32] {
        let chunk = &self.chunks[row / CHUNK];
        &chunk.edges[chunk.offsets.row(row % CHUNK)]
    }
}

impl Chunk {
    /// Extracts `rows`, and says how many bytes of them could not be read.
    fn extract(
        source: &Source<'_>,
        rows: Range<usize>,
        room: &Room,
    ) -> Result<(Self, u64), Stopped> {
        let extract = |piece| {
            let found = extract::extract(source, &piece)?;
            let is_kept = room.take(bytes_of(&found));
            is_kept.then_some(found).ok_or(Stopped::Full)
        };
        let found: Vec<Found> = extract::plan(source, rows.clone())
            .into_par_iter()
            .map(extract)
            .collect::<Result<_, _>>()?;
        let unreadable = found.iter().map(|found| found.unreadable).sum();
        Ok((Self::join(&rows, found), unreadable))
    }

    /// Joins the results of all pieces of `rows`, which are in the order of the rows.
    fn join(rows: &Range<usize>, found: Vec<Found>) -> Self {
        let offsets = Offsets::new(rows, &found);
        let mut edges = found.into_iter().map(|piece| piece.edges);
        let mut all = edges.next().unwrap_or_default();
        edges.for_each(|edges| all.extend_from_slice(&edges));
        all.shrink_to_fit();
        Self {
            offsets,
            edges: all,
        }
    }

    /// The chunk of a few rows that have references: their numbers in the chunk, in ascending order, and
    /// where the references of each end in `edges`.
    pub(super) fn sparse(ends: Vec<(u16, usize)>, edges: Vec<u32>) -> Self {
        Self {
            offsets: Offsets::Sparse(ends),
            edges,
        }
    }
}

/// The memory that the references of a piece take in a graph.
fn bytes_of(found: &Found) -> u64 {
    (found.edges.len() * size_of::<u32>() + found.counts.len() * size_of::<u16>()) as u64
}

impl Offsets {
    /// The offsets of `rows`, whose references are `found` in the order of the rows.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "no sum is larger than that of all"
    )]
    fn new(rows: &Range<usize>, found: &[Found]) -> Self {
        let counts = || {
            found
                .iter()
                .map(|p| (p.first_row - rows.start, &p.counts[..]))
        };
        let all: u64 = found.iter().map(|piece| piece.edges.len() as u64).sum();
        if all <= u16::MAX.into() {
            Self::Short(sums(rows.len(), counts(), |sum| sum as u16))
        } else if all <= u32::MAX.into() {
            Self::Narrow(sums(rows.len(), counts(), |sum| sum as u32))
        } else {
            Self::Wide(sums(rows.len(), counts(), |sum| sum))
        }
    }

    fn row(&self, row: usize) -> Range<usize> {
        match self {
            Self::Sparse(ends) => sparse_row(ends, row),
            Self::Short(offsets) => offsets[row].into()..offsets[row + 1].into(),
            Self::Narrow(offsets) => offsets[row] as usize..offsets[row + 1] as usize,
            Self::Wide(offsets) => to_usize(offsets[row])..to_usize(offsets[row + 1]),
        }
    }
}

/// The sums of the counts before each of so many rows, and of all. Each piece has the counts of consecutive rows,
/// and the number of the first of them; a row can be in several pieces, or in none.
fn sums<'a, T: Copy>(
    rows: usize,
    pieces: impl Iterator<Item = (usize, &'a [u32])>,
    to: impl Fn(u64) -> T,
) -> Vec<T> {
    let mut sums = Vec::with_capacity(rows + 1);
    let mut sum = 0;
    for (first, counts) in pieces {
        // Of rows without a piece, and that of the first row before it.
        sums.resize((first + 1).max(sums.len()), to(sum));
        // What a piece before had of the first row.
        sums.truncate(first + 1);
        sums.extend(counts.iter().map(|count| {
            sum += u64::from(*count);
            to(sum)
        }));
    }
    sums.resize(rows + 1, to(sum));
    sums
}

/// The references of `row` among those of the rows that have some.
fn sparse_row(ends: &[(u16, usize)], row: usize) -> Range<usize> {
    match ends.binary_search_by_key(&row, |(row, _)| usize::from(*row)) {
        Ok(at) => at.checked_sub(1).map_or(0, |before| ends[before].1)..ends[at].1,
        Err(_) => 0..0,
    }
}

/// Our index for an offset that [`Chunk::join`] counted.
#[expect(
    clippy::cast_possible_truncation,
    reason = "offsets are at most the length of a vector"
)]
fn to_usize(offset: u64) -> usize {
    offset as usize
}

#[cfg(test)]
impl Graph {
    /// A graph of `blocks` blocks with the given edges, and of roots with the given references.
    pub(crate) fn from_edges(blocks: u32, edges: &[(u32, u32)], roots: &[&[u32]]) -> Self {
        let mut rows = vec![Vec::new(); blocks as usize];
        for (from, to) in edges {
            rows[*from as usize].push(*to);
        }
        rows.extend(roots.iter().map(|root| root.to_vec()));
        let chunks = rows.chunks(CHUNK).map(|rows| {
            let found = rows.iter().enumerate().map(|(first_row, edges)| Found {
                first_row,
                counts: vec![u32::try_from(edges.len()).expect("few edges")],
                edges: edges.clone(),
                unreadable: 0,
            });
            Chunk::join(&(0..rows.len()), found.collect())
        });
        Self {
            chunks: chunks.collect(),
            blocks: blocks as usize,
            roots: roots.len(),
            unreadable_bytes: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_of_every_size_are_kept() {
        let pieces = [
            (1, &[5, 0][..]),
            (3, &[2]),
            (3, &[u32::MAX]),
            (3, &[1]),
            (6, &[1]),
        ];
        let before = u64::from(u32::MAX) + 8;
        let expected = [0, 0, 5, 5, before, before, before, before + 1, before + 1];
        assert_eq!(sums(8, pieces.into_iter(), |sum| sum), expected);
        for offsets in [
            Offsets::Short(vec![0, 5, 6]),
            Offsets::Narrow(vec![0, 5, 6]),
            Offsets::Wide(vec![0, 5, 6]),
        ] {
            assert_eq!((offsets.row(0), offsets.row(1)), (0..5, 5..6));
        }
        let found = |edges| Found {
            first_row: 10,
            counts: vec![edges, 0],
            edges: vec![0; edges as usize],
            unreadable: 0,
        };
        let short = Offsets::new(&(10..12), &[found(65_535)]);
        assert_eq!(short, Offsets::Short(vec![0, 65_535, 65_535]));
        let narrow = Offsets::new(&(10..12), &[found(65_536)]);
        assert_eq!(narrow, Offsets::Narrow(vec![0, 65_536, 65_536]));
    }

    #[test]
    fn rows_that_are_not_in_a_sparse_chunk_are_empty() {
        let chunk = Chunk::sparse(vec![(3, 2), (16_383, 3)], vec![7, 8, 9]);
        let graph = Graph::of_chunks(vec![Chunk::sparse(vec![], vec![]), chunk], 40_000, 0);
        let rows: Vec<_> = [0, 16_384, 16_387, 16_388, 32_767]
            .map(|row| graph.references(row))
            .to_vec();
        assert_eq!(rows, [&[][..], &[], &[7, 8], &[], &[9]]);
        assert_eq!(graph.edges(), 3);
    }

    #[test]
    fn rows_of_several_chunks_and_of_roots_are_told_apart() {
        let graph = Graph::from_edges(40_000, &[(0, 7), (39_999, 1), (39_999, 2)], &[&[], &[3]]);
        assert_eq!(graph.references(0), [7]);
        assert!(graph.references(1).is_empty());
        assert_eq!(graph.references(39_999), [1, 2]);
        assert!(graph.root_references(0).is_empty());
        assert_eq!(graph.root_references(1), [3]);
        assert_eq!(graph.edges(), 4);
    }
}
