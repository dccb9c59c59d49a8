//! The leaks of reports side by side.

use rustc_hash::FxHashMap;

use super::kinds::{Kind, Kinds};
use super::matching::{Matching, Ordered, by_address, by_kind, tree_order};
use crate::report::{LeakRef, Report};

/// Blocks and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) blocks: u64,
    pub(super) bytes: u64,
}

impl Totals {
    pub(super) fn with(self, leak: LeakRef<'_>) -> Self {
        self.plus(1, leak.size())
    }

    pub(super) fn plus(self, blocks: u64, bytes: u64) -> Self {
        Self {
            blocks: self.blocks.saturating_add(blocks),
            bytes: self.bytes.saturating_add(bytes),
        }
    }
}

/// The leaks of a report beside those of earlier ones.
#[derive(Debug)]
pub(super) struct Compared<'r> {
    pub(super) old: Vec<(LeakRef<'r>, Kind<'r>)>,
    pub(super) new: Vec<(LeakRef<'r>, Kind<'r>)>,
    pub(super) matching: Matching,
}

impl<'r> Compared<'r> {
    /// Compares `new` with `old`. Of several, the leaks of a kind are those of the report that has
    /// most of them.
    pub(super) fn new(
        kinds: &mut Kinds<'r>,
        same_process: bool,
        old: &[&'r Report],
        new: &'r Report,
    ) -> Self {
        let mut with_kinds = |report: &'r Report| -> Vec<(LeakRef<'r>, Kind<'r>)> {
            let kinds = kinds.of(report);
            report.leaks.iter().zip(kinds).collect()
        };
        let new = with_kinds(new);
        let old: Vec<_> = old.iter().map(|old| with_kinds(old)).collect();
        let old = most_of_each_kind(old);
        let matching = match same_process {
            true => by_address(&old, &new),
            false => by_kind(&Ordered::new(&old), &Ordered::new(&new)),
        };
        Self { old, new, matching }
    }

    /// The old leaks that are none of the new ones.
    pub(super) fn gone(&self) -> impl Iterator<Item = LeakRef<'r>> + '_ {
        let gone = self.matching.gone.iter();
        gone.filter_map(|index| self.old.get(*index).map(|(leak, _)| *leak))
    }

    /// The leaks of the new report in its order, and whether each is new.
    pub(super) fn new_leaks(&self) -> impl Iterator<Item = (LeakRef<'r>, bool)> + '_ {
        let partners = self.matching.partners.iter();
        let leaks = self.new.iter().zip(partners);
        leaks.map(|((leak, _), partner)| (*leak, partner.is_none()))
    }
}

impl<'r> Ordered<'r> {
    fn new(leaks: &[(LeakRef<'r>, Kind<'r>)]) -> Self {
        let (leaks, kinds): (Vec<LeakRef<'_>>, Vec<Kind<'r>>) = leaks.iter().copied().unzip();
        Self {
            order: tree_order(&leaks),
            kinds,
        }
    }
}

fn most_of_each_kind<'r>(
    mut reports: Vec<Vec<(LeakRef<'r>, Kind<'r>)>>,
) -> Vec<(LeakRef<'r>, Kind<'r>)> {
    if reports.len() == 1 {
        return reports.pop().unwrap_or_default();
    }
    // How many leaks of a kind there are, and in which report.
    let mut most: FxHashMap<Kind<'r>, (usize, usize)> = FxHashMap::default();
    for (number, leaks) in reports.iter().enumerate() {
        let mut counts: FxHashMap<Kind<'r>, usize> = FxHashMap::default();
        for (_, kind) in leaks {
            *counts.entry(*kind).or_default() += 1;
        }
        for (kind, count) in counts {
            let known = most.entry(kind).or_default();
            if known.0 < count {
                *known = (count, number);
            }
        }
    }
    let numbered = reports.into_iter().enumerate();
    let leaks = numbered.flat_map(|(number, leaks)| leaks.into_iter().map(move |l| (number, l)));
    leaks
        .filter(|(number, (_, kind))| most.get(kind).is_some_and(|most| most.1 == *number))
        .map(|(_, leak)| leak)
        .collect()
}
