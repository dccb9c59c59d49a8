//! Snapshots that are saved, and what is found in them.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;

use super::report::{leaks_by, rleaks, rleaks_command, text};

/// A snapshot in a folder of its own.
#[derive(Debug)]
pub(crate) struct SavedFile {
    folder: TempDir,
}

impl SavedFile {
    /// Saves process `pid` with these options.
    pub(crate) fn new(pid: &str, options: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = Self { folder };
        let path = file.path();
        let output = rleaks(&[&[pid, "--output-graph", path.to_str().unwrap()], options].concat());
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{options:?}: {said}");
        assert_eq!(text(&output.stdout), "", "{options:?}");
        assert!(said.starts_with("rleaks: saved process "), "{said}");
        file
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("saved.core")
    }

    /// The document of `rleaks FILE --json` with these options.
    pub(crate) fn leaks(&self, options: &[&str]) -> Value {
        leaks_in(&self.path(), options)
    }
}

/// The document of `rleaks FILE --json`.
pub(crate) fn leaks_in(path: &Path, options: &[&str]) -> Value {
    leaks_by(rleaks_command().arg(path).args(options))
}

/// `report` without what differs from one scan of the same target to the next.
pub(crate) fn lasting(mut report: Value) -> Value {
    let target = report["target"].as_object_mut().unwrap();
    target.remove("kind");
    target.remove("command_line");
    let capture = report["capture"].as_object_mut().unwrap();
    for name in ["threads", "memory_bytes"] {
        assert!(capture.contains_key(name), "{capture:?}");
    }
    report["capture"] = capture["threads"].clone();
    report
}
