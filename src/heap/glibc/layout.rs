//! Where glibc's malloc keeps what, for 64-bit targets, in all versions from 2.17 to 2.43.
//!
//! The source of every number is `malloc/malloc.c` and `malloc/arena.c` of the releases named. A
//! version string is never trusted: distributions carry layout changes back, so a layout is chosen
//! by what validates.

/// The size of a chunk's header: `prev_size` and `size`.
pub(super) const HEADER: u64 = 16;
/// The smallest chunk.
pub(super) const MIN_CHUNK: u64 = 32;
/// Chunks start and end at multiples of this.
pub(super) const ALIGNMENT: u64 = 16;
pub(super) const PAGE: u64 = 4096;

/// Flags in the low bits of a chunk's size.
pub(super) const PREV_INUSE: u64 = 1;
pub(super) const IS_MMAPPED: u64 = 2;
pub(super) const NON_MAIN_ARENA: u64 = 4;
pub(super) const FLAGS: u64 = 7;

/// The number of bins: bin 0 does not exist, and bin 127 is never used.
pub(super) const BINS: u64 = 127;

/// `struct malloc_state`: everything follows from where its bins are, and whether it counts its
/// threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ArenaLayout {
    /// The offset of `bins`.
    pub(super) bins: u64,
    /// `attached_threads` stands between `next_free` and `system_mem` (2.23 and later).
    pub(super) counts_threads: bool,
}

/// The offsets of `bins`: up to 2.26; 2.27 to 2.42 (with `have_fastchunks`); 2.43 (without
/// fastbins).
pub(super) const BINS_OFFSETS: [u64; 3] = [0x68, 0x70, 0x18];
/// From `bins` to `next`: 254 words of bins and 16 bytes of `binmap`.
pub(super) const BINS_TO_NEXT: u64 = 254 * 8 + 16;

#[expect(
    clippy::arithmetic_side_effects,
    reason = "sums of constants of this file: offsets in a struct of 2 KiB"
)]
impl ArenaLayout {
    pub(super) fn top(self) -> u64 {
        self.bins - HEADER
    }

    pub(super) fn next(self) -> u64 {
        self.bins + BINS_TO_NEXT
    }

    pub(super) fn system_mem(self) -> u64 {
        self.next() + if self.counts_threads { 24 } else { 16 }
    }

    pub(super) fn max_system_mem(self) -> u64 {
        self.system_mem() + 8
    }

    /// The size of the whole struct.
    pub(super) fn size(self) -> u64 {
        self.system_mem() + 16
    }

    /// The offset of `fastbinsY`, and how many there are.
    pub(super) fn fastbins(self) -> Option<(u64, u64)> {
        match self.bins {
            0x68 => Some((0x08, 10)),
            0x70 => Some((0x10, 10)),
            _ => None,
        }
    }
}

/// `struct malloc_par`, of which there is one, `mp_`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ParamsLayout {
    /// The releases, for people.
    pub(super) releases: &'static str,
    /// The offset of `n_mmaps`: four numbers of 4 bytes start there.
    pub(super) n_mmaps: u64,
    /// The offset of `mmapped_mem`, which `max_mmapped_mem` follows.
    pub(super) mmapped_mem: u64,
    pub(super) sbrk_base: u64,
    /// The offset of `tcache_bins`, which `tcache_max_bytes` and `tcache_count` follow.
    pub(super) tcache: Option<u64>,
    pub(super) size: u64,
    /// The `ArenaLayout::bins` that these releases have.
    pub(super) arena_bins: &'static [u64],
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
        self.mmapped_mem + 8
    }

    pub(super) fn tcache_max_bytes(&self) -> Option<u64> {
        self.tcache.map(|tcache| tcache + 8)
    }

    pub(super) fn tcache_count(&self) -> Option<u64> {
        self.tcache.map(|tcache| tcache + 16)
    }
}

/// `mp_` starts with these, in all releases.
pub(super) const TOP_PAD: u64 = 0x08;
pub(super) const MMAP_THRESHOLD: u64 = 0x10;
pub(super) const ARENA_TEST: u64 = 0x18;

pub(super) const PARAMS: [ParamsLayout; 5] = [
    ParamsLayout {
        releases: "2.17 to 2.23",
        n_mmaps: 0x28,
        mmapped_mem: 0x38,
        sbrk_base: 0x50,
        tcache: None,
        size: 0x58,
        arena_bins: &[0x68],
    },
    ParamsLayout {
        releases: "2.24 to 2.25",
        n_mmaps: 0x28,
        mmapped_mem: 0x38,
        sbrk_base: 0x48,
        tcache: None,
        size: 0x50,
        arena_bins: &[0x68],
    },
    ParamsLayout {
        releases: "2.26 to 2.34",
        n_mmaps: 0x28,
        mmapped_mem: 0x38,
        sbrk_base: 0x48,
        tcache: Some(0x50),
        size: 0x70,
        arena_bins: &[0x68, 0x70],
    },
    ParamsLayout {
        releases: "2.35 to 2.42",
        n_mmaps: 0x3c,
        mmapped_mem: 0x50,
        sbrk_base: 0x60,
        tcache: Some(0x68),
        size: 0x88,
        arena_bins: &[0x70],
    },
    ParamsLayout {
        releases: "2.43",
        n_mmaps: 0x44,
        mmapped_mem: 0x58,
        sbrk_base: 0x68,
        tcache: Some(0x70),
        size: 0x90,
        arena_bins: &[0x18],
    },
];

/// `struct tcache_perthread_struct`: a thread's cache of free chunks, itself a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct TcacheLayout {
    /// The nominal size of its chunk. It may be up to 32 bytes larger: a remainder below the
    /// smallest chunk is not split off, and 2.43 rounds the request twice.
    pub(super) chunk: u64,
    /// The bytes of one count.
    pub(super) count_size: u64,
    /// The number of bins. Bins from 64 on hold chunks of several sizes.
    pub(super) bins: u64,
    /// Counts say how many places are left, not how many chunks there are (2.42 and later).
    pub(super) counts_down: bool,
}

/// 2.26 to 2.29; 2.30 to 2.41 and some of the releases before; 2.42 and later.
pub(super) const TCACHES: [TcacheLayout; 3] = [
    TcacheLayout {
        chunk: 0x250,
        count_size: 1,
        bins: 64,
        counts_down: false,
    },
    TcacheLayout {
        chunk: 0x290,
        count_size: 2,
        bins: 64,
        counts_down: false,
    },
    TcacheLayout {
        chunk: 0x300,
        count_size: 2,
        bins: 76,
        counts_down: true,
    },
];

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
        self.entries() + 8 * self.bins
    }

    /// Says whether a chunk of `size` bytes may hold the struct.
    pub(super) fn fits(self, size: u64) -> bool {
        (self.chunk..=self.chunk + 32).contains(&size)
    }
}

/// The sizes of `heap_info`: up to 2.34; 2.35 and later (with `pagesize`).
pub(super) const HEAP_INFO_SIZES: [u64; 2] = [0x20, 0x30];
/// `HEAP_MAX_SIZE`: 64 MiB; four huge pages in 2.35 to 2.41 with `glibc.malloc.hugetlb=2`, which
/// are 8 MiB for huge pages of 2 MiB and 4 GiB for those of 1 GiB.
pub(super) const HEAP_MAX_SIZES: [u64; 3] = [64 << 20, SMALLEST_HEAP_MAX, 4 << 30];
/// Every heap starts at a multiple of this.
pub(super) const SMALLEST_HEAP_MAX: u64 = 8 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_follow_from_the_bins_as_the_releases_have_them() {
        let layout = |bins, counts_threads| ArenaLayout {
            bins,
            counts_threads,
        };
        for (layout, top, next, system_mem, size) in [
            (layout(0x68, false), 0x58, 0x868, 0x878, 0x888),
            (layout(0x68, true), 0x58, 0x868, 0x880, 0x890),
            (layout(0x70, true), 0x60, 0x870, 0x888, 0x898),
            (layout(0x18, true), 0x08, 0x818, 0x830, 0x840),
        ] {
            assert_eq!(layout.top(), top);
            assert_eq!(layout.next(), next);
            assert_eq!(layout.system_mem(), system_mem);
            assert_eq!(layout.size(), size);
        }
    }

    #[test]
    fn tcache_sizes_are_those_of_the_releases_and_do_not_overlap() {
        let sizes = TCACHES.map(|layout| (layout.entries(), layout.size()));
        assert_eq!(sizes, [(64, 0x240), (128, 0x280), (152, 0x2f8)]);
        for size in (0x240..0x340).step_by(16) {
            assert!(TCACHES.iter().filter(|layout| layout.fits(size)).count() <= 1);
        }
    }
}
