//! On what terms two reports can be compared: what of them is known on both sides.

use rustc_hash::FxHashMap;

use super::kinds::module_name;
use crate::report::{ComparedBy, Frame, Report, Stack, StackLogMode, Target};

/// What is known of all reports that are compared with each other.
#[derive(Debug)]
pub(super) struct Terms {
    /// They are reports of one process.
    pub(super) same_process: bool,
    /// The stacks of all allocations are known, as far as logs go.
    pub(super) stacks: bool,
    /// How much the program asked for is known.
    pub(super) requested: bool,
    /// Inlined calls are known.
    pub(super) inlined: bool,
    /// The build ids of modules: `None` where it is not the same build everywhere.
    builds: FxHashMap<String, Option<String>>,
}

impl Terms {
    /// For the comparison of `new` with all of `old`.
    pub(super) fn new(old: &[&Report], new: &Report) -> Self {
        let all = || old.iter().copied().chain([new]);
        let mut builds = FxHashMap::default();
        for report in all() {
            add_builds(&mut builds, report);
        }
        Self {
            same_process: match old {
                [only] => is_same_process(&only.target, &new.target),
                _ => false,
            },
            stacks: all().all(has_stacks),
            requested: all().all(is_recorded),
            inlined: all().all(|report| has_sources(&report.stacks)),
            builds,
        }
    }

    /// The same, without looking at addresses: a process may be the same and another one may come.
    pub(super) fn of_kinds(old: &[&Report], new: &Report) -> Self {
        Self {
            same_process: false,
            ..Self::new(old, new)
        }
    }

    /// What makes leaks the same.
    pub(super) fn by(&self) -> ComparedBy {
        match (self.same_process, self.stacks) {
            (true, _) => ComparedBy::Address,
            (false, true) => ComparedBy::Stack,
            (false, false) => ComparedBy::Type,
        }
    }

    /// Says whether an offset in the module with this name means the same everywhere.
    pub(super) fn is_same_build(&self, name: &str) -> bool {
        self.builds.get(name).is_some_and(Option::is_some)
    }
}

/// Says whether two reports are of one process, which has not executed another program between them.
///
/// The pid alone says nothing, as pids are used again. A file may know only one of the others.
pub(super) fn is_same_process(old: &Target, new: &Target) -> bool {
    let started = both(old.started_milliseconds, new.started_milliseconds);
    let space = both(old.address_space, new.address_space);
    let differs = started == Some(false) || space == Some(false);
    let is_known = started.is_some() || space.is_some();
    old.pid.is_some()
        && old.pid == new.pid
        && old.executable == new.executable
        && is_known
        && !differs
}

/// Whether two values are equal, where both are known.
pub(super) fn both<T: PartialEq>(old: Option<T>, new: Option<T>) -> Option<bool> {
    Some(old? == new?)
}

/// A report without leaks has no stacks, and yet those of all of its leaks are known.
pub(super) fn has_stacks(report: &Report) -> bool {
    report.leaks.is_empty() || (is_recorded(report) && !report.stacks.is_empty())
}

/// The same of what each of them was asked for with.
pub(super) fn is_recorded(report: &Report) -> bool {
    // Which of several blocks is a sample is chance.
    let log = &report.stack_log;
    report.leaks.is_empty() || (log.mode != StackLogMode::None && log.sample_bytes.is_none())
}

/// Files and lines, and with them inlined calls, are left out by --no-sources, and are not there
/// without debug information.
fn has_sources(stacks: &[Stack]) -> bool {
    let mut frames = stacks.iter().flat_map(|stack| &stack.frames);
    stacks.is_empty() || frames.any(|frame: &Frame| frame.file.is_some())
}

fn add_builds(builds: &mut FxHashMap<String, Option<String>>, report: &Report) {
    for module in &report.modules {
        let name = module_name(&module.path, &report.target.executable);
        let known = builds
            .entry(name.to_owned())
            .or_insert_with(|| module.build_id.clone());
        if *known != module.build_id {
            *known = None;
        }
    }
}
