//! A copy of the target's memory, taken while it is stopped.

use std::io;

use memmap2::{Advice, MmapMut};
use rayon::prelude::*;

use super::pagemap::PAGE;
use super::process_memory::ProcessMemory;
use crate::addr::{Addr, AddrRange};
use crate::memory::Memory;
use crate::snapshot::Extent;

/// Bytes that one task copies. Larger pieces gain nothing, smaller ones balance worse.
const PIECE: u64 = 1 << 20;
/// Ranges that one system call takes (`IOV_MAX`).
const MAX_RANGES: usize = 1024;
/// Bytes that one task faults in.
const FAULT_PIECE: usize = 32 << 20;

/// Memory of ours, faulted in before the target is stopped: a first touch costs three times as
/// much as the copy itself.
pub(super) struct CopyBuffer(MmapMut);

impl CopyBuffer {
    /// Allocates `bytes` and touches each page.
    pub(super) fn faulted_in(bytes: u64) -> io::Result<Self> {
        let mut buffer = Self::untouched(bytes)?;
        buffer.0.par_chunks_mut(FAULT_PIECE).for_each(|chunk| {
            for page in chunk.chunks_mut(4096) {
                page[0] = 0;
            }
        });
        Ok(buffer)
    }

    /// Allocates `bytes` whose pages appear when they are first written.
    pub(super) fn untouched(bytes: u64) -> io::Result<Self> {
        let bytes = usize::try_from(bytes.max(PAGE)).map_err(io::Error::other)?;
        let map = MmapMut::map_anon(bytes)?;
        // Huge pages are an optimization: where the kernel has none, the copy still works.
        let _ = map.advise(Advice::HugePage);
        Ok(Self(map))
    }

    pub(super) fn capacity(&self) -> u64 {
        self.0.len() as u64
    }
}

/// The copied memory.
pub(super) struct CopiedMemory {
    extent: Extent,
    /// Where each resident range lies in the buffer.
    offsets: Vec<usize>,
    buffer: CopyBuffer,
}

/// Consecutive resident ranges, or parts of them, that one task copies.
struct Piece<'a> {
    ranges: Vec<AddrRange>,
    target: &'a mut [u8],
}

impl CopiedMemory {
    /// Copies what `extent` names, in parallel. Returns the memory and the pages that could not be
    /// read; `None` where `is_over` said before the end that there is no more time.
    pub(super) fn copy(
        mut extent: Extent,
        memory: &ProcessMemory,
        mut buffer: CopyBuffer,
        is_over: impl Fn() -> bool + Sync,
    ) -> Option<(Self, Vec<AddrRange>)> {
        let pieces = pieces(&extent.resident, &mut buffer.0);
        let holes: Option<Vec<Vec<AddrRange>>> = pieces
            .into_par_iter()
            .map(|piece| (!is_over()).then(|| copy_piece(memory, piece)))
            .collect();
        let mut holes = holes?.concat();
        holes.sort_unstable();
        let mut offsets = Vec::with_capacity(extent.resident.len());
        let mut offset = 0;
        for range in &extent.resident {
            offsets.push(offset);
            offset += size(range);
        }
        if !holes.is_empty() {
            (extent, offsets) = without(extent, &offsets, &holes);
        }
        let copied = Self {
            extent,
            offsets,
            buffer,
        };
        Some((copied, holes))
    }
}

impl CopiedMemory {
    /// The buffer, for another copy.
    pub(super) fn into_buffer(self) -> CopyBuffer {
        self.buffer
    }

    /// What was copied.
    pub(super) fn extent(&self) -> &Extent {
        &self.extent
    }
}

impl Memory for CopiedMemory {
    fn read(&self, addr: Addr, buf: &mut [u8]) -> usize {
        self.extent.read(addr, buf, |index, offset, part| {
            let start = usize::try_from(offset).ok();
            let start = start.and_then(|offset| self.offsets.get(index)?.checked_add(offset));
            let bytes = start.and_then(|start| self.buffer.0.get(start..)?.get(..part.len()));
            let Some(bytes) = bytes else { return 0 };
            part.copy_from_slice(bytes);
            part.len()
        })
    }

    fn resident(&self, range: AddrRange) -> Vec<AddrRange> {
        self.extent.resident_within(range)
    }

    fn readable(&self, range: AddrRange) -> Vec<AddrRange> {
        self.extent.readable.within(range).collect()
    }
}

fn size(range: &AddrRange) -> usize {
    usize::try_from(range.size()).unwrap_or(usize::MAX)
}

/// Cuts `resident` into pieces of about [`PIECE`] bytes, each with its part of `buffer`.
fn pieces<'a>(resident: &[AddrRange], mut buffer: &'a mut [u8]) -> Vec<Piece<'a>> {
    let mut pieces = Vec::new();
    let mut ranges = Vec::new();
    let mut bytes = 0;
    let mut close = |ranges: &mut Vec<AddrRange>, bytes: &mut u64| {
        let length = usize::try_from(*bytes).unwrap_or(usize::MAX);
        let (target, rest) = std::mem::take(&mut buffer).split_at_mut(length);
        buffer = rest;
        *bytes = 0;
        pieces.push(Piece {
            ranges: std::mem::take(ranges),
            target,
        });
    };
    for range in resident {
        let mut start = range.start;
        while start < range.end {
            let part = AddrRange::with_size(start, (range.end.0 - start.0).min(PIECE - bytes));
            ranges.push(part);
            bytes += part.size();
            start = part.end;
            if bytes == PIECE || ranges.len() == MAX_RANGES {
                close(&mut ranges, &mut bytes);
            }
        }
    }
    if bytes > 0 {
        close(&mut ranges, &mut bytes);
    }
    pieces
}

/// Copies one piece and returns the pages that could not be read.
fn copy_piece(memory: &ProcessMemory, piece: Piece<'_>) -> Vec<AddrRange> {
    let copied = memory.read_ranges(&piece.ranges, piece.target);
    if copied == piece.target.len() {
        return Vec::new();
    }
    let mut holes = Vec::new();
    let mut target = piece.target;
    for range in piece.ranges {
        let (part, rest) = target.split_at_mut(size(&range));
        target = rest;
        copy_page_by_page(memory, range, part, &mut holes);
    }
    holes
}

fn copy_page_by_page(
    memory: &ProcessMemory,
    range: AddrRange,
    mut part: &mut [u8],
    holes: &mut Vec<AddrRange>,
) {
    let mut start = range.start;
    while !part.is_empty() {
        let count = memory.read(start, part);
        part = &mut part[count..];
        start = start.saturating_add(count as u64);
        if part.is_empty() {
            break;
        }
        let end = start.align_down(PAGE).saturating_add(PAGE).min(range.end);
        holes.push(AddrRange::new(start, end));
        part = &mut part[size(&AddrRange::new(start, end))..];
        start = end;
    }
}

/// Takes `holes` out of the extent: they are neither resident nor zero.
fn without(extent: Extent, offsets: &[usize], holes: &[AddrRange]) -> (Extent, Vec<usize>) {
    let holes = holes.iter().copied().collect::<crate::addr::RangeSet>();
    let readable = extent
        .readable
        .ranges()
        .iter()
        .flat_map(|r| holes.gaps(*r))
        .collect();
    let mut resident = Vec::new();
    let mut kept = Vec::new();
    for (range, offset) in extent.resident.iter().zip(offsets) {
        for gap in holes.gaps(*range) {
            kept.push(offset + size(&AddrRange::new(range.start, gap.start)));
            resident.push(gap);
        }
    }
    (Extent { readable, resident }, kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, end: u64) -> AddrRange {
        AddrRange::new(Addr(start), Addr(end))
    }

    #[test]
    fn pieces_tile_the_buffer_in_order() {
        let resident = [
            range(0, 3 << 20),
            range(4 << 20, (4 << 20) + 4096),
            range(8 << 20, 9 << 20),
        ];
        let mut buffer = vec![0; (4 << 20) + 4096];
        let pieces = pieces(&resident, &mut buffer);
        let sizes: Vec<_> = pieces.iter().map(|p| p.target.len()).collect();
        assert_eq!(sizes, [1 << 20, 1 << 20, 1 << 20, 1 << 20, 4096]);
        let ranges: Vec<_> = pieces.iter().flat_map(|p| p.ranges.clone()).collect();
        assert_eq!(
            ranges.iter().map(AddrRange::size).sum::<u64>(),
            (4 << 20) + 4096
        );
        assert_eq!(
            pieces[3].ranges,
            [resident[1], range(8 << 20, (9 << 20) - 4096)]
        );
    }

    #[test]
    fn many_small_ranges_are_cut_at_what_a_call_takes() {
        let resident: Vec<_> = (0..2000)
            .map(|i| range(i * 8192, i * 8192 + 4096))
            .collect();
        let mut buffer = vec![0; 2000 * 4096];
        let pieces = pieces(&resident, &mut buffer);
        assert!(pieces.iter().all(|piece| piece.ranges.len() <= MAX_RANGES));
        assert_eq!(
            pieces.iter().map(|piece| piece.target.len()).sum::<usize>(),
            2000 * 4096
        );
    }

    #[test]
    fn own_memory_copied_reads_back_and_a_hole_stays_a_hole() {
        let mut source = MmapMut::map_anon(8 * 4096).expect("memory");
        for (index, byte) in source.iter_mut().enumerate() {
            *byte = u8::try_from(index % 251).expect("small");
        }
        let start = source.as_ptr() as u64;
        // Address 0 is never readable: the page there is a hole.
        let extent = Extent {
            readable: [range(0, 4096), range(start, start + 8 * 4096)]
                .into_iter()
                .collect(),
            resident: vec![range(0, 4096), range(start + 4096, start + 4 * 4096)],
        };
        let pid = i32::try_from(std::process::id()).expect("a pid");
        let memory = ProcessMemory::new(pid, std::fs::File::open("/proc/self/mem").expect("mem"));
        let buffer = CopyBuffer::faulted_in(extent.bytes()).expect("buffer");
        let copied = CopiedMemory::copy(extent, &memory, buffer, || false);
        let (copy, holes) = copied.expect("there is time");
        assert_eq!(holes, [range(0, 4096)]);
        let mut buf = vec![1; 4 * 4096];
        assert_eq!(copy.read(Addr(start), &mut buf), buf.len());
        assert!(buf[..4096].iter().all(|byte| *byte == 0));
        assert_eq!(buf[4096..], source[4096..4 * 4096]);
        assert_eq!(copy.read(Addr(8), &mut buf), 0);
        assert_eq!(
            copy.resident(range(0, u64::MAX)),
            [range(start + 4096, start + 4 * 4096)]
        );
    }

    #[test]
    fn a_copy_for_which_there_is_no_time_is_none() {
        let source = vec![1_u8; 4096];
        let start = source.as_ptr() as u64;
        let extent = Extent {
            readable: [range(start, start + 4096)].into_iter().collect(),
            resident: vec![range(start, start + 4096)],
        };
        let pid = i32::try_from(std::process::id()).expect("a pid");
        let memory = ProcessMemory::new(pid, std::fs::File::open("/proc/self/mem").expect("mem"));
        let buffer = CopyBuffer::faulted_in(extent.bytes()).expect("buffer");
        assert!(CopiedMemory::copy(extent, &memory, buffer, || true).is_none());
    }
}
