//! The log's header and tables, and the memory that they get.

use core::cell::UnsafeCell;
use core::mem::{MaybeUninit, offset_of};
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize};

use crate::blocks::Record;
use crate::format::{
    AREAS, BLOCK_CHUNKS, FLAG_BYPASSED, FLAG_SCRIBBLE, HEADS_PER_AREA, Header, IMAGES, MAGIC,
    MODE_FAILED, MODE_FULL, MODE_LITE, MODE_OFF, MappingRecord, NODE_CHUNKS, NODE_FIRST, VERSION,
};
use crate::history::History;
use crate::images;
use crate::next::Next;
use crate::nodes::{Node, STACK_SETS, StackSet};
use crate::rules::RuleSlot;
use crate::settings::Settings;
use crate::{exit, fork, next, sys};

/// [`Header`], with the fields that change as atomics.
#[repr(C)]
#[derive(Debug)]
pub struct LiveHeader {
    magic: AtomicU64,
    version: AtomicU32,
    size: AtomicU32,
    pub(crate) mode: AtomicU32,
    pub(crate) flags: AtomicU32,
    pub(crate) pid: AtomicU32,
    depth: AtomicU32,
    sample_bytes: AtomicU64,
    started_at: AtomicU64,
    areas: AtomicU64,
    block_chunks: AtomicU64,
    pub(crate) blocks_end: AtomicU64,
    node_chunks: AtomicU64,
    pub(crate) nodes_end: AtomicU64,
    images: AtomicU64,
    pub(crate) images_len: AtomicU64,
    mappings: AtomicU64,
    pub(crate) dropped_full: AtomicU64,
    pub(crate) dropped_nested: AtomicU64,
    pub(crate) cut_stacks: AtomicU64,
    mapped_bytes: AtomicU64,
    reserved: [AtomicU64; 8],
}

const _: () = {
    assert!(size_of::<LiveHeader>() == size_of::<Header>());
    assert!(offset_of!(LiveHeader, mode) == offset_of!(Header, mode));
    assert!(offset_of!(LiveHeader, blocks_end) == offset_of!(Header, blocks_end));
    assert!(offset_of!(LiveHeader, cut_stacks) == offset_of!(Header, cut_stacks));
    assert!(offset_of!(LiveHeader, mapped_bytes) == offset_of!(Header, mapped_bytes));
};

impl LiveHeader {
    const fn new() -> Self {
        // SAFETY: atomics for which zero is valid.
        unsafe { MaybeUninit::zeroed().assume_init() }
    }
}

/// The header: what the reader looks for by its name.
#[cfg_attr(rleaks_recorder, unsafe(no_mangle))]
#[expect(non_upper_case_globals, reason = "a name that others find it by")]
pub static rleaks_stack_log: LiveHeader = LiveHeader::new();

/// Words that are zero, and then the address of a `T` that is never moved or freed.
#[repr(transparent)]
#[derive(Debug)]
pub(crate) struct Lazy<T>(AtomicUsize, core::marker::PhantomData<T>);

/// What the recorder works with, once it is ready.
#[derive(Debug)]
pub(crate) struct Log {
    pub(crate) next: Next,
    pub(crate) settings: Settings,
    pub(crate) header: &'static LiveHeader,
    pub(crate) areas: &'static [Lazy<[AtomicU32; HEADS_PER_AREA]>; AREAS],
    pub(crate) block_chunks:
        &'static [Lazy<[Record; crate::format::BLOCKS_PER_CHUNK]>; BLOCK_CHUNKS],
    pub(crate) node_chunks: &'static [Lazy<[Node; crate::format::NODES_PER_CHUNK]>; NODE_CHUNKS],
    pub(crate) node_heads: &'static [AtomicU32; 1 << crate::nodes::HEAD_BITS],
    pub(crate) stack_cache: &'static [StackSet; STACK_SETS],
    pub(crate) rules: &'static [RuleSlot; crate::rules::SLOTS],
    pub(crate) images: &'static images::Images,
    pub(crate) image_extras: &'static [images::Extra; IMAGES],
    pub(crate) history: Option<History>,
    /// The function of the vdso that tells the time; the system call stands in for it.
    clock: Option<extern "C" fn(usize, *mut [i64; 2]) -> i32>,
    started: u64,
}

// SAFETY: what is not atomic in it is written before it is shared, but for the images, which only
// the holder of the lock of `images` writes.
unsafe impl Sync for Log {}

struct Cell(UnsafeCell<MaybeUninit<Log>>);

// SAFETY: `STATE` orders the one write before all reads.
unsafe impl Sync for Cell {}

static LOG: Cell = Cell(UnsafeCell::new(MaybeUninit::uninit()));
static STATE: AtomicU32 = AtomicU32::new(NEW);

const NEW: u32 = 0;
const STARTING: u32 = 1;
const READY: u32 = 2;
const FAILED: u32 = 3;

/// The log, which the first call starts. `None` where there is no allocator to call, and to the
/// calls that starting it makes itself.
#[inline]
pub(crate) fn get() -> Option<&'static Log> {
    if STATE.load(Acquire) == READY {
        let log = LOG.0.get().cast::<Log>();
        // SAFETY: READY is stored after the one write of it.
        return Some(unsafe { &*log });
    }
    start()
}

#[cold]
fn start() -> Option<&'static Log> {
    match STATE.compare_exchange(NEW, STARTING, AcqRel, Acquire) {
        Ok(_) => match Log::new() {
            Some(log) => {
                let place = LOG.0.get().cast::<Log>();
                // SAFETY: only who set STARTING writes, and nobody reads before READY.
                unsafe { place.write(log) };
                STATE.store(READY, Release);
                let log = get()?;
                log.begin();
                Some(log)
            }
            None => {
                STATE.store(FAILED, Release);
                None
            }
        },
        Err(READY) => get(),
        Err(_) => None,
    }
}

impl Log {
    fn new() -> Option<Self> {
        let mut settings = Settings::read();
        let header = &rleaks_stack_log;
        let tables = Tables::map(header, &settings);
        let history = tables.as_ref().and_then(|_| History::open(&settings));
        let mode = match settings.mode {
            MODE_OFF => MODE_OFF,
            _ if tables.is_none() => MODE_FAILED,
            MODE_FULL if history.is_none() => MODE_LITE,
            mode => mode,
        };
        header.mode.store(mode, Relaxed);
        if tables.is_none() {
            settings.mode = MODE_OFF;
        }
        let tables = tables.unwrap_or(Tables { at: 0 });
        Some(Self {
            next: Next::find()?,
            header,
            areas: tables.part(Tables::AREAS),
            block_chunks: tables.part(Tables::BLOCK_CHUNKS),
            node_chunks: tables.part(Tables::NODE_CHUNKS),
            node_heads: tables.part(Tables::NODE_HEADS),
            stack_cache: tables.part(Tables::STACK_CACHE),
            rules: tables.part(Tables::RULES),
            images: tables.part(Tables::IMAGES),
            image_extras: tables.part(Tables::IMAGE_EXTRAS),
            history,
            clock: vdso_clock(),
            started: sys::steady_clock(),
            settings,
        })
    }

    /// Makes the log usable, and lets the C library tell of forks.
    fn begin(&'static self) {
        let header = self.header;
        let set = |field: &AtomicU64, at: usize| field.store(at as u64, Relaxed);
        set(&header.areas, self.areas.as_ptr() as usize);
        set(&header.block_chunks, self.block_chunks.as_ptr() as usize);
        set(&header.node_chunks, self.node_chunks.as_ptr() as usize);
        set(&header.images, self.images.as_ptr() as usize);
        header.blocks_end.store(1, Relaxed);
        header.nodes_end.store(NODE_FIRST.into(), Relaxed);
        header.version.store(VERSION, Relaxed);
        header.size.store(size_of::<Header>() as u32, Relaxed);
        header.depth.store(self.settings.depth as u32, Relaxed);
        header
            .sample_bytes
            .store(self.settings.sample_bytes, Relaxed);
        header.started_at.store(sys::wall_clock(), Relaxed);
        header.pid.store(sys::process_id(), Relaxed);
        let bypassed = if self.next.is_bypassed {
            FLAG_BYPASSED
        } else {
            0
        };
        let scribble = if self.settings.scribble {
            FLAG_SCRIBBLE
        } else {
            0
        };
        header.flags.store(bypassed | scribble, Relaxed);
        if self.settings.mode != MODE_OFF {
            images::update(self);
        }
        header.magic.store(u64::from_le_bytes(MAGIC), Release);
        fork::register();
        exit::begin();
    }

    /// Maps `size` bytes of zeros that belong to the log, and gives the address after the record
    /// that the mapping begins with. `None` where there is no memory, or no more is allowed.
    #[cold]
    pub(crate) fn map(&self, size: usize) -> Option<usize> {
        map(self.header, &self.settings, size)
    }

    /// The present moment, in ticks since the log began.
    #[inline]
    pub(crate) fn tick(&self) -> u32 {
        const CLOCK_MONOTONIC_COARSE: usize = 6;
        let mut time = [0_i64; 2];
        let now = match self.clock {
            Some(clock) if clock(CLOCK_MONOTONIC_COARSE, &raw mut time) == 0 => {
                let [seconds, nanoseconds] = time;
                (seconds as u64)
                    .wrapping_mul(1_000_000_000)
                    .wrapping_add(nanoseconds as u64)
            }
            _ => sys::steady_clock(),
        };
        (now.saturating_sub(self.started) / crate::format::TICK_NANOSECONDS) as u32
    }
}

/// The size of what [`Log::map`] puts before the memory that it gives: a cache line.
const RECORD_SIZE: usize = 64;

fn map(header: &LiveHeader, settings: &Settings, size: usize) -> Option<usize> {
    let size = size + RECORD_SIZE;
    let before = header.mapped_bytes.fetch_add(size as u64, Relaxed);
    let allowed = before.saturating_add(size as u64) <= settings.limit;
    let Some(at) = allowed.then(|| sys::map(size)).flatten() else {
        header.mapped_bytes.fetch_sub(size as u64, Relaxed);
        return None;
    };
    let record = at as *mut MappingRecord;
    let mut previous = header.mappings.load(Relaxed);
    loop {
        // SAFETY: the mapping is new, larger than the record, and nobody else knows it.
        unsafe {
            record.write(MappingRecord {
                previous,
                size: size as u64,
            })
        };
        match header
            .mappings
            .compare_exchange_weak(previous, at as u64, Release, Relaxed)
        {
            Ok(_) => return Some(at + RECORD_SIZE),
            Err(other) => previous = other,
        }
    }
}

/// The tables that have their full size from the beginning, one after the other.
struct Tables {
    at: usize,
}

impl Tables {
    const SIZES: [usize; 8] = [
        size_of::<[usize; AREAS]>(),
        size_of::<[usize; BLOCK_CHUNKS]>(),
        size_of::<[usize; NODE_CHUNKS]>(),
        size_of::<[u32; 1 << crate::nodes::HEAD_BITS]>(),
        size_of::<[StackSet; STACK_SETS]>(),
        size_of::<[RuleSlot; crate::rules::SLOTS]>(),
        size_of::<images::Images>(),
        size_of::<[images::Extra; IMAGES]>(),
    ];
    const AREAS: usize = 0;
    const BLOCK_CHUNKS: usize = 1;
    const NODE_CHUNKS: usize = 2;
    const NODE_HEADS: usize = 3;
    const STACK_CACHE: usize = 4;
    const RULES: usize = 5;
    const IMAGES: usize = 6;
    const IMAGE_EXTRAS: usize = 7;

    fn map(header: &LiveHeader, settings: &Settings) -> Option<Self> {
        if settings.mode == MODE_OFF {
            return None;
        }
        let at = map(header, settings, Self::SIZES.iter().sum())?;
        Some(Self { at })
    }

    /// The table `index`, as the `T` that it is made for. Without tables, nothing that may be read.
    fn part<T>(&self, index: usize) -> &'static T {
        debug_assert_eq!(size_of::<T>(), Self::SIZES[index]);
        let offset: usize = Self::SIZES[..index].iter().sum();
        let at = if self.at == 0 {
            align_of::<T>()
        } else {
            self.at + offset
        };
        // SAFETY: the mapping is never freed, each part of it is handed out as one type, for which
        // zeros are valid; all are aligned as the mapping is, as their sizes are multiples of a cache line. Where there are no
        // tables the mode is off, in which none of them is read.
        unsafe { &*(at as *const T) }
    }
}

impl<T> Lazy<T> {
    /// What is there, if anything is.
    #[inline]
    pub(crate) fn get(&self) -> Option<&'static T> {
        let at = self.0.load(Acquire) as *const T;
        // SAFETY: it is null, or the address of a `T` that is never freed.
        unsafe { at.as_ref() }
    }

    /// What is there, made of zeros where nothing was. `T` is valid as zeros.
    #[inline]
    pub(crate) fn get_or_map(&self, log: &Log) -> Option<&'static T> {
        self.get().or_else(|| self.map(log))
    }

    #[cold]
    fn map(&self, log: &Log) -> Option<&'static T> {
        let at = log.map(size_of::<T>())?;
        // Whoever comes second leaves what it mapped unused: it is never touched.
        match self.0.compare_exchange(0, at, AcqRel, Acquire) {
            Ok(_) | Err(_) => self.get(),
        }
    }
}

fn vdso_clock() -> Option<extern "C" fn(usize, *mut [i64; 2]) -> i32> {
    let at = next::anywhere(c"__vdso_clock_gettime")?;
    // SAFETY: the vdso's function of that name has this type.
    Some(unsafe { core::mem::transmute::<usize, extern "C" fn(usize, *mut [i64; 2]) -> i32>(at) })
}
