//! Groups: leaks that are alike.

use std::cmp::Reverse;

use rustc_hash::FxHashMap;

use super::leaks::{LeakRef, Leaks};
use super::model::Group;
use crate::scan::LeakKind;

/// What the leaks of a group have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Alike {
    /// The stack that allocated them.
    Stack(LeakKind, u32),
    /// What they look like, where no stack is known: type, size and zone.
    Shape(LeakKind, Option<u32>, u64, u32),
}

impl Alike {
    pub(super) fn of(leak: LeakRef<'_>) -> Self {
        let row = leak.here();
        match leak.stack() {
            Some(stack) => Self::Stack(row.kind, stack),
            None => Self::Shape(row.kind, leak.type_number(), row.size, row.zone),
        }
    }
}

/// Groups the leaks, which are in the report's order: the groups that hold most come first.
/// `sample_bytes` is the mean distance of two samples, where the stacks are those of samples.
pub(super) fn groups(leaks: &Leaks, sample_bytes: Option<u64>) -> Vec<Group> {
    let mut found: Vec<(Group, Estimate)> = Vec::new();
    let mut index = FxHashMap::default();
    for leak in leaks.iter() {
        let slot = *index.entry(Alike::of(leak)).or_insert_with(|| {
            found.push((empty_group_for(leak), Estimate::default()));
            found.len() - 1
        });
        let (group, estimate) = &mut found[slot];
        add(group, leak);
        estimate.add(leak, sample_bytes);
    }
    let estimated = |(group, estimate): (Group, Estimate)| estimate.enter(group);
    let mut groups: Vec<Group> = found.into_iter().map(estimated).collect();
    groups.sort_by_key(|group| {
        let bytes = group.bytes.saturating_add(group.held_bytes);
        (Reverse(bytes), group.leaks.first().copied())
    });
    groups
}

fn empty_group_for(leak: LeakRef<'_>) -> Group {
    Group {
        kind: leak.kind(),
        stack: leak.stack(),
        type_name: leak.type_name().map(str::to_owned),
        blocks: 0,
        bytes: 0,
        held_blocks: 0,
        held_bytes: 0,
        estimated_blocks: None,
        estimated_bytes: None,
        leaks: Vec::new(),
    }
}

/// How many leaks the samples of a group stand for.
#[derive(Clone, Copy, Debug, Default)]
struct Estimate {
    blocks: f64,
    bytes: f64,
}

impl Estimate {
    /// Adds a leak, if it is a sample. A block of `s` bytes is sampled with the probability
    /// `1 - exp(-s / mean)`, so on average one that is stands for the inverse of that many.
    fn add(&mut self, leak: LeakRef<'_>, sample_bytes: Option<u64>) {
        let Some(mean) = sample_bytes else {
            return;
        };
        let (Some(requested), Some(_)) = (leak.requested(), leak.stack()) else {
            return;
        };
        let chance = -(-(requested.max(1) as f64) / mean.max(1) as f64).exp_m1();
        self.blocks += chance.recip();
        self.bytes += leak.size() as f64 * chance.recip();
    }

    fn enter(self, mut group: Group) -> Group {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "sums of positive numbers, of which the largest is as good as any larger one"
        )]
        let rounded = |sum: f64| (sum > 0.0).then(|| sum.round() as u64);
        group.estimated_blocks = rounded(self.blocks);
        group.estimated_bytes = rounded(self.bytes);
        group
    }
}

fn add(group: &mut Group, leak: LeakRef<'_>) {
    let row = leak.here();
    // One stack may allocate objects of several types.
    if group.type_name.is_some() && group.type_name.as_deref() != leak.type_name() {
        group.type_name = None;
    }
    group.blocks += 1;
    group.bytes = group.bytes.saturating_add(row.size);
    group.held_blocks = group.held_blocks.saturating_add(row.held_blocks.into());
    group.held_bytes = group.held_bytes.saturating_add(row.held_bytes);
    group.leaks.push(row.address);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Leak;
    use crate::report::fixture::{leaky, with_stacks};

    #[test]
    fn every_leak_is_in_one_group() {
        for report in [leaky(), with_stacks()] {
            let mut grouped: Vec<_> = report.groups.iter().flat_map(|g| &g.leaks).collect();
            let mut leaks: Vec<_> = report.leaks.iter().map(LeakRef::address).collect();
            grouped.sort();
            leaks.sort();
            assert!(grouped.into_iter().eq(&leaks));
        }
    }

    #[test]
    fn a_stack_that_allocates_two_types_is_a_group_without_a_type() {
        let mut leaks = with_stacks().leaks.to_vec();
        leaks.retain(|leak| leak.stack == Some(9) && leak.kind == LeakKind::RootLeak);
        for (leak, name) in leaks.iter_mut().zip(["A", "A", "B", "A"]) {
            leak.type_name = Some(name.into());
        }
        let groups = |count| groups(&leaks[..count].iter().cloned().collect(), None);
        assert_eq!(groups(2)[0].type_name.as_deref(), Some("A"));
        assert_eq!(groups(4)[0].type_name, None);
        assert_eq!(groups(4).len(), 1);
    }

    #[test]
    fn samples_stand_for_as_many_blocks_as_their_size_says() {
        let mut leaks = with_stacks().leaks.to_vec();
        leaks.retain(|leak| leak.stack == Some(9) && leak.kind == LeakKind::RootLeak);
        leaks.truncate(2);
        for (leak, requested) in leaks.iter_mut().zip([24, 1 << 30]) {
            (leak.requested, leak.size) = (Some(requested), requested);
        }
        let groups = |leaks: &[Leak<'_>], mean| groups(&leaks.iter().cloned().collect(), mean);
        let group = &groups(&leaks, Some(24 * 1000))[0];
        // One in 1000.5 blocks of 24 bytes is sampled, and every block of a GiB.
        assert_eq!(group.estimated_blocks, Some(1002));
        assert_eq!(group.estimated_bytes, Some((1 << 30) + 24 * 1000 + 12));
        let group = &groups(&leaks, None)[0];
        assert_eq!((group.estimated_blocks, group.blocks), (None, 2));
        for leak in &mut leaks {
            leak.stack = None;
        }
        let groups = groups(&leaks, Some(24 * 1000));
        assert!(groups.iter().all(|group| group.estimated_blocks.is_none()));
    }

    #[test]
    fn without_stacks_a_zone_of_its_own_is_a_group_of_its_own() {
        let mut leaks = leaky().leaks.to_vec();
        let before = leaky().groups.len();
        leaks.last_mut().expect("leaks").zone = 1;
        let leaks = leaks.into_iter().collect();
        assert_eq!(groups(&leaks, None).len(), before + 1);
    }
}
