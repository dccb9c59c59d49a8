//! What of a target's memory is kept whatever it holds.

use crate::addr::{Addr, AddrRange, RangeSet};
use crate::heap::{Heap, Metadata, glibc};
use crate::scan::thread_words;
use crate::snapshot::{ContentLevel, Snapshot};
use crate::stacklog::StackLog;

/// The top of a stack in which code is looked for that tells whether a thread is inside malloc, in
/// words.
const STACK_TOP: u64 = 256;

/// What decides what is kept.
#[derive(Clone, Copy, Debug)]
pub struct Sources<'a> {
    /// The snapshot.
    pub snapshot: &'a Snapshot,
    /// Its live blocks.
    pub heap: &'a Heap,
    /// Its malloc stack log, if it has one that can be used.
    pub log: Option<&'a StackLog>,
    /// What the search for allocators reads of the modules: the loader's lists and symbols.
    pub modules_read: &'a RangeSet,
}

/// What is kept whatever it holds, and the values that are kept wherever they are.
#[derive(Clone, Debug, Default)]
pub struct Kept {
    /// Memory that is kept as it is.
    pub(super) whole: RangeSet,
    /// Single words that are, in ascending order.
    pub(super) words: Vec<Addr>,
    /// Values that are kept, sorted: addresses that lead to what is kept.
    pub(super) values: Vec<u64>,
    /// The modules' segments: a block's first word that points there says what the block is.
    pub(super) modules: RangeSet,
    /// The modules' code, and the parts of stacks in which words that point there are kept.
    pub(super) code: RangeSet,
    pub(super) stack_tops: RangeSet,
    /// Memory of allocators that is no live block: nothing else of it is kept.
    pub(super) owned: RangeSet,
}

impl Kept {
    /// What is kept at `level`.
    #[must_use]
    pub fn new(sources: &Sources<'_>, level: ContentLevel) -> Self {
        let Sources {
            snapshot,
            heap,
            log,
            modules_read,
        } = *sources;
        let metadata = glibc::metadata(snapshot).unwrap_or_default();
        let threads = thread_words(snapshot);
        let mut whole: Vec<AddrRange> = modules_read.ranges().to_vec();
        whole.extend(&metadata.structures);
        whole.extend(log.iter().flat_map(|log| log.own_memory().ranges()));
        whole.extend(log.map(StackLog::header_range));
        if level == ContentLevel::Readonly {
            whole.extend(read_only(snapshot));
        }
        let Metadata {
            mut words,
            addresses,
            ..
        } = metadata;
        words.extend(threads.words);
        words.sort_unstable();
        let values = addresses.iter().chain(&threads.addresses);
        let mut values: Vec<u64> = values.map(|addr| addr.0).collect();
        values.sort_unstable();
        values.dedup();
        let segments = || snapshot.modules.iter().flat_map(|module| &module.segments);
        let code = segments().filter(|segment| segment.executable);
        Self {
            whole: whole.into_iter().collect(),
            words,
            values,
            modules: segments().map(|segment| segment.range).collect(),
            code: code.map(|segment| segment.range).collect(),
            stack_tops: stack_tops(snapshot),
            owned: heap.owned.clone(),
        }
    }
}

/// Memory of files that the target cannot write.
fn read_only(snapshot: &Snapshot) -> impl Iterator<Item = AddrRange> + '_ {
    let regions = snapshot.regions.iter();
    regions
        .filter(|region| !region.writable && !region.is_anonymous())
        .map(|region| region.range)
}

fn stack_tops(snapshot: &Snapshot) -> RangeSet {
    let size = STACK_TOP.saturating_mul(snapshot.width.bytes());
    let threads = snapshot.threads.iter();
    threads
        .map(|thread| AddrRange::with_size(thread.stack_pointer, size))
        .collect()
}
