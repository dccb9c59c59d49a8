//! What `rleaks diff` compares: from a word to a report and, where memory is at hand, all live blocks.

use std::path::Path;

use anyhow::{Context, bail};

use super::args::{DiffArgs, ScanArgs};
use super::capture::{Captured, Purpose, capture};
use super::memory_limit::MemoryLimit;
use super::phases::Phases;
use super::target::{self, starts_as_core};
use super::{leaks, live, report_file, saved};
use crate::platform::{Target, TargetFiles};
use crate::report::compare::Side;

/// What `word` names: a report, a file of a process's memory, or a process.
pub(super) fn side(word: &str, args: &DiffArgs) -> anyhow::Result<Side> {
    let path = Path::new(word);
    if starts_as_core(path) {
        of_memory(word, path, args).with_context(|| format!("cannot scan {word}"))
    } else if path.exists() || word.contains('/') {
        of_report(word, path)
    } else {
        of_process(word, args)
    }
}

fn of_report(word: &str, path: &Path) -> anyhow::Result<Side> {
    let mut reports = report_file::read(path)?;
    let count = reports.len();
    let Some(report) = reports.pop().filter(|_| count == 1) else {
        bail!(
            "{word} has {count} reports, and two single ones can be compared: take one out, such as the \
             second by `sed -n 2p {word}`"
        );
    };
    Ok(Side {
        source: word.to_owned(),
        report,
        live: None,
    })
}

fn of_memory(word: &str, path: &Path, args: &DiffArgs) -> anyhow::Result<Side> {
    MemoryLimit::new(args.memory_limit).begin()?;
    let mut phases = Phases::new(&args.output());
    phases.begin("read the file and walk its heap");
    let (captured, files, damage) = saved::read(path, &args.files)?;
    let side = of_captured(word, captured, files, args, phases)?;
    match damage.error() {
        Some(error) => Err(error.clone().into()),
        None => Ok(side),
    }
}

fn of_process(word: &str, args: &DiffArgs) -> anyhow::Result<Side> {
    let found = target::find(&DiffArgs::target(word));
    let processes = found.with_context(|| format!("{word} is no file, nor is it a process"))?;
    let [process] = processes.as_slice() else {
        unreachable!("without --all, a word names one process");
    };
    MemoryLimit::new(args.memory_limit).begin()?;
    let mut phases = Phases::new(&args.output());
    phases.begin("capture the target and walk its heap");
    let ScanArgs { snapshot, .. } = args.scan();
    let target = Target::new(process.pid).with_memory_limit(args.memory_limit);
    let captured = capture(&target, snapshot.into(), Purpose::Scan)?;
    let files = TargetFiles::of_process(process.pid);
    of_captured(word, captured, files, args, phases)
}

fn of_captured(
    word: &str,
    captured: Captured,
    files: TargetFiles,
    args: &DiffArgs,
    mut phases: Phases,
) -> anyhow::Result<Side> {
    let (scan, output) = (args.scan(), args.output());
    phases.begin("group live blocks");
    MemoryLimit::new(scan.memory_limit).check(live::memory(&captured))?;
    let (live, files) = live::live(&captured, files, &output)?;
    let mut report = leaks::analyse(captured, files, (&scan, &output), &mut phases)?;
    phases.finish();
    // Builds are compared of all modules that stacks lead through.
    let modules = live.iter().flat_map(|live| live.modules.clone());
    report.modules.extend(modules);
    Ok(Side {
        source: word.to_owned(),
        report,
        live,
    })
}
