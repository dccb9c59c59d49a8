//! Who allocated the leaks: what the malloc stack log says of them, with names.

use super::args::OutputArgs;
use super::capture::Captured;
use crate::heap::{Heap, Recorded};
use crate::platform::TargetFiles;
use crate::report::{CallStacks, CodeImages, NamedCode};
use crate::scan::{self, Graph, Leak, LeakSummary, Marks};
use crate::snapshot::Snapshot;
use crate::stacklog::{Allocations, LogError, Records, StackLog};
use crate::symbolize::{Detail, Starts};
use crate::warning::{Bias, Warning};

/// Reads what the log of the captured target knows of `leaks`. Where log and heap differ, that is a
/// warning; a log that is damaged is left aside, with one.
pub(super) fn allocations(captured: &mut Captured, leaks: &[Leak]) -> Option<Allocations> {
    let log = captured.log.as_ref()?;
    match read(captured, log, leaks) {
        Ok((allocations, warnings)) => {
            captured.snapshot.warnings.extend(warnings);
            Some(allocations)
        }
        Err(error) => {
            captured.snapshot.warnings.push(error.warning());
            captured.log = None;
            None
        }
    }
}

fn read(
    captured: &Captured,
    log: &StackLog,
    leaks: &[Leak],
) -> Result<(Allocations, Vec<Warning>), LogError> {
    let memory = &*captured.snapshot.memory;
    let records = Records::read(log, memory)?;
    let recorded = Recorded::find(&captured.heap, &records)?;
    let record = |leak: &Leak| {
        let block = usize::try_from(leak.block).ok()?;
        Some((leak.block, recorded.record(block)?))
    };
    let leaks: Vec<(u32, u32)> = leaks.iter().filter_map(record).collect();
    let allocations = Allocations::read(log, &records, memory, &leaks)?;
    let mut warnings = log.warnings();
    warnings.extend(recorded.differences(&captured.snapshot, log, &captured.exporters));
    Ok((allocations, warnings))
}

/// Names the frames of the stacks of `allocations`, and warns of what could not be read. The files
/// are handed back.
pub(super) fn named(
    allocations: &Allocations,
    snapshot: &mut Snapshot,
    files: TargetFiles,
    output: &OutputArgs,
) -> (CallStacks, CodeImages, TargetFiles) {
    if output.no_stacks && output.exclude.is_empty() {
        return (CallStacks::default(), CodeImages::default(), files);
    }
    let (stacks, images, files, warnings) = resolve(allocations, snapshot, files, output);
    snapshot.warnings.extend(warnings);
    (stacks, images, files)
}

/// The same, with the warnings beside it.
pub(super) fn resolve(
    allocations: &Allocations,
    snapshot: &Snapshot,
    files: TargetFiles,
    output: &OutputArgs,
) -> (CallStacks, CodeImages, TargetFiles, Vec<Warning>) {
    let detail = if output.no_sources {
        Detail::Names
    } else {
        Detail::Lines
    };
    let images = CodeImages::new(allocations, snapshot);
    let code = NamedCode::new(&images, files, detail);
    let stacks = CallStacks::resolve(allocations, &code);
    let warnings = code.warnings();
    let files = code.into_files();
    (stacks, images, files, warnings)
}

/// Leaves out the leaks whose stack passes one of the functions that are to be left out, with what they
/// start with, and counts them. The rest is told apart again: what one of them held may be a root leak
/// now.
pub(super) fn exclude(
    (leaks, starts): (&mut Vec<Leak>, &mut Starts),
    functions: &[String],
    of_leak: impl Fn(&Leak, &str) -> bool,
    (graph, marks, heap): (&Graph, &Marks, &Heap),
) -> LeakSummary {
    if functions.is_empty() {
        return LeakSummary::default();
    }
    let is_excluded = |leak: &Leak| functions.iter().any(|function| of_leak(leak, function));
    let (excluded, kept): (Vec<Leak>, Vec<Leak>) = leaks.iter().partition(|leak| is_excluded(leak));
    if !excluded.is_empty() {
        let mut kept = kept.iter().map(|leak| leak.block).peekable();
        starts.retain(|index| kept.next_if(|block| *block == leaks[index].block).is_some());
        marks.exclude(excluded.iter().map(|leak| leak.block));
        *leaks = scan::leaks(graph, marks, &heap.blocks);
    }
    scan::summarize(&excluded, &heap.blocks)
}

/// Warns where functions are to be left out and no stack says which leaks are theirs.
pub(super) fn nothing_to_exclude(output: &OutputArgs, log: Option<&StackLog>) -> Option<Warning> {
    (log.is_none() && !output.exclude.is_empty()).then(|| {
        Warning::new(
            "no_stack_log",
            "--exclude left nothing out: the target has no malloc stack log that says which \
             functions allocated its blocks; start it with rleaks record",
            Bias::None,
        )
    })
}
