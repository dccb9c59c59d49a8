//! A running program that is spoken to line by line.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};

/// A process with a pipe for its input and one for its output. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Program {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Program {
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut child = command
            // Cargo sets it for tests; a dynamic loader keeps a block for each folder in it.
            .env_remove("LD_LIBRARY_PATH")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let output = BufReader::new(child.stdout.take().unwrap());
        Self { child, output }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// The pid, as an argument for rleaks.
    pub(crate) fn pid(&self) -> String {
        self.id().to_string()
    }

    /// The next line that it prints.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        let length = self.output.read_line(&mut line).unwrap();
        assert_ne!(length, 0, "the program ended: {:?}", self.child.wait());
        line.trim_end().to_owned()
    }

    /// Sends it a line. Where it has ended, the test fails with the last line that it said.
    pub(crate) fn tell(&mut self, line: &str) {
        if let Err(error) = self.try_tell(line) {
            panic!("{error}; it said: {}", self.last_line());
        }
    }

    /// The same; an error where it does not read any more.
    pub(crate) fn try_tell(&mut self, line: &str) -> std::io::Result<()> {
        writeln!(self.child.stdin.as_mut().unwrap(), "{line}")
    }

    /// The next line that it prints; where it has ended, what became of it.
    pub(crate) fn last_line(&mut self) -> String {
        let mut line = String::new();
        match self.output.read_line(&mut line).unwrap() {
            0 => format!("ended: {:?}", self.child.wait()),
            _ => line.trim_end().to_owned(),
        }
    }

    /// Sends it a line, and returns the line that it answers.
    pub(crate) fn ask(&mut self, line: &str) -> String {
        self.tell(line);
        self.line()
    }

    /// Waits for its own end.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }

    /// Ends its input, waits for its end, and returns what it still printed.
    pub(crate) fn finish(&mut self) -> (ExitStatus, String) {
        drop(self.child.stdin.take());
        let mut rest = String::new();
        self.output.read_to_string(&mut rest).unwrap();
        (self.wait(), rest)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended already: then there is nothing to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
