//! What a leak is called.

use std::fmt;

use super::escape::Escaped;
use crate::report::{Frame, Stack};
use crate::scan::LeakKind;
use crate::symbolize::is_allocator_wrapper;

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
    /// The function that asked the allocator for it, and which of the allocator's it asked:
    /// `malloc in main`.
    AllocatedIn(&'static str, &'a Frame),
    /// Nothing but its size: `malloc<64>`.
    Size(u64),
}

impl<'a> Label<'a> {
    pub(super) fn new(type_name: Option<&'a str>, stack: Option<&'a Stack>, size: u64) -> Self {
        match (type_name, stack.and_then(allocating_frame)) {
            (Some(name), _) => Self::Type(name),
            (None, Some((allocator, frame))) => Self::AllocatedIn(allocator, frame),
            (None, None) => Self::Size(size),
        }
    }
}

impl fmt::Display for Label<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Type(name) => write!(f, "{}", Escaped(name)),
            Self::AllocatedIn(allocator, frame) => write!(f, "{allocator} in {}", Place(frame)),
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

/// The innermost frame that is not the allocator's, and what it called of the allocator.
fn allocating_frame(stack: &Stack) -> Option<(&'static str, &Frame)> {
    let is_allocator =
        |frame: &&Frame| is_allocator_wrapper(frame.function.as_deref(), frame.module.as_deref());
    let outside = stack.frames.iter().find(|frame| !is_allocator(frame));
    let innermost = stack.frames.first()?.function.as_deref();
    let allocator = innermost.and_then(allocator).unwrap_or("malloc");
    Some((allocator, outside.or(stack.frames.last())?))
}

/// The function of the allocator that is behind the innermost frame. As in `leaks`, what stands
/// before `malloc`, such as `operator new`, has no name of its own here.
fn allocator(function: &str) -> Option<&'static str> {
    let plain = function.strip_prefix("__libc_").unwrap_or(function);
    ALLOCATORS.iter().copied().find(|name| *name == plain)
}

const ALLOCATORS: [&str; 9] = [
    "malloc",
    "calloc",
    "realloc",
    "reallocarray",
    "memalign",
    "aligned_alloc",
    "posix_memalign",
    "valloc",
    "pvalloc",
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
            frames: functions.iter().map(frame).collect(),
            ..Stack::default()
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
            let (_, frame) = allocating_frame(&stack).expect("a frame");
            assert_eq!(Place(frame).to_string(), name);
        }
        assert_eq!(allocating_frame(&stack(&[])), None);
    }

    #[test]
    fn a_leak_is_named_after_what_was_asked_of_the_allocator() {
        for (functions, label) in [
            (&["calloc", "f", "main"][..], "calloc in f"),
            (&["__libc_realloc", "f"], "realloc in f"),
            (
                &["malloc", "operator new(unsigned long)", "f"],
                "malloc in f",
            ),
            (&["f", "main"], "malloc in f"),
        ] {
            let stack = stack(functions);
            assert_eq!(Label::new(None, Some(&stack), 64).to_string(), label);
        }
    }
}
