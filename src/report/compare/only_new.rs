//! A report of what is new: the leaks that an earlier report, or a baseline, does not have.

use rustc_hash::FxHashSet;

use super::compared::{Compared, Totals};
use super::kinds::Kinds;
use super::terms::{Terms, is_same_process};
use super::weak;
use crate::report::build::summary;
use crate::report::group::groups;
use crate::report::{ComparedWith, Comparison, LeakRef, Report};

/// The reports of a file that leaks are compared with.
#[derive(Clone, Debug, PartialEq)]
pub struct Earlier {
    /// The files, as they were typed.
    pub file: String,
    /// What they were given as.
    pub with: ComparedWith,
    /// The reports in them, at least one.
    pub reports: Vec<Report>,
}

/// Why no report of a file can be compared with a target's.
#[derive(Debug, thiserror::Error)]
#[error(
    "{file} has {count} reports, and not exactly one of them is of {target}: give a file with that one alone"
)]
pub struct PickError {
    file: String,
    count: usize,
    target: String,
}

impl Earlier {
    /// Leaves in `report` only the leaks that are new, and counts the others.
    ///
    /// Of an earlier report, that is told by address if it is of the same process. Otherwise, and
    /// with a baseline, leaks are known as far as the other report has as many of the same kind. Of
    /// several reports in a baseline, those of the same program count, and of each kind of leak the
    /// one that has most of it.
    ///
    /// # Errors
    /// Says so when it is not clear which of several earlier reports is meant.
    pub fn leave_only_new(&self, report: &mut Report) -> Result<(), PickError> {
        let old = match self.with {
            ComparedWith::Earlier => vec![self.the_one_of(report)?],
            ComparedWith::Baseline => self.baselines_of(report),
        };
        let warnings = weak::warnings(self, &old, report);
        self.compare(&old, report);
        report.warnings.extend(warnings);
        Ok(())
    }

    /// The report of the same process, or else the only one of the same program, or else the only
    /// one.
    fn the_one_of(&self, report: &Report) -> Result<&Report, PickError> {
        let only = |is_meant: &dyn Fn(&Report) -> bool| {
            let mut meant = self.reports.iter().filter(|old| is_meant(old));
            meant.next().filter(|_| meant.next().is_none())
        };
        only(&|old| is_same_process(&old.target, &report.target))
            .or_else(|| only(&|old| is_same_program(old, report)))
            .or_else(|| only(&|_| true))
            .ok_or_else(|| PickError {
                file: self.file.clone(),
                count: self.reports.len(),
                target: report.target.name.clone(),
            })
    }

    /// The reports of the same program; where there is only one report, that one.
    fn baselines_of(&self, report: &Report) -> Vec<&Report> {
        match self.reports.as_slice() {
            [only] => vec![only],
            several => {
                let several = several.iter();
                several.filter(|old| is_same_program(old, report)).collect()
            }
        }
    }

    fn compare(&self, old: &[&Report], report: &mut Report) {
        let terms = match self.with {
            ComparedWith::Earlier => Terms::new(old, report),
            ComparedWith::Baseline => Terms::of_kinds(old, report),
        };
        let mut kinds = Kinds::new(&terms);
        let compared = Compared::new(&mut kinds, terms.same_process, old, report);
        let gone = compared.gone().fold(Totals::default(), Totals::with);
        let is_new: Vec<bool> = compared.new_leaks().map(|(_, is_new)| is_new).collect();
        let known = retain(report, &is_new);
        report.comparison = Some(Comparison {
            with: self.with,
            file: self.file.clone(),
            taken_at: match old {
                [only] => Some(only.capture.taken_at.clone()),
                _ => None,
            },
            by: terms.by(),
            new_blocks: report.summary.leaked_blocks,
            new_bytes: report.summary.leaked_bytes,
            old_blocks: known.blocks,
            old_bytes: known.bytes,
            gone_blocks: gone.blocks,
            gone_bytes: gone.bytes,
        });
    }
}

/// Keeps the leaks that are new, and what belongs to them. The others are counted as suppressed.
fn retain(report: &mut Report, is_new: &[bool]) -> Totals {
    let mut known = Totals::default();
    let mut is_new = is_new.iter();
    report.leaks.retain(|leak| {
        let is_new = is_new.next().is_some_and(|is_new| *is_new);
        if !is_new {
            known = known.with(leak);
        }
        is_new
    });
    let used: FxHashSet<u32> = report.leaks.iter().filter_map(LeakRef::stack).collect();
    report.stacks.retain(|stack| used.contains(&stack.id));
    report.groups = groups(&report.leaks, report.stack_log.sample_bytes);
    let before = std::mem::replace(&mut report.summary, summary(&report.leaks));
    let add = u64::saturating_add;
    report.summary.suppressed_blocks = add(before.suppressed_blocks, known.blocks);
    report.summary.suppressed_bytes = add(before.suppressed_bytes, known.bytes);
    known
}

/// Says whether two reports are of one program, wherever its file is.
pub(super) fn is_same_program(old: &Report, new: &Report) -> bool {
    program(old) == program(new)
}

/// What a program is called: the last part of its executable's path.
pub(super) fn program(report: &Report) -> &str {
    let path = &report.target.executable;
    path.rsplit('/').next().unwrap_or(path)
}
