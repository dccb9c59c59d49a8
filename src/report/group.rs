//! Groups: leaks that are alike.

use std::cmp::Reverse;

use rustc_hash::FxHashMap;

use super::model::{Group, Leak};
use crate::scan::LeakKind;

/// What the leaks of a group have in common.
#[derive(PartialEq, Eq, Hash)]
enum Alike<'a> {
    /// The stack that allocated them.
    Stack(LeakKind, u32),
    /// What they look like, where no stack is known.
    Shape(LeakKind, Option<&'a str>, u64, u32),
}

impl<'a> Alike<'a> {
    fn of(leak: &'a Leak) -> Self {
        match leak.stack {
            Some(stack) => Self::Stack(leak.kind, stack),
            None => Self::Shape(leak.kind, leak.type_name.as_deref(), leak.size, leak.zone),
        }
    }
}

/// Groups the leaks, which are in the report's order: the groups that hold most come first.
pub(super) fn groups(leaks: &[Leak]) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    let mut index = FxHashMap::default();
    for leak in leaks {
        let slot = *index.entry(Alike::of(leak)).or_insert_with(|| {
            groups.push(empty_group_for(leak));
            groups.len() - 1
        });
        add(&mut groups[slot], leak);
    }
    groups.sort_by_key(|group| {
        let bytes = group.bytes.saturating_add(group.held_bytes);
        (Reverse(bytes), group.leaks.first().copied())
    });
    groups
}

fn empty_group_for(leak: &Leak) -> Group {
    Group {
        kind: leak.kind,
        stack: leak.stack,
        type_name: leak.type_name.clone(),
        blocks: 0,
        bytes: 0,
        held_blocks: 0,
        held_bytes: 0,
        leaks: Vec::new(),
    }
}

fn add(group: &mut Group, leak: &Leak) {
    // One stack may allocate objects of several types.
    if group.type_name != leak.type_name {
        group.type_name = None;
    }
    group.blocks += 1;
    group.bytes = group.bytes.saturating_add(leak.size);
    group.held_blocks = group.held_blocks.saturating_add(leak.held_blocks);
    group.held_bytes = group.held_bytes.saturating_add(leak.held_bytes);
    group.leaks.push(leak.address);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::fixture::{leaky, with_stacks};

    #[test]
    fn every_leak_is_in_one_group() {
        for report in [leaky(), with_stacks()] {
            let mut grouped: Vec<_> = report.groups.iter().flat_map(|g| &g.leaks).collect();
            let mut leaks: Vec<_> = report.leaks.iter().map(|leak| &leak.address).collect();
            grouped.sort();
            leaks.sort();
            assert_eq!(grouped, leaks);
        }
    }

    #[test]
    fn a_stack_that_allocates_two_types_is_a_group_without_a_type() {
        let mut leaks = with_stacks().leaks;
        leaks.retain(|leak| leak.stack == Some(9) && leak.kind == LeakKind::RootLeak);
        for (leak, name) in leaks.iter_mut().zip(["A", "A", "B", "A"]) {
            leak.type_name = Some(name.to_owned());
        }
        let types = |leaks| groups(leaks)[0].type_name.clone();
        assert_eq!(types(&leaks[..2]).as_deref(), Some("A"));
        assert_eq!(types(&leaks[..4]), None);
        assert_eq!(groups(&leaks).len(), 1);
    }

    #[test]
    fn without_stacks_a_zone_of_its_own_is_a_group_of_its_own() {
        let mut leaks = leaky().leaks;
        let before = groups(&leaks).len();
        leaks.last_mut().expect("leaks").zone = 1;
        assert_eq!(groups(&leaks).len(), before + 1);
    }
}
