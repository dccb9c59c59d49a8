//! What leaks of different processes have in common: the code that allocated them, their type and
//! their size. Addresses, threads and contents are no part of it.

use rustc_hash::FxHashMap;

use super::terms::Terms;
use crate::report::{Frame, LeakRef, Report, Stack};

/// The name of the executable as a module: the same program may be another file elsewhere.
const PROGRAM: &str = "";

/// What is compared of a leak. Stacks have numbers of [`Kinds`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Kind<'a> {
    pub(super) stack: Option<u32>,
    pub(super) type_name: Option<&'a str>,
    pub(super) size: u64,
}

/// One call, as it is the same in each process that runs the program.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Call {
    /// A place in a build that is the same on all sides.
    At(String, u64),
    /// A function, where the builds may differ.
    In(String, String),
    /// A place of which there is no name, in a build that may be another one.
    Near(String, u64),
    /// Code that no image and no name is known of.
    Somewhere,
}

/// Gives numbers to stacks: the same number to those that are alike.
#[derive(Debug)]
pub(super) struct Kinds<'r> {
    terms: &'r Terms,
    numbers: FxHashMap<Vec<Call>, u32>,
    /// The first stack with each number.
    shown: Vec<&'r Stack>,
}

impl<'r> Kinds<'r> {
    pub(super) fn new(terms: &'r Terms) -> Self {
        Self {
            terms,
            numbers: FxHashMap::default(),
            shown: Vec::new(),
        }
    }

    /// The stack with a number: the first one that got it.
    pub(super) fn shown(&self, number: u32) -> Option<&'r Stack> {
        self.shown.get(usize::try_from(number).ok()?).copied()
    }

    /// The numbers of the report's stacks, by their id in it.
    pub(super) fn stacks(&mut self, stacks: &'r [Stack], executable: &str) -> FxHashMap<u32, u32> {
        let mut numbers = FxHashMap::default();
        for stack in stacks {
            numbers.insert(stack.id, self.number(stack, executable));
        }
        numbers
    }

    /// The kinds of the report's leaks, in its order.
    pub(super) fn of(&mut self, report: &'r Report) -> Vec<Kind<'r>> {
        let stacks = self.stacks(&report.stacks, &report.target.executable);
        let kind = |leak| self.kind(leak, &stacks);
        report.leaks.iter().map(kind).collect()
    }

    fn kind(&self, leak: LeakRef<'r>, stacks: &FxHashMap<u32, u32>) -> Kind<'r> {
        let requested = leak.requested().filter(|_| self.terms.requested);
        let stack = leak.stack().filter(|_| self.terms.stacks);
        Kind {
            stack: stack.and_then(|id| stacks.get(&id).copied()),
            type_name: leak.type_name(),
            // The allocator rounds up, and not always by the same.
            size: requested.unwrap_or_else(|| leak.size()),
        }
    }

    fn number(&mut self, stack: &'r Stack, executable: &str) -> u32 {
        let calls = self.calls(stack, executable);
        let next = u32::try_from(self.numbers.len()).unwrap_or(u32::MAX);
        *self.numbers.entry(calls).or_insert_with(|| {
            self.shown.push(stack);
            next
        })
    }

    fn calls(&self, stack: &Stack, executable: &str) -> Vec<Call> {
        let mut calls = Vec::with_capacity(stack.frames.len());
        for frame in &stack.frames {
            let module = frame.module.as_deref();
            let module = module.map(|path| module_name(path, executable));
            let is_same_build = module.is_some_and(|name| self.terms.is_same_build(name));
            let is_place = is_same_build || self.terms.same_process;
            // A place stands for the calls that are inlined there, too.
            if !frame.inlined || (self.terms.inlined && !is_place) {
                calls.push(match self.terms.same_process {
                    true => Call::At(PROGRAM.to_owned(), frame.address.0),
                    false => call(frame, module, is_place),
                });
            }
        }
        calls
    }
}

fn call(frame: &Frame, module: Option<&str>, is_place: bool) -> Call {
    let name = module.map(str::to_owned);
    match (name, frame.offset, &frame.function) {
        (Some(name), Some(offset), _) if is_place => Call::At(name, offset.0),
        (name, _, Some(function)) => Call::In(name.unwrap_or_default(), function.clone()),
        (Some(name), offset, None) => Call::Near(name, offset.map_or(0, |offset| offset.0)),
        (None, _, None) => Call::Somewhere,
    }
}

/// The name of a module without its folder and its version, which differ between machines; the
/// executable has the same name whatever its file is called.
pub(super) fn module_name<'a>(path: &'a str, executable: &str) -> &'a str {
    if path == executable {
        return PROGRAM;
    }
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split_once(".so").map_or(file, |(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_have_the_same_name_on_each_machine() {
        for (path, name) in [
            ("/app", ""),
            ("/usr/lib/libc.so.6", "libc"),
            ("/lib/x86_64-linux-gnu/libm.so", "libm"),
            ("/opt/libssl.so.1.1", "libssl"),
            ("[vdso]", "[vdso]"),
            ("/home/ci/7/helper", "helper"),
        ] {
            assert_eq!(module_name(path, "/app"), name);
        }
    }
}
