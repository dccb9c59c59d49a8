//! Heaps, and damage to them, for tests of properties.

use proptest::prelude::*;

use super::testing::{Change, Contents, Fate, Mutation};

/// Any contents that fit the regions of a [`Built`] heap.
pub(crate) fn contents() -> impl Strategy<Value = Contents> {
    let fate = prop_oneof![
        Just(Fate::Used),
        Just(Fate::Free),
        Just(Fate::InTcache),
        Just(Fate::InFastbin),
    ];
    let chunks = prop::collection::vec((0_u64..70, fate), 0..60);
    let mapped = prop::collection::vec((4_u64..12, prop::option::of(6_u32..14)), 0..4);
    (chunks.clone(), chunks, mapped).prop_map(|(main, other, mapped)| Contents {
        main,
        other,
        mapped,
    })
}

/// Up to 20 changes anywhere, more of them where there is more to break.
pub(crate) fn mutations() -> impl Strategy<Value = Vec<Mutation>> {
    let change = prop_oneof![
        any::<u64>().prop_map(Change::Set),
        (0_u64..0x1_0000).prop_map(Change::Set),
        prop_oneof![Just(0), Just(u64::MAX), Just(!7), Just(1 << 63)].prop_map(Change::Set),
        (0_u32..64).prop_map(Change::Flip),
        (-64_i64..64).prop_map(Change::Add),
        any::<u64>().prop_map(Change::Copy),
        any::<u64>().prop_map(Change::PointTo),
    ];
    // Most of what is in the parts lies in the first pages of each.
    let word = prop_oneof![0_u64..0x100, 0_u64..0x1000, any::<u64>()];
    let mutation = (0_usize..5, word, change);
    let mutation = mutation.prop_map(|(part, word, change)| Mutation { part, word, change });
    prop::collection::vec(mutation, 1..=20)
}
