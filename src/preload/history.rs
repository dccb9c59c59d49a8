//! The events of `full`: a file that is a ring, so that it never grows.

use core::ffi::CStr;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};

use crate::format::{EventRecord, HISTORY_MAGIC, HistoryHeader, MODE_FULL, VERSION};
use crate::settings::Settings;
use crate::sys;

/// [`EventRecord`], as it is written.
#[repr(C)]
#[derive(Debug)]
struct Slot {
    what: AtomicU64,
    size: AtomicU64,
    stack: AtomicU32,
    thread: AtomicU32,
    tick: AtomicU32,
    turn: AtomicU32,
}

const _: () = assert!(size_of::<Slot>() == size_of::<EventRecord>());

/// [`HistoryHeader`], as it is written.
#[repr(C)]
#[derive(Debug)]
struct LiveHeader {
    magic: AtomicU64,
    version: AtomicU32,
    pid: AtomicU32,
    capacity: AtomicU64,
    next: AtomicU64,
    reserved: [AtomicU64; 4],
}

const _: () = assert!(size_of::<LiveHeader>() == size_of::<HistoryHeader>());

/// An open file of events.
#[derive(Debug)]
pub(crate) struct History {
    header: &'static LiveHeader,
    slots: &'static [Slot],
    /// The file is this process' own: not that of the parent that it was forked from.
    is_own: AtomicBool,
}

/// Places in the ring that one thread may write to.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    next: u64,
    end: u64,
}

/// One event.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Event {
    /// One of `EVENT_…`.
    pub(crate) kind: u64,
    pub(crate) address: usize,
    pub(crate) size: usize,
    pub(crate) stack: u32,
    pub(crate) thread: u32,
    pub(crate) tick: u32,
}

impl History {
    /// Makes the file that the settings name, with all of its size on its disk. `None` where that
    /// cannot be: then there are only the blocks that live.
    pub(crate) fn open(settings: &Settings) -> Option<Self> {
        if settings.mode != MODE_FULL {
            return None;
        }
        let path = Path::new(settings.history?, sys::process_id())?;
        let size = usize::try_from(settings.history_limit).ok()?;
        let capacity = size.checked_sub(size_of::<LiveHeader>())? / size_of::<Slot>();
        let descriptor = sys::open(path.bytes(), true)?;
        let is_allocated = capacity > 0 && sys::allocate_file(descriptor, size);
        let at = is_allocated
            .then(|| sys::map_file(descriptor, size))
            .flatten();
        sys::close(descriptor);
        let at = at?;
        // SAFETY: the mapping is new, page-aligned, never unmapped, and begins with the header,
        // which is atomic and for which any bytes are valid.
        let header = unsafe { &*(at as *const LiveHeader) };
        // SAFETY: `capacity` slots follow it, for which the same is true.
        let slots = unsafe {
            core::slice::from_raw_parts((at + size_of::<LiveHeader>()) as *const Slot, capacity)
        };
        header.version.store(VERSION, Relaxed);
        header.pid.store(sys::process_id(), Relaxed);
        header.capacity.store(capacity as u64, Relaxed);
        header
            .magic
            .store(u64::from_le_bytes(HISTORY_MAGIC), Release);
        Some(Self {
            header,
            slots,
            is_own: AtomicBool::new(true),
        })
    }

    /// Writes `event`, over the oldest one where the ring is full.
    #[inline]
    pub(crate) fn write(&self, batch: &mut Batch, event: Event) {
        const BATCH: u64 = 16;
        if !self.is_own.load(Relaxed) {
            return;
        }
        if batch.next == batch.end {
            batch.next = self.header.next.fetch_add(BATCH, Relaxed);
            batch.end = batch.next + BATCH;
        }
        let number = batch.next;
        batch.next += 1;
        let capacity = self.slots.len() as u64;
        let slot = &self.slots[(number % capacity) as usize];
        // A turn of 0 says that the slot is being written.
        slot.turn.store(0, Release);
        slot.what
            .store(event.address as u64 | event.kind << 56, Relaxed);
        slot.size.store(event.size as u64, Relaxed);
        slot.stack.store(event.stack, Relaxed);
        slot.thread.store(event.thread, Relaxed);
        slot.tick.store(event.tick, Relaxed);
        slot.turn.store((number / capacity) as u32 + 1, Release);
    }

    /// In the child of a fork: the file stays the parent's.
    pub(crate) fn after_fork(&self) {
        self.is_own.store(false, Release);
    }

    /// Says whether this process' events are written.
    pub(crate) fn is_own(&self) -> bool {
        self.is_own.load(Acquire)
    }
}

/// A path in which `%p` was replaced by the process id.
struct Path {
    bytes: [u8; Self::MOST],
    len: usize,
}

impl Path {
    const MOST: usize = 4096;

    fn new(pattern: &CStr, pid: u32) -> Option<Self> {
        let mut path = Self {
            bytes: [0; Self::MOST],
            len: 0,
        };
        let mut rest = pattern.to_bytes();
        while let Some((&byte, after)) = rest.split_first() {
            if let Some(after) = rest.strip_prefix(b"%p") {
                path.push_number(pid)?;
                rest = after;
            } else {
                path.push(byte)?;
                rest = after;
            }
        }
        path.push(0)?;
        Some(path)
    }

    fn push(&mut self, byte: u8) -> Option<()> {
        *self.bytes.get_mut(self.len)? = byte;
        self.len += 1;
        Some(())
    }

    fn push_number(&mut self, number: u32) -> Option<()> {
        if number >= 10 {
            self.push_number(number / 10)?;
        }
        self.push(b'0' + (number % 10) as u8)
    }

    /// The path with a zero byte at its end.
    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pid_stands_in_the_path_where_it_is_wanted() {
        let path = |pattern| Path::new(pattern, 4270).map(|path| path.bytes().to_vec());
        assert_eq!(path(c"/tmp/h.%p.log"), Some(b"/tmp/h.4270.log\0".to_vec()));
        assert_eq!(path(c"/tmp/%%p%"), Some(b"/tmp/%4270%\0".to_vec()));
        assert_eq!(path(c""), Some(b"\0".to_vec()));
    }
}
