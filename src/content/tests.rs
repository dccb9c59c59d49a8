//! Heaps with random contents, reduced.

use proptest::prelude::*;

use super::*;
use crate::addr::{Addr, RangeSet};
use crate::heap::glibc;
use crate::heap::glibc::strategies::contents;
use crate::heap::glibc::testing::{Built, releases};
use crate::memory::Memory;
use crate::snapshot::{ContentLevel, Snapshot};

/// All memory of `snapshot` as it is after the reduction, page by page.
fn reduced(snapshot: &Snapshot, read: impl Fn(&dyn Memory)) -> glibc::Found {
    let found = glibc::walk(snapshot).unwrap_or_default();
    let sources = Sources {
        snapshot,
        heap: &found.heap,
        log: None,
        modules_read: &RangeSet::default(),
    };
    let kept = Kept::new(&sources, ContentLevel::None);
    let blocks = &found.heap.blocks;
    read(&ReducedMemory::new(
        &*snapshot.memory,
        snapshot.width,
        blocks,
        &kept,
    ));
    found
}

/// The words of all regions of `snapshot`, read through `memory`, with their addresses.
fn words(snapshot: &Snapshot, memory: &dyn Memory) -> Vec<(Addr, u64)> {
    let width = snapshot.width;
    let mut words = Vec::new();
    for region in &snapshot.regions {
        for part in memory.resident(region.range) {
            let mut bytes = vec![0; usize::try_from(part.size()).expect("small")];
            let count = memory.read(part.start, &mut bytes);
            let addresses = (part.start.0..).step_by(width.size()).map(Addr);
            words.extend(addresses.zip(width.words(&bytes[..count])));
        }
    }
    words
}

/// A memory of words that were read.
struct Copy {
    words: std::collections::BTreeMap<u64, u8>,
}

impl Memory for Copy {
    fn read(&self, addr: Addr, buf: &mut [u8]) -> usize {
        let bytes = (addr.0..).map_while(|at| self.words.get(&at));
        buf.iter_mut()
            .zip(bytes)
            .map(|(to, from)| *to = *from)
            .count()
    }

    fn resident(&self, range: crate::addr::AddrRange) -> Vec<crate::addr::AddrRange> {
        let known: RangeSet = self
            .words
            .range(range.start.0..range.end.0)
            .map(|(at, _)| crate::addr::AddrRange::with_size(Addr(*at), 1))
            .collect();
        known.ranges().to_vec()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Random heaps of all releases: the walk of what is left finds the same blocks.
    #[test]
    fn the_heap_is_the_same_without_content(
        release in prop::sample::select(releases()),
        contents in contents(),
    ) {
        let built = Built::new(release, &contents);
        let mut snapshot = built.snapshot();
        let mut left = Vec::new();
        let mut before = Vec::new();
        let whole = words(&snapshot, &*snapshot.memory);
        let cell = std::cell::RefCell::new(Vec::new());
        let found = reduced(&snapshot, |memory| cell.borrow_mut().extend(words(&snapshot, memory)));
        left.extend(cell.into_inner());
        before.extend(whole);
        // Each word is what it was, or nothing.
        for ((at, was), (other, is)) in before.iter().zip(&left) {
            prop_assert_eq!(at, other);
            prop_assert!(*is == 0 || is == was, "{} {:#x} {:#x}", at, was, is);
        }
        // A word in a block that is left is a reference.
        let blocks = &found.heap.blocks;
        let is_in_block = |at: Addr| blocks.find(at.0).is_some();
        for (at, is) in left.iter().filter(|(at, is)| *is != 0 && is_in_block(*at)) {
            let leads = blocks.find(*is).is_some() || !found.heap.owned.contains(*at)
                || snapshot.module_at(Addr(*is)).is_some() || found.heap.owned.contains(Addr(*is));
            prop_assert!(leads, "{at} {is:#x}");
        }
        let size = snapshot.width.size();
        let bytes = left.iter().flat_map(|(at, word)| {
            let bytes = word.to_le_bytes().into_iter().take(size);
            (at.0..).zip(bytes).collect::<Vec<_>>()
        });
        snapshot.memory = Box::new(Copy { words: bytes.collect() });
        let again = glibc::walk(&snapshot).unwrap_or_default();
        prop_assert_eq!(again.heap, found.heap);
        prop_assert_eq!(again.problems, found.problems);
    }
}
