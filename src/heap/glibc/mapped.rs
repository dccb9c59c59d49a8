//! Chunks that have a mapping of their own.
//!
//! No list of them exists: their headers are looked for at each page of anonymous memory, and
//! checked against malloc's counters. A mapping is not always one chunk: the kernel joins
//! neighbours.

use rayon::prelude::*;

use super::layout::{ChunkLayout, FLAGS, IS_MMAPPED, PAGE};
use super::params::Params;
use super::problem::Problem;
use super::search::places;
use crate::addr::{Addr, AddrRange, RangeSet};
use crate::heap::Block;
use crate::memory::{Memory, Width, Window};
use crate::snapshot::{Region, Snapshot, Thread};

/// A chunk with a mapping of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MappedChunk {
    pub(super) mapping: AddrRange,
    pub(super) block: Block,
}

/// `DEFAULT_MMAP_THRESHOLD_MIN`, which the threshold starts with.
const FIRST_THRESHOLD: u64 = 128 * 1024;

/// How a release lays out such a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Layout {
    chunks: ChunkLayout,
    /// Bytes of the mapping behind the end that the header's size gives.
    behind: u64,
    /// Bytes of the chunk's size that its user does not get.
    overhead: u64,
    /// Flags in the low bits of `prev_size`.
    offset_flags: u64,
    /// The smallest exponent of the power of two by which an alignment moves a block.
    least_shift: u32,
}

impl Layout {
    fn of(params: &Params, chunks: ChunkLayout) -> Self {
        if params.layout.has_normal_mmapped_chunks {
            Self::like_a_normal_chunk(chunks)
        } else {
            Self::plain(chunks)
        }
    }

    /// Up to 2.42. What is in front of a moved header must be large enough for a chunk, or the next
    /// multiple of the alignment is taken.
    fn plain(chunks: ChunkLayout) -> Self {
        Self {
            chunks,
            behind: 0,
            overhead: chunks.header(),
            offset_flags: 0,
            least_shift: match chunks.width {
                Width::Four => 5,
                Width::Eight => 6,
            },
        }
    }

    /// From 2.43: the size is that of a normal chunk, and `prev_size` has a flag for huge pages.
    fn like_a_normal_chunk(chunks: ChunkLayout) -> Self {
        Self {
            chunks,
            behind: chunks.header(),
            overhead: chunks.word(),
            offset_flags: 1,
            least_shift: 5,
        }
    }

    fn pointer(self, window: &mut Window<'_>, addr: Addr) -> Option<u64> {
        window.pointer(addr, self.chunks.width)
    }

    /// The chunk whose header is `offset` bytes into a mapping that starts at `base` and ends at
    /// or before `limit`, if there is one.
    fn chunk(
        self,
        window: &mut Window<'_>,
        base: Addr,
        offset: u64,
        limit: Addr,
    ) -> Option<MappedChunk> {
        let header = base.checked_add(offset)?;
        let size = self.pointer(window, header.checked_add(self.chunks.word())?)?;
        if size & FLAGS != IS_MMAPPED {
            return None;
        }
        let size = size & !FLAGS;
        let length = offset.checked_add(size)?.checked_add(self.behind)?;
        let end = base.checked_add(length)?;
        let is_chunk = self.pointer(window, header)? & !self.offset_flags == offset
            && length.is_multiple_of(PAGE)
            && size >= PAGE / 4
            && end <= limit;
        is_chunk.then(|| MappedChunk {
            mapping: AddrRange::new(base, end),
            block: Block {
                start: header.saturating_add(self.chunks.header()),
                size: size.saturating_sub(self.overhead),
            },
        })
    }

    /// A user address below `base` + a page is a power of two from `base`.
    fn moved_within_page(
        self,
        window: &mut Window<'_>,
        base: Addr,
        limit: Addr,
    ) -> Option<MappedChunk> {
        (self.least_shift..=12)
            .map(|exponent| (1_u64 << exponent).saturating_sub(self.chunks.header()))
            .find_map(|offset| self.chunk(window, base, offset, limit))
    }

    /// The chunk whose header is the last of `page`, and was moved there from an earlier page. `aside` is for
    /// what lies at the start of its mapping, `free` is what no arena owns.
    ///
    /// A moved header says how far it is from there, so that each page is looked at once. Looking for
    /// it from the start would take forever where each page looks like the start of a huge mapping.
    fn moved_by_pages(
        self,
        (window, aside): (&mut Window<'_>, &mut Window<'_>),
        page: Addr,
        free: &RangeSet,
    ) -> Option<MappedChunk> {
        let header = page.checked_add(PAGE.checked_sub(self.chunks.header())?)?;
        let offset = self.pointer(window, header)? & !self.offset_flags;
        // Less than a page is looked for from the start of the mapping.
        let base = Addr(header.0.checked_sub(offset).filter(|_| offset >= PAGE)?);
        let mapping = free.containing(header).filter(|free| free.contains(base))?;
        let chunk = self.chunk(window, base, offset, mapping.end)?;
        let covers = offset < self.old_size(aside, base)?;
        covers.then_some(chunk)
    }

    /// The size in the header that a moved one has left at `base`. It may be more than there is
    /// now: `realloc` may have shrunk the mapping.
    fn old_size(self, window: &mut Window<'_>, base: Addr) -> Option<u64> {
        let lead = self.chunks.lead();
        let header = base.checked_add(lead)?;
        let size = self.pointer(window, header.checked_add(self.chunks.word())?)?;
        let is_old_header = self.pointer(window, header)? & !self.offset_flags == lead
            && size & FLAGS == IS_MMAPPED
            && (size & !FLAGS)
                .checked_add(self.behind)?
                .checked_add(lead)?
                .is_multiple_of(PAGE);
        is_old_header.then_some(size)
    }
}

/// What looks like a chunk. Several may start at the same page: an aligned allocation moves the header and
/// leaves the old one, perfectly valid, in front.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    chunk: MappedChunk,
    header: Header,
}

/// Where the header of a candidate lies: what comes first counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Header {
    MovedWithinPage,
    MovedByPages,
    AtStart,
}

/// What is looked through at once.
const PIECE: u64 = 4 << 20;

/// Looks for chunks in `parts`, in parallel. `free` is what no arena owns.
fn candidates(
    memory: &dyn Memory,
    layout: Layout,
    free: &RangeSet,
    parts: &[AddrRange],
) -> Vec<Candidate> {
    let pieces: Vec<AddrRange> = parts.iter().flat_map(|part| pieces(*part)).collect();
    let windows = || (Window::new(memory), Window::small(memory));
    let found = pieces.into_par_iter().map_init(windows, |windows, piece| {
        candidates_in(layout, free, piece, windows)
    });
    found.flatten_iter().collect()
}

fn pieces(part: AddrRange) -> impl Iterator<Item = AddrRange> {
    let starts = std::iter::successors(Some(part.start), |start| start.checked_add(PIECE));
    let starts = starts.take_while(move |start| *start < part.end);
    starts.map(move |start| AddrRange::new(start, start.saturating_add(PIECE).min(part.end)))
}

fn candidates_in(
    layout: Layout,
    free: &RangeSet,
    piece: AddrRange,
    (window, aside): &mut (Window<'_>, Window<'_>),
) -> Vec<Candidate> {
    let free_part = free.containing(piece.start);
    let limit = free_part.map_or(piece.end, |free| free.end);
    let mut found = Vec::new();
    for page in places(piece, piece.start, PAGE) {
        // The first word that is looked at: a window begins with it.
        layout.pointer(window, page);
        let candidates = [
            (
                Header::MovedWithinPage,
                layout.moved_within_page(window, page, limit),
            ),
            (
                Header::MovedByPages,
                layout.moved_by_pages((window, aside), page, free),
            ),
            (
                Header::AtStart,
                layout.chunk(window, page, layout.chunks.lead(), limit),
            ),
        ];
        let candidates = candidates.into_iter();
        found.extend(candidates.filter_map(|(header, chunk)| {
            let chunk = chunk?;
            Some(Candidate { chunk, header })
        }));
    }
    found
}

/// Chooses the chunks that there are: from the first on, the next is the first that begins behind it.
fn choose(mut candidates: Vec<Candidate>, parts: &[AddrRange]) -> Vec<MappedChunk> {
    let parts: RangeSet = parts.iter().copied().collect();
    candidates.sort_by_key(|candidate| (candidate.chunk.mapping.start, candidate.header));
    let mut end = Addr(0);
    let mut chunks = Vec::new();
    for Candidate { chunk, .. } in candidates {
        let start = chunk.mapping.start;
        if start >= end && start.is_aligned(PAGE) && parts.contains(start) {
            end = chunk.mapping.end;
            chunks.push(chunk);
        }
    }
    chunks
}

/// Finds the chunks with mappings of their own. `taken` is memory that arenas own; `params` are
/// those of all mallocs in the process, which share the mappings.
pub(super) fn find(
    snapshot: &Snapshot,
    params: &[Params],
    chunk_layout: ChunkLayout,
    taken: &RangeSet,
) -> (Vec<MappedChunk>, Vec<Problem>) {
    let expected: u64 = params.iter().map(|params| params.n_mmaps).sum();
    let Some(layout) = params.first().filter(|_| expected > 0) else {
        return (Vec::new(), Vec::new());
    };
    let layout = Layout::of(layout, chunk_layout);
    let is_candidate = |region: &&Region| is_malloc_memory(region);
    let outside_stacks = |region: &&Region| !holds_stack(region, &snapshot.threads);
    let regions = || snapshot.regions.iter().filter(is_candidate);
    let mut chunks = in_regions(snapshot, layout, taken, regions().filter(outside_stacks));
    if (chunks.len() as u64) < expected {
        // A mapping may have been joined with a thread's stack.
        chunks = in_regions(snapshot, layout, taken, regions());
    }
    if chunks.len() as u64 > expected {
        drop_imitations(snapshot, params, &mut chunks);
    }
    let bytes: u64 = chunks.iter().map(|chunk| chunk.mapping.size()).sum();
    let problems = check(params, chunk_layout, chunks.len() as u64, bytes);
    (chunks, problems)
}

/// Says whether malloc may have mapped the region.
pub(super) fn is_malloc_memory(region: &Region) -> bool {
    region.is_private_anonymous_data()
        || (region.name.starts_with("/anon_hugepage") && region.writable)
}

/// Says whether a thread's stack or control block lies in the region.
fn holds_stack(region: &Region, threads: &[Thread]) -> bool {
    threads.iter().any(|thread| {
        region.range.contains(thread.stack_pointer) || region.range.contains(thread.thread_pointer)
    })
}

fn in_regions<'a>(
    snapshot: &Snapshot,
    layout: Layout,
    taken: &RangeSet,
    regions: impl Iterator<Item = &'a Region>,
) -> Vec<MappedChunk> {
    let memory = &*snapshot.memory;
    // A chunk may reach into the next region, where only its protection or its huge-page setting
    // differs.
    let joined: RangeSet = snapshot
        .regions
        .iter()
        .filter(|region| is_malloc_memory(region))
        .map(|region| region.range)
        .collect();
    let free: RangeSet = joined
        .ranges()
        .iter()
        .flat_map(|range| taken.gaps(*range))
        .collect();
    let parts: Vec<AddrRange> = regions
        .flat_map(|region| taken.gaps(region.range))
        .flat_map(|gap| memory.resident(gap))
        .collect();
    choose(candidates(memory, layout, &free, &parts), &parts)
}

/// Drops what only looks like a chunk. Real chunks are as large as the threshold, unless `realloc`
/// shrank them, and start at a mapping or behind another chunk. Where this decides nothing, all are
/// kept: their number is wrong then, and is told.
fn drop_imitations(snapshot: &Snapshot, params: &[Params], chunks: &mut Vec<MappedChunk>) {
    if keep_largest(params, chunks) {
        return;
    }
    // The threshold grows while the program runs, unless the program has set it.
    let thresholds = params.iter().map(|params| params.mmap_threshold);
    let threshold = thresholds.min().unwrap_or(0).min(FIRST_THRESHOLD);
    let expected: u64 = params.iter().map(|params| params.n_mmaps).sum();
    let suspicions = suspicions(chunks, threshold, |start| {
        let region = snapshot.region_at(start);
        region.is_some_and(|region| region.range.start == start)
    });
    let surplus = (chunks.len() as u64).saturating_sub(expected);
    let limit = (0..=3).find(|limit| {
        let above = suspicions.iter().filter(|suspicion| *suspicion > limit);
        above.count() as u64 == surplus
    });
    if let Some(limit) = limit {
        let mut suspicions = suspicions.into_iter();
        chunks.retain(|_| {
            suspicions
                .next()
                .is_some_and(|suspicion| suspicion <= limit)
        });
    }
}

/// Keeps the largest chunks if they add up to malloc's sum: no other choice of as many does. Says
/// whether they do. Where the sum may be too large, it is so by less than a page, and any other
/// choice would be off by more.
fn keep_largest(params: &[Params], chunks: &mut Vec<MappedChunk>) -> bool {
    let expected: u64 = params.iter().map(|params| params.n_mmaps).sum();
    let bytes: u64 = params.iter().map(|params| params.mmapped_mem).sum();
    let mut sizes: Vec<u64> = chunks.iter().map(|chunk| chunk.mapping.size()).collect();
    sizes.sort_unstable_by(|a, b| b.cmp(a));
    let Ok(count) = usize::try_from(expected) else {
        return false;
    };
    let (kept, dropped) = sizes.split_at(count.min(sizes.len()));
    let (least, most) = (kept.last().copied(), dropped.first().copied());
    let surplus = bytes.checked_sub(kept.iter().sum());
    let fits = if drifts(params) {
        surplus.is_some_and(|surplus| surplus < PAGE)
    } else {
        surplus == Some(0)
    };
    let is_only_choice = fits && least > most;
    if is_only_choice {
        chunks.retain(|chunk| Some(chunk.mapping.size()) >= least);
    }
    is_only_choice
}

/// For each chunk, how unlike a real one it is: 2 for a size that is too small, 1 for a place where
/// neither a mapping starts nor a chunk of a fitting size ends.
fn suspicions(
    chunks: &[MappedChunk],
    threshold: u64,
    starts_mapping: impl Fn(Addr) -> bool,
) -> Vec<u8> {
    let mut end = Addr(0);
    let mut suspicions = Vec::new();
    for chunk in chunks {
        let start = chunk.mapping.start;
        let is_small = chunk.mapping.size() < threshold;
        let is_amid = !starts_mapping(start) && start != end;
        if !is_small {
            end = chunk.mapping.end;
        }
        suspicions.push(u8::from(is_small) << 1 | u8::from(is_amid));
    }
    suspicions
}

/// Says whether malloc's sum of the mappings may be too large: 2.43 adds a header too much with
/// every mremap.
fn drifts(params: &[Params]) -> bool {
    let mut params = params.iter();
    params.any(|params| params.layout.has_normal_mmapped_chunks)
}

fn check(params: &[Params], chunk_layout: ChunkLayout, count: u64, bytes: u64) -> Vec<Problem> {
    let expected: u64 = params.iter().map(|params| params.n_mmaps).sum();
    let expected_bytes = params
        .iter()
        .fold(0_u64, |sum, params| sum.saturating_add(params.mmapped_mem));
    let bytes_fit = if drifts(params) {
        expected_bytes
            .checked_sub(bytes)
            .is_some_and(|drift| drift.is_multiple_of(chunk_layout.header()))
    } else {
        expected_bytes == bytes
    };
    match count.abs_diff(expected) {
        0 if bytes_fit => Vec::new(),
        0 => vec![Problem::MmapBytes(expected_bytes, bytes)],
        1 => vec![Problem::MmapCountByOne(expected, count)],
        _ => vec![Problem::MmapCount(expected, count)],
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::memory::{FakeMemory, Width};

    const EIGHT: ChunkLayout = ChunkLayout {
        width: Width::Eight,
        alignment: 16,
    };
    const BASE: u64 = 0x7f00_0000_0000;
    const LIMIT: Addr = Addr(BASE + 0x20000);

    /// The only chunk, which is at `BASE`.
    fn chunk_at_base(layout: Layout, memory: &FakeMemory) -> Option<MappedChunk> {
        let all = AddrRange::new(Addr(BASE), LIMIT);
        let free = [all].into_iter().collect();
        let chunks = choose(candidates(memory, layout, &free, &[all]), &[all]);
        assert!(chunks.len() <= 1, "{chunks:?}");
        chunks.first().copied().inspect(|chunk| {
            assert_eq!(chunk.mapping.start, Addr(BASE));
        })
    }

    fn with_headers(headers: &[(u64, u64, u64)]) -> FakeMemory {
        let mut memory = FakeMemory::zeroed(BASE, 0x20000);
        for (at, prev_size, size) in headers {
            memory.set_word(BASE + at, *prev_size);
            memory.set_word(BASE + at + 8, *size);
        }
        memory
    }

    #[test]
    fn the_usable_size_follows_the_release() {
        let memory = with_headers(&[(0, 0, 0x3000 | 2)]);
        let chunk = chunk_at_base(Layout::plain(EIGHT), &memory).expect("a chunk");
        assert_eq!(
            (chunk.block.start.0, chunk.block.size),
            (BASE + 16, 0x3000 - 16)
        );
        let memory = with_headers(&[(0, 1, 0x2ff0 | 2)]);
        let chunk = chunk_at_base(Layout::like_a_normal_chunk(EIGHT), &memory).expect("a chunk");
        assert_eq!(
            (chunk.block.start.0, chunk.block.size),
            (BASE + 16, 0x2ff0 - 8)
        );
        assert_eq!(chunk.mapping.size(), 0x3000);
    }

    #[test]
    fn a_moved_header_counts_and_not_the_one_it_left_behind() {
        for moved in [0x30, 0x70, 0xff0, 0x1ff0, 0x7ff0] {
            let memory = with_headers(&[(0, 0, 0x9000 | 2), (moved, moved, (0x9000 - moved) | 2)]);
            let chunk = chunk_at_base(Layout::plain(EIGHT), &memory).expect("a chunk");
            assert_eq!(chunk.block.start.0, BASE + moved + 16, "{moved:#x}");
            assert_eq!(chunk.mapping.size(), 0x9000, "{moved:#x}");
        }
    }

    #[test]
    fn a_moved_header_is_found_after_the_mapping_was_shrunk() {
        let memory = with_headers(&[(0, 0, 0x9_0000 | 2), (0xfff0, 0xfff0, 0x1010 | 2)]);
        let chunk = chunk_at_base(Layout::plain(EIGHT), &memory).expect("a chunk");
        assert_eq!(
            (chunk.block.start.0, chunk.block.size),
            (BASE + 0x1_0000, 0x1000)
        );
    }

    #[test]
    fn chunks_are_found_in_every_piece_and_across_pieces() {
        let (moved, end) = (2 * PIECE - 16, 2 * PIECE + PIECE / 2);
        let mut memory = FakeMemory::zeroed(BASE, usize::try_from(3 * PIECE).expect("small"));
        for (at, prev_size, size) in [(0, 0, end), (moved, moved, end - moved), (end, 0, 0x3000)] {
            memory.set_word(BASE + at, prev_size);
            memory.set_word(BASE + at + 8, size | 2);
        }
        let all = AddrRange::with_size(Addr(BASE), 3 * PIECE);
        let free = [all].into_iter().collect();
        let candidates = candidates(&memory, Layout::plain(EIGHT), &free, &[all]);
        let chunks = choose(candidates, &[all]);
        let found: Vec<_> = chunks
            .iter()
            .map(|chunk| (chunk.mapping.start.0 - BASE, chunk.block.start.0 - BASE))
            .collect();
        assert_eq!(found, [(0, 2 * PIECE), (end, end + 16)]);
    }

    /// Counts how often it is read.
    struct Counted<'a>(&'a FakeMemory, AtomicUsize);

    impl Memory for Counted<'_> {
        fn read(&self, addr: Addr, buf: &mut [u8]) -> usize {
            self.1.fetch_add(1, Ordering::Relaxed);
            self.0.read(addr, buf)
        }
    }

    #[test]
    fn memory_of_others_is_read_in_large_pieces() {
        let memory = FakeMemory::zeroed(BASE, usize::try_from(PIECE).expect("small"));
        let memory = Counted(&memory, AtomicUsize::new(0));
        let all = AddrRange::with_size(Addr(BASE), PIECE);
        let free = [all].into_iter().collect();
        assert!(candidates(&memory, Layout::plain(EIGHT), &free, &[all]).is_empty());
        let reads = memory.1.into_inner() as u64;
        assert!(reads < PIECE / PAGE / 4, "{reads}");
    }

    #[test]
    fn a_header_that_no_alignment_moves_to_is_contents() {
        let memory = with_headers(&[(0, 0, 0x1000 | 2), (0x10, 0x10, 0xff0 | 2)]);
        let chunk = chunk_at_base(Layout::plain(EIGHT), &memory).expect("a chunk");
        assert_eq!(chunk.block.start.0, BASE + 16);
        let memory = with_headers(&[(0, 0, 0xff0 | 2), (0x10, 0x10, 0xfe0 | 2)]);
        let moved = chunk_at_base(Layout::like_a_normal_chunk(EIGHT), &memory);
        assert_eq!(moved.expect("a chunk").block.start.0, BASE + 32);
    }

    #[test]
    fn small_chunks_amid_other_memory_are_the_most_suspicious() {
        let chunk = |start, size| MappedChunk {
            mapping: AddrRange::with_size(Addr(start), size),
            block: Block {
                start: Addr(start + 16),
                size: size - 16,
            },
        };
        let chunks = [
            chunk(0x1000, 0x20000),
            chunk(0x21000, 0x20000),
            chunk(0x51000, 0x20000),
            chunk(0x81000, 0x1000),
            chunk(0x91000, 0x1000),
        ];
        let starts_mapping = |start| start == Addr(0x1000) || start == Addr(0x81000);
        assert_eq!(
            suspicions(&chunks, 0x20000, starts_mapping),
            [0, 0, 1, 2, 3]
        );
    }

    #[test]
    fn what_is_no_header_is_none() {
        for (prev_size, size) in [
            (16, 0x3002),
            (0, 0x3000),
            (0, 0x3003),
            (0, 0x3012),
            (0, 0x4000_0002),
            (0, 2),
        ] {
            let memory = with_headers(&[(0, prev_size, size)]);
            assert_eq!(
                chunk_at_base(Layout::plain(EIGHT), &memory),
                None,
                "{prev_size:#x} {size:#x}"
            );
        }
    }
}
