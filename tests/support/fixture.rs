//! A running fixture and what it says about itself.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::path::PathBuf;
use std::process::Command;

use super::compile::{Build, compile, compile_as};
use super::program::Program;
use super::report::parse_address;

/// What a fixture says about a block that it leaked on purpose.
#[derive(Debug)]
pub(crate) struct Leak {
    pub(crate) size: u64,
    pub(crate) kind: String,
    /// The leak that must be its parent.
    pub(crate) parent: Option<u64>,
    /// The blocks and bytes that it must hold, where the fixture says so.
    pub(crate) held: Option<(u64, u64)>,
    /// What rleaks must call it, where the fixture says so.
    pub(crate) type_name: Option<String>,
}

/// What glibc's dynamic loader keeps of the program itself, in a static one.
const LOADER_BLOCKS: usize = 5;

/// A fixture that has said `ready`. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Fixture {
    program: Program,
    /// The process to look at: the program, or one that it started.
    pid: u32,
    /// Blocks that something references: address and usable size.
    pub(crate) live: BTreeMap<u64, u64>,
    /// The word that follows the size of some live blocks.
    pub(crate) notes: BTreeMap<u64, String>,
    /// Blocks that nothing references.
    pub(crate) leaks: BTreeMap<u64, Leak>,
    /// libc's own live blocks, as far as the fixture knows them, and their names.
    pub(crate) libc: BTreeMap<u64, String>,
}

impl Fixture {
    /// Builds and starts `fixtures/FILE`, and reads what it says until it is ready.
    pub(crate) fn start(file: &str) -> Self {
        Self::start_with(file, &[])
    }

    /// The same, with arguments.
    pub(crate) fn start_with(file: &str, arguments: &[&str]) -> Self {
        Self::start_in(file, arguments, &[])
    }

    /// The same, built in another way than usual.
    pub(crate) fn start_built(file: &str, build: Build, arguments: &[&str]) -> Self {
        Self::of(Command::new(compile_as(file, build)).args(arguments))
    }

    /// The same, with environment variables.
    pub(crate) fn start_in(file: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut command = Command::new(compile(file));
        Self::of(command.args(arguments).envs(environment.iter().copied()))
    }

    /// Starts a fixture through `command`, which ends up running it: as this process, or as the
    /// only child of its only child and so on.
    pub(crate) fn start_by(command: &mut Command) -> Self {
        let mut fixture = Self::of(command);
        while let Some(child) = only_child(fixture.pid) {
            fixture.pid = child;
        }
        fixture
    }

    /// Where the program of `fixtures/FILE` is.
    pub(crate) fn program(file: &str) -> PathBuf {
        compile(file)
    }

    /// Starts a command that is a fixture, and reads what it says until it is ready.
    pub(crate) fn of(command: &mut Command) -> Self {
        let program = Program::start(command);
        let mut fixture = Self {
            pid: program.id(),
            program,
            live: BTreeMap::new(),
            notes: BTreeMap::new(),
            leaks: BTreeMap::new(),
            libc: BTreeMap::new(),
        };
        loop {
            let line = fixture.line();
            if line == "ready" {
                return fixture;
            }
            fixture.learn(&line);
        }
    }

    /// The pid, as an argument for rleaks.
    pub(crate) fn pid(&self) -> String {
        self.pid.to_string()
    }

    /// The blocks of `reported` that the fixture can know of. In a static program, the parts of the
    /// dynamic loader that are in it allocate before anything else does.
    pub(crate) fn without_loader(&self, mut reported: BTreeMap<u64, u64>) -> BTreeMap<u64, u64> {
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", self.pid)).unwrap();
        let known = self.live.keys().chain(self.leaks.keys());
        let known = known.chain(self.libc.keys());
        if let Some(first) = known.min().filter(|_| !maps.contains("/ld-linux")) {
            let own = reported.split_off(first);
            assert!(reported.len() <= LOADER_BLOCKS, "{reported:x?}");
            return own;
        }
        reported
    }

    fn learn(&mut self, line: &str) {
        let fields: Vec<&str> = line.split(' ').collect();
        match *fields.as_slice() {
            ["live", address, size, ref note @ ..] | ["block", address, size, ref note @ ..]
                if note != ["leaked"] =>
            {
                let address = parse_address(address);
                self.live.insert(address, size.parse().unwrap());
                self.notes.insert(address, note.concat());
            }
            ["leak", address, size, kind, ref details @ ..] => {
                let leak = Leak::new(size, kind, details);
                self.leaks.insert(parse_address(address), leak);
            }
            ["block", address, size, "leaked"] => {
                let leak = Leak::new(size, "", &[]);
                self.leaks.insert(parse_address(address), leak);
            }
            ["libc", address, name] => {
                self.libc.insert(parse_address(address), name.to_owned());
            }
            ["dead", _, _] | ["loader"] => {}
            ["pid", pid] => self.pid = pid.parse().unwrap(),
            _ => panic!("the fixture said {line:?}"),
        }
    }
}

fn only_child(pid: u32) -> Option<u32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.trim().parse().ok()
}

impl Deref for Fixture {
    type Target = Program;

    fn deref(&self) -> &Program {
        &self.program
    }
}

impl DerefMut for Fixture {
    fn deref_mut(&mut self) -> &mut Program {
        &mut self.program
    }
}

impl Leak {
    fn new(size: &str, kind: &str, details: &[&str]) -> Self {
        let detail = |name: &str| {
            details
                .iter()
                .find_map(|detail| detail.strip_prefix(name)?.strip_prefix('='))
        };
        Self {
            size: size.parse().unwrap(),
            kind: kind.to_owned(),
            parent: detail("parent").map(parse_address),
            held: detail("held").map(|held| {
                let (blocks, bytes) = held.split_once(',').unwrap();
                (blocks.parse().unwrap(), bytes.parse().unwrap())
            }),
            type_name: detail("type").map(str::to_owned),
        }
    }
}
