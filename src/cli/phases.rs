//! What is being done and how long it took, on standard error.
//!
//! Nothing is printed while a target stands still: a phase that ends then is shown later.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::args::OutputArgs;
use crate::platform::holds_a_stopped_target;

/// The phases of one command.
pub(super) struct Phases {
    start: Instant,
    current: Option<(&'static str, Instant)>,
    ended: Vec<(&'static str, Duration)>,
    spinner: ProgressBar,
    verbose: bool,
}

impl Phases {
    pub(super) fn new(output: &OutputArgs) -> Self {
        Self::with_spinner(output, io::stderr().is_terminal())
    }

    /// The same without anything that moves: a program writes to the terminal meanwhile.
    pub(super) fn beside_a_program(output: &OutputArgs) -> Self {
        Self::with_spinner(output, false)
    }

    fn with_spinner(output: &OutputArgs, is_wanted: bool) -> Self {
        let spinner = if is_wanted && !output.quiet && !output.verbose {
            ProgressBar::new_spinner()
        } else {
            ProgressBar::hidden()
        };
        let style = ProgressStyle::with_template("{spinner} {msg} {elapsed}");
        spinner.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
        Self {
            start: Instant::now(),
            current: None,
            ended: Vec::new(),
            spinner,
            verbose: output.verbose,
        }
    }

    /// Ends the current phase and begins the next one.
    pub(super) fn begin(&mut self, name: &'static str) {
        self.end();
        self.current = Some((name, Instant::now()));
        if !holds_a_stopped_target() {
            self.spinner.set_message(name);
            self.spinner.tick();
        }
    }

    /// How long the command has been running.
    pub(super) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Ends the last phase, clears the spinner and, if asked for, prints all phases.
    pub(super) fn finish(mut self) {
        self.end();
        self.spinner.finish_and_clear();
        if self.verbose {
            let lines = self.ended.iter().map(|(name, time)| {
                format!("rleaks: {:>9.3} ms  {name}\n", time.as_secs_f64() * 1000.0)
            });
            let text: String = lines.collect();
            // There is nowhere to say that it could not be said.
            let _ = io::stderr().lock().write_all(text.as_bytes());
        }
    }

    fn end(&mut self) {
        if let Some((name, start)) = self.current.take() {
            self.ended.push((name, start.elapsed()));
        }
    }
}
