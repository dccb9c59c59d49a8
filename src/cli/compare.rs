//! `--diff-from` and `--baseline`: the reports that leaks are compared with.

use std::path::PathBuf;

use super::args::CompareArgs;
use super::report_file;
use crate::report::ComparedWith;
use crate::report::compare::Earlier;

/// The reports that the leaks are to be compared with, if they are. They are read before anything is
/// scanned: a file that cannot be read must not cost a stop, or a run of a program.
pub(super) fn earlier(args: &CompareArgs) -> anyhow::Result<Option<Earlier>> {
    let (with, files) = match &args.diff_from {
        Some(file) => (ComparedWith::Earlier, std::slice::from_ref(file)),
        None => (ComparedWith::Baseline, args.baseline.as_slice()),
    };
    if files.is_empty() {
        return Ok(None);
    }
    let mut reports = Vec::new();
    for file in files {
        reports.extend(report_file::read(file)?);
    }
    Ok(Some(Earlier {
        file: names(files),
        with,
        reports,
    }))
}

fn names(files: &[PathBuf]) -> String {
    let names: Vec<String> = files.iter().map(|f| f.display().to_string()).collect();
    names.join(", ")
}
