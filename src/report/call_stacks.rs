//! Call stacks as the report has them: code addresses with names.

use rustc_hash::{FxHashMap, FxHashSet};

use super::model::{Frame, Stack};
use crate::stacklog::{Allocations, CallStack, CodeFrame};

/// Says which calls stand behind code addresses.
pub trait FrameSource {
    /// The calls at each of `code`, the innermost first: several where calls were inlined, and at
    /// least one.
    fn frames(&self, code: &[CodeFrame]) -> Vec<Vec<Frame>>;
}

/// The call stacks of some allocations, with names.
#[derive(Clone, Debug, Default)]
pub struct CallStacks(FxHashMap<u32, NamedStack>);

/// A call stack with names.
#[derive(Clone, Debug, Default)]
pub(super) struct NamedStack {
    /// From the innermost frame to the outermost.
    pub(super) frames: Vec<Frame>,
    /// Frames outside of the last one are missing.
    pub(super) is_cut: bool,
}

impl CallStacks {
    /// Names the frames of all stacks of `allocations`: `source` is asked once, for each address
    /// once.
    #[must_use]
    pub fn resolve(allocations: &Allocations, source: &dyn FrameSource) -> Self {
        let stacks = || allocations.stacks();
        let code: FxHashSet<CodeFrame> = stacks()
            .flat_map(|(_, stack)| stack.frames.iter().copied())
            .collect();
        let mut code: Vec<CodeFrame> = code.into_iter().collect();
        // Neighbours are in one module, and in one unit of its debug information.
        code.sort_unstable_by_key(|frame| (frame.image, frame.addr, frame.is_exact));
        let frames = source.frames(&code);
        let named: FxHashMap<CodeFrame, Vec<Frame>> = code.into_iter().zip(frames).collect();
        Self(
            stacks()
                .map(|(number, stack)| (number, NamedStack::new(stack, &named)))
                .collect(),
        )
    }

    /// Says whether a frame of the stack with this number is a call of the function `name`: its
    /// whole name, or what comes before the parameters.
    #[must_use]
    pub fn passes(&self, number: u32, name: &str) -> bool {
        let frames = self.get(number).map_or(&[][..], |stack| &stack.frames);
        let functions = frames.iter().filter_map(|frame| frame.function.as_deref());
        functions
            .into_iter()
            .any(|function| function == name || without_parameters(function) == name)
    }

    /// The stacks as a report has them; their numbers in the log are their ids.
    #[must_use]
    pub fn all(&self) -> Vec<Stack> {
        let stack = |(number, named): (&u32, &NamedStack)| Stack {
            id: *number,
            frames: named.frames.clone(),
            cut: named.is_cut,
        };
        let mut stacks: Vec<Stack> = self.0.iter().map(stack).collect();
        stacks.sort_unstable_by_key(|stack| stack.id);
        stacks
    }

    pub(super) fn get(&self, number: u32) -> Option<&NamedStack> {
        self.0.get(&number)
    }
}

impl NamedStack {
    fn new(stack: &CallStack, named: &FxHashMap<CodeFrame, Vec<Frame>>) -> Self {
        let frames = stack.frames.iter().filter_map(|code| named.get(code));
        Self {
            frames: frames.flatten().cloned().collect(),
            is_cut: stack.is_cut,
        }
    }
}

/// A C++ function's name without its parameters: those begin with the parenthesis that closes last.
///
/// `(anonymous namespace)::f(int) const` has three, and `operator()(int)` two.
fn without_parameters(function: &str) -> &str {
    let Some(end) = function.rfind(')') else {
        return function;
    };
    let mut depth = 0;
    for (at, c) in function[..=end].char_indices().rev() {
        match c {
            ')' => depth += 1,
            '(' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return &function[..at];
        }
    }
    function
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_no_part_of_a_name() {
        for (function, name) in [
            ("main", "main"),
            ("parse(char const*)", "parse"),
            (
                "(anonymous namespace)::f(int) const",
                "(anonymous namespace)::f",
            ),
            ("Less::operator()(int (*)(int))", "Less::operator()"),
            ("<alloc::vec::Vec<(u8, u8)>>::push", "<alloc::vec::Vec<"),
            (")", ")"),
        ] {
            assert_eq!(without_parameters(function), name);
        }
    }
}
