//! What can be typed, and the help that says so.

mod compare;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum, ValueHint};
use clap_complete::Shell;

pub(crate) use compare::{CompareArgs, DiffArgs, SchemaOf};

use crate::platform::Choice;
use crate::scan::{Filter, RootKind};
use crate::snapshot::ContentLevel;

const EXIT_STATUS: &str = "\
Exit status:
  0  no leaks were found; of a command that looks for none: it did its work
  1  leaks were found
  2  rleaks could not do its work; standard error says why, and what to do about it
  With --at-exit it is that of CMD where no leaks were found.";

const EXAMPLES: &str = "\
Examples:
  rleaks 1234                       scan process 1234
  rleaks mono-sgen                  scan the process of that name
  rleaks --name app --all --json    scan each process of that name; one JSON document a line
  rleaks 1234 --list --no-content   one line per leak, and nothing of what memory holds
  rleaks record -- ./app            start a program that remembers who allocated what
  rleaks --at-exit -- ./app arg     run a program, and scan it when it ends
  rleaks 1234 --diff-from old.json  show what has leaked since that report was made
  rleaks demo                       scan a small leaky program, to see what a report looks like";

const PRELOAD_PATH: &str = "Print where the recorder is, for those who set LD_PRELOAD themselves";

const PRELOAD_SETTINGS: &str = "\
What is recorded is set by environment variables of the program: RLEAKS_STACK_LOG=lite|full|off, \
RLEAKS_STACK_LOG_DEPTH=FRAMES, RLEAKS_STACK_LOG_SAMPLE=BYTES, RLEAKS_STACK_LOG_SCRIBBLE=1, \
RLEAKS_STACK_LOG_LIMIT=MIB, RLEAKS_STACK_LOG_HISTORY=FILE, RLEAKS_STACK_LOG_HISTORY_LIMIT=MIB.";

const USAGE: &str = "\
rleaks [OPTIONS] <TARGET|--name <NAME>>
       rleaks [OPTIONS] --at-exit -- <CMD>...
       rleaks <COMMAND>";

/// What names a process that runs already, instead of a command to run.
const RUNNING: [&str; 5] = ["target", "name", "newest", "oldest", "all"];

/// What says how to look for leaks, or what to show of them.
const OF_REPORTS: [&str; 12] = [
    "at_exit",
    "json",
    "list",
    "group_by_type",
    "limit",
    "no_stacks",
    "no_sources",
    "exclude",
    "no_roots",
    "unaligned",
    "leak_status",
    "follow_children",
];

/// Find leaked heap memory in a running process, without restarting or rebuilding it.
///
/// The process is stopped for a moment, its memory is copied, and it goes on; nothing runs in it
/// and nothing in it is written. Every aligned word in its globals, stacks, registers and in every
/// block that these reach counts as a reference. A live block that nothing references is a leak.
#[derive(Debug, Parser)]
#[command(
    name = "rleaks",
    version,
    arg_required_else_help = true,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    max_term_width = 100,
    override_usage = USAGE,
    after_help = EXIT_STATUS,
    after_long_help = format!("{EXAMPLES}\n\n{EXIT_STATUS}"),
)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) leaks: LeaksArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Scan a small program that leaks on purpose, to see what a report looks like.
    #[command(after_help = "Example:\n  rleaks demo")]
    Demo,
    /// Show what works, and what does not, for this user and for a process.
    ///
    /// Nothing is stopped but a small program of rleaks' own. What does not work comes with what a
    /// report would lose by it. The exit status is 0 if the target, where one is named, was found.
    #[command(after_help = "Example:\n  rleaks doctor 1234")]
    Doctor(DoctorArgs),
    /// Show how two reports differ: leaks that appeared, grew or went away.
    ///
    /// OLD and NEW are reports that --json wrote, snapshots that --output-graph saved, or processes by
    /// their pid or name; one at two times, or two of them. Leaks of one process are compared by address;
    /// others by what allocated them: their stack or, without stacks, their type and size. Unless one
    /// of the two is a report, all memory in use is compared, too.
    #[command(after_help = "Example:\n  rleaks diff monday.json friday.json")]
    Diff(DiffArgs),
    /// List the zones of a process's heap; in JSON, its live blocks too.
    #[command(after_help = "Example:\n  rleaks heap 1234 --json=heap.json")]
    Heap(HeapArgs),
    /// Start a program that remembers the call stacks of its allocations.
    ///
    /// CMD runs as it would have without rleaks, in the same process and with the same exit status. From
    /// now on `rleaks PID` shows for each leak the stack that allocated it. What CMD starts remembers
    /// its own. The exit status is 2 if CMD could not be started.
    #[command(after_help = "Example:\n  rleaks record -- ./app --port 8080")]
    Record(RecordArgs),
    #[command(about = PRELOAD_PATH, long_about = format!("{PRELOAD_PATH}.\n\n{PRELOAD_SETTINGS}"))]
    #[command(after_help = "Example:\n  rleaks preload-path --install /usr/local/lib/rleaks")]
    PreloadPath {
        /// Copy the recorder into this directory, for all users and for containers.
        #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
        install: Option<PathBuf>,
    },
    /// Print the JSON Schema of what --json writes.
    #[command(after_help = "Example:\n  rleaks schema > rleaks.schema.json")]
    Schema {
        /// Of which command's JSON.
        #[arg(value_name = "WHAT", default_value = "report")]
        of: SchemaOf,
    },
    /// Print a completion script for a shell.
    #[command(after_help = "Example:\n  rleaks completions bash > \
                            ~/.local/share/bash-completion/completions/rleaks")]
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Print the manual page.
    #[command(after_help = "Example:\n  rleaks man > ~/.local/share/man/man1/rleaks.1")]
    Man,
    /// Leak on purpose, then wait until standard input is closed.
    #[command(hide = true)]
    DemoTarget,
    /// Make a child of a process, as the rleaks says that started this one.
    #[command(hide = true)]
    Guardian,
}

/// Finding leaks: what to scan, how, and what to print.
#[derive(Debug, clap::Args)]
pub(crate) struct LeaksArgs {
    #[command(flatten)]
    pub(crate) target: TargetArgs,
    #[command(flatten)]
    pub(crate) at_exit: AtExitArgs,
    #[command(flatten)]
    pub(crate) scan: ScanArgs,
    #[command(flatten)]
    pub(crate) files: FileArgs,
    #[command(flatten)]
    pub(crate) compare: CompareArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) save: SaveArgs,
}

/// Scanning a program when it ends.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "At exit")]
pub(crate) struct AtExitArgs {
    /// Run CMD, and scan it when it ends, after its last destructor.
    ///
    /// CMD remembers the stacks of its allocations and runs undisturbed until it begins to end. The
    /// report comes when it has ended. The exit status is 1 if there were leaks, else that of CMD: 128
    /// and the signal's number if a signal ended it. Where the end of CMD could not be seen, that is
    /// said, and the exit status is 2.
    #[arg(long, requires = "command")]
    #[arg(conflicts_with_all = RUNNING)]
    pub(crate) at_exit: bool,
    /// Also scan CMD where a signal ends it, or a system call of its own.
    ///
    /// For that, CMD is traced from its start: a debugger cannot have it meanwhile, and a program that
    /// it becomes gains no privileges from its file unless rleaks runs as root.
    #[arg(long, requires = "at_exit", conflicts_with_all = RUNNING)]
    pub(crate) on_signal: bool,
    /// Also scan each process that CMD starts, when it ends, with a report each.
    ///
    /// In JSON, each report is a line. Processes that outlive CMD are not waited for.
    #[arg(long, requires = "at_exit", conflicts_with_all = RUNNING)]
    pub(crate) follow_children: bool,
    /// End with status N, instead of 1, where there are leaks.
    #[arg(long, value_name = "N", requires = "at_exit", conflicts_with_all = RUNNING)]
    pub(crate) leak_status: Option<u8>,
    /// The program to run with --at-exit, and its arguments.
    #[arg(
        last = true,
        value_name = "CMD",
        requires = "at_exit",
        group = "WhichArgs"
    )]
    #[arg(value_hint = ValueHint::CommandWithArguments, help_heading = None)]
    pub(crate) command: Vec<OsString>,
}

/// The record command.
#[derive(Debug, clap::Args)]
pub(crate) struct RecordArgs {
    /// Also record what is freed, in a file; %p in its name stands for the process id.
    ///
    /// The default is rleaks-%p.history in this directory.
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "rleaks-%p.history", value_hint = ValueHint::FilePath)]
    pub(crate) history: Option<PathBuf>,
    /// Record one allocation in about BYTES allocated bytes, instead of each.
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) sample: Option<u64>,
    /// Keep at most N frames of each stack, the innermost ones.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) depth: Option<u32>,
    /// Fill memory with 0xAA when it is allocated, and with 0x55 when it is freed.
    #[arg(long)]
    pub(crate) scribble: bool,
    /// The program to run, and its arguments.
    #[arg(last = true, required = true, value_name = "CMD")]
    #[arg(value_hint = ValueHint::CommandWithArguments)]
    pub(crate) command: Vec<OsString>,
}

/// The doctor command.
#[derive(Debug, clap::Args)]
pub(crate) struct DoctorArgs {
    /// The process to look at: its pid, or its name. Without it, only the system is looked at.
    #[arg(value_name = "TARGET")]
    target: Option<String>,
    /// Look at the process named NAME, whatever it looks like.
    #[arg(long, value_name = "NAME", conflicts_with = "target")]
    name: Option<String>,
    /// Write what was found as JSON to standard output or, with =FILE, to a file.
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "-", value_hint = ValueHint::FilePath)]
    pub(crate) json: Option<PathBuf>,
    /// When to use colours.
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    pub(crate) color: Color,
}

impl DoctorArgs {
    /// The process to look at, if there is one.
    pub(crate) fn target(&self) -> Option<TargetArgs> {
        let which = WhichArgs {
            target: self.target.clone(),
            name: self.name.clone(),
        };
        let is_named = which.target.is_some() || which.name.is_some();
        is_named.then_some(TargetArgs {
            which,
            newest: false,
            oldest: false,
            all: false,
        })
    }
}

/// The heap command.
#[derive(Debug, clap::Args)]
pub(crate) struct HeapArgs {
    #[command(flatten)]
    pub(crate) target: TargetArgs,
    #[command(flatten)]
    pub(crate) files: FileArgs,
    /// Write the heap as JSON to standard output or, with =FILE, to a file.
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "-", value_hint = ValueHint::FilePath)]
    pub(crate) json: Option<PathBuf>,
}

/// Where the files of a target are that is a core file.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Files")]
pub(crate) struct FileArgs {
    /// The executable of a target that is a core file or a snapshot, where it is not at its old path.
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub(crate) exe: Option<PathBuf>,
    /// The directory that has the files of a target that is a core file or a snapshot, as its root directory
    /// had them: libraries, and their debug files.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) sysroot: Option<PathBuf>,
}

/// What to scan.
#[derive(Debug, clap::Args)]
pub(crate) struct TargetArgs {
    #[command(flatten)]
    pub(crate) which: WhichArgs,
    /// Of several processes with that name, scan the one that was started last.
    #[arg(long, conflicts_with_all = ["oldest", "all"], help_heading = "Target")]
    newest: bool,
    /// Of several processes with that name, scan the one that was started first.
    #[arg(long, conflicts_with = "all", help_heading = "Target")]
    oldest: bool,
    /// Scan each process with that name, and print a report for each.
    #[arg(long, help_heading = "Target")]
    all: bool,
}

/// The one word that names the target.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub(crate) struct WhichArgs {
    /// The process to scan: its pid, or its name; or a core file.
    ///
    /// Digits are a pid; --name takes a name of digits. A word with a slash in it, or the name of
    /// a core file in this directory, is a file: a core file, compressed or not, or a snapshot that
    /// --output-graph has saved.
    #[arg(value_name = "TARGET")]
    pub(crate) target: Option<String>,
    /// Scan the process named NAME, whatever it looks like.
    ///
    /// A process has up to three names: what the kernel shows for it, the last part of its
    /// executable's path, and the last part of its first argument. An exact match beats one that
    /// differs in case, that beats a prefix, and that beats a part; prefixes and parts ignore
    /// case. rleaks itself and the processes that started it are never meant.
    #[arg(long, value_name = "NAME", help_heading = "Target")]
    pub(crate) name: Option<String>,
}

impl TargetArgs {
    /// Says whether several processes may be meant.
    pub(crate) fn is_all(&self) -> bool {
        self.all
    }

    /// Which of several processes of the name is meant.
    pub(crate) fn choice(&self) -> Choice {
        match (self.newest, self.oldest, self.all) {
            (true, _, _) => Choice::Newest,
            (_, true, _) => Choice::Oldest,
            (_, _, true) => Choice::All,
            _ => Choice::Only,
        }
    }
}

/// How to scan.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Scan")]
pub(crate) struct ScanArgs {
    /// Leave out these classes of roots: what only they reference is reported as leaked.
    #[arg(
        long,
        value_name = "CLASS",
        value_delimiter = ',',
        require_equals = true
    )]
    pub(crate) no_roots: Vec<RootClass>,
    /// Look for references at every byte, not only at multiples of the pointer size.
    #[arg(long)]
    pub(crate) unaligned: bool,
    /// How to keep the target's memory.
    #[arg(long, value_name = "HOW", default_value = "copy")]
    pub(crate) snapshot: SnapshotMethod,
    /// Stop the target for at most about MS milliseconds, or do not stop it at all.
    ///
    /// What each way to keep its memory would take is estimated first. Of `copy` and `stream`, and `fork` where
    /// --snapshot asks for it, one is taken that is short enough; where none is, the exit status is 2.
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_pause: Option<u32>,
    /// Take at most SIZE of memory (RssAnon): bytes, or with K, M or G.
    ///
    /// The target is not copied where that would take more, and read while it is stopped. References
    /// are not kept where there is no room for them: memory is read again when they are needed, which takes
    /// longer. The leaks are the same. Where SIZE is less than the target needs, the exit status is 2,
    /// and it is said how much would do.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) memory_limit: Option<u64>,
    /// Use this many threads, instead of one per processor.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,
    /// Look for references by these instructions, instead of the best that the processor has: for tests.
    #[arg(long, value_name = "NAME", hide = true, value_parser = vector)]
    pub(crate) vector: Option<Filter>,
}

fn vector(name: &str) -> Result<Filter, String> {
    let all = Filter::all();
    let found = all.iter().find(|filter| filter.name() == name);
    found.copied().ok_or_else(|| {
        let names: Vec<_> = all.into_iter().map(Filter::name).collect();
        format!("this processor has {}", names.join(", "))
    })
}

/// Parses a number of bytes, such as `500000`, `64M` or `1G`.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    const WRONG: &str = "expected a number of bytes, or one with K, M, G or T, such as 64M";
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match &text[digits.len()..] {
        "" => 0,
        "K" | "k" | "KiB" => 10,
        "M" | "m" | "MiB" => 20,
        "G" | "g" | "GiB" => 30,
        "T" | "t" | "TiB" => 40,
        _ => return Err(WRONG.to_owned()),
    };
    let number: u64 = digits.parse().map_err(|_| WRONG.to_owned())?;
    let bytes = number.checked_mul(1 << shift).filter(|bytes| *bytes > 0);
    bytes.ok_or_else(|| WRONG.to_owned())
}

/// What to print, and where.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Output")]
pub(crate) struct OutputArgs {
    /// Write the report as JSON to standard output or, with =FILE, to a file.
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "-", value_hint = ValueHint::FilePath)]
    pub(crate) json: Option<PathBuf>,
    /// Print one line per leak, without groups and trees.
    #[arg(long, conflicts_with_all = ["json", "group_by_type"])]
    pub(crate) list: bool,
    /// Print one group per type instead of one per stack and type.
    #[arg(long, conflicts_with = "json")]
    pub(crate) group_by_type: bool,
    /// Print at most N groups, the largest ones.
    #[arg(long, value_name = "N", conflicts_with = "json")]
    pub(crate) limit: Option<usize>,
    /// Leave out what the leaked blocks contain.
    ///
    /// With --output-graph, save what finds the leaks, and nothing else of what memory holds: the
    /// words that are references, and what allocators keep of their blocks. The command line and
    /// the environment are left out. Such a file gives the same leaks.
    #[arg(long)]
    pub(crate) no_content: bool,
    /// Leave out the call stacks that allocated the leaks.
    #[arg(long)]
    pub(crate) no_stacks: bool,
    /// Leave out files and lines, which take long to find in large debug information.
    #[arg(long)]
    pub(crate) no_sources: bool,
    /// Leave out the leaks that FUNCTION allocated, itself or through functions that it called.
    ///
    /// It is the whole name of the function, or what comes before the parameters. What such a leak
    /// holds is left out only if FUNCTION allocated it, too. Can be given several times. It needs
    /// the malloc stack log.
    #[arg(long, value_name = "FUNCTION")]
    pub(crate) exclude: Vec<String>,
    /// Leave out the header of the report, and show no progress.
    #[arg(short, long, conflicts_with = "verbose")]
    pub(crate) quiet: bool,
    /// Show on standard error what is done and how long it takes.
    #[arg(short, long)]
    pub(crate) verbose: bool,
    /// When to use colours.
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    pub(crate) color: Color,
}

/// Saving a snapshot instead of a report.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Save")]
pub(crate) struct SaveArgs {
    /// Save a snapshot in FILE, to be scanned later with `rleaks FILE`, instead of a report.
    ///
    /// It is a core file, which debuggers open too. Where FILE is a directory, the file in it is
    /// named after the process. A file of that name is replaced when the new one is whole; only its
    /// owner can read it. The exit status is 0 if it was saved.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::AnyPath)]
    #[arg(conflicts_with_all = OF_REPORTS)]
    pub(crate) output_graph: Option<PathBuf>,
    /// Compress the file, so that it can still be read from any place; `zstd -d` makes a plain core file of
    /// it.
    #[arg(long, requires = "output_graph")]
    pub(crate) compress: bool,
    /// Save all that memory holds. That is what is done without any of the three.
    #[arg(long, requires = "output_graph", conflicts_with_all = ["readonly_content", "no_content"])]
    pub(crate) full_content: bool,
    /// Save what finds the leaks, and what read-only memory of files holds.
    #[arg(long, requires = "output_graph", conflicts_with = "no_content")]
    pub(crate) readonly_content: bool,
}

impl LeaksArgs {
    /// How much of what memory holds is to be saved.
    pub(crate) fn content_level(&self) -> ContentLevel {
        match (self.output.no_content, self.save.readonly_content) {
            (true, _) => ContentLevel::None,
            (_, true) => ContentLevel::Readonly,
            _ => ContentLevel::Full,
        }
    }
}

/// A class of roots, as it is typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum RootClass {
    /// Writable data of the program and its libraries.
    Globals,
    /// The live parts of the threads' stacks.
    Stacks,
    /// Thread-local storage.
    Tls,
    /// The threads' general and vector registers.
    Registers,
    /// Values that the kernel holds for the process.
    Kernel,
    /// Other writable memory that no allocator owns.
    Other,
}

impl From<RootClass> for RootKind {
    fn from(class: RootClass) -> Self {
        match class {
            RootClass::Globals => Self::Globals,
            RootClass::Stacks => Self::Stacks,
            RootClass::Tls => Self::Tls,
            RootClass::Registers => Self::Registers,
            RootClass::Kernel => Self::Kernel,
            RootClass::Other => Self::Other,
        }
    }
}

/// How the target's memory is kept until the report is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum SnapshotMethod {
    /// Copy it: a short stop, and as much memory as the target uses. Becomes `stream` by itself
    /// where there is too little.
    Copy,
    /// Read it while the target is stopped: a longer stop, and little memory.
    Stream,
    /// Read a child of the target, which one of its threads is made to fork: a very short stop, and
    /// little memory. Becomes `copy` by itself where that might do harm.
    Fork,
}

/// When to use colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Color {
    /// On a terminal.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

impl Color {
    /// Makes it the choice of every `anstream` stream of this process.
    pub(crate) fn apply(self) {
        match self {
            // The default also respects NO_COLOR, CLICOLOR and TERM=dumb.
            Self::Auto => {}
            Self::Always => anstream::ColorChoice::Always.write_global(),
            Self::Never => anstream::ColorChoice::Never.write_global(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Args, clap::Error> {
        Args::try_parse_from(line.split_whitespace())
    }

    fn parsed(line: &str) -> Args {
        parse(line).unwrap_or_else(|error| panic!("{line}: {error}"))
    }

    #[test]
    fn the_definition_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn json_takes_a_file_only_after_an_equals_sign() {
        let args = parsed("rleaks --json 1234");
        assert_eq!(args.leaks.output.json.as_deref(), Some(Path::new("-")));
        assert_eq!(args.leaks.target.which.target.as_deref(), Some("1234"));
        let args = parsed("rleaks 1234 --json=out.json");
        assert_eq!(
            args.leaks.output.json.as_deref(),
            Some(Path::new("out.json"))
        );
        assert_eq!(parsed("rleaks 1234").leaks.output.json, None);
    }

    #[test]
    fn root_classes_are_a_list() {
        let args = parsed("rleaks --no-roots=stacks,tls --no-roots=kernel 1");
        let expected = [RootClass::Stacks, RootClass::Tls, RootClass::Kernel];
        assert_eq!(args.leaks.scan.no_roots, expected);
        assert!(parse("rleaks --no-roots=heap 1").is_err());
    }

    #[test]
    fn sizes_are_bytes_or_have_a_unit() {
        for (text, bytes) in [
            ("1", 1),
            ("500000", 500_000),
            ("4K", 4096),
            ("64M", 64 << 20),
            ("64m", 64 << 20),
            ("1GiB", 1 << 30),
            ("2T", 2 << 40),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in [
            "",
            "0",
            "M",
            "-1",
            "1.5G",
            "64 M",
            "64X",
            "64MB",
            "17000000T",
            "\u{666}",
        ] {
            assert!(parse_size(text).is_err(), "{text}");
        }
        let args = parsed("rleaks --memory-limit 64M 1");
        assert_eq!(args.leaks.scan.memory_limit, Some(64 << 20));
    }

    #[test]
    fn a_process_named_as_a_command_is_reached_with_name() {
        assert!(matches!(
            parsed("rleaks heap 12").command,
            Some(Command::Heap(_))
        ));
        let args = parsed("rleaks --name heap");
        assert!(args.command.is_none());
        assert_eq!(args.leaks.target.which.name.as_deref(), Some("heap"));
    }

    #[test]
    fn choices_are_understood() {
        let choice = |line: &str| parsed(line).leaks.target.choice();
        assert_eq!(choice("rleaks --name app"), Choice::Only);
        assert_eq!(choice("rleaks --name app --newest"), Choice::Newest);
        assert_eq!(choice("rleaks app --oldest"), Choice::Oldest);
        assert_eq!(choice("rleaks --all app"), Choice::All);
    }

    #[test]
    fn what_follows_two_dashes_is_the_command() {
        let args = parsed("rleaks --at-exit --json -- app --json -x -- y");
        assert_eq!(
            args.leaks.at_exit.command,
            ["app", "--json", "-x", "--", "y"]
        );
        assert!(args.leaks.at_exit.at_exit && !args.leaks.at_exit.on_signal);
        let args = parsed("rleaks record --history --depth 9 -- app --depth 7");
        let Some(Command::Record(record)) = args.command else {
            panic!("{args:?}");
        };
        assert_eq!(record.command, ["app", "--depth", "7"]);
        assert_eq!(
            record.history.as_deref(),
            Some(Path::new("rleaks-%p.history"))
        );
        assert_eq!(record.depth, Some(9));
    }

    #[test]
    fn wrong_usage_is_refused() {
        for line in [
            "rleaks",
            "rleaks -v",
            "rleaks --newest",
            "rleaks 1 2",
            "rleaks 1 --name app",
            "rleaks app --newest --oldest",
            "rleaks app --newest --all",
            "rleaks app --oldest --all",
            "rleaks 1 --list --json",
            "rleaks 1 --threads 0",
            "rleaks 1 --threads 1025",
            "rleaks 1 --memory-limit 0",
            "rleaks 1 --memory-limit little",
            "rleaks 1 --limit -1",
            "rleaks 1 -q -v",
            "rleaks 1 --snapshot file",
            "rleaks heap",
            "rleaks --at-exit",
            "rleaks --at-exit --",
            "rleaks --at-exit 1",
            "rleaks --at-exit --name app",
            "rleaks --at-exit --all -- app",
            "rleaks -- app",
            "rleaks 1 --on-signal",
            "rleaks 1 --follow-children",
            "rleaks --at-exit --leak-status 256 -- app",
            "rleaks 1 --at-exit -- app",
            "rleaks --at-exit --output-graph x -- app",
            "rleaks 1 --output-graph x --json",
            "rleaks 1 --compress",
            "rleaks 1 --readonly-content",
            "rleaks 1 --output-graph x --full-content --no-content",
            "rleaks record",
            "rleaks record app",
            "rleaks record --sample 0 -- app",
            "rleaks record --depth 0 -- app",
            "rleaks preload-path /lib",
            "rleaks demo 1",
            "rleaks schema --json",
            "rleaks schema heap",
            "rleaks 1 --diff-from a.json --baseline b.json",
            "rleaks --diff-from a.json",
            "rleaks 1 --diff-from a.json --output-graph a.core",
            "rleaks 1 --baseline a.json --output-graph a.core",
            "rleaks diff a.json",
            "rleaks diff a.json b.json c.json",
            "rleaks diff a.json b.json --json --limit 3",
            "rleaks completions",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn every_command_has_an_example() {
        for command in Args::command()
            .get_subcommands()
            .filter(|c| !c.is_hide_set())
        {
            let help = command.get_after_help().map(ToString::to_string);
            let example = format!("Example:\n  rleaks {}", command.get_name());
            assert!(
                help.unwrap_or_default().starts_with(&example),
                "{}",
                command.get_name()
            );
        }
    }
}
