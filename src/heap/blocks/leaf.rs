//! Pages of granules, and where blocks start in them.

/// Granules per page, as a power of two: 64 entries of 64 granules.
pub(super) const GRANULES: u32 = 12;

/// The granules of a page in which a block starts.
pub(super) type Starts = [u64; 64];

/// The granule of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The number of its page, counted from address 0.
    pub(super) page: u64,
    /// Its entry in the page.
    pub(super) entry: usize,
    /// Its bit in the entry.
    pub(super) bit: u64,
}

impl Place {
    #[inline]
    pub(super) fn of(addr: u64, granule: u32) -> Self {
        let number = addr >> granule;
        Self {
            page: number >> GRANULES,
            entry: (number >> 6) as usize % 64,
            bit: number % 64,
        }
    }
}

/// The starts of a page, with what makes each of them a block's number.
pub(super) type Leaf = [Entry; 64];

/// 64 granules: one cache line has four of them.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Entry {
    pub(super) starts: u64,
    /// The number of blocks that start before the entry.
    pub(super) rank: u32,
    /// The distance from the last of these to the entry's first granule, in granules, or [`FAR`].
    pub(super) back: u32,
}

/// A distance that is too large, or that there is none.
pub(super) const FAR: u32 = u32::MAX;

/// What comes before a leaf.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Before {
    /// The number of blocks.
    pub(super) rank: u32,
    /// The granule of the last of them, counted from address 0.
    pub(super) last: Option<u64>,
}

/// A leaf with all these starts, without ranks.
pub(super) fn leaf<'a>(all: impl Iterator<Item = &'a Starts>) -> Leaf {
    let mut leaf = [Entry::default(); 64];
    for starts in all {
        let entries = leaf.iter_mut().zip(starts);
        entries.for_each(|(entry, starts)| entry.starts |= starts);
    }
    leaf
}

/// Counts the starts of a leaf, which is that of `page`, onto those before it.
pub(super) fn after(leaf: &Leaf, page: u64, before: Before) -> Before {
    let counted = leaf.iter().map(|entry| entry.starts.count_ones());
    let last = (0..64_u32)
        .zip(leaf)
        .rev()
        .find(|(_, entry)| entry.starts != 0);
    Before {
        rank: before.rank.wrapping_add(counted.sum()),
        last: last
            .map(|(number, entry)| last_start(page, number, entry))
            .or(before.last),
    }
}

/// Numbers the starts of a leaf, which is that of `page`.
pub(super) fn number(leaf: &mut Leaf, page: u64, mut before: Before) {
    for (number, entry) in (0_u32..).zip(leaf) {
        let first = (page << GRANULES) + u64::from(number << 6);
        let back = before.last.map(|last| first - last);
        entry.rank = before.rank;
        entry.back = back.and_then(|b| u32::try_from(b).ok()).unwrap_or(FAR);
        if entry.starts != 0 {
            before.last = Some(last_start(page, number, entry));
        }
        before.rank = before.rank.wrapping_add(entry.starts.count_ones());
    }
}

/// The granule of the last start in an entry that has one.
fn last_start(page: u64, number: u32, entry: &Entry) -> u64 {
    (page << GRANULES) + u64::from(number << 6) + u64::from(63 - entry.starts.leading_zeros())
}

/// The entries, counted through all leaves, in which the blocks start whose numbers are multiples of `step`.
/// `leaf` is the leaf with this number.
pub(super) fn hints(leaf: &Leaf, number: usize, step: usize) -> impl Iterator<Item = u64> + '_ {
    let entries = (number as u64 * 64..).zip(leaf);
    entries.flat_map(move |(number, entry)| {
        let first = entry.rank as usize;
        let end = first + entry.starts.count_ones() as usize;
        let multiples = end.div_ceil(step) - first.div_ceil(step);
        std::iter::repeat_n(number, multiples)
    })
}
