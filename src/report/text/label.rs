//! What a leak is called.

use std::fmt;

use super::escape::Escaped;
use crate::report::{Frame, Stack};
use crate::scan::LeakKind;

/// The words for a leak that begins a tree, or that is in a root cycle.
pub(super) fn kind_name(kind: LeakKind) -> &'static str {
    match kind {
        LeakKind::RootLeak => "ROOT LEAK",
        LeakKind::RootCycle => "ROOT CYCLE",
        // It begins a tree only where what holds it is not in the report.
        LeakKind::Indirect => "INDIRECT LEAK",
    }
}

/// The name of what is in a leaked block: the best that is known.
pub(super) enum Label<'a> {
    /// Its type.
    Type(&'a str),
    /// The function that asked the allocator for it: `malloc in main`.
    AllocatedIn(&'a Frame),
    /// Nothing but its size: `malloc<64>`.
    Size(u64),
}

impl<'a> Label<'a> {
    pub(super) fn new(type_name: Option<&'a str>, stack: Option<&'a Stack>, size: u64) -> Self {
        match (type_name, stack.and_then(allocating_frame)) {
            (Some(name), _) => Self::Type(name),
            (None, Some(frame)) => Self::AllocatedIn(frame),
            (None, None) => Self::Size(size),
        }
    }
}

impl fmt::Display for Label<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Type(name) => write!(f, "{}", Escaped(name)),
            Self::AllocatedIn(frame) => write!(f, "malloc in {}", Place(frame)),
            Self::Size(size) => write!(f, "malloc<{size}>"),
        }
    }
}

/// The name of a frame's function, or else of the place that it is at.
pub(super) struct Place<'a>(pub(super) &'a Frame);

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.0.function, module_name(self.0), self.0.offset) {
            (Some(function), ..) => write!(f, "{}", Escaped(function)),
            (None, Some(module), Some(offset)) => write!(f, "{}+{offset}", Escaped(module)),
            (None, Some(module), None) => write!(f, "{}", Escaped(module)),
            (None, None, _) => write!(f, "{}", self.0.address),
        }
    }
}

/// The last part of the path of a frame's module.
pub(super) fn module_name(frame: &Frame) -> Option<&str> {
    frame.module.as_deref().map(last_part)
}

/// The last part of a path.
pub(super) fn last_part(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// The innermost frame that is not the allocator's.
fn allocating_frame(stack: &Stack) -> Option<&Frame> {
    let outside = stack.frames.iter().find(|frame| !is_allocator(frame));
    outside.or(stack.frames.last())
}

fn is_allocator(frame: &Frame) -> bool {
    let Some(function) = frame.function.as_deref() else {
        return false;
    };
    ALLOCATORS.contains(&function) || ALLOCATOR_PREFIXES.iter().any(|p| function.starts_with(p))
}

const ALLOCATORS: [&str; 16] = [
    "malloc",
    "calloc",
    "realloc",
    "reallocarray",
    "memalign",
    "aligned_alloc",
    "posix_memalign",
    "valloc",
    "pvalloc",
    "__libc_malloc",
    "__libc_calloc",
    "__libc_realloc",
    "__libc_memalign",
    "_int_malloc",
    "_int_realloc",
    "_int_memalign",
];

/// C++ and Rust: what stands between the program and `malloc`.
const ALLOCATOR_PREFIXES: [&str; 6] = [
    "operator new",
    "__rust_",
    "__rdl_",
    "__rg_",
    "alloc::alloc::",
    "<alloc::alloc::Global",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn stack(functions: &[&str]) -> Stack {
        let frame = |name: &&str| Frame {
            function: Some((*name).to_owned()),
            ..Frame::default()
        };
        Stack {
            id: 0,
            frames: functions.iter().map(frame).collect(),
        }
    }

    #[test]
    fn the_allocators_own_functions_do_not_name_a_leak() {
        for (functions, name) in [
            (&["malloc", "main"][..], "main"),
            (&["malloc", "operator new(unsigned long)", "f()"], "f()"),
            (&["malloc", "__rust_alloc", "alloc::alloc::alloc", "g"], "g"),
            (&["malloc", "malloc_all", "main"], "malloc_all"),
            (&["calloc"], "calloc"),
        ] {
            let stack = stack(functions);
            let frame = allocating_frame(&stack).expect("a frame");
            assert_eq!(Place(frame).to_string(), name);
        }
        assert_eq!(allocating_frame(&stack(&[])), None);
    }
}
