//! `--diff-from` and `--baseline`: the reports that leaks are compared with.

use std::path::{Path, PathBuf};

use anyhow::Context;

use super::args::LeaksArgs;
use super::target::starts_as_core;
use super::{leaks, report_file};
use crate::report::compare::Earlier;
use crate::report::{ComparedWith, Report};

/// The reports that the leaks are to be compared with, if they are. They are read before anything is
/// scanned: a file that cannot be read must not cost a stop, or a run of a program.
pub(super) fn earlier(args: &LeaksArgs) -> anyhow::Result<Option<Earlier>> {
    let (with, files) = match &args.compare.diff_from {
        Some(file) => (ComparedWith::Earlier, std::slice::from_ref(file)),
        None => (ComparedWith::Baseline, args.compare.baseline.as_slice()),
    };
    if files.is_empty() {
        return Ok(None);
    }
    let mut reports = Vec::new();
    for file in files {
        reports.extend(reports_of(file, args)?);
    }
    Ok(Some(Earlier {
        file: names(files),
        with,
        reports,
    }))
}

/// The reports in a file, or that of the memory in it, scanned in the same way.
fn reports_of(file: &Path, args: &LeaksArgs) -> anyhow::Result<Vec<Report>> {
    if !starts_as_core(file) {
        return report_file::read(file);
    }
    let path = file.to_str().context("its name is no UTF-8");
    let report = path.and_then(|path| leaks::report_of_file(path, args));
    let report = report.with_context(|| format!("cannot scan {}", file.display()))?;
    Ok(vec![report])
}

fn names(files: &[PathBuf]) -> String {
    let names: Vec<String> = files.iter().map(|f| f.display().to_string()).collect();
    names.join(", ")
}
