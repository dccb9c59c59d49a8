//! The header of the log: whether there is a log, and what it says of itself.

use std::mem::{offset_of, size_of};

use super::format::{
    FLAG_BYPASSED, FLAG_FORKED, FLAG_SCRIBBLE, Header, MAGIC, MODE_FAILED, MODE_FULL, MODE_LITE,
    MODE_OFF, VERSION,
};
use crate::addr::Addr;
use crate::memory::Memory;
use crate::warning::{Bias, Warning};

/// The most frames of a stack that are read, whatever the log says.
const MAX_DEPTH: u32 = 4096;

/// Why a log cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// Another version of rleaks recorded it.
    #[error(
        "it has version {0}, and this rleaks reads version {VERSION}: use the rleaks that the \
         program was started with"
    )]
    UnknownVersion(u32),
    /// The program had no memory for it.
    #[error(
        "the program had no memory for it when it started: raise the limit of its address space \
         (ulimit -v) or of the log (RLEAKS_STACK_LOG_LIMIT)"
    )]
    NoMemory,
    /// It does not fit together.
    #[error("it is damaged: {0}")]
    Damaged(String),
}

impl LogError {
    /// A log in which `what` does not fit.
    pub(super) fn damaged(what: impl Into<String>) -> Self {
        Self::Damaged(what.into())
    }

    /// The warning that a report has instead of stacks.
    #[must_use]
    pub fn warning(&self) -> Warning {
        Warning::new(
            "stack_log_refused",
            format!(
                "the malloc stack log cannot be used: {self}. Leaks come without call stacks, and \
                 the log's memory counts as a root"
            ),
            Bias::MissedLeaks,
        )
    }
}

/// What is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogMode {
    /// Blocks that live.
    Lite,
    /// Blocks that live, and every event in a file.
    Full,
}

/// What a log says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogHeader {
    /// What is recorded.
    pub mode: LogMode,
    /// The process whose log it is, in its own pid namespace.
    pub pid: u32,
    /// The largest number of frames that are kept of a stack: the innermost ones.
    pub depth: u32,
    /// The mean distance in allocated bytes between two samples; `None` where every block is
    /// recorded.
    pub sample_bytes: Option<u64>,
    /// When it began: nanoseconds since 1970.
    pub started_at: u64,
    /// The program's calls of `malloc` do not come to the recorder.
    pub is_bypassed: bool,
    /// Memory is filled when it is allocated and freed.
    pub is_scribbling: bool,
    /// The process is the child of a fork, in which the log went on.
    pub is_forked: bool,
    /// Allocations without a record, because there was no memory for one.
    pub dropped_full: u64,
    /// Allocations without a record, because a signal handler made them while the recorder was at
    /// work in the same thread.
    pub dropped_nested: u64,
    /// Stacks whose outer frames could not be found.
    pub cut_stacks: u64,
    /// The bytes of memory that the log has mapped.
    pub mapped_bytes: u64,
    pub(super) tables: Tables,
}

/// Where the parts of the log are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tables {
    pub(super) areas: Addr,
    pub(super) block_chunks: Addr,
    pub(super) blocks_end: u64,
    pub(super) node_chunks: Addr,
    pub(super) nodes_end: u64,
    pub(super) images: Addr,
    pub(super) images_len: u64,
    pub(super) mappings: Addr,
}

impl LogHeader {
    /// Reads the header at `addr`. `None` where nothing is recorded: the recorder is switched off,
    /// or the program has not allocated anything yet.
    ///
    /// # Errors
    /// Says so when it is the header of another version, or none.
    pub fn read(memory: &dyn Memory, addr: Addr) -> Result<Option<Self>, LogError> {
        let mut bytes = [0; size_of::<Header>()];
        if memory.read(addr, &mut bytes) < bytes.len() {
            return Err(LogError::damaged("its header cannot be read"));
        }
        let magic = bytes.first_chunk().copied().unwrap_or_default();
        if magic == [0; 8] {
            return Ok(None);
        }
        if magic != MAGIC {
            return Err(LogError::damaged("its header does not begin as one does"));
        }
        let version = u32_at(&bytes, offset_of!(Header, version));
        if version != VERSION {
            return Err(LogError::UnknownVersion(version));
        }
        Self::parse(&bytes)
    }

    fn parse(bytes: &[u8]) -> Result<Option<Self>, LogError> {
        let mode = match u32_at(bytes, offset_of!(Header, mode)) {
            MODE_OFF => return Ok(None),
            MODE_FAILED => return Err(LogError::NoMemory),
            MODE_LITE => LogMode::Lite,
            MODE_FULL => LogMode::Full,
            other => return Err(LogError::damaged(format!("its mode is {other}"))),
        };
        let size = u32_at(bytes, offset_of!(Header, size));
        if usize::try_from(size).ok() != Some(size_of::<Header>()) {
            return Err(LogError::damaged(format!("its header has {size} bytes")));
        }
        let flags = u32_at(bytes, offset_of!(Header, flags));
        let sample_bytes = u64_at(bytes, offset_of!(Header, sample_bytes));
        Ok(Some(Self {
            mode,
            pid: u32_at(bytes, offset_of!(Header, pid)),
            depth: u32_at(bytes, offset_of!(Header, depth)).min(MAX_DEPTH),
            sample_bytes: (sample_bytes > 0).then_some(sample_bytes),
            started_at: u64_at(bytes, offset_of!(Header, started_at)),
            is_bypassed: flags & FLAG_BYPASSED != 0,
            is_scribbling: flags & FLAG_SCRIBBLE != 0,
            is_forked: flags & FLAG_FORKED != 0,
            dropped_full: u64_at(bytes, offset_of!(Header, dropped_full)),
            dropped_nested: u64_at(bytes, offset_of!(Header, dropped_nested)),
            cut_stacks: u64_at(bytes, offset_of!(Header, cut_stacks)),
            mapped_bytes: u64_at(bytes, offset_of!(Header, mapped_bytes)),
            tables: Tables::parse(bytes),
        }))
    }

    /// Why the log does not know every block that lives: `None` where it does, from its beginning
    /// on.
    #[must_use]
    pub fn lack(&self) -> Option<String> {
        if self.is_bypassed {
            return Some("the program's calls of malloc do not pass the recorder".to_owned());
        }
        if self.sample_bytes.is_some() {
            return Some("it has samples only".to_owned());
        }
        let dropped = self.dropped();
        (dropped > 0).then(|| format!("it has dropped {dropped} allocations"))
    }

    /// The number of allocations without a record.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped_full.saturating_add(self.dropped_nested)
    }
}

impl Tables {
    fn parse(bytes: &[u8]) -> Self {
        let word = |offset| u64_at(bytes, offset);
        Self {
            areas: Addr(word(offset_of!(Header, areas))),
            block_chunks: Addr(word(offset_of!(Header, block_chunks))),
            blocks_end: word(offset_of!(Header, blocks_end)),
            node_chunks: Addr(word(offset_of!(Header, node_chunks))),
            nodes_end: word(offset_of!(Header, nodes_end)),
            images: Addr(word(offset_of!(Header, images))),
            images_len: word(offset_of!(Header, images_len)),
            mappings: Addr(word(offset_of!(Header, mappings))),
        }
    }
}

/// The number at `offset` of a record that was read whole; 0 past its end.
pub(super) fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    let bytes = bytes.get(offset..).and_then(<[u8]>::first_chunk);
    bytes.map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

/// The same, of 64 bits.
pub(super) fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    let bytes = bytes.get(offset..).and_then(<[u8]>::first_chunk);
    bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes))
}
