//! The report's data: what `rleaks --json` writes, version 1.

use std::borrow::Cow;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::hex::Offset;
use super::leaks::Leaks;
use crate::addr::Addr;
use crate::scan::LeakKind;
use crate::snapshot::ContentLevel;
use crate::warning::Warning;

/// The version of the JSON format. New fields do not raise it, any other change does.
pub const SCHEMA_VERSION: u32 = 1;

/// The leaks of a target at one instant, and how they were found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Report {
    /// The version of this format.
    #[schemars(extend("const" = SCHEMA_VERSION))]
    pub schema_version: u32,
    /// The version of the rleaks that made the report.
    pub rleaks_version: String,
    /// What was looked at.
    pub target: Target,
    /// How the snapshot was taken, and at what cost to the target.
    pub capture: Capture,
    /// The allocators, or arenas of them, that own the blocks.
    pub zones: Vec<Zone>,
    /// All live blocks of the target, leaked or not.
    pub heap: HeapTotals,
    /// The leaked blocks, counted.
    pub summary: Summary,
    /// The leaked blocks: the largest `size` + `held_bytes` first, then by address.
    #[schemars(with = "Vec<Leak<'static>>")]
    pub leaks: Leaks,
    /// Leaks with the same kind and allocation stack or, without stacks, the same kind, type, size
    /// and zone: the largest `bytes` + `held_bytes` first, then by the address of the first leak.
    pub groups: Vec<Group>,
    /// The allocation stacks that leaks and groups name by id.
    pub stacks: Vec<Stack>,
    /// The loaded images that the stacks lead through.
    #[serde(default)]
    pub modules: Vec<Module>,
    /// What the target recorded about its allocations.
    pub stack_log: StackLog,
    /// With --diff-from or --baseline, what the leaks were compared with: then the report has only
    /// those that are new.
    pub comparison: Option<Comparison>,
    /// What was not done, and which way it biases the result.
    pub warnings: Vec<Warning>,
}

impl Report {
    /// Says whether the target leaks: the difference between exit status 1 and 0.
    #[must_use]
    pub fn has_leaks(&self) -> bool {
        !self.leaks.is_empty()
    }
}

/// What was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Target {
    /// Whether it is a process or a file.
    pub kind: TargetKind,
    /// The process id, if it is known.
    pub pid: Option<u32>,
    /// The name that the kernel shows for the process.
    pub name: String,
    /// The path of the executable, as the target names it.
    pub executable: String,
    /// The arguments that the process was started with.
    pub command_line: Vec<String>,
    /// With --at-exit, the exit status that the process ended with, as a shell shows it: 128 and the
    /// signal's number where a signal ended it.
    pub command_status: Option<u8>,
    /// The signal that ended the process, if a core file says so: `SIGSEGV`.
    #[serde(default)]
    pub signal: Option<String>,
    /// The operating system: `linux`, `macos`.
    pub os: String,
    /// The instruction set: `x86_64`, `aarch64`.
    pub arch: String,
    /// The size of a pointer in bytes.
    pub pointer_size: u32,
    /// The milliseconds from the start of the system to that of the process, if they are known.
    pub started_milliseconds: Option<u64>,
    /// A number that is made of where the kernel has put the program: all reports of a process have
    /// the same, as long as it does not execute another program.
    pub address_space: Option<Offset>,
}

/// Whether a target is a process or a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TargetKind {
    /// A living process.
    Process,
    /// A core file.
    Core,
    /// A snapshot that rleaks saved.
    Snapshot,
}

/// How the snapshot was taken, and at what cost to the target.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Capture {
    /// The wall-clock time of the stop: RFC 3339, UTC.
    pub taken_at: String,
    /// How the memory was kept.
    pub method: CaptureMethod,
    /// How often the target was stopped.
    pub stops: u32,
    /// For how long the target was stopped in all, if it is known.
    pub pause_seconds: Option<f64>,
    /// The longest single stop.
    pub longest_pause_seconds: f64,
    /// How long rleaks worked, from its start to this report.
    pub total_seconds: f64,
    /// The number of threads of the target.
    pub threads: u64,
    /// Bytes of the target's memory that the snapshot holds.
    pub memory_bytes: u64,
    /// How much of what the memory holds is there: less than `full` only in a file.
    #[serde(default)]
    pub content: ContentLevel,
}

/// How a snapshot keeps the target's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CaptureMethod {
    /// The memory was copied while the target was stopped.
    Copy,
    /// The target stayed stopped while it was read.
    Stream,
    /// A frozen child of the target kept the memory.
    Fork,
    /// The memory came from a file.
    File,
}

/// An allocator, or one arena of it, that owns blocks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Zone {
    /// The number by which leaks name the zone.
    pub id: u32,
    /// The name for people: `glibc main arena`.
    pub name: String,
    /// The allocator and its version: `glibc 2.36`.
    pub allocator: String,
    /// The number of live blocks.
    pub blocks: u64,
    /// The sum of their usable sizes.
    pub bytes: u64,
}

/// All live blocks of the target, counted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HeapTotals {
    /// The number of blocks.
    pub blocks: u64,
    /// The sum of their usable sizes.
    pub bytes: u64,
}

/// The leaked blocks, counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Summary {
    /// The number of leaked blocks, of all kinds.
    pub leaked_blocks: u64,
    /// The sum of their usable sizes.
    pub leaked_bytes: u64,
    /// The number of blocks that no leak references.
    pub root_leaks: u64,
    /// The number of cycles that no leak outside them references. A cycle counts once.
    pub root_cycles: u64,
    /// The number of blocks that another leak holds.
    pub indirect: u64,
    /// The number of leaked blocks that were left out at the user's wish.
    pub suppressed_blocks: u64,
    /// The sum of their usable sizes.
    pub suppressed_bytes: u64,
}

/// A leaked block.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Leak<'a> {
    /// The address that the program got from its allocator.
    pub address: Addr,
    /// The bytes that the program may use.
    pub size: u64,
    /// The bytes that the program asked for, if the stack log knows.
    pub requested: Option<u64>,
    /// The id of the zone that owns the block.
    pub zone: u32,
    /// What the block is to the other leaks.
    pub kind: LeakKind,
    /// The lowest leak that references an indirect leak; null for the other kinds.
    pub parent: Option<Addr>,
    /// The leak below which the block stands in the text's trees: each leak is in exactly one.
    /// Null for a root leak and for the lowest block of a root cycle.
    pub tree_parent: Option<Addr>,
    /// The number of leaks that the block, or its root cycle, holds. Neither counts itself.
    pub held_blocks: u64,
    /// The sum of their usable sizes.
    pub held_bytes: u64,
    /// The type of what is in the block, if it is known.
    #[serde(rename = "type")]
    pub type_name: Option<Cow<'a, str>>,
    /// A preview of a string in the block, quoted and escaped.
    pub content: Option<Cow<'a, str>>,
    /// The length in bytes of the whole string that `content` previews.
    pub content_length: Option<u64>,
    /// The id of the stack that allocated the block.
    pub stack: Option<u32>,
    /// The id of the thread that allocated the block, as the target itself knows it.
    pub thread: Option<u32>,
    /// The milliseconds from the start of the stack log to the allocation, to within 17 of them.
    pub allocated_milliseconds: Option<u64>,
}

/// Leaks that are alike.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Group {
    /// What each of the leaks is to the other leaks.
    pub kind: LeakKind,
    /// The id of the stack that allocated each of them.
    pub stack: Option<u32>,
    /// The type of each of them; null where it is not known or not the same.
    #[serde(rename = "type")]
    pub type_name: Option<String>,
    /// The number of leaks.
    pub blocks: u64,
    /// The sum of their usable sizes.
    pub bytes: u64,
    /// The sum of their `held_blocks`.
    pub held_blocks: u64,
    /// The sum of their `held_bytes`.
    pub held_bytes: u64,
    /// Where the log has samples only: how many leaks the stack is likely to have allocated, of
    /// which these are those with a known stack. The estimate is right on average.
    pub estimated_blocks: Option<u64>,
    /// The same of their usable sizes.
    pub estimated_bytes: Option<u64>,
    /// Their addresses, in the order of the report's leaks.
    pub leaks: Vec<Addr>,
}

/// A call stack that allocated leaks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Stack {
    /// The number by which leaks and groups name the stack.
    pub id: u32,
    /// The frames, from the innermost (the allocator) to the outermost.
    pub frames: Vec<Frame>,
    /// Whether frames outside of the last one are missing.
    #[serde(default)]
    pub cut: bool,
}

/// One function call of a stack. What is not known is null.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Frame {
    /// The address of the code.
    pub address: Addr,
    /// The path of the loaded image that the code is in.
    pub module: Option<String>,
    /// The distance from the start of the module: what `addr2line` takes.
    pub offset: Option<Offset>,
    /// The name of the function.
    pub function: Option<String>,
    /// The distance in bytes from the start of the function.
    pub function_offset: Option<u64>,
    /// The source file.
    pub file: Option<String>,
    /// The line in it.
    pub line: Option<u32>,
    /// Whether the call was inlined into the next frame's function.
    pub inlined: bool,
}

/// A loaded image: the executable or a shared library.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Module {
    /// The path by which frames name it.
    pub path: String,
    /// Its GNU build id in hexadecimal digits, if it has one.
    pub build_id: Option<String>,
}

/// What the leaks of a report were compared with, and how many are new.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Comparison {
    /// What the other report was given as.
    pub with: ComparedWith,
    /// The file that has it, as it was typed.
    pub file: String,
    /// When it was made: RFC 3339, UTC. Null where the file has several reports of the program.
    pub taken_at: Option<String>,
    /// What makes two leaks the same.
    pub by: ComparedBy,
    /// The number of leaks that only this target has.
    pub new_blocks: u64,
    /// The sum of their usable sizes.
    pub new_bytes: u64,
    /// The number of leaks that both have. They count as suppressed.
    pub old_blocks: u64,
    /// The sum of their usable sizes.
    pub old_bytes: u64,
    /// The number of leaks that only the other report has.
    pub gone_blocks: u64,
    /// The sum of their usable sizes.
    pub gone_bytes: u64,
}

/// What a report that leaks are compared with was given as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ComparedWith {
    /// An earlier report: `--diff-from`.
    Earlier,
    /// A list of what is known: `--baseline`.
    Baseline,
}

/// What makes leaks of two reports the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ComparedBy {
    /// Both are of one process: the same allocation at the same address.
    Address,
    /// As many as the other has with the same stack, type and size.
    Stack,
    /// As many as the other has with the same type and size, as stacks are not known of both.
    Type,
}

/// What the target recorded about its allocations.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StackLog {
    /// What was recorded.
    pub mode: StackLogMode,
    /// The number of allocations that the log had no room for.
    pub dropped: u64,
    /// The mean distance in allocated bytes between two samples, if the log samples.
    pub sample_bytes: Option<u64>,
    /// The number of stacks, of whatever blocks, whose outer frames were not found.
    #[serde(default)]
    pub cut_stacks: u64,
}

/// Which allocations a stack log has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StackLogMode {
    /// There is no log.
    #[default]
    None,
    /// Those of live blocks.
    Lite,
    /// All, with their history.
    Full,
}
