//! The references among leaks, extracted when it is known what leaks.

use std::ops::Range;

use rayon::prelude::*;

use super::extract::{self, Found, Piece, Source};
use super::graph::{CHUNK, Chunk, Graph, Interrupted};
use super::mark::Marks;
use super::reread::{is_near, windows};
use super::room::Room;
use super::window::WINDOW;

/// What a row of a sparse chunk takes, and a reference.
const ROW: u64 = size_of::<(u16, usize)>() as u64;
const REFERENCE: u64 = size_of::<u32>() as u64;

/// Reads the blocks that have no mark, and keeps their references to each other: a graph of all blocks
/// whose other rows are empty.
///
/// Where there is no room for them, they are counted all the same and not kept: `room` says then that
/// it was exceeded, and what is needed.
pub(super) fn extract(
    source: &Source<'_>,
    marks: &Marks,
    room: &Room,
) -> Result<Graph, Interrupted> {
    let blocks = source.blocks.len();
    let leaked = Leaked {
        source,
        marks,
        room,
    };
    let chunks: Vec<(Chunk, u64)> = (0..blocks.div_ceil(CHUNK))
        .into_par_iter()
        .map(|i| leaked.chunk(i * CHUNK..blocks.min((i + 1) * CHUNK)))
        .collect::<Result<_, _>>()?;
    let unreadable = chunks.iter().map(|(_, unreadable)| unreadable).sum();
    let chunks = chunks.into_iter().map(|(chunk, _)| chunk).collect();
    Ok(Graph::of_chunks(chunks, blocks, unreadable))
}

/// The same, taken from a graph that has all rows.
pub(super) fn of_graph(graph: &Graph, marks: &Marks) -> Graph {
    let blocks = graph.blocks();
    let chunks = (0..blocks.div_ceil(CHUNK)).into_par_iter().map(|i| {
        let rows = i * CHUNK..blocks.min((i + 1) * CHUNK);
        let mut chunk = Building::new(rows.start);
        for row in marks.unreached_in(rows) {
            let references = among_leaks(graph.row(row), marks);
            if references.clone().next().is_some() {
                chunk.add(row, references);
            }
        }
        chunk.finish().0
    });
    Graph::of_chunks(chunks.collect(), blocks, graph.unreadable_bytes())
}

/// The memory that [`of_graph`] takes at most.
pub(super) fn size_in(graph: &Graph, marks: &Marks) -> u64 {
    let rows = marks.unreached_in(0..graph.blocks());
    let sizes = rows.map(|row| match graph.row(row).len() as u64 {
        0 => 0,
        references => ROW + REFERENCE * references,
    });
    sizes.sum()
}

/// Those of `references` that are to leaks.
fn among_leaks<'a>(
    references: &'a [u32],
    marks: &'a Marks,
) -> impl Iterator<Item = u32> + Clone + 'a {
    let references = references.iter().copied();
    references.filter(|target| !marks.contains(*target))
}

struct Leaked<'a> {
    source: &'a Source<'a>,
    marks: &'a Marks,
    room: &'a Room,
}

impl Leaked<'_> {
    /// Extracts the leaks among `rows`, and says how many bytes of them could not be read.
    fn chunk(&self, rows: Range<usize>) -> Result<(Chunk, u64), Interrupted> {
        let first = rows.start;
        let mut chunk = Building::new(first);
        let mut leaks = self.marks.unreached_in(rows).peekable();
        while let Some(row) = leaks.next() {
            let mut run = row..row + 1;
            if self.source.blocks.size(row) > WINDOW {
                self.large(row, &mut chunk)?;
                continue;
            }
            while let Some(next) = leaks.next_if(|next| is_near(self.source, &run, *next)) {
                run.end = next + 1;
            }
            self.run(run, &mut chunk)?;
        }
        Ok(chunk.finish())
    }

    /// Takes the leaks from the first row to the last, which both leak. What lies between them is read
    /// with them.
    fn run(&self, run: Range<usize>, chunk: &mut Building) -> Result<(), Interrupted> {
        let found = extract::extract(self.source, &Piece::Blocks(run.clone()))?;
        if found.unreadable > 0 && run.len() > 1 {
            // Of which of the rows is not known.
            for row in self.marks.unreached_in(run) {
                let found = extract::extract(self.source, &Piece::Blocks(row..row + 1))?;
                self.take(&found, chunk);
            }
        } else {
            self.take(&found, chunk);
        }
        Ok(())
    }

    /// Takes a leak that is read in parts.
    fn large(&self, row: usize, chunk: &mut Building) -> Result<(), Interrupted> {
        let pieces = extract::plan(self.source, row..row + 1);
        for piece in pieces.into_iter().flat_map(windows) {
            let found = extract::extract(self.source, &piece)?;
            self.take(&found, chunk);
        }
        Ok(())
    }

    /// Takes the leaks of what was found.
    fn take(&self, found: &Found, chunk: &mut Building) {
        chunk.unreadable += found.unreadable;
        let mut edges = found.edges.as_slice();
        for (row, count) in (found.first_row..).zip(&found.counts) {
            let (references, rest) = edges.split_at(*count as usize);
            edges = rest;
            if is_leaked(self.marks, row) {
                self.take_row(row, references, chunk);
            }
        }
    }

    fn take_row(&self, row: usize, references: &[u32], chunk: &mut Building) {
        let leaks = among_leaks(references, self.marks);
        let count = leaks.clone().count() as u64;
        if count > 0 && self.room.take(ROW + count * REFERENCE) {
            chunk.add(row, leaks);
        }
    }
}

/// A chunk in the making: rows come in ascending order, large ones several times.
struct Building {
    first: usize,
    ends: Vec<(u16, usize)>,
    edges: Vec<u32>,
    unreadable: u64,
}

impl Building {
    fn new(first: usize) -> Self {
        Self {
            first,
            ends: Vec::new(),
            edges: Vec::new(),
            unreadable: 0,
        }
    }

    fn add(&mut self, row: usize, references: impl Iterator<Item = u32>) {
        self.edges.extend(references);
        let end = self.edges.len();
        // A chunk has fewer rows.
        let row = u16::try_from(row - self.first).unwrap_or(u16::MAX);
        match self.ends.last_mut() {
            Some((last, last_end)) if *last == row => *last_end = end,
            _ => self.ends.push((row, end)),
        }
    }

    fn finish(mut self) -> (Chunk, u64) {
        self.ends.shrink_to_fit();
        self.edges.shrink_to_fit();
        (Chunk::sparse(self.ends, self.edges), self.unreadable)
    }
}

fn is_leaked(marks: &Marks, row: usize) -> bool {
    u32::try_from(row).is_ok_and(|block| !marks.contains(block))
}
