//! Where glibc's malloc keeps what, in all versions from 2.17 to 2.43.
//!
//! The source of every number is `malloc/malloc.c` and `malloc/arena.c` of the releases named. A
//! version string is never trusted: distributions carry layout changes back, so a layout is chosen
//! by what validates.

use std::ops::RangeInclusive;

use crate::addr::Addr;
use crate::memory::Width;

pub(super) const PAGE: u64 = 4096;

/// Flags in the low bits of a chunk's size.
pub(super) const PREV_INUSE: u64 = 1;
pub(super) const IS_MMAPPED: u64 = 2;
pub(super) const NON_MAIN_ARENA: u64 = 4;
pub(super) const FLAGS: u64 = 7;

/// The number of bins: bin 0 does not exist, and bin 127 is never used.
pub(super) const BINS: u64 = 127;

/// How chunks are laid out: all follows from the size of a pointer and from what malloc aligns to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct ChunkLayout {
    pub(super) width: Width,
    /// `MALLOC_ALIGNMENT`: sizes of chunks and addresses of blocks are multiples of it.
    pub(super) alignment: u64,
}

#[expect(
    clippy::arithmetic_side_effects,
    reason = "small multiples of the size of a pointer"
)]
impl ChunkLayout {
    /// The bytes of a word.
    #[inline]
    pub(super) const fn word(self) -> u64 {
        self.width.bytes()
    }

    /// The size of a chunk's header: `prev_size` and `size`.
    #[inline]
    pub(super) const fn header(self) -> u64 {
        2 * self.word()
    }

    /// The smallest chunk.
    #[inline]
    pub(super) const fn min_chunk(self) -> u64 {
        4 * self.word()
    }

    /// How far above a multiple of the alignment chunks start: it is their blocks that are aligned.
    #[inline]
    pub(super) const fn lead(self) -> u64 {
        self.alignment - self.header()
    }

    /// The first place at or above `addr` where a chunk may start.
    pub(super) fn first_chunk(self, addr: Addr) -> Option<Addr> {
        let block = addr.checked_add(self.header())?.align_up(self.alignment)?;
        Some(block.saturating_sub(self.header()))
    }

    /// The size of the chunks in a bin of fastbins.
    pub(super) fn fastbin_size(self, bin: u64) -> u64 {
        bin.saturating_mul(self.header()) + self.min_chunk()
    }

    /// The size of the chunks in a bin for chunks of one size of a thread cache.
    pub(super) fn tcache_size(self, bin: u64) -> u64 {
        bin.saturating_mul(self.alignment) + self.min_chunk()
    }
}

/// `struct malloc_state`: everything follows from where its bins are, and whether it counts its
/// threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ArenaLayout {
    pub(super) chunks: ChunkLayout,
    /// The offset of `bins`.
    pub(super) bins: u64,
    /// The offset of `fastbinsY`, and how many there are.
    pub(super) fastbins: Option<(u64, u64)>,
    /// `attached_threads` stands between `next_free` and `system_mem` (2.23 and later).
    pub(super) counts_threads: bool,
    /// There are releases with these bins that do not count threads.
    pub(super) may_not_count: bool,
}

/// The layouts of arenas: up to 2.25 and 2.26, which differ on i386 only; 2.27 to 2.42 (with
/// `have_fastchunks`); 2.43 (without fastbins).
pub(super) const fn arenas(width: Width) -> [ArenaLayout; 4] {
    match width {
        Width::Four => [
            arena(width, 8, 0x38, Some((0x08, 10))),
            arena(width, 16, 0x3c, Some((0x08, 11))),
            arena(width, 16, 0x40, Some((0x0c, 11))),
            arena(width, 16, 0x10, None),
        ],
        Width::Eight => [
            arena(width, 16, 0x68, Some((0x08, 10))),
            arena(width, 16, 0x68, Some((0x08, 10))),
            arena(width, 16, 0x70, Some((0x10, 10))),
            arena(width, 16, 0x18, None),
        ],
    }
}

const fn arena(
    width: Width,
    alignment: u64,
    bins: u64,
    fastbins: Option<(u64, u64)>,
) -> ArenaLayout {
    ArenaLayout {
        chunks: ChunkLayout { width, alignment },
        bins,
        fastbins,
        counts_threads: true,
        may_not_count: matches!(bins, 0x68 | 0x38),
    }
}

/// From `bins` to `next`: 254 words of bins and 16 bytes of `binmap`.
#[expect(clippy::arithmetic_side_effects, reason = "a word has 4 or 8 bytes")]
pub(super) const fn bins_to_next(width: Width) -> u64 {
    254 * width.bytes() + 16
}

#[expect(
    clippy::arithmetic_side_effects,
    reason = "sums of constants of this file: offsets in a struct of 2 KiB"
)]
impl ArenaLayout {
    pub(super) fn top(self) -> u64 {
        self.bins - self.chunks.header()
    }

    pub(super) fn next(self) -> u64 {
        self.bins + bins_to_next(self.chunks.width)
    }

    pub(super) fn system_mem(self) -> u64 {
        let words = if self.counts_threads { 3 } else { 2 };
        self.next() + words * self.chunks.word()
    }

    pub(super) fn max_system_mem(self) -> u64 {
        self.system_mem() + self.chunks.word()
    }

    /// The size of the whole struct.
    pub(super) fn size(self) -> u64 {
        self.system_mem() + 2 * self.chunks.word()
    }
}

/// `struct malloc_par`, of which there is one, `mp_`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ParamsLayout {
    /// The releases, for people.
    pub(super) releases: &'static str,
    pub(super) width: Width,
    /// The offset of `n_mmaps`: four numbers of 4 bytes start there.
    pub(super) n_mmaps: u64,
    /// The offset of `mmapped_mem`, which `max_mmapped_mem` follows.
    pub(super) mmapped_mem: u64,
    pub(super) sbrk_base: u64,
    /// `tcache_bins`, `tcache_max_bytes` and `tcache_count` follow `sbrk_base`.
    pub(super) has_tcache: bool,
    /// The `ArenaLayout::bins` that these releases have.
    pub(super) arena_bins: &'static [u64],
    /// The size of an mmapped chunk is that of a normal one (2.43 and later).
    pub(super) has_normal_mmapped_chunks: bool,
}

#[expect(
    clippy::arithmetic_side_effects,
    reason = "sums of constants of this file: offsets in a struct of 144 bytes"
)]
impl ParamsLayout {
    pub(super) fn n_mmaps_max(&self) -> u64 {
        self.n_mmaps + 4
    }

    pub(super) fn max_n_mmaps(&self) -> u64 {
        self.n_mmaps + 8
    }

    pub(super) fn no_dyn_threshold(&self) -> u64 {
        self.n_mmaps + 12
    }

    pub(super) fn max_mmapped_mem(&self) -> u64 {
        self.mmapped_mem + self.width.bytes()
    }

    fn after_sbrk_base(&self, words: u64) -> Option<u64> {
        self.has_tcache
            .then(|| self.sbrk_base + words * self.width.bytes())
    }

    pub(super) fn tcache_bins(&self) -> Option<u64> {
        self.after_sbrk_base(1)
    }

    pub(super) fn tcache_max_bytes(&self) -> Option<u64> {
        self.after_sbrk_base(2)
    }

    pub(super) fn tcache_count(&self) -> Option<u64> {
        self.after_sbrk_base(3)
    }

    /// `mp_` starts with these, in all releases.
    pub(super) fn top_pad(&self) -> u64 {
        self.width.bytes()
    }

    pub(super) fn mmap_threshold(&self) -> u64 {
        2 * self.width.bytes()
    }

    pub(super) fn arena_test(&self) -> u64 {
        3 * self.width.bytes()
    }

    /// The default of `arena_test`, and those of `tcache_max_bytes` in all releases.
    pub(super) fn defaults(&self) -> (u64, [u64; 2]) {
        match self.width {
            Width::Four => (2, [1020, 1025]),
            Width::Eight => (8, [1032, 1041]),
        }
    }

    /// The size of the struct: `unsorted_limit` is behind the numbers of the tcache.
    pub(super) fn size(&self) -> u64 {
        let words = if self.has_tcache { 5 } else { 1 };
        self.sbrk_base + words * self.width.bytes()
    }
}

/// The layouts of `mp_`, from the oldest on.
pub(super) const fn params(width: Width) -> [ParamsLayout; 5] {
    match width {
        Width::Four => [
            params_of(width, OLDEST, (0x14, 0x24, 0x30), &[0x38]),
            params_of(width, OLD, (0x14, 0x24, 0x2c), &[0x38]),
            params_of(width, MIDDLE, (0x14, 0x24, 0x2c), &[0x3c, 0x40]),
            params_of(width, NEW, (0x20, 0x30, 0x38), &[0x40]),
            params_of(width, NEWEST, (0x24, 0x34, 0x3c), &[0x10]),
        ],
        Width::Eight => [
            params_of(width, OLDEST, (0x28, 0x38, 0x50), &[0x68]),
            params_of(width, OLD, (0x28, 0x38, 0x48), &[0x68]),
            params_of(width, MIDDLE, (0x28, 0x38, 0x48), &[0x68, 0x70]),
            params_of(width, NEW, (0x3c, 0x50, 0x60), &[0x70]),
            params_of(width, NEWEST, (0x44, 0x58, 0x68), &[0x18]),
        ],
    }
}

/// Releases, whether they have thread caches, and whether mmapped chunks are sized like others.
type Releases = (&'static str, bool, bool);
const OLDEST: Releases = ("2.17 to 2.23", false, false);
const OLD: Releases = ("2.24 to 2.25", false, false);
const MIDDLE: Releases = ("2.26 to 2.34", true, false);
const NEW: Releases = ("2.35 to 2.42", true, false);
const NEWEST: Releases = ("2.43", true, true);

/// The layout with `n_mmaps`, `mmapped_mem` and `sbrk_base` at these offsets.
const fn params_of(
    width: Width,
    releases: Releases,
    offsets: (u64, u64, u64),
    arena_bins: &'static [u64],
) -> ParamsLayout {
    ParamsLayout {
        releases: releases.0,
        width,
        n_mmaps: offsets.0,
        mmapped_mem: offsets.1,
        sbrk_base: offsets.2,
        has_tcache: releases.1,
        arena_bins,
        has_normal_mmapped_chunks: releases.2,
    }
}

/// `struct tcache_perthread_struct`: a thread's cache of free chunks, itself a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct TcacheLayout {
    pub(super) width: Width,
    /// The bytes of one count.
    pub(super) count_size: u64,
    /// The number of bins. Bins from 64 on hold chunks of several sizes.
    pub(super) bins: u64,
    /// Counts say how many places are left, not how many chunks there are (2.42 and later).
    pub(super) counts_down: bool,
}

/// 2.26 to 2.29; 2.30 to 2.41 and some of the releases before; 2.42 and later.
pub(super) const fn tcaches(width: Width) -> [TcacheLayout; 3] {
    [
        TcacheLayout {
            width,
            count_size: 1,
            bins: 64,
            counts_down: false,
        },
        TcacheLayout {
            width,
            count_size: 2,
            bins: 64,
            counts_down: false,
        },
        TcacheLayout {
            width,
            count_size: 2,
            bins: 76,
            counts_down: true,
        },
    ]
}

/// The bins of a tcache that hold chunks of one size each.
pub(super) const SMALL_TCACHE_BINS: u64 = 64;

#[expect(
    clippy::arithmetic_side_effects,
    reason = "sums of constants of this file: offsets in a struct of 768 bytes"
)]
impl TcacheLayout {
    /// The offset of `entries`.
    pub(super) fn entries(self) -> u64 {
        self.count_size * self.bins
    }

    /// The size of the struct.
    pub(super) fn size(self) -> u64 {
        self.entries() + self.width.bytes() * self.bins
    }

    /// The nominal size of its chunk.
    pub(super) fn chunk(self) -> u64 {
        (self.size() + self.width.bytes()).next_multiple_of(16)
    }

    /// Says whether a chunk of `size` bytes may hold the struct. It may be up to 32 bytes larger
    /// than its nominal size: a remainder below the smallest chunk is not split off, and 2.43
    /// rounds the request twice.
    pub(super) fn fits(self, size: u64) -> bool {
        self.chunks().contains(&size)
    }

    /// The sizes of the chunks that may hold the struct.
    pub(super) fn chunks(self) -> RangeInclusive<u64> {
        self.chunk()..=self.chunk() + 32
    }
}

/// The sizes of `heap_info`: up to 2.34, and 2.35 and later (with `pagesize`); on i386 up to 2.25,
/// and 2.26 and later.
pub(super) const fn heap_info_sizes(width: Width) -> [u64; 2] {
    match width {
        Width::Four => [0x10, 0x18],
        Width::Eight => [0x20, 0x30],
    }
}

/// `HEAP_MAX_SIZE`: 64 MiB, and 1 MiB on i386; four huge pages in 2.35 to 2.41 with
/// `glibc.malloc.hugetlb=2`, which are 8 MiB for huge pages of 2 MiB and 4 GiB for those of 1 GiB.
pub(super) const fn heap_max_sizes(width: Width) -> &'static [u64] {
    match width {
        Width::Four => &[1 << 20, 8 << 20],
        Width::Eight => &[64 << 20, 8 << 20, 4 << 30],
    }
}

/// Every heap starts at a multiple of this.
pub(super) const fn smallest_heap_max(width: Width) -> u64 {
    match width {
        Width::Four => 1 << 20,
        Width::Eight => 8 << 20,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_follow_from_the_bins_as_the_releases_have_them() {
        let eight = [
            (0, false, 0x58, 0x868, 0x878, 0x888),
            (0, true, 0x58, 0x868, 0x880, 0x890),
            (2, true, 0x60, 0x870, 0x888, 0x898),
            (3, true, 0x08, 0x818, 0x830, 0x840),
        ];
        let four = [
            (0, false, 0x30, 0x440, 0x448, 0x450),
            (0, true, 0x30, 0x440, 0x44c, 0x454),
            (1, true, 0x34, 0x444, 0x450, 0x458),
            (2, true, 0x38, 0x448, 0x454, 0x45c),
            (3, true, 0x08, 0x418, 0x424, 0x42c),
        ];
        let eight = eight.map(|expected| (Width::Eight, expected));
        let four = four.map(|expected| (Width::Four, expected));
        for (width, (index, counts_threads, top, next, system_mem, size)) in
            eight.into_iter().chain(four)
        {
            let mut layout: ArenaLayout = arenas(width)[index];
            layout.counts_threads = counts_threads;
            assert_eq!(layout.top(), top);
            assert_eq!(layout.next(), next);
            assert_eq!(layout.system_mem(), system_mem);
            assert_eq!(layout.size(), size);
        }
    }

    #[test]
    fn sizes_of_mp_are_those_of_the_releases() {
        let sizes = params(Width::Eight).map(|layout| layout.size());
        assert_eq!(sizes, [0x58, 0x50, 0x70, 0x88, 0x90]);
    }

    #[test]
    fn tcache_sizes_are_those_of_the_releases_and_do_not_overlap() {
        for (width, expected) in [
            (Width::Eight, [0x250, 0x290, 0x300]),
            (Width::Four, [0x150, 0x190, 0x1d0]),
        ] {
            let layouts = tcaches(width);
            assert_eq!(layouts.map(TcacheLayout::chunk), expected);
            for size in (0x140..0x340).step_by(16) {
                assert!(layouts.iter().filter(|layout| layout.fits(size)).count() <= 1);
            }
        }
    }

    #[test]
    fn blocks_are_aligned_and_not_their_chunks() {
        let i386 = arenas(Width::Four)[2].chunks;
        assert_eq!(i386.first_chunk(Addr(0x1000)), Some(Addr(0x1008)));
        assert_eq!(i386.first_chunk(Addr(0x1009)), Some(Addr(0x1018)));
        let old = arenas(Width::Four)[0].chunks;
        assert_eq!(old.first_chunk(Addr(0x1000)), Some(Addr(0x1000)));
        let eight = arenas(Width::Eight)[2].chunks;
        assert_eq!(eight.first_chunk(Addr(0x1008)), Some(Addr(0x1010)));
    }
}
