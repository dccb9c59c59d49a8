//! VM mappings.

use serde::{Deserialize, Serialize};

use crate::addr::{Addr, AddrRange};

/// One VM mapping of the target: a line of `/proc/PID/maps`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Region {
    /// Where it lies.
    pub range: AddrRange,
    /// The target may read it now.
    pub readable: bool,
    /// The target may write it now.
    pub writable: bool,
    /// The target may execute it now.
    pub executable: bool,
    /// Stores go to memory that other processes or a file share (`MAP_SHARED`).
    pub shared: bool,
    /// The offset in the file that is mapped.
    pub offset: u64,
    /// The device (major, minor) and the inode of the file; zeros for anonymous memory.
    pub file: (u32, u32, u64),
    /// The path of the file, or a name such as `[heap]`; empty for anonymous memory.
    pub name: String,
}

impl Region {
    /// Says whether no file backs the mapping.
    #[must_use]
    pub fn is_anonymous(&self) -> bool {
        self.file.2 == 0
    }

    /// Says whether it is readable and writable, private and without a file: what allocators use.
    #[must_use]
    pub fn is_private_anonymous_data(&self) -> bool {
        self.readable && self.writable && !self.shared && self.is_anonymous()
    }
}

/// The region of `regions`, which are in ascending order, that `addr` is in.
pub(super) fn find(regions: &[Region], addr: Addr) -> Option<&Region> {
    let after = regions.partition_point(|region| region.range.start <= addr);
    let region = regions.get(after.checked_sub(1)?)?;
    region.range.contains(addr).then_some(region)
}
