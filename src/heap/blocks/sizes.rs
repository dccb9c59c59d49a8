//! The sizes of blocks, two bytes for nearly all of them.

use std::ops::{Range, RangeInclusive};

use rayon::prelude::*;

/// Sizes that one task looks at.
const PART: usize = 64 * 1024;
/// Sizes that are looked at together.
const GROUP: usize = 1024;

/// Stands for a size in the other list: all that are not smaller.
const LARGE: u16 = u16::MAX;

/// Sizes in bytes, by number.
#[derive(Clone, Debug, Default)]
pub(super) struct Sizes {
    small: Vec<u16>,
    /// The sizes that [`LARGE`] stands for, with their numbers, in ascending order: at most one for
    /// 64 KiB of blocks.
    large: Vec<(usize, u64)>,
}

impl Sizes {
    pub(super) fn len(&self) -> usize {
        self.small.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.small.is_empty()
    }

    #[inline]
    pub(super) fn push(&mut self, size: u64) {
        let small = u16::try_from(size).unwrap_or(LARGE);
        if small == LARGE {
            self.large.push((self.small.len(), size));
        }
        self.small.push(small);
    }

    #[inline(always)]
    pub(super) fn get(&self, number: usize) -> u64 {
        match self.small[number] {
            LARGE => self.large(number),
            size => size.into(),
        }
    }

    /// Where the size with this number is, or what stands for it.
    #[inline]
    pub(super) fn place(&self, number: usize) -> Option<&u16> {
        self.small.get(number)
    }

    #[cold]
    #[inline(never)]
    fn large(&self, number: usize) -> u64 {
        let found = self.large.binary_search_by_key(&number, |(n, _)| *n);
        found.map_or(0, |found| self.large[found].1)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        (0..self.len()).map(|number| self.get(number))
    }

    /// The sum of the sizes with these numbers, which there are; the highest number where it is more.
    pub(super) fn sum(&self, numbers: Range<usize>) -> u64 {
        let first = self.large.partition_point(|(n, _)| *n < numbers.start);
        let end = self.large.partition_point(|(n, _)| *n < numbers.end);
        let large = self.large[first..end].iter();
        // Each of them was counted as LARGE.
        let large = large.map(|(_, size)| size - u64::from(LARGE));
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
        let first = self.large.partition_point(|(n, _)| *n < numbers.start);
        let large = self.large[first..].iter();
        large
            .take_while(move |(number, _)| *number < numbers.end)
            .filter(move |(_, large)| *large > size)
            .map(|(number, _)| *number)
    }

    /// All sizes of `parts`, one after the other.
    pub(super) fn joined(parts: Vec<Self>) -> Self {
        let mut all = Self {
            small: vec![0; parts.iter().map(Self::len).sum()],
            large: Vec::new(),
        };
        let mut copies = Vec::new();
        let (mut rest, mut before) = (&mut all.small[..], 0);
        for part in parts {
            let large = part.large.iter();
            all.large
                .extend(large.map(|(number, size)| (number + before, *size)));
            let (own, others) = rest.split_at_mut(part.len());
            rest = others;
            before += part.len();
            copies.push((own, part.small));
        }
        let copies = copies.into_par_iter();
        copies.for_each(|(own, small)| own.copy_from_slice(&small));
        all
    }

    /// Removes the sizes with these numbers, which are in ascending order and differ: few, as a
    /// rule, so that the others are moved, not looked at.
    pub(super) fn remove(&mut self, numbers: &[usize]) {
        self.large
            .retain(|(number, _)| numbers.binary_search(number).is_err());
        for (number, _) in &mut self.large {
            *number -= numbers.partition_point(|removed| removed < number);
        }
        let mut kept = numbers.first().copied().unwrap_or(self.len());
        let ends = numbers.iter().skip(1).copied().chain([self.len()]);
        for (gone, end) in numbers.iter().zip(ends) {
            self.small.copy_within(gone + 1..end, kept);
            kept += end - gone - 1;
        }
        self.small.truncate(kept);
    }
}
