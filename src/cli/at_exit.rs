//! `rleaks --at-exit -- CMD`: runs a program, and scans it when it ends.

use std::ffi::OsString;
use std::io::Write;
use std::sync::Arc;

use anyhow::{Context, anyhow};

use super::ExitStatus;
use super::args::LeaksArgs;
use super::capture::{Purpose, capture_at_end};
use super::compare;
use super::error::{self, printable};
use super::{leaks, preload};
use crate::platform::{
    CommandEnd, CommandLine, Ending, Follow, FollowEvent, Followed, Limit, ProgramFile, Target,
    TargetFiles, Waiters, private_folder, privileges, signal_name,
};
use crate::report::Report;
use crate::report::compare::Earlier;
use crate::stacklog::{ExitPage, format};

/// Runs the command, and prints a report when it has ended.
pub(crate) fn at_exit(args: &LeaksArgs) -> anyhow::Result<ExitStatus> {
    let plan = Plan::new(args)?;
    let earlier = compare::earlier(args)?;
    if let Some(path) = leaks::json_file(args) {
        // What cannot be written is better known now than when the command has ended.
        leaks::create(path)?;
    }
    let mut followed = Followed::start(plan.follow(args)?).context("cannot start a process")?;
    let mut outcome = Outcome::default();
    let end = loop {
        match followed.next_event()? {
            FollowEvent::Ending(ending) => outcome.take(ending, args, earlier.as_ref()),
            FollowEvent::Refused(pid, error) => {
                let error = anyhow!(error).context(format!("cannot scan process {pid} at its end"));
                outcome.failed(&error, pid);
            }
            FollowEvent::Ended(end) => break end,
        }
    };
    if let Some(page) = &plan.page {
        page.remove();
    }
    outcome.conclude(&plan, followed.pid, end, args)
}

/// How the command is run and followed.
struct Plan {
    /// The name of the command.
    name: String,
    /// Why it is traced from its start.
    from_start: bool,
    /// It would lose privileges by that, so nobody can see its end.
    is_out_of_sight: bool,
    variables: Vec<(OsString, OsString)>,
    page: Option<Arc<ExitPage>>,
}

impl Plan {
    fn new(args: &LeaksArgs) -> anyhow::Result<Self> {
        let word = args
            .at_exit
            .command
            .first()
            .context("no program is named")?;
        let program = ProgramFile::find(word)?;
        let limit = program.limit();
        let name = printable(&word.to_string_lossy());
        let sees_the_end = limit.as_ref().is_none_or(Limit::sees_the_end);
        let is_out_of_sight = program.gains_privileges() && !privileges().may_trace;
        if let Some(limit) = &limit {
            say(&format!("{name} is not recorded: {limit}"));
        }
        if is_out_of_sight {
            say(&format!(
                "{name} runs unobserved, for it would lose its privileges if it was traced: run rleaks as root"
            ));
        } else if !sees_the_end {
            say("it is traced from its start, and the report shows no call stacks");
        }
        let mut plan = Self {
            name,
            from_start: (args.at_exit.on_signal || !sees_the_end) && !is_out_of_sight,
            is_out_of_sight,
            variables: Vec::new(),
            page: None,
        };
        if limit.is_none_or(|limit| limit.bears_the_recorder()) {
            plan.variables
                .push(preload::preloading(&preload::library()?)?);
        }
        if !plan.from_start || args.at_exit.follow_children {
            plan.add_page()?;
        }
        Ok(plan)
    }

    fn add_page(&mut self) -> anyhow::Result<()> {
        let folder = private_folder()?;
        let page = ExitPage::create(&folder)
            .with_context(|| format!("cannot write a file in {}", folder.display()))?;
        let path = page.path().as_os_str().to_owned();
        self.variables
            .push((format::EXIT_PAGE_VARIABLE.into(), path));
        self.page = Some(Arc::new(page));
        Ok(())
    }

    fn follow(&self, args: &LeaksArgs) -> anyhow::Result<Follow> {
        Ok(Follow {
            command: CommandLine {
                words: args.at_exit.command.clone(),
                variables: self.variables.clone(),
            },
            waiters: self.page.clone().map(|page| page as Arc<dyn Waiters>),
            from_start: self.from_start,
            children: args.at_exit.follow_children,
        })
    }

    /// Why nothing was seen of the end of the command.
    fn blindness(&self, end: &CommandEnd) -> String {
        let name = &self.name;
        let was_present = self.page.as_ref().is_some_and(|page| page.was_present());
        match end.signal {
            _ if self.is_out_of_sight => format!("{name} ran unobserved"),
            Some(signal) if self.from_start => {
                format!(
                    "{name} was ended by {} before it could be held",
                    signal_name(signal)
                )
            }
            Some(signal) => format!(
                "{name} was ended by {}, which only --on-signal sees",
                signal_name(signal)
            ),
            None if self.from_start => format!("{name} ended and could not be held"),
            None if was_present => format!(
                "{name} ended by a system call of its own, without the C library, which only --on-signal \
                 sees"
            ),
            None => format!(
                "the recorder was not loaded into {name}, or not into the program that it has executed, so \
                 nothing told of its end: --on-signal traces it from its start"
            ),
        }
    }
}

fn say(text: &str) {
    // There is nowhere to say that it could not be said.
    let _ = std::io::stderr()
        .lock()
        .write_all(format!("rleaks: {text}\n").as_bytes());
}

/// What has come of the command's end, and of the ends of those that it started.
#[derive(Default)]
struct Outcome {
    reports: Vec<Report>,
    /// The processes that could not be scanned, though their ends were seen.
    failed: Vec<u32>,
}

impl Outcome {
    /// Scans a process that stands at its end, and lets it end.
    fn take(&mut self, ending: Ending, args: &LeaksArgs, earlier: Option<&Earlier>) {
        let (pid, status) = (ending.pid, ending.status);
        let report = leaks::scan(args, || {
            // When it was captured it ends, and its files are out of reach.
            let files = TargetFiles::of_process(pid);
            let target = Target::new(pid).with_memory_limit(args.scan.memory_limit);
            let method = args.scan.snapshot.into();
            let captured = capture_at_end(ending, &target, (method, Purpose::Scan))?;
            Ok((captured, files))
        });
        let report = report.and_then(|mut report| {
            let compared = earlier.map(|earlier| earlier.leave_only_new(&mut report));
            compared.transpose()?;
            Ok(report)
        });
        match report {
            Ok(mut report) => {
                report.target.command_status = Some(status);
                self.reports.push(report);
            }
            Err(error) => {
                let error = error.context(format!("cannot scan process {pid} at its end"));
                self.failed(&error, pid);
            }
        }
    }

    fn failed(&mut self, error: &anyhow::Error, pid: u32) {
        error::report(error);
        self.failed.push(pid);
    }

    /// Prints the reports, and says with what to end.
    fn conclude(
        mut self,
        plan: &Plan,
        command: u32,
        end: CommandEnd,
        args: &LeaksArgs,
    ) -> anyhow::Result<ExitStatus> {
        if let Some(error) = end.failure {
            return Err(error).with_context(|| format!("cannot run {}", plan.name));
        }
        let is_seen = self.reports.iter().any(|r| r.target.pid == Some(command));
        if !is_seen && !self.failed.contains(&command) {
            let error = anyhow!(plan.blindness(&end)).context("no report could be made");
            self.failed(&error, command);
        }
        for report in &self.reports {
            leaks::print(report, args, args.at_exit.follow_children)?;
        }
        if !self.failed.is_empty() {
            say(&format!("{} ended with status {}", plan.name, end.status));
            return Ok(ExitStatus::Failed);
        }
        let leaks = self.reports.iter().any(Report::has_leaks);
        Ok(match (leaks, args.at_exit.leak_status) {
            (true, None) => ExitStatus::Leaks,
            (true, Some(status)) => ExitStatus::Program(status),
            (false, _) => ExitStatus::Program(end.status),
        })
    }
}
