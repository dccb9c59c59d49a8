//! A log that can be used: its memory, and its tables.

use std::mem::{offset_of, size_of};

use super::format::{
    AREAS, BLOCK_CHUNKS, Header, IMAGES, ImageRecord, LIMIT_VARIABLE, MAGIC, MappingRecord,
    NODE_CHUNKS, SAMPLE_VARIABLE,
};
use super::header::{LogError, LogHeader, u64_at};
use crate::addr::{Addr, AddrRange, RangeSet};
use crate::memory::Memory;
use crate::snapshot::{Region, Snapshot};
use crate::warning::{Bias, Warning};

/// More mappings than a full log has.
const MAX_MAPPINGS: usize = 1 << 18;

/// Looks for the header of a log where no symbol tells where it is: in the variables of loaded images.
#[must_use]
pub fn search(snapshot: &Snapshot) -> Option<Addr> {
    const PIECE: u64 = 1 << 16;
    let memory = &*snapshot.memory;
    let segments = snapshot.modules.iter().flat_map(|module| &module.segments);
    let parts = segments
        .filter(|segment| segment.writable)
        .flat_map(|segment| memory.resident(segment.range));
    let mut buffer = vec![0; usize::try_from(PIECE).unwrap_or(0)];
    for part in parts {
        let mut at = part.start.align_up(8)?;
        while at < part.end {
            let count = memory.read(at, &mut buffer);
            let words = buffer.get(..count).unwrap_or_default().chunks_exact(8);
            let mut found = (0_u64..).step_by(8).zip(words);
            let mut headers = found
                .by_ref()
                .filter(|(_, word)| *word == MAGIC)
                .map(|(offset, _)| at.saturating_add(offset));
            let header = headers.find(|at| matches!(LogHeader::read(memory, *at), Ok(Some(_))));
            if header.is_some() {
                return header;
            }
            at = at.saturating_add(PIECE);
        }
    }
    None
}

/// A log of the target that can be used.
#[derive(Clone, Debug)]
pub struct StackLog {
    /// What it says of itself.
    pub header: LogHeader,
    /// Where it says so.
    pub header_at: Addr,
    /// The memory that the recorder mapped for it.
    own: RangeSet,
}

impl StackLog {
    /// Opens the log whose header is at `header_at`, the value of the symbol
    /// [`super::format::HEADER_SYMBOL`]. `None` where nothing is recorded.
    ///
    /// # Errors
    /// Says why there is a log that cannot be used.
    pub fn find(snapshot: &Snapshot, header_at: Addr) -> Result<Option<Self>, LogError> {
        let memory = &*snapshot.memory;
        let Some(header) = LogHeader::read(memory, header_at)? else {
            return Ok(None);
        };
        let own = mappings(memory, &snapshot.regions, &header)?;
        let log = Self {
            header,
            header_at,
            own,
        };
        log.check_tables()?;
        Ok(Some(log))
    }

    /// The memory of the log itself: none of it is a root.
    #[must_use]
    pub fn own_memory(&self) -> &RangeSet {
        &self.own
    }

    /// Where its header is, in the recorder's own data.
    #[must_use]
    pub fn header_range(&self) -> AddrRange {
        AddrRange::with_size(self.header_at, size_of::<Header>() as u64)
    }

    /// What the recorder could not do.
    #[must_use]
    pub fn warnings(&self) -> Vec<Warning> {
        let header = &self.header;
        let mut warnings = Vec::new();
        let mut warn = |is_so: bool, code, message: String| {
            if is_so {
                warnings.push(Warning::new(code, message, Bias::None));
            }
        };
        warn(
            header.is_bypassed,
            "stack_log_bypassed",
            "the program's own calls of malloc do not pass the recorder, since the program or a \
             library before the recorder has a malloc of its own: their blocks come without call \
             stacks"
                .to_owned(),
        );
        warn(
            header.dropped_full > 0,
            "stack_log_full",
            format!(
                "the malloc stack log had no room for {}, which come without call stacks: raise \
                 {LIMIT_VARIABLE}, or record samples ({SAMPLE_VARIABLE})",
                allocations(header.dropped_full)
            ),
        );
        warn(
            header.dropped_nested > 0,
            "stack_log_nested",
            format!(
                "signal handlers made {} while the recorder was at work in the same thread: they \
                 come without call stacks",
                allocations(header.dropped_nested)
            ),
        );
        warn(
            header.cut_stacks > 0,
            "stacks_cut",
            format!(
                "the recorder could not find the outer frames of {}",
                counted(header.cut_stacks, "call stack", "call stacks")
            ),
        );
        warnings
    }

    /// Says whether `size` bytes at `start` are the log's.
    pub(super) fn owns(&self, start: Addr, size: usize) -> bool {
        let range = AddrRange::with_size(start, size as u64);
        let own = self.own.containing(start);
        range.size() == size as u64 && own.is_some_and(|own| own.covers(&range))
    }

    fn check_tables(&self) -> Result<(), LogError> {
        let tables = &self.header.tables;
        let word = size_of::<u64>();
        for (name, start, count, size) in [
            ("areas", tables.areas, AREAS, word),
            ("blocks", tables.block_chunks, BLOCK_CHUNKS, word),
            ("frames", tables.node_chunks, NODE_CHUNKS, word),
            ("images", tables.images, IMAGES, size_of::<ImageRecord>()),
        ] {
            if !self.owns(start, count.saturating_mul(size)) {
                let what = format!("its table of {name} at {start} is not in its own memory");
                return Err(LogError::damaged(what));
            }
        }
        Ok(())
    }
}

fn allocations(count: u64) -> String {
    counted(count, "allocation", "allocations")
}

fn counted(count: u64, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

/// The memory that the list of mappings names.
///
/// All of it must be private memory without a file and without a name, and not more than the
/// recorder says it mapped: what is named here is no root.
fn mappings(
    memory: &dyn Memory,
    regions: &[Region],
    header: &LogHeader,
) -> Result<RangeSet, LogError> {
    let possible: RangeSet = regions
        .iter()
        .filter(|region| region.is_private_anonymous_data() && !region.name.starts_with("[heap"))
        .filter(|region| !region.name.starts_with("[stack"))
        .map(|region| region.range)
        .collect();
    let mut left = header.mapped_bytes;
    let mut ranges = Vec::new();
    let mut next = header.tables.mappings;
    while next != Addr(0) {
        let mut record = [0; size_of::<MappingRecord>()];
        let count = memory.read(next, &mut record);
        let size = u64_at(&record, offset_of!(MappingRecord, size));
        let range = AddrRange::with_size(next, size);
        let is_possible = possible.containing(next).is_some_and(|r| r.covers(&range));
        let is_own = count == record.len() && size >= count as u64 && is_possible;
        let Some(rest) = left.checked_sub(size).filter(|_| is_own) else {
            let what = format!("what it says is its memory at {next} cannot be that");
            return Err(LogError::damaged(what));
        };
        left = rest;
        ranges.push(range);
        if ranges.len() > MAX_MAPPINGS {
            return Err(LogError::damaged("the list of its memory does not end"));
        }
        next = Addr(u64_at(&record, offset_of!(MappingRecord, previous)));
    }
    Ok(ranges.into_iter().collect())
}

/// Up to `size` bytes at `start`, as far as they can be read.
pub(super) fn read(memory: &dyn Memory, start: Addr, size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    let count = memory.read(start, &mut bytes);
    bytes.truncate(count);
    bytes
}
