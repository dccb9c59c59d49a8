//! `rleaks TARGET`: the leaks of a running process.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context;

use super::ExitStatus;
use super::args::{LeaksArgs, OutputArgs, ScanArgs, SnapshotMethod};
use super::capture::{Captured, Purpose, capture};
use super::compare;
use super::error;
use super::memory_limit::MemoryLimit;
use super::phases::Phases;
use super::stacks;
use super::target;
use super::{save, saved};
use crate::addr::RangeSet;
use crate::memory::{Excerpt, Memory};
use crate::platform::{Target, TargetFiles, interrupt_flag};
use crate::report::compare::Earlier;
use crate::report::{Logged, Report, json, text};
use crate::scan::{self, Alignment, Filter, Graph, Leak, Marks, ReachError, Root, RootKind};
use crate::snapshot::saved::Damage;
use crate::snapshot::{ContentLevel, Method};
use crate::stacklog::StackLog;
use crate::symbolize::{Describer, Shown, Source, Starts, Symbolizer};
use crate::warning::{Bias, Warning};

/// Scans each target and prints a report for each. A target that cannot be scanned does not keep
/// the others from being scanned.
pub(crate) fn leaks(args: &LeaksArgs) -> anyhow::Result<ExitStatus> {
    if let Some(path) = &args.save.output_graph {
        return save::save(args, path);
    }
    let earlier = compare::earlier(args)?;
    if let Some(path) = target::file(&args.target)? {
        let report = report_of_file(path, args)
            .with_context(|| format!("cannot scan {}", error::printable(path)))?;
        return conclude(report, args, earlier.as_ref());
    }
    let processes = target::find(&args.target)?;
    if let (Some(path), true) = (json_file(args), args.target.is_all()) {
        // Emptied before the first of several reports.
        create(path)?;
    }
    if let [process] = processes.as_slice() {
        return scan_and_print(process.pid, args, earlier.as_ref());
    }
    let mut status = ExitStatus::Done;
    for process in processes {
        let one = scan_and_print(process.pid, args, earlier.as_ref())
            .with_context(|| format!("cannot scan process {}", process.pid));
        let one = one.unwrap_or_else(|error| error::report(&error));
        status = status.max(one);
    }
    Ok(status)
}

/// The report of a file of a target's memory.
pub(super) fn report_of_file(path: &str, args: &LeaksArgs) -> anyhow::Result<Report> {
    let mut damage = Damage::default();
    let report = scan(args, || {
        let (captured, files, found) = saved::read(Path::new(path), &args.files)?;
        check_content(&captured, args)?;
        damage = found;
        Ok((captured, files))
    })?;
    if let Some(error) = damage.error() {
        return Err(error.clone().into());
    }
    Ok(report)
}

/// Prints a report, or what of it `earlier` does not have, and says whether that has leaks.
fn conclude(
    mut report: Report,
    args: &LeaksArgs,
    earlier: Option<&Earlier>,
) -> anyhow::Result<ExitStatus> {
    if let Some(earlier) = earlier {
        earlier.leave_only_new(&mut report)?;
    }
    print(&report, args, args.target.is_all())?;
    Ok(if report.has_leaks() {
        ExitStatus::Leaks
    } else {
        ExitStatus::Done
    })
}

/// A snapshot without content has only aligned references.
fn check_content(captured: &Captured, args: &LeaksArgs) -> anyhow::Result<()> {
    let is_full = captured.snapshot.capture.content == ContentLevel::Full;
    anyhow::ensure!(
        is_full || !args.scan.unaligned,
        "--unaligned needs the content, and the snapshot was saved without it: save one with \
         --full-content"
    );
    Ok(())
}

/// Scans the process `pid` and prints its report, or what of it `earlier` does not have.
pub(crate) fn scan_and_print(
    pid: u32,
    args: &LeaksArgs,
    earlier: Option<&Earlier>,
) -> anyhow::Result<ExitStatus> {
    let method = args.scan.snapshot.into();
    let report = scan(args, || {
        let max_pause = args.scan.max_pause;
        let max_pause = max_pause.map(|ms| Duration::from_millis(ms.into()));
        let target = Target::new(pid).with_max_pause(max_pause);
        let target = target.with_memory_limit(args.scan.memory_limit);
        let captured = capture(&target, method, Purpose::Scan)?;
        // The target's files are pinned while it lives; its symbols are read later.
        Ok((captured, TargetFiles::of_process(pid)))
    })?;
    conclude(report, args, earlier)
}

/// The report of the target that `capture` captures, with the files that it sees.
pub(super) fn scan(
    args: &LeaksArgs,
    capture: impl FnOnce() -> anyhow::Result<(Captured, TargetFiles)>,
) -> anyhow::Result<Report> {
    let mut phases = if args.at_exit.follow_children {
        Phases::beside_a_program(&args.output)
    } else {
        Phases::new(&args.output)
    };
    use_threads(&args.scan)?;
    MemoryLimit::of(&args.scan).begin()?;
    phases.begin("capture the target and walk its heap");
    let (captured, files) = capture()?;
    let report = analyse(captured, files, (&args.scan, &args.output), &mut phases)?;
    phases.finish();
    Ok(report)
}

/// The report of a captured target, with the files that it sees.
pub(super) fn analyse(
    mut captured: Captured,
    files: TargetFiles,
    (args, output): (&ScanArgs, &OutputArgs),
    phases: &mut Phases,
) -> anyhow::Result<Report> {
    let (graph, marks) = reach(&captured, args, phases)?;
    phases.begin("tell leaks apart");
    let mut leaks = scan::leaks(&graph, &marks, &captured.heap.blocks);
    phases.begin("read the stack log");
    MemoryLimit::of(args).check(report_memory(&captured, &leaks))?;
    let allocations = stacks::allocations(&mut captured, &leaks).unwrap_or_default();
    phases.begin("look at leaks");
    let mut starts = starts(&captured, &leaks, output);
    let has_memory = captured.stopped.is_none();
    release(&mut captured)?;

    phases.begin("name call stacks");
    let snapshot = &mut captured.snapshot;
    let (stacks, images, files) = stacks::named(&allocations, snapshot, files, output);
    let passes = |leak: &Leak, function: &str| {
        let allocation = allocations.of_block(leak.block);
        let stack = allocation.and_then(|allocation| allocation.stack);
        stack.is_some_and(|stack| stacks.passes(stack, function))
    };
    let scanned = (&graph, &marks, &captured.heap);
    let found = (&mut leaks, &mut starts);
    let excluded = stacks::exclude(found, &output.exclude, passes, scanned);
    let unreadable = unreadable(&graph);
    // They are large, and have told all that they know.
    drop((graph, marks));

    phases.begin("describe leaks");
    let Captured { snapshot, heap, .. } = &captured;
    let gone = Excerpt::default();
    let memory: &dyn Memory = if has_memory { &*snapshot.memory } else { &gone };
    let symbolizer = Symbolizer::new(&snapshot.modules, memory, files);
    let describer = Describer::new(memory, snapshot.width, &symbolizer, heap);
    let described = starts.described(&describer);
    phases.begin("group leaks");
    let is_reduced = snapshot.capture.content != ContentLevel::Full;
    let logged = captured.log.as_ref().map(|log| Logged {
        header: &log.header,
        allocations: &allocations,
        stacks: (!output.no_stacks).then_some(&stacks),
        images: &images,
    });
    let mut report = Report::new(snapshot, heap, leaks, described, logged, phases.elapsed());
    report.summary.suppressed_blocks = excluded.blocks;
    report.summary.suppressed_bytes = excluded.bytes;
    report.warnings.extend(unreadable);
    if is_reduced && !output.no_content {
        report.warnings.push(without_content());
    }
    let log = captured.log.as_ref();
    let unused = stacks::nothing_to_exclude(output, log);
    report.warnings.extend(unused);
    Ok(report)
}

/// The leaks of a captured target, whose roots are all roots that there are.
pub(super) fn find(captured: &Captured, limit: MemoryLimit) -> anyhow::Result<Vec<Leak>> {
    let roots = roots(captured, &[]);
    let source = source(captured, &roots, Alignment::Words, Filter::best());
    let (graph, marks) = match limit.room() {
        Some(room) => reach_within(&source, room, limit)?,
        None => {
            let graph = Graph::extract(&source)?;
            let marks = scan::mark(&graph);
            (graph, marks)
        }
    };
    Ok(scan::leaks(&graph, &marks, &captured.heap.blocks))
}

/// Finds what the blocks and roots reference, and which blocks the roots reach. With a limit of memory,
/// these are only the references of leaks to leaks.
fn reach(
    captured: &Captured,
    args: &ScanArgs,
    phases: &mut Phases,
) -> anyhow::Result<(Graph, Marks)> {
    phases.begin("extract references");
    let excluded: Vec<RootKind> = args.no_roots.iter().map(|class| (*class).into()).collect();
    let alignment = if args.unaligned {
        Alignment::Bytes
    } else {
        Alignment::Words
    };
    let filter = args.vector.unwrap_or_else(Filter::best);
    let roots = roots(captured, &excluded);
    let source = source(captured, &roots, alignment, filter);
    let limit = MemoryLimit::of(args);
    if let Some(room) = limit.room() {
        phases.begin("extract references and mark, in little memory");
        return reach_within(&source, room, limit);
    }
    let graph = Graph::extract(&source)?;
    phases.begin("mark");
    let marks = scan::mark(&graph);
    Ok((graph, marks))
}

fn reach_within(
    source: &scan::Source<'_>,
    room: u64,
    limit: MemoryLimit,
) -> anyhow::Result<(Graph, Marks)> {
    scan::reach_within(source, room).map_err(|error| match error {
        ReachError::Interrupted(interrupted) => interrupted.into(),
        ReachError::TooSmall(more) => limit.too_small(more).into(),
    })
}

/// Lets a target go on that stands still until now, or ends the child that keeps its memory.
fn release(captured: &mut Captured) -> anyhow::Result<()> {
    if let Some(stopped) = captured.stopped.take() {
        stopped.release(&mut captured.snapshot)?;
    }
    Ok(())
}

/// Sets the number of threads, once: a second target finds it set.
fn use_threads(args: &ScanArgs) -> anyhow::Result<()> {
    static SET: std::sync::Once = std::sync::Once::new();
    let mut result = Ok(());
    if let Some(threads) = args.threads {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.into());
        SET.call_once(|| result = pool.build_global());
    }
    result.context("cannot start the threads that --threads asks for")
}

fn roots(captured: &Captured, excluded: &[RootKind]) -> Vec<Root> {
    let Captured { snapshot, heap, .. } = captured;
    let none = RangeSet::default();
    let log = captured.log.as_ref().map_or(&none, StackLog::own_memory);
    scan::roots(snapshot, heap, log, excluded)
}

fn source<'a>(
    captured: &'a Captured,
    roots: &'a [Root],
    alignment: Alignment,
    filter: Filter,
) -> scan::Source<'a> {
    let Captured { snapshot, heap, .. } = captured;
    let words = (snapshot.width, alignment);
    let interrupted = &|| interrupt_flag().load(Ordering::Relaxed);
    scan::Source::new(&*snapshot.memory, &heap.blocks, roots, words, interrupted)
        .with_filter(filter)
}

/// What the report of `leaks` takes, as far as it follows from their number: what describes each of them,
/// and what the stack log has of all blocks.
fn report_memory(captured: &Captured, leaks: &[Leak]) -> u64 {
    const LEAK: u64 = 300;
    const LOGGED_BLOCK: u64 = 20;
    let is_logged = captured.log.is_some();
    let logged = captured.heap.blocks.len() as u64 * LOGGED_BLOCK;
    let log = if is_logged { logged } else { 0 };
    (leaks.len() as u64 * LEAK).saturating_add(log)
}

/// Looks at the starts of the leaked blocks, as far as they may be shown.
fn starts(captured: &Captured, leaks: &[Leak], output: &OutputArgs) -> Starts {
    let Captured { snapshot, heap, .. } = captured;
    let is_full = snapshot.capture.content == ContentLevel::Full;
    let shown = if is_full && !output.no_content {
        Shown::Contents
    } else {
        Shown::Types
    };
    let block = |index: usize| heap.blocks.get(leaks.get(index)?.block as usize);
    let source = Source {
        memory: &*snapshot.memory,
        width: snapshot.width,
        modules: &snapshot.modules,
        heap,
        shown,
    };
    Starts::read(&source, leaks.len(), block)
}

fn without_content() -> Warning {
    Warning::new(
        "no_content",
        "the snapshot was saved without what the leaked blocks contain: it is not shown",
        Bias::None,
    )
}

fn unreadable(graph: &Graph) -> Option<Warning> {
    let bytes = graph.unreadable_bytes();
    (bytes > 0).then(|| {
        Warning::new(
            "memory_unreadable",
            format!("{bytes} bytes of roots and blocks could not be read"),
            Bias::FalseLeaks,
        )
    })
}

/// Prints a report; `several` says whether it is one of several.
pub(super) fn print(report: &Report, args: &LeaksArgs, several: bool) -> anyhow::Result<()> {
    if let Some(path) = json_file(args) {
        let file = if several {
            append(path)?
        } else {
            create(path)?
        };
        let mut out = BufWriter::new(file);
        return write_json(report, several, &mut out)
            .and_then(|()| out.flush())
            .with_context(|| format!("cannot write {}", path.display()));
    }
    let written = match args.output.json {
        Some(_) => write_json(report, several, &mut io::stdout().lock()),
        None => {
            let mut out = BufWriter::new(anstream::stdout().lock());
            text::write(report, &options(&args.output), &mut out).and_then(|()| out.flush())
        }
    };
    written.context("cannot write the report")
}

/// Writes one of several reports as a line, and a single one for people to read.
fn write_json(report: &Report, several: bool, out: &mut dyn Write) -> io::Result<()> {
    if several {
        json::write_line(report, out)
    } else {
        json::write_pretty(report, out)
    }
}

/// The file that `--json=FILE` names.
pub(super) fn json_file(args: &LeaksArgs) -> Option<&Path> {
    let path = args.output.json.as_deref();
    path.filter(|path| *path != Path::new("-"))
}

pub(super) fn create(path: &Path) -> anyhow::Result<File> {
    File::create(path).with_context(|| format!("cannot create {}", path.display()))
}

fn append(path: &Path) -> anyhow::Result<File> {
    let file = OpenOptions::new().append(true).open(path);
    file.with_context(|| format!("cannot write {}", path.display()))
}

fn options(output: &OutputArgs) -> text::TextOptions {
    text::TextOptions {
        layout: match (output.list, output.group_by_type) {
            (true, _) => text::Layout::List,
            (_, true) => text::Layout::Types,
            _ => text::Layout::Trees,
        },
        quiet: output.quiet,
        limit: Some(output.limit.unwrap_or(text::DEFAULT_LIMIT)),
        palette: text::Palette::colored(),
    }
}

impl From<SnapshotMethod> for Method {
    fn from(method: SnapshotMethod) -> Self {
        match method {
            SnapshotMethod::Copy => Self::Copy,
            SnapshotMethod::Stream => Self::Stream,
            SnapshotMethod::Fork => Self::Fork,
        }
    }
}
