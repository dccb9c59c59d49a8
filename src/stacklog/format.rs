//! The malloc stack log as it lies in the target's memory, shared by the recorder that writes it
//! (`src/preload/`, built without std) and the reader.
//!
//! Everything begins at the [`Header`], the data symbol [`HEADER_SYMBOL`] of the recorder. All
//! numbers are little-endian; all addresses are those of the target, in 64 bits. Memory that was
//! never written is zero, and zero means "nothing there" throughout.
//!
//! # Blocks
//!
//! ```text
//! address >> AREA_SHIFT              index into Header::areas: the address of an area, or 0
//! (address >> REGION_SHIFT) within   index into the area's heads: a u32 block index, or 0
//! BlockRecord::next                  the next block index of the same region, or 0
//! ```
//!
//! A chain has a record for each block of its region that lives, and records that once were used.
//! The address of a block is that of its region plus the offset in its `key`. Block index `i` is
//! record `i % BLOCKS_PER_CHUNK` of the chunk whose address is word `i / BLOCKS_PER_CHUNK` of the
//! table at [`Header::block_chunks`]. Index 0 is never used.
//!
//! # Stacks
//!
//! A stack is a node: its innermost frame, and the node of the frames outside of it. Node index `i`
//! is found as block index `i` is, with [`NODES_PER_CHUNK`] and [`Header::node_chunks`].
//! [`NODE_NONE`] ends a stack that is complete, [`NODE_CUT`] one whose outer frames are missing.
//!
//! # Consistency
//!
//! A stopped target, a forked child and a core all have a usable log: a record is live only once
//! it is complete ([`STATE_BUSY`] until then), and a node is never changed once an index names it.

/// The name of the recorder's data symbol that is a [`Header`].
pub const HEADER_SYMBOL: &str = "rleaks_stack_log";

/// The first bytes of a [`Header`].
pub const MAGIC: [u8; 8] = *b"rleakLog";

/// The version of this format. A reader refuses every other one.
pub const VERSION: u32 = 1;

/// An area of the target's address space: 64 MiB.
pub const AREA_SHIFT: u32 = 26;
/// A region of it, whose blocks share a chain: 256 bytes.
pub const REGION_SHIFT: u32 = 8;
/// The number of `u32` heads of an area.
pub const HEADS_PER_AREA: usize = 1 << (AREA_SHIFT - REGION_SHIFT);
/// The number of words of [`Header::areas`]: user addresses have at most 47 bits.
pub const AREAS: usize = 1 << (47 - AREA_SHIFT);

/// Records in a chunk.
pub const BLOCKS_PER_CHUNK: usize = 1 << 16;
/// Words in the table of chunks of blocks.
pub const BLOCK_CHUNKS: usize = 1 << 16;
/// Nodes in a chunk.
pub const NODES_PER_CHUNK: usize = 1 << 16;
/// Words in the table of chunks of nodes.
pub const NODE_CHUNKS: usize = 1 << 14;
/// The number of images that a log can have.
pub const IMAGES: usize = (1 << 16) - 1;

/// No stack: the end of a complete one, and the stack of a block whose stack could not be kept.
pub const NODE_NONE: u32 = 0;
/// The frames outside of this one were not recorded.
pub const NODE_CUT: u32 = 1;
/// The first index of a node that has a frame.
pub const NODE_FIRST: u32 = 2;

/// The state in the two lowest bits of a [`BlockRecord::key`]: the block was freed.
pub const STATE_DEAD: u64 = 0;
/// The record is being written: there is a block, and nothing is known about it.
pub const STATE_BUSY: u64 = 1;
/// The block lives, and the record is complete.
pub const STATE_LIVE: u64 = 2;
/// The bits of a key that are the state.
pub const STATE_MASK: u64 = 3;
/// Where the offset within the region begins in a key.
pub const OFFSET_SHIFT: u32 = 2;
/// The bits of a key, once shifted, that are the offset.
pub const OFFSET_MASK: u64 = (1 << REGION_SHIFT) - 1;
/// Where the requested size begins in a key; it has all bits from here.
pub const SIZE_SHIFT: u32 = 16;
/// The largest size that a key can tell: a larger request is recorded as this one.
pub const SIZE_MAX: u64 = (1 << (64 - SIZE_SHIFT)) - 1;

/// What the recorder records: [`Header::mode`].
pub const MODE_OFF: u32 = 0;
/// Blocks that live.
pub const MODE_LITE: u32 = 1;
/// Blocks that live, and every event in a file.
pub const MODE_FULL: u32 = 2;
/// Nothing, since the program had no memory for the tables of a log.
pub const MODE_FAILED: u32 = 3;

/// A flag of [`Header::flags`]: calls of the program to `malloc` do not come to the recorder,
/// since the executable, or a library that comes before the recorder, has its own.
pub const FLAG_BYPASSED: u32 = 1;
/// A flag of [`Header::flags`]: memory is filled when it is allocated and freed.
pub const FLAG_SCRIBBLE: u32 = 2;
/// A flag of [`Header::flags`]: the process is the child of a fork, in which the log went on.
pub const FLAG_FORKED: u32 = 4;

/// The nanoseconds of a [`BlockRecord::tick`].
pub const TICK_NANOSECONDS: u64 = 1 << 24;

/// Where all parts of the log are.
#[repr(C)]
#[derive(Debug)]
pub struct Header {
    /// [`MAGIC`], once the log is usable.
    pub magic: [u8; 8],
    /// [`VERSION`].
    pub version: u32,
    /// The size of this structure in bytes.
    pub size: u32,
    /// One of `MODE_…`.
    pub mode: u32,
    /// A union of `FLAG_…`.
    pub flags: u32,
    /// The process whose log this is, in its own pid namespace.
    pub pid: u32,
    /// The largest number of frames that are kept of a stack: the innermost ones.
    pub depth: u32,
    /// The mean distance in bytes between two samples, or 0 where every block is recorded.
    pub sample_bytes: u64,
    /// When the log began: nanoseconds since 1970.
    pub started_at: u64,
    /// The address of [`AREAS`] words.
    pub areas: u64,
    /// The address of [`BLOCK_CHUNKS`] words.
    pub block_chunks: u64,
    /// Indices below this one may be in use.
    pub blocks_end: u64,
    /// The address of [`NODE_CHUNKS`] words.
    pub node_chunks: u64,
    /// Indices below this one may be in use.
    pub nodes_end: u64,
    /// The address of [`IMAGES`] records of type [`ImageRecord`].
    pub images: u64,
    /// The number of those that are in use.
    pub images_len: u64,
    /// The newest of the recorder's own mappings: the address of a [`MappingRecord`], or 0.
    pub mappings: u64,
    /// Allocations without a record, because there was no memory for one.
    pub dropped_full: u64,
    /// Allocations without a record, because a signal handler made them while the recorder was at
    /// work in the same thread.
    pub dropped_nested: u64,
    /// Stacks whose outer frames could not be found.
    pub cut_stacks: u64,
    /// The bytes of memory that the log has mapped.
    pub mapped_bytes: u64,
    /// Room for later versions that need not change what is above.
    pub reserved: [u64; 8],
}

/// What is known about a block.
#[repr(C)]
#[derive(Debug)]
pub struct BlockRecord {
    /// The state, the offset within the region and the requested size.
    pub key: u64,
    /// The next block of the region, or 0.
    pub next: u32,
    /// The node of the stack that allocated the block.
    pub stack: u32,
    /// The thread that did, in the process' own pid namespace.
    pub thread: u32,
    /// When it did: [`TICK_NANOSECONDS`] since [`Header::started_at`].
    pub tick: u32,
}

/// A frame, and the frames outside of it.
#[repr(C)]
#[derive(Debug)]
pub struct NodeRecord {
    /// The return address (see [`NODE_EXACT`]) in the lowest 48 bits; above it, one more than the
    /// index of the image that it is in, or 0 where it is in none.
    pub code: u64,
    /// The node of the caller's frame.
    pub parent: u32,
    /// Of use to the recorder only. Its highest bit is [`NODE_EXACT`].
    pub next: u32,
}

/// Where the number of the image begins in a [`NodeRecord::code`].
pub const IMAGE_SHIFT: u32 = 48;
/// A bit of [`NodeRecord::next`]: the address is the one where a signal interrupted the frame, not
/// the one after a call.
pub const NODE_EXACT: u32 = 1 << 31;

/// An executable, a library or the vdso that was loaded.
#[repr(C)]
#[derive(Debug)]
pub struct ImageRecord {
    /// The address of its path, or 0 for that of the executable.
    pub path: u64,
    /// The length of its path in bytes.
    pub path_len: u32,
    /// The length of its build id, at most 32.
    pub build_id_len: u32,
    /// What has to be added to an address of its symbol table.
    pub bias: u64,
    /// The first address of its segments.
    pub start: u64,
    /// The address after its segments.
    pub end: u64,
    /// When it was found: [`TICK_NANOSECONDS`] since [`Header::started_at`].
    pub loaded: u32,
    /// When it was gone, or 0.
    pub unloaded: u32,
    /// Its GNU build id.
    pub build_id: [u8; 32],
}

/// The beginning of each mapping that the recorder made for its log.
#[repr(C)]
#[derive(Debug)]
pub struct MappingRecord {
    /// The address of the one made before, or 0.
    pub previous: u64,
    /// Its size in bytes, this record included.
    pub size: u64,
}

/// The page by which a process tells `rleaks --at-exit` that it is about to end, shared between the
/// two. Its path is in the environment variable [`EXIT_PAGE_VARIABLE`].
///
/// A process that ends takes a free slot (compare-and-exchange of `state` from [`EXIT_FREE`] to
/// [`EXIT_CLAIMED`]), writes its pid and sets [`EXIT_WAITING`], adds 1 to `doorbell` and wakes who
/// waits there, and waits (futex) until the state is [`EXIT_GO_ON`]; then it frees the slot and goes
/// on. It also goes on where `tracer` does not exist any more, or after 10 s.
#[repr(C)]
#[derive(Debug)]
pub struct ExitPage {
    /// [`MAGIC`].
    pub magic: [u8; 8],
    /// [`VERSION`].
    pub version: u32,
    /// The process that watches, in the pid namespace of the one that is watched.
    pub tracer: u32,
    /// A futex: changes whenever a slot begins to wait.
    pub doorbell: u32,
    /// The process that alone waits, by its pid in its own namespace; 0 where each one does.
    pub only: u32,
    /// Processes that end at the same time; one that finds none free goes on unseen.
    pub slots: [ExitSlot; EXIT_SLOTS],
    /// 1 as soon as the recorder is at work in the process `only`.
    pub present: u32,
    /// Unused.
    pub padding: u32,
}

/// The number of processes that can wait at the same time.
pub const EXIT_SLOTS: usize = 64;

/// A process that is about to end.
#[repr(C)]
#[derive(Debug)]
pub struct ExitSlot {
    /// A futex: one of `EXIT_…`.
    pub state: u32,
    /// Its pid, in its own namespace.
    pub pid: u32,
}

/// The slot is free.
pub const EXIT_FREE: u32 = 0;
/// The slot is being filled.
pub const EXIT_CLAIMED: u32 = 1;
/// The process waits to be seized.
pub const EXIT_WAITING: u32 = 2;
/// It may go on.
pub const EXIT_GO_ON: u32 = 3;

/// Names the file that is an [`ExitPage`].
pub const EXIT_PAGE_VARIABLE: &str = "RLEAKS_EXIT_PAGE";
/// What is recorded: `lite` (also where it is not set), `full` or `off`.
pub const MODE_VARIABLE: &str = "RLEAKS_STACK_LOG";
/// The largest number of frames of a stack.
pub const DEPTH_VARIABLE: &str = "RLEAKS_STACK_LOG_DEPTH";
/// The mean distance in bytes between two samples.
pub const SAMPLE_VARIABLE: &str = "RLEAKS_STACK_LOG_SAMPLE";
/// `1`: fill memory with 0xAA when it is allocated and with 0x55 when it is freed.
pub const SCRIBBLE_VARIABLE: &str = "RLEAKS_STACK_LOG_SCRIBBLE";
/// The most memory that the log may take, in MiB.
pub const LIMIT_VARIABLE: &str = "RLEAKS_STACK_LOG_LIMIT";
/// The file that gets the events of `full`; `%p` in it stands for the pid.
pub const HISTORY_VARIABLE: &str = "RLEAKS_STACK_LOG_HISTORY";
/// The most bytes of such a file and the one before it, in MiB.
pub const HISTORY_LIMIT_VARIABLE: &str = "RLEAKS_STACK_LOG_HISTORY_LIMIT";

/// The first bytes of a file of events.
pub const HISTORY_MAGIC: [u8; 8] = *b"rleakEvt";

/// The beginning of a file of events. [`Self::capacity`] records of type [`EventRecord`] follow, a
/// ring: event number `n` is at index `n % capacity`.
#[repr(C)]
#[derive(Debug)]
pub struct HistoryHeader {
    /// [`HISTORY_MAGIC`].
    pub magic: [u8; 8],
    /// [`VERSION`].
    pub version: u32,
    /// The process whose events these are, in its own pid namespace.
    pub pid: u32,
    /// The number of records.
    pub capacity: u64,
    /// Numbers below this one are given to threads; not each of them has been written.
    pub next: u64,
    /// Room for later versions.
    pub reserved: [u64; 4],
}

/// One event. Its stack is a node of the log of the process.
#[repr(C)]
#[derive(Debug)]
pub struct EventRecord {
    /// The address of the block; above bit 56, one of `EVENT_…`.
    pub what: u64,
    /// The requested size, or 0.
    pub size: u64,
    /// The node of the stack.
    pub stack: u32,
    /// The thread, in the process' own pid namespace.
    pub thread: u32,
    /// When it happened: [`TICK_NANOSECONDS`] since [`Header::started_at`].
    pub tick: u32,
    /// One more than the number of times that the ring was full before; 0: nothing is here.
    pub turn: u32,
}

/// A block was allocated.
pub const EVENT_ALLOCATED: u64 = 1;
/// A block was freed.
pub const EVENT_FREED: u64 = 2;
