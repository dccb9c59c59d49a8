//! Core files of running processes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::fixture::Fixture;
use super::program::Program;

/// A directory in which processes run, and where their core files are.
#[derive(Debug)]
pub(crate) struct CoreFolder(tempfile::TempDir);

impl CoreFolder {
    /// An empty one.
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// The directory.
    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// Starts the fixture that `command` runs, in this directory.
    pub(crate) fn start(&self, command: &mut Command) -> Fixture {
        Fixture::of(command.current_dir(self.path()))
    }

    /// Lets gdb write a core file of process `pid`, which goes on.
    pub(crate) fn gcore(&self, pid: &str) -> PathBuf {
        let prefix = self.path().join("gcore");
        let output = Command::new("gcore")
            .arg("-o")
            .arg(&prefix)
            .arg(pid)
            .output()
            .unwrap();
        let core = self.path().join(format!("gcore.{pid}"));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(core.exists(), "gcore {pid}: {said}");
        core
    }

    /// Kills `program`, which runs in this directory, so that the kernel writes a core file of it.
    ///
    /// `None` where the kernel hands core files to a program instead, or puts them elsewhere: that is a
    /// setting of the whole machine, which no test may change.
    pub(crate) fn kernel_core(&self, program: &mut Program, pid: &str) -> Option<PathBuf> {
        let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
        if pattern.starts_with('|') || pattern.contains('/') {
            eprintln!("skipped: core files do not stay in the process's directory: {pattern}");
            return None;
        }
        let before = self.files();
        run(Command::new("prlimit").args(["--core=unlimited", "--pid", pid]));
        // Runtimes handle the usual signals, and allocate then: not this one.
        run(Command::new("kill").args(["-SYS", pid]));
        // The file is whole when the process is gone.
        program.wait();
        let mut new = self.files();
        // Mono leaves a report of its crash beside it.
        new.retain(|file| !before.contains(file) && is_core(file));
        assert_eq!(new.len(), 1, "core files of {pid}, by {pattern}: {new:?}");
        new.pop()
    }

    fn files(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.path()).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    }
}

/// Says which parts of its memory the kernel puts into the core file of process `pid`: a number as
/// core(5) describes it.
pub(crate) fn set_core_filter(pid: &str, filter: u32) {
    fs::write(
        format!("/proc/{pid}/coredump_filter"),
        format!("{filter:#x}"),
    )
    .unwrap();
}

/// Says whether the file at `path` begins as an ELF file does.
fn is_core(path: &Path) -> bool {
    fs::read(path).is_ok_and(|bytes| bytes.starts_with(b"\x7fELF"))
}

fn run(command: &mut Command) {
    let status = command
        .status()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(status.success(), "{command:?}: {status}");
}
