//! What roots reach, and how leaks hang together, in a limited amount of memory.

use super::extract::{PIECE, Source};
use super::graph::{Graph, Interrupted, Stopped};
use super::leaked;
use super::mark::{Marks, mark};
use super::reread::{self, Stacks};
use super::room::Room;

/// What telling leaks apart takes for each of them, and for each reference among them: tables that last
/// no longer than that.
const LEAK: u64 = 112;
const LEAK_REFERENCE: u64 = 4;

/// Why it could not be found out in that much memory what leaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReachError {
    /// The scan was told to stop.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    /// It takes more memory: as many bytes, as far as that is known.
    #[error("the scan takes {0} bytes of memory")]
    TooSmall(u64),
}

/// Finds out which blocks of `source` its roots reach, and what the others reference, with `room` bytes
/// of memory at most, beside the source itself. Marks are exact; the graph has the references of
/// unmarked blocks to each other only, which is all that [`leaks`](super::leaks()) needs.
///
/// Where there is no room for the graph of all blocks, memory is read again as marking goes on, which
/// takes longer.
///
/// # Errors
/// It was interrupted, or there is too little room.
pub fn reach_within(source: &Source<'_>, room: u64) -> Result<(Graph, Marks), ReachError> {
    let least = reread::memory(source);
    if room < least {
        return Err(ReachError::TooSmall(least));
    }
    let (leaks, marks) = match on_graph(source, room)? {
        Some(Reached { graph, marks, left }) => {
            let unreadable = graph.unreadable_bytes();
            let leaks = if leaked::size_in(&graph, &marks) <= left {
                leaked::of_graph(&graph, &marks)
            } else {
                drop(graph);
                extract_leaks(source, &marks, room)?
            };
            (leaks.with_unreadable_bytes(unreadable), marks)
        }
        None => {
            let (marks, unreadable) = reread::mark(source, Stacks::USUAL)?;
            let leaks = extract_leaks(source, &marks, room)?;
            let unreadable = unreadable.saturating_add(leaks.unreadable_bytes());
            (leaks.with_unreadable_bytes(unreadable), marks)
        }
    };
    let needed = tables(&marks, leaks.edges()).saturating_add(leaked::size_in(&leaks, &marks));
    if needed > room {
        return Err(ReachError::TooSmall(needed));
    }
    Ok((leaks, marks))
}

/// What was found on a graph of all blocks, and the room that it leaves.
struct Reached {
    graph: Graph,
    marks: Marks,
    left: u64,
}

/// Marks on a graph, if there is room for it.
fn on_graph(source: &Source<'_>, room: u64) -> Result<Option<Reached>, Interrupted> {
    let blocks = source.blocks.len() as u64;
    // A bit for each mark, and a place on a stack for what is marked and not yet followed.
    let marking = blocks.div_ceil(8) + blocks * size_of::<u32>() as u64;
    let threads = rayon::current_num_threads() as u64 * reread::in_hand(source, PIECE);
    let Some(most) = room.checked_sub(marking + threads) else {
        return Ok(None);
    };
    let references = Room::new(most);
    match Graph::extract_within(source, &references) {
        Ok(graph) => Ok(Some(Reached {
            marks: mark(&graph),
            graph,
            left: room.saturating_sub(marking + references.taken()),
        })),
        Err(Stopped::Full) => Ok(None),
        Err(Stopped::Interrupted) => Err(Interrupted),
    }
}

/// The references among the blocks without a mark, read from memory.
fn extract_leaks(source: &Source<'_>, marks: &Marks, room: u64) -> Result<Graph, ReachError> {
    let beside = reread::memory(source).max(tables(marks, 0));
    let references = Room::new(room.saturating_sub(beside));
    let leaks = leaked::extract(source, marks, &references)?;
    if references.is_exceeded() {
        let needed = beside.saturating_add(references.taken());
        return Err(ReachError::TooSmall(needed));
    }
    Ok(leaks)
}

/// What it takes to tell the blocks without a mark apart, which have `references` to each other, beside
/// the graph of these.
fn tables(marks: &Marks, references: usize) -> u64 {
    let leaks = (marks.blocks() - marks.count()) as u64;
    let numbers = marks.blocks() as u64 / 4;
    numbers + leaks * LEAK + references as u64 * LEAK_REFERENCE
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::graph::Alignment;
    use super::super::leaks::leaks;
    use super::super::root::{Root, RootKind, RootSource};
    use super::super::testing::{RangesMemory, blocks, in_threads};
    use super::*;
    use crate::addr::{Addr, AddrRange, RangeSet};
    use crate::heap::Blocks;
    use crate::memory::{FakeMemory, Reads, Width};

    const BASE: u64 = 0x10_0000;
    const ROOTS: u64 = 0x7f00_0000_0000;
    const MIB: u64 = 1 << 20;

    /// A heap, memory in which its blocks and some roots have references, and the roots.
    #[derive(Clone, Debug)]
    struct Target {
        blocks: Blocks,
        memory: RangesMemory,
        roots: Vec<Root>,
    }

    impl Target {
        /// Blocks of the given sizes, one after the other but for gaps.
        fn new(sizes: &[(u64, u64)], edges: &[(usize, usize)], roots: &[usize]) -> Self {
            let mut end = BASE;
            let ranges = sizes.iter().map(|(gap, size)| {
                let start = (end + gap).next_multiple_of(16);
                end = start + size;
                (start, *size)
            });
            let blocks = blocks(&ranges.collect::<Vec<_>>());
            let length = usize::try_from(end - BASE).expect("a small heap");
            let mut memory = RangesMemory::zeroed(&[(BASE, length), (ROOTS, 4096)]);
            let mut used = vec![0; sizes.len()];
            for (from, to) in edges {
                let (from, at) = (&blocks[*from], &mut used[*from]);
                if *at + 8 <= from.size {
                    memory.set_word(from.start.0 + *at, blocks[*to].start.0);
                    *at += 8;
                }
            }
            for (at, root) in (ROOTS..).step_by(8).zip(roots) {
                memory.set_word(at, blocks[*root].start.0);
            }
            let roots = Root {
                kind: RootKind::Globals,
                source: RootSource::Memory(AddrRange::with_size(Addr(ROOTS), 4096)),
                name: String::new(),
            };
            Self {
                blocks: blocks.into_iter().collect(),
                memory,
                roots: vec![roots],
            }
        }

        /// Takes pages away: they cannot be read.
        fn without_pages(mut self, pages: &[u64]) -> Self {
            let bytes = self.memory.ranges.remove(0).bytes;
            let all = AddrRange::with_size(Addr(BASE), bytes.len() as u64);
            let holes = pages
                .iter()
                .map(|page| AddrRange::with_size(all.start, (page + 1) * 4096));
            let holes = holes.map(|range| AddrRange::new(Addr(range.end.0 - 4096), range.end));
            for part in holes.collect::<RangeSet>().gaps(all) {
                let [start, end] = [part.start, part.end]
                    .map(|at| usize::try_from(at.0 - BASE).expect("a small heap"));
                self.memory.ranges.push(FakeMemory {
                    base: part.start.0,
                    bytes: bytes[start..end].to_vec(),
                });
            }
            self
        }

        fn source(&self, alignment: Alignment) -> Source<'_> {
            let words = (Width::Eight, alignment);
            Source::new(&self.memory, &self.blocks, &self.roots, words, &|| false)
        }
    }

    fn marked(marks: &Marks) -> Vec<u32> {
        let blocks = u32::try_from(marks.blocks()).expect("few blocks");
        (0..blocks).filter(|block| marks.contains(*block)).collect()
    }

    /// Compares marks, unreadable bytes and leaks with those of the whole graph, for stacks of any size.
    fn check(target: &Target, alignment: Alignment, stacks: Stacks, threads: usize) {
        let source = target.source(alignment);
        let graph = Graph::extract_within(&source, &Room::unlimited()).expect("there is room");
        let marks = mark(&graph);
        let (reread, unreadable) =
            in_threads(threads, || reread::mark(&source, stacks)).expect("nothing interrupts");
        assert_eq!(marked(&reread), marked(&marks));

        let among_leaks = in_threads(threads, || {
            leaked::extract(&source, &reread, &Room::unlimited()).expect("nothing interrupts")
        });
        let unreadable = unreadable + among_leaks.unreadable_bytes();
        assert_eq!(unreadable, graph.unreadable_bytes());
        let expected = leaks(&graph, &marks, &target.blocks);
        assert_eq!(leaks(&among_leaks, &reread, &target.blocks), expected);
        let of_graph = leaked::of_graph(&graph, &marks);
        assert_eq!(leaks(&of_graph, &marks, &target.blocks), expected);
        assert_eq!(of_graph.edges(), among_leaks.edges());
    }

    fn targets() -> impl Strategy<Value = Target> {
        let sizes = prop_oneof![200 => 1u64..300, 20 => 300u64..9000, 1 => 250_000u64..300_000];
        let gaps = prop_oneof![8 => 16u64..64, 1 => 64u64..9000];
        let sizes = prop::collection::vec((gaps, sizes), 1..120);
        let edges = prop::collection::vec((any::<usize>(), any::<usize>()), 0..250);
        let roots = prop::collection::vec(any::<usize>(), 0..4);
        let holes = prop::collection::vec(0u64..60, 0..4);
        (sizes, edges, roots, holes).prop_map(|(sizes, edges, roots, holes)| {
            let count = sizes.len();
            let edges: Vec<_> = edges.iter().map(|(a, b)| (a % count, b % count)).collect();
            let roots: Vec<_> = roots.iter().map(|root| root % count).collect();
            Target::new(&sizes, &edges, &roots).without_pages(&holes)
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(150))]

        #[test]
        fn rereading_marks_what_the_graph_marks_with_stacks_of_any_size_and_any_number_of_threads(
            target in targets(),
            bytes: bool,
            (split, waiting, few) in (1usize..9, 0u64..9, 0usize..40),
            threads in 1usize..4,
        ) {
            let alignment = if bytes { Alignment::Bytes } else { Alignment::Words };
            check(&target, alignment, Stacks { split, waiting, few }, threads);
        }
    }

    /// One block of `size` bytes after the other.
    fn alike(count: usize, size: u64) -> Vec<(u64, u64)> {
        vec![(16, size); count]
    }

    #[test]
    fn chains_in_both_directions_and_across_the_heap_are_followed() {
        let count = 5000;
        for stacks in [
            Stacks::USUAL,
            Stacks {
                split: 3,
                waiting: 1,
                few: 1,
            },
        ] {
            for step in [1, count - 1, 7919] {
                let edges = (0..count - 2).map(|i| (i * step % count, (i + 1) * step % count));
                let edges: Vec<_> = edges.collect();
                check(
                    &Target::new(&alike(count, 16), &edges, &[0]),
                    Alignment::Words,
                    stacks,
                    2,
                );
            }
        }
    }

    #[test]
    fn wide_trees_overflow_the_stacks_and_are_marked() {
        let count = 20_000;
        let edges: Vec<_> = (1..count).map(|i| ((i - 1) / 30 * 7 % i, i)).collect();
        let stacks = Stacks {
            split: 8,
            waiting: 16,
            few: 2,
        };
        for threads in [1, 3] {
            check(
                &Target::new(&alike(count, 240), &edges, &[0]),
                Alignment::Words,
                stacks,
                threads,
            );
        }
    }

    #[test]
    fn a_large_block_of_pointers_is_read_in_parts() {
        let count = 70_000;
        let mut sizes = alike(count, 16);
        sizes.push((16, 8 * count as u64));
        let edges: Vec<_> = (0..count).map(|i| (count, i)).collect();
        for roots in [&[count][..], &[]] {
            check(
                &Target::new(&sizes, &edges, roots),
                Alignment::Words,
                Stacks::USUAL,
                2,
            );
        }
    }

    #[test]
    fn each_amount_of_room_gives_the_same_leaks_or_says_what_is_needed() {
        let count = 40_000;
        let edges: Vec<_> = (0..count * 3)
            .map(|i| (i % count, i * 7919 % (count / 2)))
            .collect();
        let target = Target::new(&alike(count, 48), &edges, &[3]);
        let source = target.source(Alignment::Words);
        let find = |room| {
            in_threads(1, || reach_within(&source, room))
                .map(|(graph, marks)| (leaks(&graph, &marks, &target.blocks), graph.edges()))
        };
        let all = find(u64::MAX).expect("there is room");
        let mut room = 0;
        let mut refusals = 0;
        while let Err(error) = find(room) {
            let ReachError::TooSmall(needed) = error else {
                panic!("{error}");
            };
            assert!(needed > room, "{needed} {room}");
            room = needed;
            refusals += 1;
        }
        assert!(refusals > 0 && refusals < 4, "{refusals}");
        for more in [0, 64 << 10, MIB, 8 * MIB, 16 * MIB, 32 * MIB] {
            assert_eq!(find(room + more).as_ref(), Ok(&all), "{more}");
        }
    }

    #[test]
    fn what_the_target_never_touched_is_not_read() {
        let sizes = [(0, 64), (0, 64 * MIB), (0, 64)];
        let mut target = Target::new(&sizes, &[(0, 1), (1, 2)], &[0]);
        let huge = target.blocks.block(1).range();
        let touched = AddrRange::with_size(huge.start.align_down(4096), 8192);
        target.memory.untouched = vec![AddrRange::new(touched.end, huge.end.align_down(4096))];
        let source = target.source(Alignment::Words);
        for room in [u64::MAX, reread::memory(&source) + MIB] {
            let reads = Reads::new(source.memory);
            let counted = Source {
                memory: &reads,
                ..source
            };
            let (_, marks) = reach_within(&counted, room).expect("there is room");
            assert_eq!(marks.count(), 3);
            let read: u64 = reads.ranges().ranges().iter().map(AddrRange::size).sum();
            assert!(read < 64 << 10, "{read}");
        }
    }

    #[test]
    fn an_interrupted_scan_is_an_error() {
        let target = Target::new(&alike(9, 48), &[(0, 1)], &[0]);
        let source = Source {
            interrupted: &|| true,
            ..target.source(Alignment::Words)
        };
        assert!(matches!(
            reread::mark(&source, Stacks::USUAL),
            Err(Interrupted)
        ));
        let found = reach_within(&source, u64::MAX);
        assert!(matches!(found, Err(ReachError::Interrupted(_))));
    }
}
