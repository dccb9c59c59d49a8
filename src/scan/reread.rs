//! Marking without a graph: a block is read when it is reached, and its references are forgotten.
//!
//! It takes two bits for each block and a few buffers for each thread, whatever the heap holds, and
//! gives the marks that marking on a graph gives. A marked block whose references have yet to be
//! followed is *pending*: it is on a stack, or has a bit in a second bitmap. Each block is pending
//! once, so each is followed once.
//!
//! While many blocks are pending, sweeps over the bitmap follow them in the order of their
//! addresses, so that neighbours are read together. Where few are, as at the end of long chains,
//! stacks of a bounded size follow them from block to block; what has no place on a stack gets its
//! bit back, and the next sweep finds it.

use std::ops::Range;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use rayon::Scope;
use rayon::prelude::*;

use super::extract::{self, Found, GAP, Piece, Source};
use super::graph::{Alignment, Interrupted};
use super::mark::{Marks, ones};
use super::room::Room;
use super::window::WINDOW;
use crate::addr::AddrRange;

/// The blocks that one task sweeps.
const STRETCH: usize = 16 * 1024;

/// How much is kept of what is to be followed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stacks {
    /// The blocks on a task's stack from which on half of it becomes a task of its own.
    pub(super) split: usize,
    /// The blocks on the stacks of all tasks that wait, at most.
    pub(super) waiting: u64,
    /// One pending block in so many is few: they are followed from stacks.
    pub(super) few: usize,
}

impl Stacks {
    /// A megabyte for all tasks.
    pub(super) const USUAL: Self = Self {
        split: 2048,
        waiting: 256 * 1024,
        few: 1024,
    };
}

/// The memory that [`mark`] takes at most: for bitmaps, and for what each of the threads has in hand.
pub(super) fn memory(source: &Source<'_>) -> u64 {
    let bitmaps = 2 * (source.blocks.len() as u64).div_ceil(8);
    let stacks = Stacks::USUAL.waiting * size_of::<u32>() as u64;
    let threads = rayon::current_num_threads() as u64;
    bitmaps + stacks + threads * in_hand(source, WINDOW)
}

/// What a thread has in hand that extracts pieces of this size: the bytes, the references in them, which
/// may be copied when they become more, and small things.
pub(super) fn in_hand(source: &Source<'_>, piece: u64) -> u64 {
    const SMALL: u64 = 512 << 10;
    let positions = match source.words.alignment {
        Alignment::Words => piece / source.words.width.bytes(),
        Alignment::Bytes => piece,
    };
    WINDOW + 2 * positions * size_of::<u32>() as u64 + SMALL
}

/// Marks every block that a root reaches, and says how many bytes of the roots and of these blocks could
/// not be read.
pub(super) fn mark(source: &Source<'_>, stacks: Stacks) -> Result<(Marks, u64), Interrupted> {
    let blocks = source.blocks.len();
    let marking = Marking {
        source,
        stacks,
        marks: Marks::none(blocks),
        pending: Pending::none(blocks),
        waiting: Room::new(stacks.waiting),
        unreadable: AtomicU64::new(0),
    };
    marking.follow_pieces(blocks..source.rows())?;
    loop {
        match marking.pending.count() {
            0 => break,
            few if few * stacks.few < blocks => marking.chase()?,
            _ => marking.sweep()?,
        }
    }
    Ok((marking.marks, marking.unreadable.into_inner()))
}

/// The state of marking.
struct Marking<'a> {
    source: &'a Source<'a>,
    stacks: Stacks,
    marks: Marks,
    pending: Pending,
    /// Room for the blocks on stacks of tasks that wait.
    waiting: Room,
    unreadable: AtomicU64,
}

impl Marking<'_> {
    /// Follows all references of `rows`, roots or one large block, in parallel.
    fn follow_pieces(&self, rows: Range<usize>) -> Result<(), Interrupted> {
        let pieces = extract::plan(self.source, rows).into_par_iter();
        pieces.flat_map_iter(windows).try_for_each(|piece| {
            let found = extract::extract(self.source, &piece)?;
            self.unreadable.fetch_add(found.unreadable, Relaxed);
            self.reach(&found.edges, |block| self.pending.set(block));
            Ok(())
        })
    }

    /// Marks `targets`, and hands over those that were not marked.
    fn reach(&self, targets: &[u32], mut reached: impl FnMut(u32)) {
        for target in targets {
            if self.marks.mark(*target) {
                reached(*target);
            }
        }
    }

    /// Follows all pending blocks once, in the order of their addresses, with what becomes pending
    /// before it is passed.
    fn sweep(&self) -> Result<(), Interrupted> {
        let blocks = self.source.blocks.len();
        let stretches = (0..blocks.div_ceil(STRETCH)).into_par_iter();
        stretches.try_for_each(|i| self.sweep_stretch(i * STRETCH..blocks.min((i + 1) * STRETCH)))
    }

    fn sweep_stretch(&self, mut rows: Range<usize>) -> Result<(), Interrupted> {
        while let Some(first) = self.pending.first(rows.clone()) {
            let run = self.run(first..rows.end);
            rows.start = run.end;
            if self.is_large(first) {
                self.pending.take(first);
                self.follow_pieces(first..first + 1)?;
            } else {
                self.sweep_run(run)?;
            }
        }
        Ok(())
    }

    /// The rows from the first one, which is pending, to the last pending one that can be read with it.
    fn run(&self, rows: Range<usize>) -> Range<usize> {
        let mut run = rows.start..rows.start + 1;
        while let Some(next) = self.pending.first(run.end..rows.end) {
            if !is_near(self.source, &run, next) {
                break;
            }
            run.end = next + 1;
        }
        run
    }

    fn is_large(&self, row: usize) -> bool {
        self.source.blocks.size(row) > WINDOW
    }

    /// Follows the pending blocks of `run`, and those that become pending by that.
    fn sweep_run(&self, run: Range<usize>) -> Result<(), Interrupted> {
        let Some(rows) = self.read(run.clone())? else {
            return self.follow_each(self.pending.rows(run), |block| self.pending.set(block));
        };
        while self.pending.first(run.clone()).is_some() {
            for row in self.pending.rows(run.clone()) {
                self.pending.take(row);
                self.reach(rows.references(row), |block| self.pending.set(block));
            }
        }
        Ok(())
    }

    /// The references of `rows`. `None` where they are several and a part of them cannot be read: which
    /// of them that is of is not known then.
    fn read(&self, rows: Range<usize>) -> Result<Option<Rows>, Interrupted> {
        let is_one = rows.len() == 1;
        let found = extract::extract(self.source, &Piece::Blocks(rows))?;
        if found.unreadable > 0 && !is_one {
            return Ok(None);
        }
        self.unreadable.fetch_add(found.unreadable, Relaxed);
        Ok(Some(Rows::new(found)))
    }

    /// Follows pending blocks one by one.
    fn follow_each(
        &self,
        rows: impl Iterator<Item = usize>,
        mut reached: impl FnMut(u32),
    ) -> Result<(), Interrupted> {
        for row in rows {
            self.pending.take(row);
            if let Some(rows) = self.read(row..row + 1)? {
                self.reach(rows.references(row), &mut reached);
            }
        }
        Ok(())
    }

    /// Follows the pending blocks, and what they lead to, as far as there is a place on the stacks.
    fn chase(&self) -> Result<(), Interrupted> {
        let blocks = self.source.blocks.len();
        let was_interrupted = AtomicU64::new(0);
        rayon::scope(|scope| {
            let mut next = 0;
            while let Some(first) = self.pending.first(next..blocks) {
                let rows = self.pending.rows(first..blocks);
                let together = self.stacks.split.div_ceil(2);
                let stack: Vec<u32> = rows.take(together).map(number).collect();
                next = stack.last().map_or(blocks, |last| *last as usize + 1);
                stack
                    .iter()
                    .for_each(|row| self.pending.take(*row as usize));
                let task = Task {
                    marking: self,
                    was_interrupted: &was_interrupted,
                    stack,
                };
                if let Err(task) = task.wait(scope) {
                    task.run(scope);
                }
            }
        });
        match was_interrupted.into_inner() {
            0 => Ok(()),
            _ => Err(Interrupted),
        }
    }
}

/// Says whether the row `next` can be read with the rows of `run`, which are all below it.
pub(super) fn is_near(source: &Source<'_>, run: &Range<usize>, next: usize) -> bool {
    let range = |row: usize| source.blocks.get(row).unwrap_or_default().range();
    let (first, last, next) = (range(run.start), range(run.end - 1), range(next));
    next.start.0.saturating_sub(last.end.0) < GAP
        && next.end.0.saturating_sub(first.start.0) <= WINDOW
}

/// Cuts a part of a large row, so that its references take little memory.
pub(super) fn windows(piece: Piece) -> impl Iterator<Item = Piece> {
    let (row, part) = match &piece {
        Piece::Part { row, part } => (*row, *part),
        Piece::Blocks(_) | Piece::Words { .. } => (0, AddrRange::default()),
    };
    let whole = part.is_empty().then_some(piece);
    let mut start = part.start;
    let parts = std::iter::from_fn(move || {
        let next = start
            .align_down(WINDOW)
            .saturating_add(WINDOW)
            .min(part.end);
        let part = AddrRange::new(start, next);
        start = next;
        (!part.is_empty()).then_some(Piece::Part { row, part })
    });
    whole.into_iter().chain(parts)
}

/// The number of a row that is a block.
fn number(row: usize) -> u32 {
    // `Blocks` has no more.
    u32::try_from(row).unwrap_or(u32::MAX)
}

/// The references of some consecutive rows.
struct Rows {
    first: usize,
    /// Where the references of each row end.
    ends: Vec<u32>,
    edges: Vec<u32>,
}

impl Rows {
    fn new(found: Found) -> Self {
        let mut ends = found.counts;
        let mut end = 0;
        for count in &mut ends {
            // A window has fewer positions than that.
            end += *count;
            *count = end;
        }
        Self {
            first: found.first_row,
            ends,
            edges: found.edges,
        }
    }

    fn references(&self, row: usize) -> &[u32] {
        let at = row - self.first;
        let start = at.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.edges[start as usize..self.ends[at] as usize]
    }
}

/// Blocks that are followed with what they lead to.
struct Task<'a> {
    marking: &'a Marking<'a>,
    was_interrupted: &'a AtomicU64,
    stack: Vec<u32>,
}

/// Blocks that are followed together, in the order of their addresses.
const BATCH: usize = 256;

impl<'a> Task<'a> {
    /// Leaves the task to whichever thread comes first, if there is room for its stack meanwhile.
    fn wait(self, scope: &Scope<'a>) -> Result<(), Self> {
        let size = self.stack.len() as u64;
        let waiting = &self.marking.waiting;
        if !waiting.take(size) {
            waiting.give_back(size);
            return Err(self);
        }
        scope.spawn(move |scope| {
            waiting.give_back(size);
            self.run(scope);
        });
        Ok(())
    }

    fn run(mut self, scope: &Scope<'a>) {
        while !self.stack.is_empty() && self.was_interrupted.load(Relaxed) == 0 {
            let rest = self.stack.len().saturating_sub(BATCH);
            let mut batch = self.stack.split_off(rest);
            batch.sort_unstable();
            if self.follow(scope, &batch).is_err() {
                self.was_interrupted.store(1, Relaxed);
            }
        }
    }

    /// Follows blocks, which are in ascending order.
    fn follow(&mut self, scope: &Scope<'a>, mut blocks: &[u32]) -> Result<(), Interrupted> {
        let marking = self.marking;
        while let Some(first) = blocks.first() {
            let mut run = *first as usize..*first as usize + 1;
            let near = blocks[1..].iter().take_while(|block| {
                let is_near = is_near(marking.source, &run, **block as usize);
                run.end = **block as usize + 1;
                is_near
            });
            let (run, rest) = blocks.split_at(near.count() + 1);
            blocks = rest;
            self.follow_run(scope, run)?;
        }
        Ok(())
    }

    /// Follows blocks that can be read together, or one large one.
    fn follow_run(&mut self, scope: &Scope<'a>, run: &[u32]) -> Result<(), Interrupted> {
        let marking = self.marking;
        let rows = run.iter().map(|block| *block as usize);
        let (Some(first), Some(last)) = (rows.clone().next(), rows.clone().next_back()) else {
            return Ok(());
        };
        if marking.is_large(first) {
            return marking.follow_pieces(first..first + 1);
        }
        match marking.read(first..last + 1)? {
            Some(found) => {
                for row in rows {
                    marking.reach(found.references(row), |block| self.push(scope, block));
                }
                Ok(())
            }
            None => marking.follow_each(rows, |block| self.push(scope, block)),
        }
    }

    fn push(&mut self, scope: &Scope<'a>, block: u32) {
        self.stack.push(block);
        if self.stack.len() >= self.marking.stacks.split {
            let half = Self {
                stack: self.stack.split_off(self.stack.len() / 2),
                ..*self
            };
            if let Err(half) = half.wait(scope) {
                let pending = &self.marking.pending;
                half.stack.iter().for_each(|block| pending.set(*block));
            }
        }
    }
}

/// Blocks that are marked and have yet to be followed, one bit each.
struct Pending(Vec<AtomicU64>);

impl Pending {
    fn none(blocks: usize) -> Self {
        Self(
            (0..blocks.div_ceil(64))
                .map(|_| AtomicU64::new(0))
                .collect(),
        )
    }

    fn set(&self, block: u32) {
        // Relaxed is enough: the bit guards no other memory. Whoever is to see it for certain looks
        // when all tasks have ended.
        self.0[block as usize / 64].fetch_or(1 << (block % 64), Relaxed);
    }

    /// Takes the bit of a row back: it is followed now.
    fn take(&self, row: usize) {
        self.0[row / 64].fetch_and(!(1 << (row % 64)), Relaxed);
    }

    fn count(&self) -> usize {
        let counts = self
            .0
            .iter()
            .map(|bits| bits.load(Relaxed).count_ones() as usize);
        counts.sum()
    }

    /// The first of `rows` that is pending.
    fn first(&self, rows: Range<usize>) -> Option<usize> {
        self.rows(rows).next()
    }

    /// Those of `rows` that are pending when it is their turn.
    fn rows(&self, rows: Range<usize>) -> impl Iterator<Item = usize> + '_ {
        ones(rows, |word| self.0[word].load(Relaxed))
    }
}
