//! Programs that run with other rights than the test.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// A folder with programs that every user can run.
#[derive(Debug)]
pub(crate) struct Shared(TempDir);

impl Shared {
    /// An empty folder. These tests start processes of other users, so only root can run them.
    pub(crate) fn new() -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "this test starts processes of other users: run it as root"
        );
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        Self(folder)
    }

    /// A folder with rleaks, and where rleaks is in it.
    pub(crate) fn with_rleaks() -> (Self, PathBuf) {
        let shared = Self::new();
        let rleaks = shared.add(Path::new(env!("CARGO_BIN_EXE_rleaks")), "rleaks");
        (shared, rleaks)
    }

    /// Copies `program` into the folder.
    pub(crate) fn add(&self, program: &Path, name: &str) -> PathBuf {
        let copy = self.0.path().join(name);
        fs::copy(program, &copy).unwrap();
        fs::set_permissions(&copy, Permissions::from_mode(0o755)).unwrap();
        copy
    }

    /// Lets everybody make files in the folder.
    pub(crate) fn open_to_all(&self) {
        fs::set_permissions(self.0.path(), Permissions::from_mode(0o1777)).unwrap();
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

/// Runs `program` as a user without any rights.
pub(crate) fn unprivileged(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .args(["--inh-caps=-all", "--bounding-set=-all"])
        .arg(program);
    command
}
