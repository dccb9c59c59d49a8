//! From leaks as the scan found them to the report.

use std::time::Duration;

use rayon::prelude::*;
use rustc_hash::{FxHashMap, FxHashSet};

use super::call_stacks::CallStacks;
use super::group::groups;
use super::hex::Offset;
use super::leaks::{Allocated, Leaks, NONE, Row};
use super::model::{
    Capture, CaptureMethod, HeapTotals, Module, Report, SCHEMA_VERSION, Stack, StackLog,
    StackLogMode, Summary, Target, TargetKind, Zone,
};
use super::named_code::CodeImages;
use super::time::rfc3339;
use crate::heap::{Block, Heap};
use crate::memory::Width;
use crate::platform::signal_name;
use crate::scan::{self, LeakKind, Link};
use crate::snapshot::{self, Method, Snapshot, Source};
use crate::stacklog::{Allocations, LogHeader, LogMode};
use crate::symbolize::Described;

/// What a malloc stack log adds to a report.
#[derive(Clone, Copy, Debug)]
pub struct Logged<'a> {
    /// What the log says of itself.
    pub header: &'a LogHeader,
    /// What it knows of the leaks, by the index of their block.
    pub allocations: &'a Allocations,
    /// Their stacks; `None` where nobody wants to see them.
    pub stacks: Option<&'a CallStacks>,
    /// The images that their frames are in.
    pub images: &'a CodeImages,
}

impl Report {
    /// Builds the report of `leaks`, which name blocks of `heap`. `described` is what they are, in
    /// their order; `logged` is what the target recorded. `total` is how long rleaks has worked.
    ///
    /// The warnings are the snapshot's: add to `warnings` what later steps could not do.
    #[must_use]
    pub fn new(
        snapshot: &Snapshot,
        heap: &Heap,
        leaks: Vec<scan::Leak>,
        described: Described,
        logged: Option<Logged<'_>>,
        total: Duration,
    ) -> Self {
        let mut leaks = report_leaks(heap, leaks, described, logged);
        let stacks = shown_stacks(&mut leaks, logged);
        let stack_log = logged.map_or_else(StackLog::default, |logged| stack_log(logged.header));
        Self {
            schema_version: SCHEMA_VERSION,
            rleaks_version: env!("CARGO_PKG_VERSION").to_owned(),
            target: target(snapshot),
            capture: capture(&snapshot.capture, snapshot.threads.len() as u64, total),
            zones: zones(heap),
            heap: HeapTotals {
                blocks: heap.blocks.len() as u64,
                bytes: heap.bytes(),
            },
            summary: summary(&leaks),
            groups: groups(&leaks, stack_log.sample_bytes),
            leaks,
            modules: modules(logged, &stacks),
            stacks,
            stack_log,
            comparison: None,
            warnings: snapshot.warnings.clone(),
        }
    }
}

fn target(snapshot: &Snapshot) -> Target {
    let process = &snapshot.process;
    Target {
        kind: match snapshot.source {
            Source::Process => TargetKind::Process,
            Source::Snapshot => TargetKind::Snapshot,
            Source::Core => TargetKind::Core,
        },
        pid: Some(process.pid).filter(|pid| *pid != 0),
        name: process.name.clone(),
        executable: process.executable.clone(),
        command_line: process.command_line.clone(),
        command_status: None,
        signal: process.signal.map(signal_name),
        // A living process runs on this machine.
        os: std::env::consts::OS.to_owned(),
        arch: snapshot.machine.name().to_owned(),
        pointer_size: match snapshot.width {
            Width::Four => 4,
            Width::Eight => 8,
        },
        started_milliseconds: process
            .started
            .and_then(|t| u64::try_from(t.as_millis()).ok()),
        address_space: address_space(&snapshot.auxv),
    }
}

/// A digest of the auxiliary vector: the kernel puts stack, loader and vdso at random addresses, and
/// says in it where.
fn address_space(auxv: &[(u64, u64)]) -> Option<Offset> {
    const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const FNV_PRIME: u64 = 0x0100_0000_01b3;
    let words = auxv.iter().flat_map(|(kind, value)| [*kind, *value]);
    let mut bytes = words.flat_map(u64::to_le_bytes).peekable();
    bytes.peek()?;
    let digest = bytes.fold(FNV_OFFSET, |digest, byte| {
        (digest ^ u64::from(byte)).wrapping_mul(FNV_PRIME)
    });
    Some(Offset(digest))
}

fn capture(capture: &snapshot::Capture, threads: u64, total: Duration) -> Capture {
    Capture {
        taken_at: rfc3339(capture.taken_at),
        method: match capture.method {
            Method::Copy => CaptureMethod::Copy,
            Method::Stream => CaptureMethod::Stream,
            Method::Fork => CaptureMethod::Fork,
            Method::File => CaptureMethod::File,
        },
        stops: capture.stops,
        pause_seconds: known_pause(capture).map(|pause| pause.as_secs_f64()),
        longest_pause_seconds: capture.longest_pause.as_secs_f64(),
        total_seconds: total.as_secs_f64(),
        threads,
        memory_bytes: capture.memory_bytes,
        content: capture.content,
    }
}

/// The sum of all stops, or `None` while a target that is read in place has not run again.
fn known_pause(capture: &snapshot::Capture) -> Option<Duration> {
    let is_known = match capture.method {
        Method::Copy | Method::Fork => true,
        Method::Stream => !capture.pause.is_zero(),
        Method::File => false,
    };
    is_known.then_some(capture.pause)
}

fn zones(heap: &Heap) -> Vec<Zone> {
    (0..)
        .zip(&heap.zones)
        .map(|(id, zone)| Zone {
            id,
            name: zone.name.clone(),
            allocator: zone.allocator.clone(),
            blocks: zone.blocks,
            bytes: zone.bytes,
        })
        .collect()
}

fn stack_log(header: &LogHeader) -> StackLog {
    StackLog {
        mode: match header.mode {
            LogMode::Lite => StackLogMode::Lite,
            LogMode::Full => StackLogMode::Full,
        },
        dropped: header.dropped(),
        sample_bytes: header.sample_bytes,
        cut_stacks: header.cut_stacks,
    }
}

/// The images that the frames of `stacks` are in.
fn modules(logged: Option<Logged<'_>>, stacks: &[Stack]) -> Vec<Module> {
    let frames = stacks.iter().flat_map(|stack| &stack.frames);
    let used: FxHashSet<&str> = frames.filter_map(|frame| frame.module.as_deref()).collect();
    let modules = logged
        .into_iter()
        .flat_map(|logged| logged.images.modules());
    let used = modules.filter(|module| used.contains(module.path.as_str()));
    let mut modules: Vec<Module> = used.collect();
    modules.sort_unstable_by(|a, b| (&a.path, &a.build_id).cmp(&(&b.path, &b.build_id)));
    modules.dedup();
    modules
}

/// The leaks as the report has them, but for the ids of their stacks: those are still the log's numbers.
fn report_leaks(
    heap: &Heap,
    leaks: Vec<scan::Leak>,
    described: Described,
    logged: Option<Logged<'_>>,
) -> Leaks {
    let allocations: Option<Vec<Allocated>> = logged.map(|logged| {
        let leaks = leaks.par_iter();
        leaks
            .map(|leak| allocated(logged.allocations, leak))
            .collect()
    });
    let Described {
        numbers,
        descriptions,
    } = described;
    let rows = leaks.into_par_iter().zip(numbers);
    let rows = rows.map(|(leak, description)| row(heap, &leak, description));
    Leaks::new(
        rows.collect(),
        allocations.unwrap_or_default(),
        descriptions,
    )
}

fn row(heap: &Heap, leak: &scan::Leak, description: u32) -> Row {
    let Block { start, size } = heap.blocks.block(leak.block);
    // Rows have the numbers of the leaks that they are made of.
    let row_of = |leak: Link| leak.get().unwrap_or(NONE);
    Row {
        address: start,
        size,
        held_bytes: leak.held_bytes,
        held_blocks: leak.held_blocks,
        parent: row_of(leak.parent),
        tree_parent: row_of(leak.tree_parent),
        description,
        // A walker names the zone of every address that it has blocks at. Should it not, a zone
        // that is wrong is better than no report: no leak depends on it.
        zone: heap.zone_at(start).unwrap_or(0),
        kind: leak.kind,
    }
}

fn allocated(allocations: &Allocations, leak: &scan::Leak) -> Allocated {
    let Some(allocation) = allocations.of_block(leak.block) else {
        return Allocated::NOTHING;
    };
    Allocated {
        requested: allocation.requested,
        milliseconds: allocation.milliseconds(),
        stack: allocation.stack.unwrap_or(NONE),
        thread: allocation.thread,
    }
}

/// The stacks of the report, with ids in the order in which `leaks` name them: they name them by these
/// ids from here on.
fn shown_stacks(leaks: &mut Leaks, logged: Option<Logged<'_>>) -> Vec<Stack> {
    let mut shown: Vec<Stack> = Vec::new();
    // The log's numbers, and the ids.
    let mut ids: FxHashMap<u32, Option<u32>> = FxHashMap::default();
    leaks.rename_stacks(|number| {
        *ids.entry(number).or_insert_with(|| {
            let stack = logged?.stacks?.get(number)?;
            let id = u32::try_from(shown.len()).ok()?;
            shown.push(Stack {
                id,
                frames: stack.frames.clone(),
                cut: stack.is_cut,
            });
            Some(id)
        })
    });
    shown
}

/// Counts leaks.
pub(super) fn summary(leaks: &Leaks) -> Summary {
    let mut summary = Summary::default();
    for leak in leaks.iter() {
        summary.leaked_blocks += 1;
        summary.leaked_bytes = summary.leaked_bytes.saturating_add(leak.size());
        match leak.kind() {
            LeakKind::RootLeak => summary.root_leaks += 1,
            // The lowest block stands for the cycle.
            LeakKind::RootCycle => summary.root_cycles += u64::from(leak.row_above().is_none()),
            LeakKind::Indirect => summary.indirect += 1,
        }
    }
    summary
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::LeakRef;
    use crate::report::fixture::{clean, heap, leak, leaky, report, snapshot};
    use crate::symbolize::Description;

    #[test]
    fn what_holds_most_comes_first_and_equals_go_by_address() {
        let leaks = [
            leak(0, LeakKind::RootLeak, None),
            leak(1, LeakKind::RootLeak, None),
            scan::Leak {
                held_bytes: 40,
                ..leak(2, LeakKind::RootLeak, None)
            },
            leak(3, LeakKind::RootLeak, None),
        ];
        let report = report(&heap(&[16, 32, 8, 32]), &leaks, |_| Description::default());
        let sizes: Vec<_> = report.leaks.iter().map(LeakRef::size).collect();
        assert_eq!(sizes, [8, 32, 32, 16]);
        let addresses: Vec<_> = report.leaks.iter().map(LeakRef::address).collect();
        assert!(addresses[1] < addresses[2]);
    }

    #[test]
    fn a_cycle_counts_once_and_each_of_its_blocks_is_leaked() {
        let summary = leaky().summary;
        assert_eq!(summary.root_cycles, 1);
        assert_eq!(summary.root_leaks, 8);
        assert_eq!(summary.indirect, 3);
        assert_eq!(summary.leaked_blocks, 13);
    }

    #[test]
    fn leaks_decide_the_exit_status() {
        assert!(leaky().has_leaks());
        assert!(!clean().has_leaks());
    }

    #[test]
    fn the_pause_of_a_target_that_is_still_stopped_is_not_known() {
        let mut snapshot = snapshot();
        snapshot.capture.method = Method::Stream;
        snapshot.capture.pause = Duration::ZERO;
        let described = Described::default();
        let heap = heap(&[]);
        let report = Report::new(
            &snapshot,
            &heap,
            Vec::new(),
            described,
            None,
            Duration::ZERO,
        );
        assert_eq!(report.capture.pause_seconds, None);
    }
}
