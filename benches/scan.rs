//! How long the scan takes on a synthetic heap: `cargo bench --bench scan`.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use rleaks::addr::{Addr, AddrRange};
use rleaks::heap::{Block, Blocks};
use rleaks::memory::{Memory, Width};
use rleaks::scan::{self, Alignment, Filter, Graph, Root, RootKind, RootSource, Source};

/// Blocks of the heap, of 16 to 512 bytes: 1 M are about 150 MiB.
const BLOCKS: usize = 1_000_000;
/// Where the heap lies.
const BASE: u64 = 0x5555_5575_6000;

fn benchmarks(criterion: &mut Criterion) {
    let heap = Heap::new();
    let blocks: Blocks = heap.blocks.iter().copied().collect();
    let graph = heap.extract(&blocks, Filter::best());
    let marks = scan::mark(&graph);

    let mut group = criterion.benchmark_group("scan");
    group.sample_size(10);
    group.throughput(Throughput::Elements(BLOCKS as u64));
    group.bench_function("index", |b| {
        b.iter(|| black_box(&heap.blocks).iter().copied().collect::<Blocks>())
    });
    for filter in Filter::all() {
        group.bench_function(format!("extract, {}", filter.name()), |b| {
            b.iter(|| heap.extract(&blocks, filter));
        });
    }
    group.bench_function("mark", |b| b.iter(|| scan::mark(black_box(&graph))));
    let leaked = graph.blocks() - marks.count();
    group.throughput(Throughput::Elements(leaked as u64));
    group.bench_function("leaks", |b| b.iter(|| scan::leaks(&graph, &marks, &blocks)));
    // One block that has all words in it: nearly nothing but the filter.
    let end = heap.blocks[BLOCKS - 1].range().end;
    let whole = Block {
        start: Addr(BASE),
        size: end.0 - BASE,
    };
    let one: Blocks = std::iter::once(whole).collect();
    group.throughput(Throughput::Elements(whole.size / 8));
    for filter in Filter::all() {
        group.bench_function(format!("words, {}", filter.name()), |b| {
            b.iter(|| heap.extract(&one, filter));
        });
    }
    group.finish();
}

criterion_group!(benches, benchmarks);
criterion_main!(benches);

/// Blocks as glibc lays them out, with a header word before each. One word in 20 is a pointer:
/// one block in 8 is referenced by the only root, and nearly all others by a random block below.
struct Heap {
    blocks: Vec<Block>,
    bytes: Vec<u8>,
}

impl Heap {
    fn new() -> Self {
        let mut random = Random(1);
        let blocks = blocks(&mut random);
        let end = blocks[BLOCKS - 1].range().end;
        let mut heap = Self {
            blocks,
            bytes: Vec::new(),
        };
        while heap.bytes.len() < offset(end) {
            heap.bytes.extend(random.next().to_le_bytes());
        }
        for target in 0..BLOCKS {
            let word = heap.word_before(target, &mut random);
            heap.set_word(word, heap.blocks[target].start.0);
        }
        heap
    }

    /// A word that may reference `target`.
    fn word_before(&self, target: usize, random: &mut Random) -> Addr {
        if target.is_multiple_of(8) {
            return Addr(BASE + target as u64);
        }
        let from = usize::try_from(random.below(target as u64)).expect("an index");
        let from = self.blocks[from];
        Addr(from.start.0 + 8 * random.below(from.size / 8))
    }

    fn roots(&self) -> [Root; 1] {
        [Root {
            kind: RootKind::Globals,
            source: RootSource::Memory(AddrRange::with_size(Addr(BASE), BLOCKS as u64)),
            name: "globals".to_owned(),
        }]
    }

    fn extract(&self, blocks: &Blocks, filter: Filter) -> Graph {
        let roots = self.roots();
        let words = (Width::Eight, Alignment::Words);
        let source = Source::new(self, blocks, &roots, words, &|| false).with_filter(filter);
        Graph::extract(&source).expect("nothing interrupts")
    }

    fn set_word(&mut self, addr: Addr, value: u64) {
        self.bytes[offset(addr)..][..8].copy_from_slice(&value.to_le_bytes());
    }
}

impl Memory for Heap {
    fn read(&self, addr: Addr, buf: &mut [u8]) -> usize {
        let available = &self.bytes[offset(addr).min(self.bytes.len())..];
        let count = available.len().min(buf.len());
        buf[..count].copy_from_slice(&available[..count]);
        count
    }
}

/// Blocks whose sizes are distributed evenly over the magnitudes.
fn blocks(random: &mut Random) -> Vec<Block> {
    let mut start = Addr(BASE + BLOCKS as u64 + 16);
    let block = |_| {
        let size = 16 << random.below(5);
        let size = (size + random.below(size)) / 16 * 16 + 8;
        let block = Block { start, size };
        start = Addr(start.0 + size + 8);
        block
    };
    (0..BLOCKS).map(block).collect()
}

fn offset(addr: Addr) -> usize {
    usize::try_from(addr.0 - BASE).expect("an address in the heap")
}

/// Marsaglia's xorshift64: the same heap on every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}
