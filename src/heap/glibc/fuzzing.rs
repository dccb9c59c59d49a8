//! A fuzz target: heaps of glibc in which words were overwritten.

use super::testing::{Built, Change, Contents, Fate, Mutation, check_promises, releases};
use super::walk;
use crate::fuzzing::Input;

/// The walkers: builds the heap that `input` describes, damages it as it says, and walks it.
///
/// A heap that nothing was done to must be found as it is.
pub fn walkers(input: &[u8]) {
    let mut input = Input::new(input);
    let (built, is_damaged) = heap(&mut input);
    let Some(found) = walk(&built.snapshot()) else {
        assert!(is_damaged);
        return;
    };
    check_promises(&found);
    if !is_damaged {
        assert_eq!(found.problems, []);
        assert!(found.heap.blocks.iter().eq(built.live));
    }
}

/// A heap, and whether any word of it was changed.
pub(crate) fn heap(input: &mut Input<'_>) -> (Built, bool) {
    let releases = releases();
    let release = releases[input.index(1) % releases.len()];
    let contents = Contents {
        main: chunks(input),
        other: chunks(input),
        mapped: (0..input.byte() % 4).map(|_| mapping(input)).collect(),
    };
    let mut built = Built::new(release, &contents);
    let before = built.memory.clone();
    while !input.is_empty() {
        built.memory.mutate(mutation(input));
    }
    let is_damaged = before
        .0
        .iter()
        .zip(&built.memory.0)
        .any(|(a, b)| a.bytes != b.bytes);
    (built, is_damaged)
}

fn chunks(input: &mut Input<'_>) -> Vec<(u64, Fate)> {
    let chunk = |input: &mut Input<'_>| {
        let fate = match input.byte() % 4 {
            0 => Fate::Used,
            1 => Fate::Free,
            2 => Fate::InTcache,
            _ => Fate::InFastbin,
        };
        (input.number(1) % 70, fate)
    };
    (0..input.byte() % 60).map(|_| chunk(input)).collect()
}

fn mapping(input: &mut Input<'_>) -> (u64, Option<u32>) {
    let power = u32::from(input.byte() % 16);
    (
        4 + input.number(1) % 8,
        (6..14).contains(&power).then_some(power),
    )
}

/// Eleven bytes: which word, and what is done to it.
fn mutation(input: &mut Input<'_>) -> Mutation {
    let (kind, part, word) = (input.byte(), input.index(1), input.number(2));
    let value = input.number(7);
    // What 56 bits do not have: addresses and sizes do without.
    let high = if kind & 0x80 != 0 { 0xff << 56 } else { 0 };
    let change = match kind % 5 {
        0 => Change::Set(value | high),
        1 => Change::Flip(u32::try_from(value % 64).expect("small")),
        2 => Change::Add(i64::from(value.to_le_bytes()[0].cast_signed())),
        3 => Change::Copy(value),
        _ => Change::PointTo(value),
    };
    Mutation { part, word, change }
}

#[cfg(test)]
#[test]
fn the_corpus_of_walkers_is_harmless() {
    crate::fuzzing::run_corpus("walkers", walkers);
}
