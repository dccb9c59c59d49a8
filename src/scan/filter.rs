//! The vector range filter: which words of some bytes may be references.
//!
//! A scan looks at each word of the heap, and some 6 in 100 are references. The words are tested 64 at a time, by the
//! widest vectors that the processor has, which gives a bit for each; those that are set are hits. Vectors are made
//! of words that safe code reads: the compiler loads them at once, and nothing is ever read beyond the bytes.

#![expect(
    unsafe_code,
    reason = "functions for vectors that not every processor has, and prefetching"
)]

use super::graph::Alignment;
use crate::addr::{Addr, AddrRange};
use crate::memory::Width;

/// The words that are tested at once: a bit each.
const BLOCK: usize = 64;
/// The hits of a batch, after which a search pauses.
pub(super) const BATCH: usize = 64;
/// The hits that a search can have found when it pauses: all words of the last block may be some.
pub(super) const MOST_HITS: usize = BATCH + BLOCK;
/// The most ranges that are told apart.
pub(super) const MOST_RANGES: usize = 4;

/// A way to test words, which this processor has. All find the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Filter(Path);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Path {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "aarch64")]
    Neon,
}

impl Filter {
    /// The fastest one.
    #[must_use]
    pub fn best() -> Self {
        // Where the compiler does not optimize, a vector costs more than its words.
        let fastest = Self::all().into_iter().rfind(|_| !cfg!(debug_assertions));
        fastest.unwrap_or(Self(Path::Portable))
    }

    /// All that this processor has, the fastest one last.
    #[must_use]
    pub fn all() -> Vec<Self> {
        let mut paths = vec![Path::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            let bits = is_x86_feature_detected!("bmi1") && is_x86_feature_detected!("popcnt");
            if bits && is_x86_feature_detected!("avx2") {
                paths.push(Path::Avx2);
            }
            if bits && is_x86_feature_detected!("avx512f") {
                paths.push(Path::Avx512);
            }
        }
        #[cfg(target_arch = "aarch64")]
        if std::arch::is_aarch64_feature_detected!("neon") {
            paths.push(Path::Neon);
        }
        paths.into_iter().map(Self).collect()
    }

    /// Its name: `portable`, `avx2`, `avx512` or `neon`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self.0 {
            Path::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Path::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Path::Avx512 => "avx512",
            #[cfg(target_arch = "aarch64")]
            Path::Neon => "neon",
        }
    }

    /// Searches `bytes` from the position `from` on and adds the words that are in `ranges` to `hits`, in ascending
    /// order of their positions, until there are at least [`BATCH`] hits.
    ///
    /// It returns the position at which to go on, which is the end of `bytes` when all is done.
    pub(super) fn find(
        self,
        words: Words,
        ranges: &Ranges,
        bytes: &[u8],
        from: usize,
        hits: &mut Hits,
    ) -> usize {
        let search = Search { bytes, from, hits };
        match (words.width, words.alignment) {
            (Width::Eight, Alignment::Words) => self.find_words::<8, 8>(ranges, search),
            (Width::Four, Alignment::Words) => self.find_words::<4, 4>(ranges, search),
            (Width::Eight, Alignment::Bytes) => self.find_words::<8, 1>(ranges, search),
            (Width::Four, Alignment::Bytes) => self.find_words::<4, 1>(ranges, search),
        }
    }

    /// Does `work`, compiled with the instructions that the path needs: they count bits at once, too. That is so for
    /// what is inlined into `work` only.
    #[inline]
    pub(super) fn compiled_for<T>(self, work: impl FnOnce() -> T) -> T {
        match self.0 {
            Path::Portable => work(),
            // SAFETY: `Filter::all` alone makes these paths, where the processor has the features.
            #[cfg(target_arch = "x86_64")]
            Path::Avx2 | Path::Avx512 => unsafe { x86::counting(work) },
            #[cfg(target_arch = "aarch64")]
            Path::Neon => work(),
        }
    }

    fn find_words<const SIZE: usize, const STEP: usize>(
        self,
        ranges: &Ranges,
        search: Search<'_>,
    ) -> usize {
        let [a, b, c, d] = ranges.ranges;
        match ranges.count {
            0 | 1 => self.run::<SIZE, STEP, 1>(&[a], search),
            2 => self.run::<SIZE, STEP, 2>(&[a, b], search),
            _ => self.run::<SIZE, STEP, 4>(&[a, b, c, d], search),
        }
    }

    fn run<const SIZE: usize, const STEP: usize, const RANGES: usize>(
        self,
        ranges: &[Span; RANGES],
        search: Search<'_>,
    ) -> usize {
        match self.0 {
            Path::Portable => search.run_portable::<SIZE, STEP>(ranges),
            // SAFETY: `Filter::all` alone makes this path, where the processor has these features.
            #[cfg(target_arch = "x86_64")]
            Path::Avx2 => unsafe { x86::avx2::<SIZE, STEP, RANGES>(ranges, search) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Path::Avx512 => unsafe { x86::avx512::<SIZE, STEP, RANGES>(ranges, search) },
            // SAFETY: as above.
            #[cfg(target_arch = "aarch64")]
            Path::Neon => unsafe { arm::neon::<SIZE, STEP, RANGES>(ranges, search) },
        }
    }
}

/// Which words of bytes are looked at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Words {
    pub(super) width: Width,
    pub(super) alignment: Alignment,
}

impl Words {
    /// The bytes from `start` to the first address at which a word is looked at: less than a word's size.
    pub(super) fn first(self, start: Addr) -> usize {
        match self.alignment {
            Alignment::Words => {
                let after = start.0 & (self.width.bytes() - 1);
                usize::try_from(after).map_or(0, |after| self.width.size() - after)
                    % self.width.size()
            }
            Alignment::Bytes => 0,
        }
    }
}

/// The values that are hits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ranges {
    /// Those after `count` are empty.
    ranges: [Span; MOST_RANGES],
    count: usize,
}

impl Ranges {
    /// At most [`MOST_RANGES`].
    pub(super) fn new(ranges: &[AddrRange]) -> Self {
        debug_assert!(ranges.len() <= MOST_RANGES);
        let mut spans = [Span::default(); MOST_RANGES];
        for (span, range) in spans.iter_mut().zip(ranges) {
            *span = Span {
                lowest: range.start.0,
                span: range.size(),
            };
        }
        Self {
            ranges: spans,
            count: ranges.len(),
        }
    }

    pub(super) fn contains(&self, word: u64) -> bool {
        self.ranges.iter().any(|range| range.contains(word))
    }
}

/// The `span` values from `lowest` on. They may go on from 0 after the highest.
#[derive(Clone, Copy, Debug, Default)]
struct Span {
    lowest: u64,
    span: u64,
}

impl Span {
    fn contains(self, word: u64) -> bool {
        word.wrapping_sub(self.lowest) < self.span
    }
}

/// Words that were found, and where.
#[derive(Debug)]
pub(super) struct Hits {
    /// Positions in the bytes that were searched.
    pub(super) positions: [u32; MOST_HITS],
    pub(super) values: [u64; MOST_HITS],
    pub(super) count: usize,
}

impl Hits {
    pub(super) fn new() -> Self {
        Self {
            positions: [0; MOST_HITS],
            values: [0; MOST_HITS],
            count: 0,
        }
    }

    /// Adds a word that has no position.
    pub(super) fn push(&mut self, value: u64) {
        self.positions[self.count] = 0;
        self.values[self.count] = value;
        self.count += 1;
    }

    /// Adds those words of the block at `at` whose bits are set.
    #[inline(always)]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "what is searched is at most some 256 KiB"
    )]
    fn add<const SIZE: usize, const STEP: usize>(&mut self, block: &[u8], at: usize, mut set: u64) {
        let mut count = self.count;
        while set != 0 {
            let i = set.trailing_zeros() as usize;
            // There is room: this spares the compiler the proof.
            self.positions[count % MOST_HITS] = (at + i * STEP) as u32;
            self.values[count % MOST_HITS] = word::<SIZE, STEP>(block, i);
            count += 1;
            set &= set - 1;
        }
        self.count = count;
    }
}

/// What is searched, from where on, and where the hits go.
struct Search<'a> {
    bytes: &'a [u8],
    from: usize,
    hits: &'a mut Hits,
}

impl Search<'_> {
    /// Searches word by word.
    fn run_portable<const SIZE: usize, const STEP: usize>(self, ranges: &[Span]) -> usize {
        let Self { bytes, from, hits } = self;
        let mut at = from;
        while hits.count < BATCH {
            let Some(rest) = bytes.get(at..).filter(|rest| rest.len() >= SIZE) else {
                return bytes.len();
            };
            let word = first_word::<SIZE>(rest);
            let mut hit = false;
            for range in ranges {
                hit |= range.contains(word);
            }
            // Each is stored in any case: that is cheaper than a branch that the processor cannot foresee.
            hits.positions[hits.count] = u32::try_from(at).unwrap_or(u32::MAX);
            hits.values[hits.count] = word;
            hits.count += usize::from(hit);
            at += STEP;
        }
        at
    }

    /// Searches with `lanes`, which has a bit for each of some neighbouring words.
    #[inline(always)]
    fn run<const SIZE: usize, const STEP: usize, const LANES: usize>(
        self,
        lanes: impl Fn([u64; LANES]) -> u64,
        ranges: &[Span],
    ) -> usize {
        let mut at = self.from;
        while self.hits.count < BATCH {
            let Some(block) = self.bytes.get(at..at + (BLOCK - 1) * STEP + SIZE) else {
                return self.run_rest::<SIZE, STEP>(at, ranges);
            };
            let mut set = 0;
            for first in (0..BLOCK).step_by(LANES) {
                let words = std::array::from_fn(
                    #[inline(always)]
                    |i| word::<SIZE, STEP>(block, first + i),
                );
                set |= lanes(words) << first;
            }
            self.hits.add::<SIZE, STEP>(block, at, set);
            at += BLOCK * STEP;
        }
        at.min(self.bytes.len())
    }

    /// Searches the end, which is shorter than a block.
    fn run_rest<const SIZE: usize, const STEP: usize>(self, at: usize, ranges: &[Span]) -> usize {
        let rest = self.bytes.get(at..).unwrap_or_default();
        let words = (rest.len() + STEP).saturating_sub(SIZE) / STEP;
        let mut set = 0;
        for i in 0..words {
            set |= portable([word::<SIZE, STEP>(rest, i)], ranges) << i;
        }
        self.hits.add::<SIZE, STEP>(rest, at, set);
        self.bytes.len()
    }
}

/// Asks the processor to have the memory at `place` in its cache soon, where it can be asked.
#[inline]
pub(super) fn prefetch<T>(place: &T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: it reads nothing that the program could see, and `place` is valid memory.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(
            std::ptr::from_ref(place).cast(),
        );
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}

/// The word at the start of `bytes`, which are as many at least.
#[inline(always)]
fn first_word<const SIZE: usize>(bytes: &[u8]) -> u64 {
    let word = if SIZE == 8 {
        Width::Eight.word(bytes)
    } else {
        Width::Four.word(bytes)
    };
    word.unwrap_or(0)
}

/// The word with the number `i` of `bytes`.
#[inline(always)]
fn word<const SIZE: usize, const STEP: usize>(bytes: &[u8], i: usize) -> u64 {
    let mut word = [0; 8];
    word[..SIZE].copy_from_slice(&bytes[i * STEP..][..SIZE]);
    u64::from_le_bytes(word)
}

#[inline(always)]
fn portable([word]: [u64; 1], ranges: &[Span]) -> u64 {
    // No branch: the processor could not foresee it.
    let hit = ranges.iter().fold(false, |hit, r| hit | r.contains(word));
    hit.into()
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        _mm256_castsi256_pd, _mm256_cmpgt_epi64, _mm256_movemask_pd, _mm256_or_si256,
        _mm256_set1_epi64x, _mm256_setr_epi64x, _mm256_setzero_si256, _mm256_sub_epi64,
        _mm512_cmplt_epu64_mask, _mm512_set1_epi64, _mm512_setr_epi64, _mm512_sub_epi64,
    };

    use super::{Search, Span};

    #[target_feature(enable = "popcnt,bmi1")]
    pub(super) fn counting<T>(work: impl FnOnce() -> T) -> T {
        work()
    }

    #[target_feature(enable = "avx2,bmi1")]
    pub(super) fn avx2<const SIZE: usize, const STEP: usize, const RANGES: usize>(
        ranges: &[Span; RANGES],
        search: Search<'_>,
    ) -> usize {
        search.run::<SIZE, STEP, 4>(|words| four(words, ranges), ranges)
    }

    #[target_feature(enable = "avx512f,bmi1")]
    pub(super) fn avx512<const SIZE: usize, const STEP: usize, const RANGES: usize>(
        ranges: &[Span; RANGES],
        search: Search<'_>,
    ) -> usize {
        search.run::<SIZE, STEP, 8>(|words| eight(words, ranges), ranges)
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn four(words: [u64; 4], ranges: &[Span]) -> u64 {
        let [a, b, c, d] = words.map(u64::cast_signed);
        let words = _mm256_setr_epi64x(a, b, c, d);
        let mut hits = _mm256_setzero_si256();
        for range in ranges {
            // There is no comparison of unsigned numbers: both sides are moved by half of all values.
            let lowest = range.lowest.wrapping_add(1 << 63).cast_signed();
            let span = range.span.wrapping_add(1 << 63).cast_signed();
            let distances = _mm256_sub_epi64(words, _mm256_set1_epi64x(lowest));
            let inside = _mm256_cmpgt_epi64(_mm256_set1_epi64x(span), distances);
            hits = _mm256_or_si256(hits, inside);
        }
        // The highest bits of the four.
        _mm256_movemask_pd(_mm256_castsi256_pd(hits))
            .cast_unsigned()
            .into()
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn eight(words: [u64; 8], ranges: &[Span]) -> u64 {
        let [a, b, c, d, e, f, g, h] = words.map(u64::cast_signed);
        let words = _mm512_setr_epi64(a, b, c, d, e, f, g, h);
        let mut hits = 0;
        for range in ranges {
            let lowest = _mm512_set1_epi64(range.lowest.cast_signed());
            let span = _mm512_set1_epi64(range.span.cast_signed());
            hits |= _mm512_cmplt_epu64_mask(_mm512_sub_epi64(words, lowest), span);
        }
        hits.into()
    }
}

#[cfg(target_arch = "aarch64")]
mod arm {
    use std::arch::aarch64::{
        uint32x4_t, vaddvq_u16, vandq_u16, vcltq_u64, vcombine_u16, vcombine_u64, vcreate_u16,
        vcreate_u64, vdupq_n_u64, vorrq_u64, vreinterpretq_u16_u32, vreinterpretq_u32_u64,
        vsubq_u64, vuzp1q_u16, vuzp1q_u32,
    };

    use super::{Search, Span};

    #[target_feature(enable = "neon")]
    pub(super) fn neon<const SIZE: usize, const STEP: usize, const RANGES: usize>(
        ranges: &[Span; RANGES],
        search: Search<'_>,
    ) -> usize {
        search.run::<SIZE, STEP, 8>(|words| eight(words, ranges), ranges)
    }

    /// A bit for each of eight words.
    #[inline]
    #[target_feature(enable = "neon")]
    fn eight(words: [u64; 8], ranges: &[Span]) -> u64 {
        let [a, b, c, d, e, f, g, h] = words;
        // All bits of the words that are hits, made narrower until they fit in one vector.
        let low = vuzp1q_u32(two([a, b], ranges), two([c, d], ranges));
        let high = vuzp1q_u32(two([e, f], ranges), two([g, h], ranges));
        let hits = vuzp1q_u16(vreinterpretq_u16_u32(low), vreinterpretq_u16_u32(high));
        let bits = vcombine_u16(
            vcreate_u16(0x0008_0004_0002_0001),
            vcreate_u16(0x0080_0040_0020_0010),
        );
        vaddvq_u16(vandq_u16(hits, bits)).into()
    }

    /// All bits of those of two words that are hits.
    #[inline]
    #[target_feature(enable = "neon")]
    fn two([a, b]: [u64; 2], ranges: &[Span]) -> uint32x4_t {
        let words = vcombine_u64(vcreate_u64(a), vcreate_u64(b));
        let mut hits = vdupq_n_u64(0);
        for range in ranges {
            let distances = vsubq_u64(words, vdupq_n_u64(range.lowest));
            hits = vorrq_u64(hits, vcltq_u64(distances, vdupq_n_u64(range.span)));
        }
        vreinterpretq_u32_u64(hits)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What the search finds from `from` on, pause by pause: positions and values.
    fn found(
        filter: Filter,
        words: Words,
        ranges: &Ranges,
        bytes: &[u8],
        from: usize,
    ) -> Vec<(usize, u64)> {
        let (mut found, mut at) = (Vec::new(), from);
        while at < bytes.len() {
            let mut hits = Hits::new();
            let next = filter.find(words, ranges, bytes, at, &mut hits);
            assert!(next > at && (next == bytes.len() || hits.count >= BATCH));
            let positions = hits.positions[..hits.count].iter().map(|p| *p as usize);
            found.extend(positions.zip(hits.values).take(hits.count));
            at = next;
        }
        found
    }

    /// The same, one word after the other.
    fn naive(words: Words, ranges: &Ranges, bytes: &[u8], from: usize) -> Vec<(usize, u64)> {
        let size = words.width.size();
        let step = match words.alignment {
            Alignment::Words => size,
            Alignment::Bytes => 1,
        };
        let mut found = Vec::new();
        let mut at = from;
        while at + size <= bytes.len() {
            let mut word = [0; 8];
            word[..size].copy_from_slice(&bytes[at..at + size]);
            let word = u64::from_le_bytes(word);
            let mut ranges = ranges.ranges[..ranges.count].iter();
            if ranges.any(|r| word.wrapping_sub(r.lowest) < r.span) {
                found.push((at, word));
            }
            at += step;
        }
        found
    }

    fn all_words() -> Vec<Words> {
        let widths = [Width::Four, Width::Eight];
        let words = |width| {
            [Alignment::Words, Alignment::Bytes].map(|alignment| Words { width, alignment })
        };
        widths.into_iter().flat_map(words).collect()
    }

    fn check(ranges: &Ranges, bytes: &[u8], from: usize) {
        for words in all_words() {
            let expected = naive(words, ranges, bytes, from);
            for filter in Filter::all() {
                let found = found(filter, words, ranges, bytes, from);
                assert_eq!(
                    found,
                    expected,
                    "{} {words:?} {} bytes from {from}",
                    filter.name(),
                    bytes.len()
                );
            }
        }
    }

    fn ranges(spans: &[(u64, u64)]) -> Ranges {
        let mut ranges = Ranges::new(&[]);
        for (lowest, span) in spans {
            ranges.ranges[ranges.count] = Span {
                lowest: *lowest,
                span: *span,
            };
            ranges.count += 1;
        }
        ranges
    }

    /// Words near the edges of the spans, which are hits or just not, and others.
    fn bytes(spans: &[(u64, u64)], choices: &[(u8, u64)]) -> Vec<u8> {
        let word = |(choice, random): &(u8, u64)| {
            let (lowest, span) = spans[usize::from(choice % 4) % spans.len()];
            match choice / 4 % 8 {
                0 => lowest,
                1 => lowest.wrapping_sub(1),
                2 => lowest.wrapping_add(span),
                3 => lowest.wrapping_add(span).wrapping_sub(1),
                4 => lowest.wrapping_add(random % span.max(1)),
                5 => *random,
                6 => random % 3,
                _ => u64::MAX - random % 3,
            }
        };
        let words = choices.iter().map(word);
        words.flat_map(u64::to_le_bytes).collect()
    }

    fn spans() -> impl Strategy<Value = Vec<(u64, u64)>> {
        let number = prop_oneof![
            any::<u64>(),
            0..4_u64,
            (0..4_u64).prop_map(|distance| u64::MAX - distance),
            (0..8_u64).prop_map(|distance| (1 << 32) - 4 + distance),
            (0..8_u64).prop_map(|distance| (1 << 63) - 4 + distance),
            0x5555_0000_0000..0x5556_0000_0000_u64,
        ];
        prop::collection::vec((number.clone(), number), 1..=MOST_RANGES)
    }

    #[test]
    fn every_short_length_is_searched_to_its_end() {
        let hits: Vec<u8> = (0..80).map(|i| i % 5 * 60).collect();
        for spans in [
            &[(0, u64::MAX)][..],
            &[(7, 0)],
            &[(1 << 56, 1 << 63), (0, 9)],
        ] {
            for length in 0..=70 {
                for from in 0..=length {
                    check(&ranges(spans), &hits[..length], from);
                }
            }
        }
    }

    #[test]
    fn every_lane_of_a_block_has_its_own_bit() {
        for at in 0..BLOCK * 8 + 8 {
            let mut bytes = vec![0; BLOCK * 16];
            bytes[at..at + 8].copy_from_slice(&0x5555_6666_7777_8888_u64.to_le_bytes());
            check(&ranges(&[(0x5555_0000_0000_0000, 1 << 48)]), &bytes, 0);
            check(&ranges(&[(0x7777_8888, 1)]), &bytes, 0);
        }
    }

    #[test]
    fn nothing_is_found_without_ranges() {
        check(&Ranges::new(&[]), &[0; 1024], 0);
        assert!(!Ranges::new(&[]).contains(0));
    }

    #[test]
    fn a_range_of_addresses_has_its_first_and_last_one() {
        let range = AddrRange::with_size(Addr(0x1000), 0x10);
        let ranges = Ranges::new(&[range]);
        let inside = (0xff0..0x1020).filter(|word| ranges.contains(*word));
        assert!(inside.eq(0x1000..0x1010));
    }

    #[test]
    fn names_are_different() {
        let names: Vec<_> = Filter::all().into_iter().map(Filter::name).collect();
        assert_eq!(names[0], "portable");
        let different: std::collections::BTreeSet<_> = names.iter().collect();
        assert_eq!(different.len(), names.len());
    }

    proptest! {
        #[test]
        fn every_path_finds_what_the_naive_search_finds(
            spans in spans(),
            choices in prop::collection::vec((any::<u8>(), any::<u64>()), 0..300),
            (cut, from) in (0usize..8, 0usize..20),
        ) {
            let bytes = bytes(&spans, &choices);
            check(&ranges(&spans), &bytes[..bytes.len().saturating_sub(cut)], from);
        }
    }
}
