//! Which leaks of one report are those of another one.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

use super::kinds::Kind;
use super::terms::both;
use crate::addr::Addr;
use crate::report::LeakRef;

/// What came of the comparison: each leak of the new report is new or known, each of the old one is
/// known or gone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Matching {
    /// For each of the new leaks, the old one that it is.
    pub(super) partners: Vec<Option<usize>>,
    /// The old leaks that are none of the new ones, in ascending order.
    pub(super) gone: Vec<usize>,
}

impl Matching {
    fn new(partners: Vec<Option<usize>>, old: usize) -> Self {
        let mut is_gone = vec![true; old];
        for partner in partners.iter().flatten() {
            is_gone[*partner] = false;
        }
        Self {
            partners,
            gone: (0..old).filter(|index| is_gone[*index]).collect(),
        }
    }
}

/// Matches leaks of one process: those at one address are the same, unless it was allocated again.
pub(super) fn by_address(
    old: &[(LeakRef<'_>, Kind<'_>)],
    new: &[(LeakRef<'_>, Kind<'_>)],
) -> Matching {
    let index: FxHashMap<Addr, usize> = (0..)
        .zip(old)
        .map(|(index, (leak, _))| (leak.address(), index))
        .collect();
    let partner = |new: &(LeakRef<'_>, Kind<'_>)| {
        let index = *index.get(&new.0.address())?;
        is_same_allocation(&old[index], new).then_some(index)
    };
    Matching::new(new.iter().map(partner).collect(), old.len())
}

fn is_same_allocation(old: &(LeakRef<'_>, Kind<'_>), new: &(LeakRef<'_>, Kind<'_>)) -> bool {
    let ((old, old_kind), (new, new_kind)) = (old, new);
    let known = [
        both(old.requested(), new.requested()),
        both(old.thread(), new.thread()),
        both(old.allocated_milliseconds(), new.allocated_milliseconds()),
        both(old_kind.stack, new_kind.stack),
        both(old_kind.type_name, new_kind.type_name),
    ];
    old.size() == new.size() && !known.contains(&Some(false))
}

/// Matches leaks of two processes: of each kind as many as both have. `order` says which of those
/// that are alike come first.
///
/// Then those whose type is not known on one side take those with the same stack and size: a type is
/// what the first word of a block says, and that may be missing.
pub(super) fn by_kind(old: &Ordered<'_>, new: &Ordered<'_>) -> Matching {
    let mut partners = vec![None; new.kinds.len()];
    let mut is_free = vec![true; old.kinds.len()];
    take(old, new, &mut partners, &mut is_free, Some);
    for untyped in [Untyped::Old, Untyped::New] {
        take(old, new, &mut partners, &mut is_free, |part| {
            untyped.key(part)
        });
    }
    Matching::new(partners, old.kinds.len())
}

/// Kinds of leaks, and in which order they are taken.
#[derive(Debug)]
pub(super) struct Ordered<'r> {
    pub(super) kinds: Vec<Kind<'r>>,
    pub(super) order: Vec<usize>,
}

/// A kind on one of the sides.
#[derive(Clone, Copy)]
struct Part<'r> {
    kind: Kind<'r>,
    is_old: bool,
}

/// On which side types are missing.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Untyped {
    Old,
    New,
}

impl Untyped {
    /// The kind without its type, of those that have none on this side, and of all on the other.
    fn key(self, part: Part<'_>) -> Option<Part<'_>> {
        let Kind {
            stack,
            type_name,
            size,
        } = part.kind;
        let is_this_side = part.is_old == (self == Self::Old);
        let kind = Kind {
            type_name: None,
            stack,
            size,
        };
        (stack.is_some() && is_this_side == type_name.is_none()).then_some(Part { kind, ..part })
    }
}

/// Gives each new leak that is still without one an old one with the same key that is still free.
fn take<'r>(
    old: &Ordered<'r>,
    new: &Ordered<'r>,
    partners: &mut [Option<usize>],
    is_free: &mut [bool],
    key: impl Fn(Part<'r>) -> Option<Part<'r>>,
) {
    let mut free: FxHashMap<Kind<'r>, VecDeque<usize>> = FxHashMap::default();
    for index in old.order.iter().copied().filter(|index| is_free[*index]) {
        let (kind, is_old) = (old.kinds[index], true);
        if let Some(part) = key(Part { kind, is_old }) {
            free.entry(part.kind).or_default().push_back(index);
        }
    }
    for index in &new.order {
        let (kind, is_old) = (new.kinds[*index], false);
        if partners[*index].is_some() {
            continue;
        }
        let part = key(Part { kind, is_old });
        let found = part.and_then(|part| free.get_mut(&part.kind)?.pop_front());
        if let Some(taken) = found {
            is_free[taken] = false;
            partners[*index] = Some(taken);
        }
    }
}

/// Leaks in the order of their trees: each tree from its root to its leaves, so that of trees which
/// are alike whole ones are new, and not parts of each.
///
/// Whatever a file says of parents, each leak is there once.
pub(super) fn tree_order(leaks: &[LeakRef<'_>]) -> Vec<usize> {
    let index: FxHashMap<Addr, usize> = (0..)
        .zip(leaks)
        .map(|(index, leak)| (leak.address(), index))
        .collect();
    let mut children: Vec<Vec<usize>> = vec![Vec::new(); leaks.len()];
    let mut roots = Vec::new();
    for (child, leak) in leaks.iter().enumerate() {
        let parent = leak.tree_parent().and_then(|parent| index.get(&parent));
        match parent {
            Some(parent) => children[*parent].push(child),
            None => roots.push(child),
        }
    }
    let mut is_done = vec![false; leaks.len()];
    let mut order = Vec::with_capacity(leaks.len());
    // Those in a circle of parents have no root.
    for start in roots.into_iter().chain(0..leaks.len()) {
        let mut ahead = vec![start];
        while let Some(leak) = ahead.pop() {
            if !std::mem::replace(&mut is_done[leak], true) {
                order.push(leak);
                ahead.extend(children[leak].iter().rev());
            }
        }
    }
    order
}
