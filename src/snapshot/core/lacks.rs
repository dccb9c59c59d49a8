//! What a core file lacks, and which way that biases the result.

use super::CoreFile;
use crate::addr::{Addr, AddrRange, RangeSet};
use crate::memory::Memory;
use crate::snapshot::{Module, Region, Thread, dynamic_symbols};
use crate::warning::{Bias, Warning};

/// Functions by which a program gives the kernel words to keep: those of epoll, of timers, of `io_uring`.
const KEEPERS: [&str; 5] = [
    "epoll_ctl",
    "timer_create",
    "io_uring_queue_init",
    "io_uring_queue_init_params",
    "io_uring_setup",
];

/// The warnings for `core`; `images` has the symbol tables of `modules`.
pub(super) fn warnings(
    core: &CoreFile,
    (regions, threads): (&[Region], &[Thread]),
    modules: &[Module],
    images: &dyn Memory,
) -> Vec<Warning> {
    let warnings = [
        cut_short(core),
        unsaved(core, regions),
        unsaved_shared(core, regions),
        without_registers(core),
        without_thread_pointers(threads),
        kept_by_the_kernel(modules, images),
    ];
    warnings.into_iter().flatten().collect()
}

fn cut_short(core: &CoreFile) -> Option<Warning> {
    let missing = core.missing_bytes();
    (missing > 0).then(|| {
        Warning::new(
            "core_cut_short",
            format!(
                "the core file is cut short: {missing} bytes of the process's memory are missing (a limit \
                 of the size of core files, or a full disk): what only they reference is reported as leaked"
            ),
            Bias::FalseLeaks,
        )
    })
}

/// Memory that `is_meant` and that the file does not have: its size, and where it begins.
fn lacking(
    core: &CoreFile,
    regions: &[Region],
    is_meant: impl Fn(&Region) -> bool,
) -> Option<(u64, Addr)> {
    let wanted = core.segments.iter().filter(|segment| segment.wanted > 0);
    let wanted: RangeSet = wanted
        .map(|segment| AddrRange::with_size(segment.range.start, segment.wanted))
        .collect();
    let meant = regions
        .iter()
        .filter(|region| region.readable && is_meant(region));
    let gaps: Vec<AddrRange> = meant.flat_map(|region| wanted.gaps(region.range)).collect();
    let first = gaps.first()?.start;
    let bytes = gaps.iter().map(AddrRange::size);
    Some((bytes.fold(0, u64::saturating_add), first))
}

fn unsaved(core: &CoreFile, regions: &[Region]) -> Option<Warning> {
    let is_data = |region: &Region| region.is_private_anonymous_data();
    let (bytes, first) = lacking(core, regions, is_data)?;
    Some(Warning::new(
        "core_memory_unsaved",
        format!(
            "{} KiB of writable memory, the first of it at {first}, are not in the core file: the process \
             had never written there, or it was kept out (coredump_filter, MADV_DONTDUMP): what only that \
             memory references is reported as leaked",
            bytes >> 10
        ),
        Bias::FalseLeaks,
    ))
}

fn unsaved_shared(core: &CoreFile, regions: &[Region]) -> Option<Warning> {
    let is_shared = |region: &Region| region.shared && region.writable;
    let (bytes, first) = lacking(core, regions, is_shared)?;
    Some(Warning::new(
        "core_shared_unsaved",
        format!(
            "{} KiB of shared memory, the first of it at {first}, are not in the core file \
             (coredump_filter): what only that memory references is reported as leaked",
            bytes >> 10
        ),
        Bias::FalseLeaks,
    ))
}

fn without_registers(core: &CoreFile) -> Option<Warning> {
    let mut notes = core.notes.iter();
    let has_threads = notes.any(|note| (note.owner, note.kind) == ("CORE", 1));
    (!has_threads).then(|| {
        Warning::new(
            "core_without_registers",
            "the core file has no threads: what only their registers reference is reported as leaked",
            Bias::FalseLeaks,
        )
    })
}

/// Without them nothing tells which stacks belong to threads that have ended, and what is dead of others.
fn without_thread_pointers(threads: &[Thread]) -> Option<Warning> {
    let lacking = threads
        .iter()
        .filter(|thread| thread.thread_pointer == Addr(0));
    let count = lacking.count();
    (count > 0).then(|| {
        Warning::new(
            "core_without_thread_pointers",
            format!(
                "the core file does not say where thread-local storage is, of {count} of the threads: what \
                 dead parts of stacks reference counts as in use"
            ),
            Bias::MissedLeaks,
        )
    })
}

/// No core file has what the kernel keeps for a process; a program that never asks it to has nothing
/// there.
fn kept_by_the_kernel(modules: &[Module], images: &dyn Memory) -> Option<Warning> {
    let mut is_static = true;
    let mut keeper = None;
    for module in modules.iter().filter(|module| module.path != "[vdso]") {
        let symbols = dynamic_symbols(images, module);
        is_static &= symbols.is_empty();
        let mut imports = symbols.into_iter().filter(|symbol| !symbol.is_defined);
        keeper = keeper.or_else(|| imports.find(|symbol| KEEPERS.contains(&symbol.name.as_str())));
    }
    if keeper.is_none() && !is_static {
        return None;
    }
    let calls = keeper.map_or_else(String::new, |symbol| format!(" (it calls {})", symbol.name));
    Some(Warning::new(
        "core_kernel_values",
        format!(
            "a core file does not have the words that the kernel keeps for a process, such as the data of \
             epoll and of timers{calls}: what only they reference is reported as leaked; a snapshot of \
             rleaks has them (--output-graph)"
        ),
        Bias::FalseLeaks,
    ))
}
