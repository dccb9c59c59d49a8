//! `rleaks demo`: starts a small leaky program, scans it, and says how to scan one's own.

use std::io::{self, BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, bail};

use super::ExitStatus;
use super::demo_target::READY;

/// Starts the leaky program, scans it with `scan`, and ends it.
///
/// That leaks are found is what should happen: the status is `Done`.
pub(crate) fn demo(
    scan: impl FnOnce(u32) -> anyhow::Result<ExitStatus>,
) -> anyhow::Result<ExitStatus> {
    let program = LeakyProgram::start()?;
    let rleaks = std::env::args()
        .next()
        .unwrap_or_else(|| "rleaks".to_owned());
    introduce(&program, &rleaks)?;
    if scan(program.pid())? != ExitStatus::Leaks {
        bail!("the program leaked on purpose, but no leak was found: please report this as a bug");
    }
    drop(program);
    explain(&rleaks)?;
    Ok(ExitStatus::Done)
}

fn introduce(program: &LeakyProgram, rleaks: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "Process {} leaks on purpose:", program.pid())?;
    for leak in &program.leaks {
        writeln!(out, "  {leak}")?;
    }
    writeln!(out, "\n$ {rleaks} {}", program.pid())?;
    out.flush()
}

fn explain(rleaks: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(
        out,
        "
To scan a program of your own, give its pid or its name while it runs:
  {rleaks} 1234
  {rleaks} --name my-program
A program that this shell did not start may need `sudo`. All options: {rleaks} --help"
    )?;
    out.flush()
}

/// The leaky program: this executable, with a hidden command. It is ended on drop.
struct LeakyProgram {
    child: Child,
    /// What it leaked, in its own words.
    leaks: Vec<String>,
}

impl LeakyProgram {
    /// Starts it and waits until it has leaked.
    fn start() -> anyhow::Result<Self> {
        let path = std::env::current_exe().context("cannot find the executable of rleaks")?;
        let child = Command::new(path)
            .arg("demo-target")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the leaky program")?;
        let mut program = Self {
            child,
            leaks: Vec::new(),
        };
        program.listen()?;
        Ok(program)
    }

    fn listen(&mut self) -> anyhow::Result<()> {
        let Some(out) = self.child.stdout.take() else {
            unreachable!("it was started with a pipe");
        };
        for line in BufReader::new(out).lines() {
            let line = line.context("cannot read what the leaky program says")?;
            if line == READY {
                return Ok(());
            }
            self.leaks.push(line);
        }
        bail!("the leaky program ended before it was ready")
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for LeakyProgram {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
