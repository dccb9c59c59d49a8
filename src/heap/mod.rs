//! The live blocks of the target's allocators.

// The target's memory is hostile input: an index or a sum made of it must not panic.
#![cfg_attr(
    not(test),
    warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

mod block;
mod blocks;
mod difference;
mod embedded;
mod exports;
pub mod glibc;
mod metadata;
mod recorded;
mod stand_in;

pub use block::{Block, Heap, Zone};
pub use blocks::{Blocks, Iter as BlockIter};
pub(crate) use blocks::{Candidate, Run};
pub use embedded::{embedded_allocator, embedded_named};
pub use exports::{Exporter, allocators, exporters, is_inside_malloc, stack_log, waits_for_a_lock};
pub use metadata::Metadata;
pub use recorded::{Examples, Recorded};

use glibc::Problem;

use crate::snapshot::Snapshot;
use crate::stacklog::StackLog;
use crate::warning::{Bias, Warning};

/// Problems that an error names one by one; of more, it says how many.
const NAMED_PROBLEMS: usize = 5;

/// Why the live blocks of a target are not known.
#[derive(Debug, thiserror::Error)]
pub enum HeapError {
    /// Another allocator than glibc's is in charge.
    #[error(
        "{path} allocates with {allocator}, whose heap rleaks cannot read yet: run the program \
         with glibc's malloc to look for its leaks, or start it with rleaks record"
    )]
    ForeignAllocator {
        /// The name of the allocator.
        allocator: String,
        /// The module that has it.
        path: String,
    },
    /// The same, and the malloc stack log does not know all blocks.
    #[error(
        "{path} allocates with {allocator}, whose heap rleaks cannot read yet, and its malloc \
         stack log cannot stand in: {why}"
    )]
    IncompleteLog {
        /// The name of the allocator.
        allocator: String,
        /// The module that has it.
        path: String,
        /// Why not.
        why: String,
    },
    /// There is no allocator that rleaks knows.
    #[error(
        "no heap of glibc's malloc was found in {0}: rleaks reads dynamically linked glibc \
         programs that have allocated memory"
    )]
    NotFound(String),
    /// There are more than can be numbered.
    #[error("the target has {0} live blocks, rleaks can number {max}: scan a smaller target", max = Blocks::MAX)]
    TooManyBlocks(usize),
    /// What was found does not fit together.
    #[error("the heap of glibc's malloc does not fit together: {}", list(.0))]
    Inconsistent(Vec<Problem>),
}

fn list(problems: &[Problem]) -> String {
    let mut named: Vec<String> = problems
        .iter()
        .take(NAMED_PROBLEMS)
        .map(ToString::to_string)
        .collect();
    let rest = problems.len().saturating_sub(NAMED_PROBLEMS);
    if rest > 0 {
        named.push(format!("{rest} more"));
    }
    named.join("; ")
}

/// The live blocks of a snapshot, and what does not fit together.
#[derive(Debug, Default)]
pub struct Walk {
    /// The live blocks.
    pub heap: Heap,
    /// Empty if the snapshot was taken while no thread was inside malloc.
    pub problems: Vec<Problem>,
    /// What it means that a log stands in for a walker.
    pub warnings: Vec<Warning>,
}

/// Lists the live blocks of `snapshot`. `embedded` is the allocator that is linked into its
/// executable, if there is one; `log` is its malloc stack log, which stands in where there is no
/// walker.
///
/// # Errors
/// Says so when an allocator is in charge that rleaks cannot read, or when none was found: no
/// blocks are never mistaken for no leaks.
pub fn walk(
    snapshot: &Snapshot,
    exporters: &[Exporter],
    embedded: Option<&'static str>,
    log: Option<&StackLog>,
) -> Result<Walk, HeapError> {
    let executable = &snapshot.process.executable;
    let foreign = |allocator: &str, path: &str| HeapError::ForeignAllocator {
        allocator: allocator.to_owned(),
        path: path.to_owned(),
    };
    let in_charge = allocators(exporters).next();
    if let Some(allocator) = embedded {
        return Err(foreign(allocator, executable));
    }
    if let Some((allocator, exporter)) = in_charge.and_then(|e| Some((e.foreign?, e))) {
        return numbered(stand_in::walk(snapshot, log, allocator, &exporter.path)?);
    }
    let Some(mut found) = glibc::walk(snapshot) else {
        return match in_charge {
            Some(exporter) if exporter.is_glibc && !has_heap(snapshot) => Ok(Walk::default()),
            Some(exporter) if !exporter.is_glibc => numbered(stand_in::walk(
                snapshot,
                log,
                "a malloc of its own",
                &exporter.path,
            )?),
            _ if is_go(snapshot) => Err(foreign("Go's runtime", executable)),
            _ => Err(HeapError::NotFound(executable.clone())),
        };
    };
    let version = exporters
        .iter()
        .find_map(|exporter| exporter.glibc_version.as_ref());
    if let Some(version) = version {
        for zone in &mut found.heap.zones {
            zone.allocator = format!("glibc {version}");
        }
    }
    numbered(Walk {
        heap: found.heap,
        problems: found.problems,
        warnings: Vec::new(),
    })
}

/// `walk`, whose blocks have numbers.
fn numbered(walk: Walk) -> Result<Walk, HeapError> {
    match walk.heap.blocks.len() {
        count if count > Blocks::MAX => Err(HeapError::TooManyBlocks(count)),
        _ => Ok(walk),
    }
}

/// Says whether anything was ever allocated through `brk`: a program that has not may not have
/// called malloc yet.
fn has_heap(snapshot: &Snapshot) -> bool {
    snapshot
        .regions
        .iter()
        .any(|region| region.name == "[heap]")
}

fn is_go(snapshot: &Snapshot) -> bool {
    snapshot.modules.iter().any(|module| module.is_go)
}

impl Walk {
    /// Says whether everything fits together.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.problems.is_empty()
    }

    /// Takes the heap at the last stop. Where a thread stood inside malloc, what that explains
    /// becomes a warning.
    ///
    /// # Errors
    /// Says what it does not explain.
    pub fn settle(self, inside_malloc: bool) -> Result<(Heap, Vec<Warning>), HeapError> {
        let is_explained = self
            .problems
            .iter()
            .all(|problem| inside_malloc && problem.is_in_flux());
        if !is_explained {
            return Err(HeapError::Inconsistent(self.problems));
        }
        let hides_blocks = self.problems.iter().any(Problem::hides_blocks);
        let warning = (!self.problems.is_empty()).then(|| {
            let bias = if hides_blocks { Bias::MissedLeaks } else { Bias::FalseLeaks };
            let message = format!(
                "a thread was inside malloc at every stop, so a few blocks may be judged wrongly: {}",
                list(&self.problems)
            );
            Warning::new("heap_in_flux", message, bias)
        });
        Ok((
            self.heap,
            self.warnings.into_iter().chain(warning).collect(),
        ))
    }
}

/// Warns where a library that rleaks does not know stands in front of glibc's malloc.
#[must_use]
pub fn interposition_warning(exporters: &[Exporter]) -> Option<Warning> {
    let first = allocators(exporters).next()?;
    if first.is_glibc || first.foreign.is_some() {
        return None;
    }
    Some(Warning::new(
        "malloc_interposed",
        format!(
            "{} replaces malloc: blocks that it does not get from glibc's malloc are not looked at",
            first.path
        ),
        Bias::MissedLeaks,
    ))
}
