//! What is scanned first: all memory that may hold references and that no allocator owns.

use crate::addr::{Addr, AddrRange, RangeSet};
use crate::heap::Heap;
use crate::memory::Width;
use crate::scan::threads;
use crate::scan::{Root, RootKind, RootSource};
use crate::snapshot::{Snapshot, Thread};

/// Memory that is told from other memory, and what it is. `kind` is `None` for memory that is dead:
/// stacks below the stack pointer, and those of threads that have ended.
pub(super) struct Claim {
    pub(super) range: AddrRange,
    pub(super) kind: Option<RootKind>,
    pub(super) name: String,
}

/// The roots of `snapshot`, without those of the classes in `excluded`. What `heap` owns is none,
/// nor is the memory of a stack log, `log`: it has the addresses of all blocks, alive or dead.
#[must_use]
pub fn roots(snapshot: &Snapshot, heap: &Heap, log: &RangeSet, excluded: &[RootKind]) -> Vec<Root> {
    let mut claims = threads::claims(snapshot);
    claims.extend(globals(snapshot));
    claims.extend(other(snapshot));
    let no_roots = heap.owned.ranges().iter().chain(log.ranges());
    let mut roots = memory_roots(claims, &no_roots.copied().collect());
    let threads = snapshot.threads.iter();
    roots.extend(threads.map(|thread| registers(thread, snapshot.width)));
    roots.extend(snapshot.kernel_values.iter().map(|value| Root {
        kind: RootKind::Kernel,
        // The kernel holds 64 bits also where a program has given it a pointer of 32.
        source: RootSource::Words(snapshot.width.words(&value.value.to_le_bytes()).collect()),
        name: value.holder.clone(),
    }));
    roots.retain(|root| !excluded.contains(&root.kind));
    roots
}

/// Gives each address to the first class that claims it, and in that class to the lowest claim.
fn memory_roots(claims: Vec<Claim>, owned: &RangeSet) -> Vec<Root> {
    let mut roots = Vec::new();
    let mut taken = owned.clone();
    // The set is rebuilt once for each class. In one class, claims overlap only where the target's
    // own structures are damaged: then each could be all memory.
    for same in claims.chunk_by(|a, b| a.kind == b.kind) {
        let mut sorted: Vec<&Claim> = same.iter().collect();
        sorted.sort_by_key(|claim| claim.range.start);
        let mut end = Addr(0);
        for claim in sorted {
            let range = AddrRange::new(claim.range.start.max(end), claim.range.end);
            end = end.max(claim.range.end);
            let Some(kind) = claim.kind else { continue };
            roots.extend(taken.gaps(range).into_iter().map(|range| Root {
                kind,
                source: RootSource::Memory(range),
                name: claim.name.clone(),
            }));
        }
        let claimed = same.iter().map(|claim| claim.range);
        taken = taken.ranges().iter().copied().chain(claimed).collect();
    }
    roots
}

fn globals(snapshot: &Snapshot) -> impl Iterator<Item = Claim> + '_ {
    snapshot.modules.iter().flat_map(|module| {
        let writable = module.segments.iter().filter(|segment| segment.writable);
        writable.map(|segment| Claim {
            range: segment.range,
            kind: Some(RootKind::Globals),
            name: format!("globals of {}", module.file_name()),
        })
    })
}

fn other(snapshot: &Snapshot) -> impl Iterator<Item = Claim> + '_ {
    snapshot.regions.iter().map(|region| Claim {
        range: region.range,
        kind: Some(RootKind::Other),
        name: if region.name.is_empty() {
            format!("memory at {}", region.range.start)
        } else {
            region.name.clone()
        },
    })
}

/// The words of all registers. The vector state is taken as the processor stores it: every
/// register is a multiple of 8 bytes, at a multiple of 8.
fn registers(thread: &Thread, width: Width) -> Root {
    let vector = width.words(&thread.vector);
    Root {
        kind: RootKind::Registers,
        source: RootSource::Words(thread.general.iter().copied().chain(vector).collect()),
        name: format!("registers of thread {}", thread.tid),
    }
}

/// The range from `start` to `end`; empty where `end` is below.
pub(super) fn between(start: Addr, end: Addr) -> AddrRange {
    AddrRange::new(start, end.max(start))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::heap::glibc::strategies::{contents, mutations};
    use crate::heap::glibc::testing::{Built, releases};
    use crate::heap::{Block, glibc};
    use crate::scan::{Alignment, Graph, Source, leaks, mark};
    use crate::snapshot::{Module, Segment};
    use crate::stacklog::StackLog;
    use crate::stacklog::testing::{HEADER, LogWriter};

    fn claim(start: u64, end: u64, kind: Option<RootKind>) -> Claim {
        Claim {
            range: AddrRange::new(Addr(start), Addr(end)),
            kind,
            name: String::new(),
        }
    }

    /// A process with a heap, whose threads, registers and modules say anything.
    fn damaged() -> impl Strategy<Value = Snapshot> {
        let word = prop_oneof![
            any::<u64>(),
            Just(u64::MAX),
            Just(0),
            0x7c00_0000_0000_u64..0x7c00_0000_4000,
            0x7f00_0000_0000_u64..0x7f00_0000_4000,
        ];
        let thread = (word.clone(), word.clone()).prop_map(|(thread, stack)| Thread {
            thread_pointer: Addr(thread),
            stack_pointer: Addr(stack),
            general: vec![stack, thread],
            vector: vec![1; 13],
            ..Thread::default()
        });
        let module = (word.clone(), word.clone(), any::<u64>());
        let module = module.prop_map(|(start, end, tls_size)| Module {
            segments: vec![Segment {
                range: AddrRange::new(Addr(start), Addr(end)),
                writable: true,
                executable: false,
            }],
            tls_size,
            ..Module::default()
        });
        let threads = prop::collection::vec(thread, 0..4);
        let modules = prop::collection::vec(module, 0..4);
        let release = prop::sample::select(releases());
        (release, contents(), mutations(), threads, modules).prop_map(
            |(release, contents, mutations, threads, modules)| {
                let mut built = Built::new(release, &contents);
                for mutation in mutations {
                    built.memory.mutate(mutation);
                }
                let mut snapshot = built.snapshot();
                snapshot.threads.extend(threads);
                snapshot.modules.extend(modules);
                snapshot
            },
        )
    }

    proptest! {
        #[test]
        fn roots_of_a_damaged_target_overlap_neither_the_heap_nor_each_other(
            snapshot in damaged(),
        ) {
            let found = glibc::walk(&snapshot).unwrap_or_default();
            let mut ranges = Vec::new();
            for root in roots(&snapshot, &found.heap, &RangeSet::default(), &[]) {
                if let RootSource::Memory(range) = root.source {
                    prop_assert_eq!(found.heap.owned.within(range).next(), None);
                    ranges.push(range);
                }
            }
            ranges.sort_unstable();
            prop_assert!(ranges.windows(2).all(|pair| pair[0].end <= pair[1].start));
        }
    }

    #[test]
    fn each_address_belongs_to_the_first_claim_on_it_and_none_to_the_heap() {
        let owned = [AddrRange::new(Addr(0x200), Addr(0x300))]
            .into_iter()
            .collect();
        let claims = vec![
            claim(0x500, 0x600, None),
            claim(0x600, 0x700, Some(RootKind::Stacks)),
            claim(0x100, 0x240, Some(RootKind::Globals)),
            claim(0x100, 0x800, Some(RootKind::Other)),
        ];
        let found: Vec<_> = memory_roots(claims, &owned)
            .into_iter()
            .map(|root| match root.source {
                RootSource::Memory(range) => (root.kind, range.start.0, range.end.0),
                RootSource::Words(_) => unreachable!("claims are memory"),
            })
            .collect();
        assert_eq!(
            found,
            [
                (RootKind::Stacks, 0x600, 0x700),
                (RootKind::Globals, 0x100, 0x200),
                (RootKind::Other, 0x300, 0x500),
                (RootKind::Other, 0x700, 0x800),
            ]
        );
    }

    #[test]
    fn stale_address_in_the_memory_of_a_stack_log_hides_no_leak() {
        const BLOCK: Block = Block {
            start: Addr(0x5555_0000_1010),
            size: 24,
        };
        let mut writer = LogWriter::new();
        let stale = writer.map(4096);
        writer.memory.set_word(stale + 8, BLOCK.start.0);
        let snapshot = writer.snapshot();
        let log = StackLog::find(&snapshot, Addr(HEADER)).expect("a good log");
        let log = log.expect("a log");
        let heap = Heap {
            blocks: std::iter::once(BLOCK).collect(),
            owned: [BLOCK.range()].into_iter().collect(),
            ..Heap::default()
        };
        let leaked = |no_roots: &RangeSet| {
            let roots = roots(&snapshot, &heap, no_roots, &[]);
            let (memory, words) = (&*snapshot.memory, Alignment::Words);
            let words = (snapshot.width, words);
            let graph =
                Graph::extract(&Source::new(memory, &heap.blocks, &roots, words, &|| false));
            let graph = graph.expect("nobody interrupts");
            leaks(&graph, &mark(&graph), &heap.blocks).len()
        };
        assert_eq!(leaked(log.own_memory()), 1);
        // It is a root like any other where nobody says what it is.
        assert_eq!(leaked(&RangeSet::default()), 0);
    }
}
