//! What is wrong with a heap: half-done operations of a thread that stands inside malloc, or
//! damage.

use std::fmt;

use crate::addr::Addr;

/// Something that does not fit together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// A free chunk whose size is not repeated at its end.
    Footer(Addr),
    /// A chunk of a non-main arena that does not say so.
    ArenaFlag(Addr),
    /// Bins of the arena at this address whose links do not fit together.
    Bins(Addr, u64),
    /// A header that is none: the chunks behind it are unknown.
    Header(Addr),
    /// The heap that the arena's `top` lies in is not the arena's.
    NoHeapForArena(Addr),
    /// A list of cached chunks is one shorter or longer than its count.
    CacheCount(Addr),
    /// The number of mmapped chunks differs by one from malloc's counter: expected, found.
    MmapCountByOne(u64, u64),
    /// The same, by more than one.
    MmapCount(u64, u64),
    /// The sizes of the mmapped chunks do not add up to malloc's counter: expected, found.
    MmapBytes(u64, u64),
    /// The segments of the arena do not add up to its size: arena, expected, found.
    SystemMemory(Addr, u64, u64),
    /// A list of cached chunks leads to something that is no chunk of its size.
    CacheList(Addr),
    /// Blocks, of which this is the first, that start inside others.
    Overlap(Addr),
    /// `mp_` was not found in the module with the main arena.
    NoParams,
}

impl Problem {
    /// Says whether a thread that was stopped inside malloc causes this. What does not pass is
    /// damage, or a layout that rleaks does not know.
    #[must_use]
    pub fn is_in_flux(&self) -> bool {
        match self {
            Self::Footer(_)
            | Self::ArenaFlag(_)
            | Self::Bins(..)
            | Self::Header(_)
            | Self::NoHeapForArena(_)
            | Self::CacheCount(_)
            | Self::MmapCountByOne(..) => true,
            Self::MmapCount(..)
            | Self::MmapBytes(..)
            | Self::SystemMemory(..)
            | Self::CacheList(_)
            | Self::Overlap(_)
            | Self::NoParams => false,
        }
    }

    /// Says whether live blocks may be missing from the walk. The memory that they lie in is a
    /// root then, so that what they reference is not reported; their own leaks are.
    #[must_use]
    pub fn hides_blocks(&self) -> bool {
        matches!(self, Self::Header(_) | Self::NoHeapForArena(_))
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Footer(at) => write!(f, "the free chunk at {at} does not repeat its size"),
            Self::ArenaFlag(at) => write!(f, "the chunk at {at} does not say which arena it is of"),
            Self::Bins(at, count) => write!(f, "{count} bins of the arena at {at} are not linked"),
            Self::Header(at) => write!(f, "there is no chunk header at {at}"),
            Self::NoHeapForArena(at) => {
                write!(
                    f,
                    "the newest heap of the arena at {at} is not linked to it"
                )
            }
            Self::CacheCount(at) => write!(f, "a list in the cache at {at} and its count differ"),
            Self::MmapCountByOne(expected, found) | Self::MmapCount(expected, found) => write!(
                f,
                "malloc counts {expected} mmapped chunks, {found} were found"
            ),
            Self::MmapBytes(expected, found) => write!(
                f,
                "malloc counts {expected} bytes in mmapped chunks, {found} were found"
            ),
            Self::SystemMemory(at, expected, found) => write!(
                f,
                "the arena at {at} has {expected} bytes of memory, {found} were found"
            ),
            Self::CacheList(at) => {
                write!(
                    f,
                    "a list in the cache at {at} leads to something that is no free chunk"
                )
            }
            Self::Overlap(at) => write!(f, "the block at {at} starts inside another one"),
            Self::NoParams => f.write_str("malloc's parameters (mp_) were not found"),
        }
    }
}
