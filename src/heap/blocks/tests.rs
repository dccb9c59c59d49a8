use proptest::prelude::*;

use super::*;

fn block(start: u64, size: u64) -> Block {
    Block {
        start: Addr(start),
        size,
    }
}

fn naive(blocks: &[Block], value: u64) -> Option<u32> {
    let at = blocks.partition_point(|b| b.range().end <= Addr(value));
    let found = blocks
        .get(at)
        .is_some_and(|b| b.range().contains(Addr(value)));
    found.then(|| u32::try_from(at).expect("few blocks"))
}

/// Compares with the naive search at and around the edges of every block.
fn check(list: &[Block]) {
    let blocks: Blocks = list.iter().copied().collect();
    check_index(list, &blocks);
}

fn check_index(list: &[Block], blocks: &Blocks) {
    let step = (list.len() / 100).max(1);
    for block in list.iter().step_by(step) {
        let range = block.range();
        for edge in [range.start.0, range.end.0, range.start.0 + range.size() / 2] {
            for value in edge.saturating_sub(17)..=edge.saturating_add(17) {
                check_at(list, blocks, value);
            }
        }
    }
    check_at(list, blocks, 0);
    check_at(list, blocks, u64::MAX);
    assert!(blocks.iter().eq(list.iter().copied()));
    assert_eq!(blocks.len(), list.len());
    for (number, block) in list.iter().enumerate() {
        assert_eq!(blocks.get(number), Some(*block));
    }
    assert_eq!(blocks.get(list.len()), None);
    let bytes: u64 = list
        .iter()
        .map(|block| block.size)
        .fold(0, u64::saturating_add);
    assert_eq!(blocks.bytes(0..usize::MAX), bytes);
}

fn check_at(list: &[Block], blocks: &Blocks, value: u64) {
    assert_eq!(blocks.find(value), naive(list, value), "{value:#x}");
    let addr = Addr(value);
    let below = list.partition_point(|block| block.start < addr);
    assert_eq!(blocks.starting_below(addr), below, "{value:#x}");
    let before = list.partition_point(|block| block.range().end <= addr);
    assert_eq!(blocks.ending_after(addr), before, "{value:#x}");
    let found = list.get(below).filter(|block| block.start == addr);
    assert_eq!(blocks.starting_at(addr), found.copied(), "{value:#x}");
}

#[test]
fn every_interior_byte_is_found_and_one_past_the_end_is_not() {
    let list = [block(0x1000, 24), block(0x1020, 13)];
    let blocks: Blocks = list.into_iter().collect();
    for value in 0xff0..0x1040 {
        assert_eq!(blocks.find(value), naive(&list, value), "{value:#x}");
    }
}

#[test]
fn nothing_is_found_without_blocks() {
    check(&[]);
}

#[test]
fn blocks_at_the_borders_of_pages_and_mebibytes_are_found() {
    check(&[
        block(0x0f_fff0, 32),
        block(0x10_0010, 8),
        block(0x1f_fff0, 16),
        block(0x20_0000, 16),
    ]);
}

#[test]
fn blocks_of_several_clusters_are_found() {
    check(&[
        block(0x5555_0000_0000, 64),
        block(0x5555_0000_1000, 1 << 20),
        block(0x7fff_0000_0010, 16),
        block(0x7fff_1000_0010, 16),
    ]);
}

#[test]
fn starts_that_are_not_aligned_are_found() {
    check(&[block(0x1001, 1), block(0x1002, 3), block(0x1008, 9)]);
    check(&[block(0x1008, 8), block(0x1010, 8), block(0x1018, 80_000)]);
}

#[test]
fn huge_blocks_are_found_and_take_no_memory() {
    let list = [
        block(0x1000, 64 << 40),
        block((64 << 40) + 0x2000, 32),
        block((80 << 40) + 16, u64::MAX - (80 << 40) - 16),
    ];
    check(&list);
    let blocks: Blocks = list.into_iter().collect();
    assert!(blocks.pages.len() < 10, "{}", blocks.pages.len());
}

#[test]
fn blocks_far_apart_take_bounded_memory() {
    let list: Vec<_> = (1..1000).map(|i| block(i << 27, 16)).collect();
    check(&list);
    let blocks: Blocks = list.into_iter().collect();
    assert!(blocks.pages.len() < 1000 * 2049);
}

#[test]
fn blocks_of_several_runs_share_pages() {
    let list: Vec<_> = (0..5000).map(|i| block(0x1_0010 + i * 48, 40)).collect();
    let runs = list.chunks(777).map(|part| part.iter().copied().collect());
    check_index(&list, &Blocks::joined(runs.collect()));
}

#[test]
fn gaps_are_found_where_there_are_no_starts() {
    let close: Vec<_> = (0..5000).map(|i| block(0x1_0010 + i * 160, 100)).collect();
    let far = block(close[4999].range().end.0.next_multiple_of(16) + 4096, 16);
    let farther = block(far.start.0 + (1 << 20), 16);
    let blocks: Blocks = close.into_iter().chain([far, farther]).collect();
    for start in [0, 1, 4000, 4999] {
        assert!(blocks.are_close(start..5000, 4096), "{start}");
        assert!(!blocks.are_close(start..5001, 4096), "{start}");
        assert!(!blocks.are_close(start..5002, 4096), "{start}");
    }
    assert!(blocks.are_close(5000..5001, 4096));
    assert!(!blocks.are_close(5000..5002, 4096));
    assert!(blocks.are_close(5001..5002, 4096));
}

#[test]
fn large_blocks_are_found_by_their_numbers() {
    let sizes = [16, 65_535, 70_000, 24, 1 << 20, 65_534, 300_000];
    let mut at = 0x1000;
    let list = sizes.map(|size| {
        let block = block(at, size);
        at += size.next_multiple_of(16);
        block
    });
    let blocks: Blocks = list.into_iter().collect();
    let larger = |numbers| blocks.larger_than(65_536, numbers).collect::<Vec<_>>();
    assert_eq!(larger(0..7), [2, 4, 6]);
    assert_eq!(larger(3..6), [4]);
    check(&list);
}

#[test]
fn runs_of_different_granules_are_joined() {
    let list = [block(0x1000, 16), block(0x1018, 8), block(0x2_0004, 4)];
    let runs = list.chunks(1).map(|part| part.iter().copied().collect());
    check_index(&list, &Blocks::joined(runs.collect()));
}

fn spans(blocks: &[Block], most: usize) -> Vec<(u64, u64)> {
    let blocks: Blocks = blocks.iter().copied().collect();
    let ranges = blocks.spans(most).into_iter();
    ranges.map(|range| (range.start.0, range.end.0)).collect()
}

#[test]
fn spans_are_apart_where_the_largest_gaps_are() {
    let blocks = [
        block(0x10_0010, 16),
        block(0x10_0020, 4 << 20), // No gap, but pages without a start.
        block(0x50_0020, 16),
        block(0x60_0030, 16),
        block(0x555_0000_0000, 16),
        block(0x7ff_0000_0000, 16),
        block(0x7ff_0030_0000, 16),
    ];
    let hull = (0x10_0010, 0x7ff_0030_0010);
    assert_eq!(spans(&blocks, 1), [hull]);
    let brk = (0x10_0010, 0x60_0040);
    let (middle, high) = (
        (0x555_0000_0000, 0x555_0000_0010),
        (0x7ff_0000_0000, hull.1),
    );
    assert_eq!(spans(&blocks, 3), [brk, middle, high]);
    let high = [
        (0x7ff_0000_0000, 0x7ff_0000_0010),
        (0x7ff_0030_0000, hull.1),
    ];
    assert_eq!(spans(&blocks, 4), [brk, middle, high[0], high[1]]);
    let low = [(0x10_0010, 0x50_0030), (0x60_0030, 0x60_0040)];
    assert_eq!(
        spans(&blocks, 9),
        [low[0], low[1], middle, high[0], high[1]]
    );
    assert!(spans(&[], 4).is_empty());
}

/// Heaps of blocks with gaps and sizes of every magnitude.
fn heaps() -> impl Strategy<Value = Vec<Block>> {
    let step = (0u32..36, any::<u64>(), 0u32..36, any::<u64>());
    (prop::collection::vec(step, 0..60), 0u32..5).prop_map(|(steps, granule)| {
        let (mut at, mut blocks) = (0x1000_u64, Vec::new());
        for (gap_bits, gap, size_bits, size) in steps {
            let start = (at + gap % (1 << gap_bits)).next_multiple_of(1 << granule);
            let size = 1 + size % (1 << size_bits);
            blocks.push(block(start, size));
            at = start + size;
        }
        blocks
    })
}

/// Heaps of many small blocks, so that hints and leaves are many.
fn crowds() -> impl Strategy<Value = Vec<Block>> {
    prop::collection::vec((0u64..3, 1u64..200), 0..5000).prop_map(|steps| {
        let (mut at, mut blocks) = (0x1000_u64, Vec::new());
        for (gap, size) in steps {
            at += gap * 16;
            blocks.push(block(at, size));
            at = (at + size).next_multiple_of(16);
        }
        blocks
    })
}

#[test]
fn an_empty_range_inside_a_block_has_no_address_of_it() {
    let blocks: Blocks = [block(0x1000, 64)].into_iter().collect();
    let range = |start, end| AddrRange::new(Addr(start), Addr(end));
    assert_eq!(blocks.within(range(0x1010, 0x1010)).count(), 0);
    assert_eq!(blocks.within(range(0x1010, 0x1011)).count(), 1);
}

proptest! {
    #[test]
    fn find_is_the_naive_search(list in heaps(), values in prop::collection::vec(any::<u64>(), 20)) {
        check(&list);
        let blocks: Blocks = list.iter().copied().collect();
        let end = list.last().map_or(1, |b| b.start.0 + b.size);
        for value in values {
            check_at(&list, &blocks, value % end);
        }
    }

    #[test]
    fn any_range_of_numbers_or_addresses_is_the_part_of_the_list(
        list in crowds(),
        ends in (any::<prop::sample::Index>(), any::<prop::sample::Index>()),
    ) {
        let blocks: Blocks = list.iter().copied().collect();
        let (a, b) = (ends.0.index(list.len() + 1), ends.1.index(list.len() + 1));
        let numbers = a.min(b)..a.max(b);
        prop_assert!(blocks.range(numbers.clone()).eq(list[numbers.clone()].iter().copied()));
        let bytes: u64 = list[numbers.clone()].iter().map(|block| block.size).sum();
        prop_assert_eq!(blocks.bytes(numbers.clone()), bytes);
        let addrs = AddrRange::new(Addr(numbers.start as u64 * 90), Addr(numbers.end as u64 * 90));
        let expected = list.iter().filter(|block| !block.range().intersection(&addrs).is_empty());
        prop_assert!(blocks.within(addrs).eq(expected.copied()));
        let part = &list[numbers.clone()];
        let is_close = part.windows(2).all(|pair| pair[1].start.0 - pair[0].range().end.0 < 4096);
        prop_assert!(part.is_empty() || is_close || !blocks.are_close(numbers.clone(), 4096));
        let wanted = list.iter().filter(|block| (24..=30).contains(&block.size));
        prop_assert!(blocks.of_size(&(24..=30)).eq(wanted.copied()));
    }

    #[test]
    fn removed_blocks_are_gone_and_all_others_are_left(
        list in crowds(),
        removed in prop::collection::vec(any::<prop::sample::Index>(), 0..300),
        large in prop::collection::vec(0u64..1 << 40, 0..20),
        strangers in prop::collection::vec(any::<u64>(), 5),
    ) {
        let mut list = list;
        let mut at = list.last().map_or(0x1000, |block| block.range().end.0.next_multiple_of(16));
        for size in large {
            list.push(block(at, size + 1));
            at = (at + size + 1).next_multiple_of(16);
        }
        let mut blocks: Blocks = list.iter().copied().collect();
        let removed: std::collections::BTreeSet<Addr> = removed
            .iter()
            .filter(|_| !list.is_empty())
            .map(|index| list[index.index(list.len())].start)
            .collect();
        let strangers = strangers.into_iter().map(|addr| Addr(addr | 8));
        blocks.remove(removed.iter().copied().chain(strangers).chain(removed.iter().copied()));
        list.retain(|block| !removed.contains(&block.start));
        prop_assert!(blocks.iter().eq(list.iter().copied()));
        for block in list.iter().step_by(37) {
            check_at(&list, &blocks, block.start.0);
            check_at(&list, &blocks, block.range().end.0);
        }
    }
}
