//! Leaks: blocks that no root reaches, and what each of them holds.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a leaked block is to the other leaks.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum LeakKind {
    /// No leak references it.
    #[default]
    RootLeak,
    /// It is in a cycle that no leak outside the cycle references. A block that references only
    /// itself is a cycle of one.
    RootCycle,
    /// Another leak holds it.
    Indirect,
}

/// A leaked block, small: there may be tens of millions.
///
/// Leaks name each other by their index in the list that they are in, which is in ascending order of
/// their blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leak {
    /// The block, by its index in `Heap::blocks`.
    pub block: u32,
    /// The lowest leak that references an indirect leak; none for the other kinds.
    pub parent: Link,
    /// The leak below which it stands in the tree of leaks. The trees are breadth-first, from the
    /// root leaks and root cycles in ascending order of their lowest block, and every leak is in
    /// exactly one tree: a block that several root leaks hold belongs to the lowest one. None
    /// for a root leak and for the lowest block of a root cycle; the other blocks of that cycle
    /// stand below it.
    pub tree_parent: Link,
    /// The number of leaks below it in its tree, not counting the blocks of its own root cycle.
    /// 0 for a block of a root cycle that is not the lowest of it: the lowest one speaks for all.
    pub held_blocks: u32,
    /// The sum of their sizes.
    pub held_bytes: u64,
    /// What it is to the other leaks.
    pub kind: LeakKind,
}

/// The index of a leak, or none. It is smaller than an `Option`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Link(u32);

impl Link {
    /// No leak.
    pub const NONE: Self = Self(u32::MAX);

    /// The leak with this index. There are fewer than 2³² - 1 blocks.
    #[must_use]
    pub const fn to(leak: u32) -> Self {
        Self(leak)
    }

    /// The index.
    #[must_use]
    pub const fn get(self) -> Option<u32> {
        match self.0 {
            u32::MAX => None,
            leak => Some(leak),
        }
    }
}

impl From<Option<u32>> for Link {
    fn from(leak: Option<u32>) -> Self {
        leak.map_or(Self::NONE, Self::to)
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}
