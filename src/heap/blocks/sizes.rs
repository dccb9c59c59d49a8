//! The sizes of blocks, two bytes for nearly all of them.

use std::ops::{Range, RangeInclusive};

use rayon::prelude::*;

/// Sizes that one task looks at.
const PART: usize = 64 * 1024;
/// Sizes that are looked at together.
const GROUP: usize = 1024;

/// Stands for a size in the other list: all that are not smaller.
const LARGE: u16 = u16::MAX;

/// Sizes for which it is remembered together where they are among the large ones.
const HINTED: usize = 64;

/// Sizes in bytes, by number.
#[derive(Clone, Debug, Default)]
pub(super) struct Sizes {
    small: Vec<u16>,
    /// The sizes that [`LARGE`] stands for, in ascending order of their numbers: at most one for
    /// 64 KiB of blocks.
    large: Vec<Large>,
    /// For each [`HINTED`] numbers, how many of the large ones come before them. Only where no size is added any
    /// more.
    hints: Vec<u32>,
}

/// A block that is not small.
#[derive(Clone, Copy, Debug)]
pub(super) struct Large {
    number: usize,
    size: u64,
    /// The address of the block: references to large blocks often lead far into them, where nothing else says where
    /// they start.
    pub(super) start: u64,
}

impl Sizes {
    pub(super) fn len(&self) -> usize {
        self.small.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.small.is_empty()
    }

    /// Adds the size of the block at `start`.
    #[inline]
    pub(super) fn push(&mut self, start: u64, size: u64) {
        let small = u16::try_from(size).unwrap_or(LARGE);
        if small == LARGE {
            let number = self.small.len();
            self.large.push(Large {
                number,
                size,
                start,
            });
        }
        self.small.push(small);
    }

    #[inline(always)]
    pub(super) fn get(&self, number: usize) -> u64 {
        match self.small[number] {
            LARGE => self.large(number).map_or(0, |large| large.size),
            size => size.into(),
        }
    }

    /// Where the size with this number is, or what stands for it.
    #[inline]
    pub(super) fn place(&self, number: usize) -> Option<&u16> {
        self.small.get(number)
    }

    /// The block with this number, if it is large.
    #[inline(never)]
    pub(super) fn large(&self, number: usize) -> Option<&Large> {
        let hint = |hint: usize| self.hints.get(hint).map(|before| *before as usize);
        let first = hint(number / HINTED).unwrap_or(0);
        let end = hint(number / HINTED + 1).unwrap_or(self.large.len());
        let near = self.large.get(first..end)?;
        // Where there is one large block there are often others, all next to each other.
        let neighbour = near.get(number.checked_sub(near.first()?.number)?);
        if let Some(large) = neighbour.filter(|large| large.number == number) {
            return Some(large);
        }
        let found = near.binary_search_by_key(&number, |large| large.number);
        near.get(found.ok()?)
    }

    fn add_hints(&mut self) {
        let mut large = self.large.iter().peekable();
        let mut before = 0;
        let hints = (0..self.small.len()).step_by(HINTED).map(|first| {
            while large.next_if(|large| large.number < first).is_some() {
                before += 1;
            }
            before
        });
        self.hints = hints.collect();
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        (0..self.len()).map(|number| self.get(number))
    }

    /// The sum of the sizes with these numbers, which there are; the highest number where it is more.
    pub(super) fn sum(&self, numbers: Range<usize>) -> u64 {
        let first = self.large.partition_point(|l| l.number < numbers.start);
        let end = self.large.partition_point(|l| l.number < numbers.end);
        let large = self.large[first..end].iter();
        // Each of them was counted as LARGE.
        let large = large.map(|large| large.size - u64::from(LARGE));
        let parts = self.small[numbers].par_chunks(PART);
        let small: u64 = parts
            .map(|part| part.iter().map(|size| u64::from(*size)).sum::<u64>())
            .sum();
        large.fold(small, u64::saturating_add)
    }

    /// The numbers of the sizes that are in `wanted`, in ascending order.
    pub(super) fn find(&self, wanted: &RangeInclusive<u64>) -> Vec<usize> {
        let small = |size: &u64| u16::try_from(*size).unwrap_or(LARGE);
        let (least, most) = (small(wanted.start()), small(wanted.end()));
        let is_near = |size: &u16| (least <= *size) & (*size <= most);
        let groups = self.small.par_chunks(GROUP).enumerate();
        // Most groups have none.
        let near =
            groups.filter(|(_, group)| group.iter().fold(false, |near, s| near | is_near(s)));
        let numbers = near.flat_map_iter(|(group, sizes)| {
            let first = group * GROUP;
            first..first + sizes.len()
        });
        numbers
            .filter(|number| wanted.contains(&self.get(*number)))
            .collect()
    }

    /// The numbers of those of the sizes `numbers` that are larger than `size`, which is not less than [`LARGE`].
    pub(super) fn larger_than(
        &self,
        size: u64,
        numbers: Range<usize>,
    ) -> impl Iterator<Item = usize> + '_ {
        debug_assert!(size >= LARGE.into());
        let first = self.large.partition_point(|l| l.number < numbers.start);
        let large = self.large[first..].iter();
        large
            .take_while(move |large| large.number < numbers.end)
            .filter(move |large| large.size > size)
            .map(|large| large.number)
    }

    /// All sizes of `parts`, one after the other.
    pub(super) fn joined(parts: Vec<Self>) -> Self {
        let mut all = Self {
            small: vec![0; parts.iter().map(Self::len).sum()],
            ..Self::default()
        };
        let mut copies = Vec::new();
        let (mut rest, mut before) = (&mut all.small[..], 0);
        for part in parts {
            all.large.extend(part.large.iter().map(|large| Large {
                number: large.number + before,
                ..*large
            }));
            let (own, others) = rest.split_at_mut(part.len());
            rest = others;
            before += part.len();
            copies.push((own, part.small));
        }
        let copies = copies.into_par_iter();
        copies.for_each(|(own, small)| own.copy_from_slice(&small));
        all.add_hints();
        all
    }

    /// Removes the sizes with these numbers, which are in ascending order and differ: few, as a
    /// rule, so that the others are moved, not looked at.
    pub(super) fn remove(&mut self, numbers: &[usize]) {
        self.large
            .retain(|large| numbers.binary_search(&large.number).is_err());
        for Large { number, .. } in &mut self.large {
            *number -= numbers.partition_point(|removed| removed < number);
        }
        let mut kept = numbers.first().copied().unwrap_or(self.len());
        let ends = numbers.iter().skip(1).copied().chain([self.len()]);
        for (gone, end) in numbers.iter().zip(ends) {
            self.small.copy_within(gone + 1..end, kept);
            kept += end - gone - 1;
        }
        self.small.truncate(kept);
        self.add_hints();
    }
}
