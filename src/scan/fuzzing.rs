//! Fuzz targets: roots and references of damaged processes.

use super::testing::RangesMemory;
use super::{
    Alignment, Filter, Graph, Link, Root, RootKind, RootSource, Source, leaks, mark, roots,
    summarize,
};
use crate::addr::{Addr, AddrRange, RangeSet};
use crate::fuzzing::Input;
use crate::heap::{self, Block, Blocks, Exporter, Heap, glibc};
use crate::memory::{FakeMemory, Memory, Width};
use crate::snapshot::{Snapshot, Thread, fuzzing};
use crate::stacklog::StackLog;

/// The whole way from the images of a process to its leaks, where nothing is as it should be.
pub fn modules(input: &[u8]) {
    fuzzing::images(input);
    let mut snapshot = fuzzing::process(input);
    let mut words = Input::new(input);
    let mut word = || words.number(8);
    snapshot.threads = vec![Thread {
        thread_pointer: Addr(word()),
        stack_pointer: Addr(word()),
        instruction_pointer: Addr(word()),
        general: vec![word(), word()],
        vector: input.iter().take(100).copied().collect(),
        ..Thread::default()
    }];
    let exporters = heap::exporters(&*snapshot.memory, &snapshot.modules);
    walk_and_scan(&snapshot, &exporters);
}

/// What comes after the capture, whatever it was of.
pub(crate) fn walk_and_scan(snapshot: &Snapshot, exporters: &[Exporter]) {
    for thread in &snapshot.threads {
        let _ = heap::is_inside_malloc(thread, &*snapshot.memory, exporters);
    }
    let _ = heap::interposition_warning(exporters);
    let log = heap::stack_log(exporters).and_then(|at| StackLog::find(snapshot, at).ok()?);
    if let Ok(walk) = heap::walk(snapshot, exporters, None, log.as_ref()) {
        scan(snapshot, &walk.heap);
    }
    // Without a heap, all of it is a root.
    scan(snapshot, &Heap::default());
}

/// A damaged heap whose threads have any registers, and blocks and roots of all sizes.
pub fn references(input: &[u8]) {
    let mut input = Input::new(input);
    if input.byte() & 1 == 0 {
        compare(&mut input);
        return;
    }
    let threads = (0..input.byte() % 4).map(|_| Thread {
        thread_pointer: Addr(input.number(8)),
        stack_pointer: Addr(input.number(8)),
        general: vec![input.number(8)],
        vector: vec![1; input.index(1)],
        ..Thread::default()
    });
    let threads: Vec<Thread> = threads.collect();
    let (built, _) = glibc::fuzzing::heap(&mut input);
    let mut snapshot = built.snapshot();
    snapshot.threads.extend(threads);
    scan(&snapshot, &glibc::walk(&snapshot).unwrap_or_default().heap);
}

/// Scans a process, and checks what is true of each result.
fn scan(snapshot: &Snapshot, heap: &Heap) {
    let roots = roots(snapshot, heap, &RangeSet::default(), &[]);
    let mut ranges = Vec::new();
    for root in &roots {
        if let RootSource::Memory(range) = root.source {
            assert_eq!(heap.owned.within(range).next(), None);
            ranges.push(range);
        }
    }
    ranges.sort_unstable();
    assert!(ranges.is_sorted_by(|a, b| a.end <= b.start));
    for alignment in [Alignment::Words, Alignment::Bytes] {
        let graph = graph(
            &*snapshot.memory,
            snapshot.width,
            &heap.blocks,
            &roots,
            alignment,
        );
        check_leaks(&graph, &heap.blocks);
    }
}

fn graph(
    memory: &dyn Memory,
    width: Width,
    blocks: &Blocks,
    roots: &[Root],
    alignment: Alignment,
) -> Graph {
    let mut graphs = Filter::all().into_iter().map(|filter| {
        let source = Source::new(memory, blocks, roots, (width, alignment), &|| false);
        Graph::extract(&source.with_filter(filter)).expect("nobody interrupts")
    });
    let first = graphs.next().expect("one is portable");
    graphs.for_each(|graph| assert_eq!(graph, first));
    first
}

/// Each block is reached or a leak, and each leak is in one tree.
fn check_leaks(graph: &Graph, blocks: &Blocks) {
    let marks = mark(graph);
    let found = leaks(graph, &marks, blocks);
    assert_eq!(found.len() + marks.count(), blocks.len());
    let summary = summarize(&found, blocks);
    assert_eq!(summary.blocks, found.len() as u64);
    // What tops hold, and the tops themselves, and the other blocks of root cycles are all.
    let tops = found.iter().filter(|leak| leak.tree_parent == Link::NONE);
    let held: u64 = tops.clone().map(|leak| u64::from(leak.held_blocks)).sum();
    let in_cycles = found
        .iter()
        .filter(|leak| leak.kind == super::LeakKind::RootCycle);
    let in_cycles = in_cycles
        .filter(|leak| leak.tree_parent != Link::NONE)
        .count();
    assert_eq!(
        tops.count() as u64 + held + in_cycles as u64,
        found.len() as u64
    );
}

/// Compares the references of a small memory with those that looking at each address finds.
fn compare(input: &mut Input<'_>) {
    let (width, alignment) = match input.byte() % 4 {
        0 => (Width::Eight, Alignment::Words),
        1 => (Width::Eight, Alignment::Bytes),
        2 => (Width::Four, Alignment::Words),
        _ => (Width::Four, Alignment::Bytes),
    };
    let base = match input.byte() % 3 {
        0 => 0x1000,
        1 => 0xffff_f000,
        _ => 0xffff_ffff_ffff_0000,
    };
    let (mut blocks, mut at) = (Vec::new(), base);
    for _ in 0..input.byte() % 64 {
        let start = at + input.number(1);
        let size = 1 + input.number(1) * if input.byte() & 1 == 0 { 1 } else { 16 };
        at = start + size;
        if at - base > 0x3000 {
            break;
        }
        blocks.push(Block {
            start: Addr(start),
            size,
        });
    }
    let roots: Vec<Root> = (0..input.byte() % 4).map(|_| root(base, input)).collect();
    let mut memory = RangesMemory::default();
    // Each page can be read or cannot.
    for page in 0..4 {
        if input.byte() & 1 == 0 {
            let bytes = words(base, width, input);
            memory.ranges.push(FakeMemory {
                base: base + page * 4096,
                bytes,
            });
        }
    }
    let listed: Blocks = blocks.iter().copied().collect();
    let graph = graph(&memory, width, &listed, &roots, alignment);
    check_leaks(&graph, &listed);
    for (row, block) in (0..).zip(&blocks) {
        let naive = naive(&memory, width, alignment, &blocks, block.range());
        assert_eq!(graph.references(row), naive);
    }
    for (row, root) in roots.iter().enumerate() {
        if let RootSource::Memory(range) = root.source {
            let naive = naive(&memory, width, alignment, &blocks, range);
            assert_eq!(graph.root_references(row), naive);
        }
    }
}

fn root(base: u64, input: &mut Input<'_>) -> Root {
    let source = match input.byte() & 1 {
        0 => RootSource::Words(vec![base + input.number(2), input.number(8)]),
        _ => {
            let start = Addr(base + input.number(2) % 0x3000);
            RootSource::Memory(AddrRange::with_size(start, input.number(2) % 0x800))
        }
    };
    Root {
        kind: RootKind::Other,
        source,
        name: String::new(),
    }
}

/// Words of which most point somewhere.
fn words(base: u64, width: Width, input: &mut Input<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..input.number(1) {
        let word = match input.byte() % 8 {
            0 => input.number(8),
            1 => u64::from(input.byte()),
            _ => base + input.number(2) % 0x3400,
        };
        bytes.extend_from_slice(&word.to_le_bytes()[..width.size()]);
    }
    bytes.resize(4096, 0);
    bytes
}

fn naive(
    memory: &dyn Memory,
    width: Width,
    alignment: Alignment,
    blocks: &[Block],
    range: AddrRange,
) -> Vec<u32> {
    let step = match alignment {
        Alignment::Words => width.bytes(),
        Alignment::Bytes => 1,
    };
    let mut found = Vec::new();
    let mut at = range.start.align_up(step).expect("below the end");
    while at
        .checked_add(width.bytes())
        .is_some_and(|end| end <= range.end)
    {
        if let Some(word) = memory.pointer(at, width) {
            let mut targets = (0..).zip(blocks);
            found.extend(
                targets
                    .find(|(_, b)| b.range().contains(Addr(word)))
                    .map(|(i, _)| i),
            );
        }
        at = at.saturating_add(step);
    }
    // The same reference in a row is kept once.
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_corpus_of_modules_is_harmless() {
        crate::fuzzing::run_corpus("modules", super::modules);
    }

    #[test]
    fn the_corpus_of_scan_is_harmless() {
        crate::fuzzing::run_corpus("scan", super::references);
    }
}
