//! Fixtures in containers: other pid, mount and user namespaces, and a root directory of their own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::compile::{Build, compile_as};
use super::fixture::Fixture;
use super::isolated::Shared;

/// What becomes the container's root directory: `fixtures/container.c` says how.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Root {
    /// A copy of the files in memory.
    Tmpfs,
    /// A layer over the files.
    Overlay,
    /// The files themselves, by chroot.
    Chroot,
}

/// A container that runs a fixture as `/fixture`, with rleaks in it as `/rleaks`.
#[derive(Debug)]
pub(crate) struct Container {
    /// The fixture, with its pid outside. Inside it is 1.
    pub(crate) fixture: Fixture,
    has_users: bool,
    _shared: Shared,
}

impl Container {
    /// Runs `fixtures/FILE` as root of a user namespace of its own.
    pub(crate) fn start(root: Root, file: &str, arguments: &[&str]) -> Self {
        Self::new(root, true, (file, Build::Usual), arguments)
    }

    /// The same, built in another way than usual.
    pub(crate) fn start_built(root: Root, file: &str, build: Build, arguments: &[&str]) -> Self {
        Self::new(root, true, (file, build), arguments)
    }

    /// Runs it as the same root that the test is.
    pub(crate) fn start_as_root(root: Root, file: &str, arguments: &[&str]) -> Self {
        Self::new(root, false, (file, Build::Usual), arguments)
    }

    fn new(root: Root, has_users: bool, program: (&str, Build), arguments: &[&str]) -> Self {
        let shared = Shared::new();
        let [staged, place] = ["staged", "place"].map(|name| shared.path().join(name));
        for folder in ["staged/proc", "place", "place.upper"] {
            fs::create_dir_all(shared.path().join(folder)).unwrap();
        }
        stage(&staged, &compile_as(program.0, program.1), "fixture");
        stage(&staged, Path::new(env!("CARGO_BIN_EXE_rleaks")), "rleaks");

        let mut command = Command::new("unshare");
        if has_users {
            command.args(["--user", "--map-root-user"]);
        }
        command
            .args(["--pid", "--mount", "--fork", "--kill-child"])
            .arg(Fixture::program("container.c"))
            .arg(format!("{root:?}").to_lowercase())
            .args([staged, place])
            .arg("/fixture")
            .args(arguments);
        Self {
            fixture: Fixture::start_by(&mut command),
            has_users,
            _shared: shared,
        }
    }

    /// The container's rleaks, run inside.
    pub(crate) fn rleaks(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.fixture.pid()]);
        if self.has_users {
            command.arg("--user");
        }
        command.args(["--mount", "--pid", "--root", "--wd=/", "/rleaks"]);
        command
    }

    /// Where a file of the container is for the test.
    pub(crate) fn file(&self, path: &str) -> PathBuf {
        Path::new(&format!("/proc/{}/root", self.fixture.pid())).join(path)
    }
}

/// Copies `program` with the libraries that it needs below `root`.
fn stage(root: &Path, program: &Path, name: &str) {
    fs::copy(program, root.join(name)).unwrap();
    let listed = Command::new("ldd").arg(program).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    for library in listed
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
    {
        let copy = root.join(library.trim_start_matches('/'));
        fs::create_dir_all(copy.parent().unwrap()).unwrap();
        fs::copy(library, copy).unwrap();
    }
}
