//! A running fixture and what it says about itself.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};

use super::compile::{Build, compile};
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

/// A fixture that has said `ready`. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Fixture {
    child: Child,
    output: BufReader<ChildStdout>,
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
        Self::start_built(file, Build::Dynamic, arguments)
    }

    /// The same, built in another way than usual.
    pub(crate) fn start_built(file: &str, build: Build, arguments: &[&str]) -> Self {
        let mut child = Command::new(compile(file, build))
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut fixture = Self {
            child,
            output,
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

    /// Where the shared library of `fixtures/FILE` is.
    pub(crate) fn library(file: &str, build: Build) -> PathBuf {
        compile(file, build)
    }

    /// The pid, as an argument for rleaks.
    pub(crate) fn pid(&self) -> String {
        self.child.id().to_string()
    }

    /// The next line that the fixture prints.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        let length = self.output.read_line(&mut line).unwrap();
        assert_ne!(length, 0, "the fixture ended: {:?}", self.child.wait());
        line.trim_end().to_owned()
    }

    /// Sends the fixture a command, and returns the line that it answers.
    pub(crate) fn ask(&mut self, command: &str) -> String {
        let input = self.child.stdin.as_mut().unwrap();
        writeln!(input, "{command}").unwrap();
        self.line()
    }

    /// Waits for the fixture's own end.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
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
            ["dead", _, _] => {}
            _ => panic!("the fixture said {line:?}"),
        }
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        // It may have ended already: then there is nothing to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
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
