//! Snapshots without content: what is left out, and that the answer is the same without it.

use std::path::Path;

use anyhow::{Context, bail};

use super::args::FileArgs;
use super::capture::Captured;
use super::leaks;
use super::memory_limit::MemoryLimit;
use super::saved;
use crate::content::{Kept, ReducedMemory, Sources, without_content};
use crate::heap::Blocks;
use crate::memory::Memory;
use crate::scan::Leak;
use crate::snapshot::ContentLevel;

/// What is kept of a captured target, and the answer that a file must give.
pub(super) struct Reduction {
    level: ContentLevel,
    kept: Kept,
    leaks: Vec<Leak>,
    limit: MemoryLimit,
}

impl Reduction {
    /// Finds the leaks of `captured`, and what finds them.
    pub(super) fn new(
        captured: &Captured,
        level: ContentLevel,
        limit: MemoryLimit,
    ) -> anyhow::Result<Self> {
        let sources = Sources {
            snapshot: &captured.snapshot,
            heap: &captured.heap,
            log: captured.log.as_ref(),
            modules_read: &captured.parts.read,
        };
        Ok(Self {
            level,
            leaks: leaks::find(captured, limit)?,
            limit,
            kept: Kept::new(&sources, level),
        })
    }

    /// Takes from `captured` what is no memory and is not kept.
    pub(super) fn reduce(&self, captured: &mut Captured) -> anyhow::Result<()> {
        let snapshot = &mut captured.snapshot;
        let width = snapshot.width;
        let memory = self.memory(&*snapshot.memory, width, &captured.heap.blocks);
        let is_kept = |value| memory.is_kept(value);
        for thread in &mut snapshot.threads {
            without_content(thread, width, is_kept);
        }
        for value in &mut snapshot.kernel_values {
            *value = value.without_content(width, is_kept);
        }
        snapshot.process = snapshot.process.without_command_line();
        snapshot.capture.content = self.level;
        Ok(())
    }

    /// What is left of `memory`, whose live blocks are `blocks`.
    pub(super) fn memory<'a>(
        &'a self,
        memory: &'a dyn Memory,
        width: crate::memory::Width,
        blocks: &'a Blocks,
    ) -> ReducedMemory<'a> {
        ReducedMemory::new(memory, width, blocks, &self.kept)
    }

    /// Reads the file at `path` back, and compares its answer with that of `captured`.
    pub(super) fn check(&self, captured: &Captured, path: &Path) -> anyhow::Result<()> {
        const REMEDY: &str = "no snapshot without content can be made of this heap at this moment: \
                              try again, or save it with --full-content";
        let (found, _, damage) = saved::read(path, &FileArgs::default()).context(REMEDY)?;
        if let Some(error) = damage.error() {
            return Err(error.clone().into());
        }
        if found.heap != captured.heap {
            let difference = first_difference(&found, captured);
            return Err(anyhow::anyhow!(difference).context(REMEDY));
        }
        if leaks::find(&found, self.limit)? != self.leaks {
            bail!("{REMEDY}: other blocks look leaked without it");
        }
        Ok(())
    }
}

/// Where the heap of `found` is not that of `captured`.
fn first_difference(found: &Captured, captured: &Captured) -> String {
    let (found, expected) = (&found.heap, &captured.heap);
    let mut blocks = found.blocks.iter().zip(&expected.blocks);
    match blocks.find(|(found, expected)| found != expected) {
        Some((found, _)) => format!("without content, the block at {} is another", found.start),
        None if found.blocks.len() != expected.blocks.len() => format!(
            "without content, {} blocks are found instead of {}",
            found.blocks.len(),
            expected.blocks.len()
        ),
        None => "without content, the allocator's memory looks different".to_owned(),
    }
}
