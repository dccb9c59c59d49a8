//! What `rleaks diff` says of two reports.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use rustc_hash::FxHashMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::compared::{Compared, Totals};
use super::kinds::{Kind, Kinds};
use super::live::{LiveMemory, Side};
use super::terms::Terms;
use super::weak;
use crate::report::{ComparedBy, HeapTotals, Stack, Target};
use crate::warning::Warning;

/// The version of the JSON format. New fields do not raise it, any other change does.
pub const DIFF_SCHEMA_VERSION: u32 = 1;

/// How two targets, or a target at two instants, differ.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Diff {
    /// The version of this format.
    #[schemars(extend("const" = DIFF_SCHEMA_VERSION))]
    pub schema_version: u32,
    /// The version of the rleaks that compared.
    pub rleaks_version: String,
    /// What was there before.
    pub old: DiffSide,
    /// What is there now.
    pub new: DiffSide,
    /// What makes two leaks the same.
    pub by: ComparedBy,
    /// The leaks, counted.
    pub summary: DiffSummary,
    /// The groups of leaks that differ: what has grown most comes first.
    pub leaks: Vec<GroupChange>,
    /// The groups of live blocks that differ, leaked or not: what has grown most comes first. Null where
    /// one of the sides is a report, which does not have these blocks.
    pub live: Option<Vec<GroupChange>>,
    /// The stacks that groups name by id.
    pub stacks: Vec<Stack>,
    /// What cannot be compared.
    pub warnings: Vec<Warning>,
}

/// One of the two that were compared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DiffSide {
    /// The file, or the process, as it was typed.
    pub source: String,
    /// What was looked at.
    pub target: Target,
    /// The wall-clock time of the stop: RFC 3339, UTC.
    pub taken_at: String,
    /// All its live blocks, leaked or not.
    pub heap: HeapTotals,
    /// The number of its leaked blocks.
    pub leaked_blocks: u64,
    /// The sum of their usable sizes.
    pub leaked_bytes: u64,
}

/// The leaks of both sides, counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DiffSummary {
    /// The number of leaks that only the new side has.
    pub appeared_blocks: u64,
    /// The sum of their usable sizes.
    pub appeared_bytes: u64,
    /// The number of leaks that both sides have.
    pub kept_blocks: u64,
    /// The sum of their usable sizes on the new side.
    pub kept_bytes: u64,
    /// The number of leaks that only the old side has.
    pub gone_blocks: u64,
    /// The sum of their usable sizes.
    pub gone_bytes: u64,
    /// The number of groups of leaks that did not change.
    pub unchanged_groups: u64,
}

/// What has become of blocks that are alike.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GroupChange {
    /// What happened to them.
    pub change: Change,
    /// The id of the stack that allocated each of them.
    pub stack: Option<u32>,
    /// The type of each of them; null where it is not known or not the same.
    #[serde(rename = "type")]
    pub type_name: Option<String>,
    /// The size of each of them: what the program asked for, where that is known on both sides. Null
    /// where it is not the same.
    pub size: Option<u64>,
    /// How many there were.
    pub old_blocks: u64,
    /// The sum of their usable sizes.
    pub old_bytes: u64,
    /// How many there are.
    pub new_blocks: u64,
    /// The sum of their usable sizes.
    pub new_bytes: u64,
    /// How many of these were not there before. Null for blocks that need not be leaks: of them there are counts only.
    pub appeared_blocks: Option<u64>,
    /// How many of those that were there are not there now. Null as `appeared_blocks`.
    pub gone_blocks: Option<u64>,
}

/// What happened to a group of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// There were none before.
    Appeared,
    /// They are more bytes, or as many in more blocks.
    Grew,
    /// They are fewer bytes, or as many in fewer blocks.
    Shrank,
    /// There are none now.
    WentAway,
    /// They are as many as before, but not the same.
    Replaced,
}

impl Diff {
    /// Compares `old` with `new`.
    #[must_use]
    pub fn new(old: &Side, new: &Side) -> Self {
        let terms = Terms::new(&[&old.report], &new.report);
        let mut kinds = Kinds::new(&terms);
        let reports = (&old.report, &new.report);
        let compared = Compared::new(&mut kinds, terms.same_process, &[reports.0], reports.1);
        let (leaks, unchanged_groups) = leak_groups(&compared).changed(true);
        let live = old.live.as_ref().zip(new.live.as_ref());
        let live = live.map(|(old, new)| {
            let old = (old, &*reports.0.target.executable);
            let new = (new, &*reports.1.target.executable);
            live_groups(&terms, &mut kinds, old, new).changed(false).0
        });
        let shown = leaks.iter().chain(live.iter().flatten());
        Self {
            schema_version: DIFF_SCHEMA_VERSION,
            rleaks_version: env!("CARGO_PKG_VERSION").to_owned(),
            old: DiffSide::of(old),
            new: DiffSide::of(new),
            by: terms.by(),
            summary: DiffSummary {
                unchanged_groups,
                ..summary(&compared)
            },
            stacks: stacks(&kinds, shown),
            leaks,
            live,
            warnings: weak::of_diff(old, new),
        }
    }
}

impl DiffSide {
    fn of(side: &Side) -> Self {
        let report = &side.report;
        let leaked = report.leaks.iter().fold(Totals::default(), Totals::with);
        Self {
            source: side.source.clone(),
            target: report.target.clone(),
            taken_at: report.capture.taken_at.clone(),
            heap: report.heap.clone(),
            leaked_blocks: leaked.blocks,
            leaked_bytes: leaked.bytes,
        }
    }
}

/// The stacks that the groups name: their ids are the numbers of their kinds.
fn stacks<'g>(kinds: &Kinds<'_>, groups: impl Iterator<Item = &'g GroupChange>) -> Vec<Stack> {
    let used: BTreeSet<u32> = groups.filter_map(|group| group.stack).collect();
    let shown = |id| {
        Some(Stack {
            id,
            ..kinds.shown(id)?.clone()
        })
    };
    used.into_iter().filter_map(shown).collect()
}

fn summary(compared: &Compared<'_>) -> DiffSummary {
    let leaks = |wanted: bool| {
        let leaks = compared
            .new_leaks()
            .filter(move |(_, is_new)| *is_new == wanted);
        leaks
            .map(|(leak, _)| leak)
            .fold(Totals::default(), Totals::with)
    };
    let (appeared, kept) = (leaks(true), leaks(false));
    let gone = compared.gone().fold(Totals::default(), Totals::with);
    DiffSummary {
        appeared_blocks: appeared.blocks,
        appeared_bytes: appeared.bytes,
        kept_blocks: kept.blocks,
        kept_bytes: kept.bytes,
        gone_blocks: gone.blocks,
        gone_bytes: gone.bytes,
        unchanged_groups: 0,
    }
}

fn leak_groups<'r>(compared: &Compared<'r>) -> Groups<'r> {
    let mut groups = Groups::default();
    let partners = compared.matching.partners.iter();
    for ((leak, kind), partner) in compared.new.iter().zip(partners) {
        let group = groups.of(*kind);
        group.new = group.new.with(*leak);
        match partner.and_then(|index| compared.old.get(index)) {
            // Both are of one group, though the type may be known on one side only.
            Some((old, _)) => group.old = group.old.with(*old),
            None => group.appeared += 1,
        }
    }
    for index in &compared.matching.gone {
        let (leak, kind) = compared.old[*index];
        let group = groups.of(kind);
        group.old = group.old.with(leak);
        group.gone += 1;
    }
    groups
}

/// Groups the live blocks of both sides, each with the path of its executable.
fn live_groups<'r>(
    terms: &Terms,
    kinds: &mut Kinds<'r>,
    (old, old_executable): (&'r LiveMemory, &str),
    (new, new_executable): (&'r LiveMemory, &str),
) -> Groups<'r> {
    let mut groups = Groups::default();
    let by_stack = terms.requested && !old.stacks.is_empty() && !new.stacks.is_empty();
    for (memory, executable, is_old) in [(new, new_executable, false), (old, old_executable, true)]
    {
        let numbers = kinds.stacks(&memory.stacks, executable);
        for live in &memory.groups {
            let stack = live.stack.filter(|_| by_stack);
            let group = groups.of(Kind {
                stack: stack.and_then(|id| numbers.get(&id).copied()),
                type_name: live.type_name.as_deref(),
                size: live.size,
            });
            let totals = if is_old {
                &mut group.old
            } else {
                &mut group.new
            };
            *totals = totals.plus(live.blocks, live.blocks.saturating_mul(live.size));
        }
    }
    groups
}

/// What the members of a group have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Alike<'a> {
    Stack(u32),
    Shape(Option<&'a str>, u64),
}

impl<'a> Alike<'a> {
    fn of(kind: Kind<'a>) -> Self {
        match kind.stack {
            Some(stack) => Self::Stack(stack),
            None => Self::Shape(kind.type_name, kind.size),
        }
    }
}

/// A group while it is filled.
#[derive(Clone, Debug, Default)]
struct Filling<'a> {
    stack: Option<u32>,
    types: Common<&'a str>,
    sizes: Common<u64>,
    old: Totals,
    new: Totals,
    appeared: u64,
    gone: u64,
}

/// A value that all have, as long as they do.
#[derive(Clone, Copy, Debug, Default)]
enum Common<T> {
    #[default]
    Unset,
    Same(T),
    Different,
}

impl<T: PartialEq + Copy> Common<T> {
    fn add(&mut self, value: Option<T>) {
        *self = match (*self, value) {
            (Self::Unset, Some(value)) => Self::Same(value),
            (Self::Same(known), Some(value)) if known == value => *self,
            _ => Self::Different,
        };
    }

    fn get(self) -> Option<T> {
        match self {
            Self::Same(value) => Some(value),
            _ => None,
        }
    }
}

/// Groups in the order in which they were first seen.
#[derive(Debug, Default)]
struct Groups<'a> {
    index: FxHashMap<Alike<'a>, usize>,
    groups: Vec<Filling<'a>>,
}

impl<'a> Groups<'a> {
    fn of(&mut self, kind: Kind<'a>) -> &mut Filling<'a> {
        let groups = &mut self.groups;
        let slot = *self.index.entry(Alike::of(kind)).or_insert_with(|| {
            groups.push(Filling::default());
            groups.len() - 1
        });
        let group = &mut groups[slot];
        group.types.add(kind.type_name);
        group.sizes.add(Some(kind.size));
        group.stack = kind.stack;
        group
    }

    /// The groups that changed, and how many did not.
    fn changed(self, has_members: bool) -> (Vec<GroupChange>, u64) {
        let all = self.groups.len();
        let changes = self.groups.iter();
        let mut changes: Vec<GroupChange> = changes
            .filter_map(|group| group.change(has_members))
            .collect();
        changes.sort_by_key(|group| {
            let growth = i128::from(group.new_bytes) - i128::from(group.old_bytes);
            let blocks = i128::from(group.new_blocks) - i128::from(group.old_blocks);
            Reverse((growth, blocks))
        });
        let unchanged = (all - changes.len()) as u64;
        (changes, unchanged)
    }
}

impl Filling<'_> {
    fn change(&self, has_members: bool) -> Option<GroupChange> {
        let (old, new) = (self.old, self.new);
        let amount = |totals: Totals| (totals.bytes, totals.blocks);
        let change = match () {
            () if old.blocks == 0 => Change::Appeared,
            () if new.blocks == 0 => Change::WentAway,
            () if amount(new) > amount(old) => Change::Grew,
            () if amount(new) < amount(old) => Change::Shrank,
            () if self.appeared > 0 => Change::Replaced,
            () => return None,
        };
        Some(GroupChange {
            change,
            stack: self.stack,
            type_name: self.types.get().map(str::to_owned),
            size: self.sizes.get(),
            old_blocks: old.blocks,
            old_bytes: old.bytes,
            new_blocks: new.blocks,
            new_bytes: new.bytes,
            appeared_blocks: has_members.then_some(self.appeared),
            gone_blocks: has_members.then_some(self.gone),
        })
    }
}
