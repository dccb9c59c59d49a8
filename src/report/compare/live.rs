//! What is compared: a report and, where a snapshot is at hand, all live memory.

use crate::report::{Module, Report, Stack};

/// One side of a comparison, made from a report or from a snapshot.
#[derive(Clone, Debug, PartialEq)]
pub struct Side {
    /// The file, or the process, as it was typed.
    pub source: String,
    /// Its leaks.
    pub report: Report,
    /// All its live blocks; `None` where nothing but a report is at hand.
    pub live: Option<LiveMemory>,
}

/// All live blocks of a target, leaked or not: those that are alike together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LiveMemory {
    /// Blocks with the same stack, type and size.
    pub groups: Vec<LiveGroup>,
    /// The stacks that groups name by id.
    pub stacks: Vec<Stack>,
    /// The images that these lead through.
    pub modules: Vec<Module>,
}

/// Live blocks that are alike.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LiveGroup {
    /// The id of the stack that allocated each of them.
    pub stack: Option<u32>,
    /// The type of each of them, if it is known.
    pub type_name: Option<String>,
    /// The usable size of each of them.
    pub size: u64,
    /// How many they are.
    pub blocks: u64,
}
