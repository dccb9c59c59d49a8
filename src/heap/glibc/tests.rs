//! Walks of whole heaps, sound and damaged.

use proptest::prelude::*;

use super::testing::{Built, contents, mutations, releases};
use super::{Found, walk};
use crate::addr::RangeSet;

fn check_promises(found: &Found) {
    let heap = &found.heap;
    for pair in heap.blocks.windows(2) {
        assert!(pair[0].range().end <= pair[1].start, "{pair:x?}");
    }
    for pair in heap.zone_ranges.windows(2) {
        assert!(pair[0].0.end <= pair[1].0.start, "{pair:x?}");
    }
    let zones: RangeSet = heap.zone_ranges.iter().map(|(range, _)| *range).collect();
    for block in &heap.blocks {
        let range = block.range();
        let owned = heap.owned.containing(block.start);
        assert!(
            owned.is_some_and(|owned| owned.covers(&range)),
            "{block:x?}"
        );
        assert!(zones.contains(block.start), "{block:x?}");
    }
}

proptest! {
    #[test]
    fn a_walk_finds_exactly_the_live_blocks(contents in contents()) {
        for release in releases() {
            let built = Built::new(release, &contents);
            let found = walk(&built.snapshot()).expect("a heap");
            prop_assert_eq!(&found.problems, &[], "{:?}", release);
            prop_assert_eq!(&found.heap.blocks, &built.live, "{:?}", release);
            check_promises(&found);
        }
    }

    #[test]
    fn a_damaged_heap_keeps_the_promises(contents in contents(), mutations in mutations()) {
        for release in releases() {
            let mut built = Built::new(release, &contents);
            for mutation in &mutations {
                built.memory.mutate(*mutation);
            }
            if let Some(found) = walk(&built.snapshot()) {
                check_promises(&found);
            }
        }
    }
}
