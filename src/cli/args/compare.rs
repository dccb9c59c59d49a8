//! What can be typed to compare reports.

use std::path::PathBuf;

use clap::{ValueEnum, ValueHint};

use super::{
    Color, FileArgs, OutputArgs, ScanArgs, SnapshotMethod, TargetArgs, WhichArgs, parse_size,
};

/// What to compare the leaks with.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Comparison")]
pub(crate) struct CompareArgs {
    /// Show only the leaks that are new since OLD, a report that --json wrote or a snapshot.
    ///
    /// Of the same process, a leak is old if the same allocation leaked in OLD already. Of another one,
    /// leaks are old as far as OLD has as many with the same stack, type and size. The exit status is 1 if
    /// there are new ones.
    #[arg(long, value_name = "OLD", value_hint = ValueHint::FilePath)]
    #[arg(conflicts_with_all = ["baseline", "output_graph"])]
    pub(crate) diff_from: Option<PathBuf>,
    /// Take the leaks that REPORT has for known, and show only others.
    ///
    /// REPORT is what --json wrote, of the same program started some other time. Leaks are known as far
    /// as it has as many with the same stack, type and size; of several reports in it, and of several
    /// files, those of the same program count, and the one that has most of a kind. The exit status is 1
    /// if there are others.
    #[arg(long, value_name = "REPORT", value_hint = ValueHint::FilePath)]
    #[arg(conflicts_with = "output_graph")]
    pub(crate) baseline: Vec<PathBuf>,
}

/// The diff command.
#[derive(Debug, clap::Args)]
pub(crate) struct DiffArgs {
    /// What was there before: a report that --json wrote, a snapshot, or a process.
    #[arg(value_hint = ValueHint::FilePath)]
    pub(crate) old: String,
    /// What is there now, in the same forms.
    #[arg(value_hint = ValueHint::FilePath)]
    pub(crate) new: String,
    /// Write the differences as JSON to standard output or, with =FILE, to a file.
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "-", value_hint = ValueHint::FilePath)]
    pub(crate) json: Option<PathBuf>,
    /// Print at most N groups, those that have grown most.
    #[arg(long, value_name = "N", conflicts_with = "json")]
    pub(crate) limit: Option<usize>,
    /// Leave out files and lines, which take long to find in large debug information.
    #[arg(long)]
    pub(crate) no_sources: bool,
    /// Leave out the header, and show no progress.
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// When to use colours.
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    pub(crate) color: Color,
    /// Take at most SIZE of memory (RssAnon): bytes, or with K, M or G. The leaks are the same.
    ///
    /// Where that is less than a scan needs, the exit status is 2, and it is said how much would do.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) memory_limit: Option<u64>,
    #[command(flatten)]
    pub(crate) files: FileArgs,
}

impl DiffArgs {
    /// How a process, or a file of its memory, is scanned.
    pub(crate) fn scan(&self) -> ScanArgs {
        ScanArgs {
            memory_limit: self.memory_limit,
            max_pause: None,
            no_roots: Vec::new(),
            unaligned: false,
            snapshot: SnapshotMethod::Copy,
            threads: None,
            vector: None,
        }
    }

    /// What is found out about each leak.
    pub(crate) fn output(&self) -> OutputArgs {
        OutputArgs {
            json: None,
            list: false,
            group_by_type: false,
            limit: None,
            no_content: true,
            no_stacks: false,
            no_sources: self.no_sources,
            exclude: Vec::new(),
            quiet: self.quiet,
            verbose: false,
            color: self.color,
        }
    }

    /// The process that a word names.
    pub(crate) fn target(word: &str) -> TargetArgs {
        TargetArgs {
            which: WhichArgs {
                target: Some(word.to_owned()),
                name: None,
            },
            newest: false,
            oldest: false,
            all: false,
        }
    }
}

/// What a schema is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum SchemaOf {
    /// What `rleaks --json` writes.
    Report,
    /// What `rleaks diff --json` writes.
    Diff,
}
