//! Leaks: blocks that no root reaches, and what each of them holds.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a leaked block is to the other leaks.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum LeakKind {
    /// No leak references it.
    RootLeak,
    /// It is in a cycle that no leak outside the cycle references. A block that references only
    /// itself is a cycle of one.
    RootCycle,
    /// Another leak holds it.
    Indirect,
}

/// A leaked block. Blocks are named by their index in `Heap::blocks`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leak {
    /// The block.
    pub block: u32,
    /// What it is to the other leaks.
    pub kind: LeakKind,
    /// The lowest leaked block that references an indirect leak; `None` for the other kinds.
    pub parent: Option<u32>,
    /// The leak below which it stands in the tree of leaks. The trees are breadth-first, from the
    /// root leaks and root cycles in ascending order of their lowest block, and every leak is in
    /// exactly one tree: a block that several root leaks hold belongs to the lowest one. `None`
    /// for a root leak and for the lowest block of a root cycle; the other blocks of that cycle
    /// stand below it.
    pub tree_parent: Option<u32>,
    /// The number of leaks below it in its tree, not counting the blocks of its own root cycle.
    /// 0 for a block of a root cycle that is not the lowest of it: the lowest one speaks for all.
    pub held_blocks: u64,
    /// The sum of their sizes.
    pub held_bytes: u64,
}
