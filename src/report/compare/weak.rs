//! Why a comparison may say less than it seems to.

use std::collections::BTreeSet;

use super::kinds::module_name;
use super::live::Side;
use super::only_new::{Earlier, is_same_program, program};
use super::terms::{Terms, has_stacks, is_recorded, is_same_process};
use crate::report::{ComparedBy, ComparedWith, Report, StackLogMode};
use crate::warning::{Bias, Warning};

/// What is to be known of the comparison of `report` with `old`, which are of `earlier`.
pub(super) fn warnings(earlier: &Earlier, old: &[&Report], report: &Report) -> Vec<Warning> {
    let file = &earlier.file;
    let what = match earlier.with {
        ComparedWith::Earlier => "the earlier report",
        ComparedWith::Baseline => "the baseline",
    };
    let what = format!("{what} {file}");
    if old.is_empty() {
        return vec![nothing_of_program(&what, report)];
    }
    let by_address = earlier.with == ComparedWith::Earlier
        && old
            .iter()
            .all(|o| is_same_process(&o.target, &report.target));
    let mut warnings = old_warnings(&what, old, report);
    if !by_address {
        warnings.extend(program_warnings(&what, old, report));
        warnings.extend(stack_warning(&what, old, report));
        warnings.extend(nameless_builds(&what, old, report));
    }
    warnings
}

fn nothing_of_program(what: &str, report: &Report) -> Warning {
    let program = program(report);
    let message = format!("{what} has no report of {program}: all leaks of it count as new");
    Warning::new("comparison_without_program", message, Bias::None)
}

/// What the old reports themselves lack.
fn old_warnings(what: &str, old: &[&Report], report: &Report) -> Vec<Warning> {
    let mut warnings = Vec::new();
    if old.iter().any(|old| old.summary.suppressed_blocks > 0) {
        let message = format!(
            "{what} was made with --diff-from, --baseline or --exclude and lacks what these left out: \
             such leaks count as new"
        );
        warnings.push(Warning::new("comparison_partial", message, Bias::None));
    }
    let version = &report.rleaks_version;
    if let Some(other) = old.iter().find(|old| old.rleaks_version != *version) {
        let other = &other.rleaks_version;
        let message = format!(
            "{what} was made by rleaks {other}, and this is {version}: where one of them finds or names \
             leaks that the other does not, known ones count as new"
        );
        warnings.push(Warning::new("comparison_version", message, Bias::None));
    }
    warnings
}

fn program_warnings(what: &str, old: &[&Report], report: &Report) -> Option<Warning> {
    let other = old.iter().find(|old| !is_same_program(old, report));
    if let Some(other) = other {
        let (other, this) = (program(other), program(report));
        let message = format!(
            "{what} is of {other}, and this is {this}: leaks that look alike are taken for the same"
        );
        return Some(Warning::new(
            "comparison_program",
            message,
            Bias::MissedLeaks,
        ));
    }
    let arch = &report.target.arch;
    let other = old.iter().find(|old| old.target.arch != *arch)?;
    let other = &other.target.arch;
    let message = format!(
        "{what} is of a program for {other}, and this is one for {arch}: sizes differ, and known leaks \
         count as new"
    );
    Some(Warning::new("comparison_program", message, Bias::None))
}

/// Why stacks are not compared, where they are not.
fn stack_warning(what: &str, old: &[&Report], report: &Report) -> Option<Warning> {
    let old_has = old.iter().all(|old| has_stacks(old));
    if old_has && has_stacks(report) {
        return None;
    }
    let is_sampled = |report: &Report| report.stack_log.sample_bytes.is_some();
    let no_stacks = |report: &Report| !has_stacks(report);
    let reason = match () {
        () if old.iter().any(|old| is_sampled(old)) => {
            format!("{what} has the stacks of samples only")
        }
        () if is_sampled(report) => "the stack log of this process has samples only".to_owned(),
        () if old.iter().any(|old| no_stacks(old)) => format!("{what} has no call stacks"),
        () if is_recorded(report) => "--no-stacks leaves the stacks of this process out".to_owned(),
        () => "this process has no stack log".to_owned(),
    };
    let remedy = match report.stack_log.mode {
        StackLogMode::None => "; start it with rleaks record",
        _ if old_has => "",
        _ => "; make it anew from a process under rleaks record",
    };
    let message = format!(
        "{reason}: leaks are compared by type and size only, so a new one passes for a known one of \
         the same size{remedy}"
    );
    Some(Warning::new(
        "comparison_without_stacks",
        message,
        Bias::MissedLeaks,
    ))
}

/// Code that cannot be recognised: it has no names, and is of another build.
fn nameless_builds(what: &str, old: &[&Report], report: &Report) -> Option<Warning> {
    let terms = Terms::of_kinds(old, report);
    let mut nameless: BTreeSet<&str> = BTreeSet::new();
    for report in old.iter().copied().chain([report]) {
        let frames = report.stacks.iter().flat_map(|stack| &stack.frames);
        for frame in frames.filter(|frame| frame.function.is_none()) {
            let is_other =
                |path: &&str| !terms.is_same_build(module_name(path, &report.target.executable));
            nameless.extend(frame.module.as_deref().filter(is_other));
        }
    }
    let paths = Vec::from_iter(nameless).join(", ");
    (terms.by() == ComparedBy::Stack && !paths.is_empty()).then(|| {
        let message = format!(
            "call stacks lead through functions without names in {paths}, and {what} is of another build or \
             has no build id: known leaks count as new there; do not strip it, or install its debug information"
        );
        Warning::new("comparison_build", message, Bias::None)
    })
}

/// What is to be known of the comparison of two sides.
pub(super) fn of_diff(old: &Side, new: &Side) -> Vec<Warning> {
    let file = format!("the earlier report {}", old.source);
    let (old_report, report) = (&old.report, &new.report);
    let mut warnings = old_warnings(&file, &[old_report], report);
    let file = format!("the later report {}", new.source);
    // The versions are compared once.
    let partial = old_warnings(&file, &[report], old_report).into_iter();
    warnings.extend(partial.filter(|warning| warning.code == "comparison_partial"));
    if !is_same_process(&old_report.target, &report.target) {
        let file = &old.source;
        warnings.extend(program_warnings(file, &[old_report], report));
        warnings.extend(diff_without_stacks(old, new));
        warnings.extend(nameless_builds(file, &[old_report], report));
    }
    warnings.extend(without_live_blocks(old, new));
    warnings
}

fn diff_without_stacks(old: &Side, new: &Side) -> Option<Warning> {
    let without: Vec<&str> = [old, new]
        .iter()
        .filter(|side| !has_stacks(&side.report))
        .map(|side| side.source.as_str())
        .collect();
    let names = without.join(" and ");
    let has = if without.len() == 1 { "has" } else { "have" };
    let message = format!(
        "{names} {has} no call stacks of all leaks: leaks are compared by type and size only; record both \
         processes with rleaks record"
    );
    let warning = || Warning::new("comparison_without_stacks", message, Bias::MissedLeaks);
    (!without.is_empty()).then(warning)
}

/// That nobody can say what memory in use has grown, where that is so.
fn without_live_blocks(old: &Side, new: &Side) -> Option<Warning> {
    let subject = match (&old.live, &new.live) {
        (None, None) => format!("{} and {} have", old.source, new.source),
        (None, Some(_)) => format!("{} has", old.source),
        (Some(_), None) => format!("{} has", new.source),
        (Some(_), Some(_)) => return None,
    };
    let message = format!(
        "{subject} leaks and totals only: compare snapshots or processes to see which memory in use has grown"
    );
    let code = "comparison_without_live_blocks";
    Some(Warning::new(code, message, Bias::None))
}
