//! Loaded ELF images.

use serde::{Deserialize, Serialize};

use crate::addr::{Addr, AddrRange};
use crate::memory::Width;

/// One `PT_LOAD` of a module, where it lies in the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// The addresses from the segment's first byte to its last one, .bss included; not rounded
    /// to pages.
    pub range: AddrRange,
    /// The program header asks for write permission. It stays true for the part that the dynamic
    /// loader makes read-only after relocation (RELRO).
    pub writable: bool,
    /// The program header asks for execute permission.
    pub executable: bool,
}

/// A loaded ELF image: the executable, a shared library, the vdso.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Module {
    /// The path that the target's mount namespace has for it, or a name such as `[vdso]`.
    pub path: String,
    /// The class of the ELF image.
    pub width: Width,
    /// The address where its first byte is mapped.
    pub base: Addr,
    /// What has to be added to an address of the file's symbol table to get one of the target.
    /// It wraps: a module below its link address has a bias of almost 2⁶⁴.
    pub bias: u64,
    /// Its loaded segments, in ascending order.
    pub segments: Vec<Segment>,
    /// The file-table address range of the dynamic section, moved to where it lies in the target.
    pub dynamic: Option<AddrRange>,
    /// The size of its thread-local storage template (`PT_TLS` `p_memsz`), or 0.
    pub tls_size: u64,
    /// The device (major, minor) and the inode of its file.
    pub file: (u32, u32, u64),
    /// The GNU build id, read from memory.
    pub build_id: Option<Vec<u8>>,
    /// The Go linker made it: it has a Go build id.
    pub is_go: bool,
}

impl Module {
    /// The address in the target of the symbol-table address `value`.
    #[must_use]
    pub fn relocated(&self, value: u64) -> Addr {
        Addr(self.bias.wrapping_add(value))
    }

    /// The symbol-table address of the target's `addr`.
    #[must_use]
    pub fn link_address(&self, addr: Addr) -> u64 {
        addr.0.wrapping_sub(self.bias)
    }

    /// Says whether `addr` is in one of its segments.
    #[must_use]
    pub fn contains(&self, addr: Addr) -> bool {
        self.segments.iter().any(|s| s.range.contains(addr))
    }

    /// The last part of its path.
    #[must_use]
    pub fn file_name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or(&self.path)
    }
}
