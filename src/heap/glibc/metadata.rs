//! What of its memory glibc's malloc needs to know its blocks.

use super::cache;
use super::chunks::Segment;
use super::layout::{ChunkLayout, FLAGS, PREV_INUSE};
use super::mapped::MappedChunk;
use super::{Parts, joined_blocks};
use crate::addr::{Addr, AddrRange};
use crate::heap::Metadata;
use crate::memory::{Memory, Window};
use crate::snapshot::Snapshot;

/// What a walk of every glibc malloc in `snapshot` depends on. `None` where there is none.
#[must_use]
pub fn metadata(snapshot: &Snapshot) -> Option<Metadata> {
    let parts = Parts::find(snapshot)?;
    let memory = &*snapshot.memory;
    let (arenas, params) = (parts.arenas(), parts.params());
    let chunks = parts.chunks;
    let mut found = Metadata::default();
    found
        .structures
        .extend(arenas.iter().map(super::Arena::range));
    found
        .structures
        .extend(params.iter().map(super::Params::range));
    for memories in &parts.memories {
        found.structures.extend(&memories.headers);
    }
    let segments = parts.memories.iter().flat_map(|memory| &memory.segments);
    for (segment, range) in segments {
        add_chunks(memory, segment, *range, &mut found.words);
    }
    for chunk in &parts.mapped {
        add_mapped(chunks, chunk, &mut found.words);
    }
    let blocks = joined_blocks(parts.memories, &parts.mapped, &mut Vec::new());
    let cached = cache::find(snapshot, &arenas, &params, chunks, &blocks);
    found.words.extend(cached.free.iter().copied().map(Addr));
    let caches = cached
        .caches
        .iter()
        .filter_map(|start| blocks.starting_at(Addr(*start)));
    found.structures.extend(caches.map(|cache| cache.range()));
    found
        .addresses
        .extend(cached.caches.iter().copied().map(Addr));
    found.words.sort_unstable();
    found.words.dedup();
    Some(found)
}

/// The headers of the chunks in `range`, the part of `segment` that was walked, and the links and
/// footers of those that are free.
fn add_chunks(memory: &dyn Memory, segment: &Segment, range: AddrRange, words: &mut Vec<Addr>) {
    let chunks = segment.chunks;
    let mut window = Window::new(memory);
    let mut addr = range.start;
    while let Some(header) = chunk_header(&mut window, chunks, addr, range.end) {
        words.push(addr.saturating_add(chunks.word()));
        let size = header & !FLAGS;
        let next = addr.saturating_add(size);
        if addr == segment.top || size < chunks.header() {
            return;
        }
        let after = chunk_header(&mut window, chunks, next, range.end);
        if after.is_some_and(|header| header & PREV_INUSE == 0) {
            let link = addr.saturating_add(chunks.header());
            words.extend([link, link.saturating_add(chunks.word()), next]);
        }
        addr = next;
    }
}

fn chunk_header(
    window: &mut Window<'_>,
    chunks: ChunkLayout,
    addr: Addr,
    end: Addr,
) -> Option<u64> {
    let is_inside = addr.checked_add(chunks.header())? <= end;
    let header = addr.checked_add(chunks.word())?;
    is_inside.then(|| window.pointer(header, chunks.width))?
}

/// The header of a mmapped chunk and, where it was moved, the one in front that was left behind.
fn add_mapped(chunks: ChunkLayout, chunk: &MappedChunk, words: &mut Vec<Addr>) {
    let first = chunk.mapping.start.saturating_add(chunks.lead());
    let header = chunk.block.start.saturating_sub(chunks.header());
    for header in [first, header] {
        words.extend([header, header.saturating_add(chunks.word())]);
    }
}
