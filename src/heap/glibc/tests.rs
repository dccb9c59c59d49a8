//! Walks of whole heaps, sound and damaged.

use proptest::prelude::*;

use super::layout::{IS_MMAPPED, PAGE};
use super::strategies::{contents, mutations};
use super::testing::{
    BRK, Built, Contents, Fate, HEADER, HEAP_SIZE, MAIN_ARENA, MAPPED, OTHER_HEAP, PARAMS_AT,
    Release, check_promises, releases,
};
use super::{Found, Problem, walk};
use crate::addr::{Addr, RangeSet};
use crate::memory::Memory;

proptest! {
    #[test]
    fn a_walk_finds_exactly_the_live_blocks(
        release in prop::sample::select(releases()),
        contents in contents(),
    ) {
        let built = Built::new(release, &contents);
        let found = walk(&built.snapshot()).expect("a heap");
        prop_assert_eq!(&found.problems, &[]);
        prop_assert!(found.heap.blocks.iter().eq(built.live.iter().copied()));
        check_promises(&found);
    }

    #[test]
    fn a_damaged_heap_keeps_the_promises(
        release in prop::sample::select(releases()),
        contents in contents(),
        mutations in mutations(),
    ) {
        let mut built = Built::new(release, &contents);
        for mutation in mutations {
            built.memory.mutate(mutation);
        }
        if let Some(found) = walk(&built.snapshot()) {
            check_promises(&found);
        }
    }
}

const MIB: u64 = 1 << 20;

/// The heap of glibc 2.36 with a few blocks.
fn sound() -> (Release, Built) {
    let release = releases()[5];
    let contents = Contents {
        main: vec![(1, Fate::Used), (2, Fate::InFastbin), (3, Fate::InTcache)],
        other: vec![(1, Fate::Used)],
        mapped: vec![(4, None)],
    };
    (release, Built::new(release, &contents))
}

/// Walks what would take hours if each place were looked at from each other one.
fn walk_hostile(built: &Built) -> Found {
    let start = std::time::Instant::now();
    let found = walk(&built.snapshot()).expect("a heap");
    check_promises(&found);
    assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
    found
}

#[test]
fn a_huge_mapping_at_each_page_does_not_make_each_page_be_searched_from_each() {
    let (_, mut built) = sound();
    let (base, size) = (MAPPED + 64 * MIB, 256 * MIB);
    built.memory.add(base, size);
    for page in (base..base + size).step_by(4096) {
        // It reaches over the end of the region, and so looks as if it had been shrunk.
        built.memory.set_word(page + 8, size | IS_MMAPPED);
    }
    walk_hostile(&built);
}

#[test]
fn long_walks_that_lead_nowhere_are_not_tried_from_each_place() {
    let (release, mut built) = sound();
    // The segment of `brk` is fenced, and behind it each 16 bytes start a walk to the end.
    built.memory.set_word(BRK + 0x290 + 8, 0x11);
    built.memory.set_word(BRK + 0x2a0 + 8, 0x11);
    let base = BRK + HEAP_SIZE;
    built.memory.add(base, 32 * MIB);
    for at in (base..base + 32 * MIB - 0x100).step_by(16) {
        built.memory.set_word(at + 8, 0x21);
    }
    // The arena's segments are elsewhere, and there it is the same with each page.
    let elsewhere = MAPPED + 64 * MIB;
    built.memory.add(elsewhere, 64 * MIB);
    for at in (elsewhere..elsewhere + 64 * MIB - 0x100).step_by(32) {
        built.memory.set_word(at + 8, 0x21);
    }
    let top = MAIN_ARENA + release.arena.top();
    built.memory.set_word(top, 0x1000);
    built
        .memory
        .set_word(MAIN_ARENA + release.arena.system_mem(), 1 << 40);
    built
        .memory
        .set_word(MAIN_ARENA + release.arena.max_system_mem(), 1 << 40);
    let found = walk_hostile(&built);
    let is_size = |problem: &Problem| matches!(problem, Problem::SystemMemory(..));
    assert!(found.problems.iter().any(is_size));
}

#[test]
fn caches_that_share_a_long_list_do_not_follow_it_each() {
    let release = releases()[5];
    // Chunks of 0x20 that are all on one list, and many that look like caches of this list.
    let (links, caches) = (0x1_0000_u64, 20_000);
    let (_, mut built) = sound();
    let size = links * 0x20 + caches * 0x290;
    let base = OTHER_HEAP + 0x2_1000;
    built.memory.add(base, size);
    built.memory.set_word(OTHER_HEAP + 16, 0x2_1000 + size);
    built.memory.set_word(OTHER_HEAP + 24, 0x2_1000 + size);
    let arena = OTHER_HEAP + release.heap_info;
    let top = built.memory.word(Addr(arena + release.arena.top()));
    let top = top.expect("a top");
    built.memory.set_word(top + 8, (base - top) | 5);
    for link in 0..links {
        let chunk = base + link * 0x20;
        let next = chunk + 0x20 + HEADER;
        built.memory.set_word(chunk + 8, 0x25);
        built.memory.set_word(chunk + 16, next ^ (chunk + 16) >> 12);
    }
    for cache in 0..caches {
        let chunk = base + links * 0x20 + cache * 0x290;
        built.memory.set_word(chunk + 8, 0x295);
        built.memory.set_word(chunk + 16, 0xffff);
        built.memory.set_word(chunk + 16 + 128, base + HEADER);
    }
    walk_hostile(&built);
}

#[test]
fn lists_and_rings_that_never_end_are_given_up() {
    let (release, built) = sound();
    // A fastbin whose chunk links to itself.
    let mut cyclic = built.clone();
    let chunk = BRK + 0x290 + 0x30;
    let block = chunk + HEADER;
    cyclic.memory.set_word(block, chunk ^ block >> 12);
    let problems = walk_hostile(&cyclic).problems;
    assert_eq!(problems, [Problem::CacheList(Addr(MAIN_ARENA))]);
    // A heap whose previous heap is itself, and which is not that of the arena.
    let mut cyclic = built.clone();
    let second = OTHER_HEAP + (4 << 30);
    let arena = OTHER_HEAP + release.heap_info;
    cyclic.memory.add(second, PAGE);
    for (offset, word) in [(0, arena), (8, second), (16, PAGE), (24, PAGE)] {
        cyclic.memory.set_word(second + offset, word);
    }
    let top = arena + release.arena.top();
    cyclic.memory.set_word(top, second + 0x800);
    let problems = walk_hostile(&cyclic).problems;
    assert!(problems.contains(&Problem::NoHeapForArena(Addr(arena))));
    // A ring of arenas that does not lead back to its main arena.
    let mut cyclic = built.clone();
    cyclic.memory.set_word(arena + release.arena.next(), arena);
    assert!(walk(&cyclic.snapshot()).is_none());
}

#[test]
fn sizes_near_the_end_of_the_address_space_own_nothing_but_the_heap() {
    let (release, built) = sound();
    let all: RangeSet = built.snapshot().regions.iter().map(|r| r.range).collect();
    let arena = OTHER_HEAP + release.heap_info;
    let top_of = |at| {
        built
            .memory
            .word(Addr(at + release.arena.top()))
            .expect("a top")
    };
    for at in [
        top_of(MAIN_ARENA) + 8,
        top_of(arena) + 8,
        OTHER_HEAP + 16,
        OTHER_HEAP + 24,
        PARAMS_AT + release.params.mmapped_mem,
        PARAMS_AT + release.params.tcache_count().expect("a tcache"),
        MAIN_ARENA + release.arena.system_mem(),
        MAPPED + 8,
    ] {
        for value in [u64::MAX, !7, !15, i64::MAX.cast_unsigned(), !0xfff | 1] {
            let mut built = built.clone();
            built.memory.set_word(at, value);
            let Some(found) = walk(&built.snapshot()) else {
                continue;
            };
            check_promises(&found);
            for range in found.heap.owned.ranges() {
                assert_eq!(all.gaps(*range), [], "{at:#x} {value:#x}");
            }
        }
    }
}
