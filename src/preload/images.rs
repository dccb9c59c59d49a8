//! The images that are or were loaded: the log keeps each, so that code of one that is gone still
//! has its name.

use core::cell::UnsafeCell;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicU64, AtomicUsize};

use crate::elf::{LoadedImage, PT_GNU_EH_FRAME, PT_NOTE, build_id, for_each_image};
use crate::format::{IMAGES, ImageRecord};
use crate::log::Log;

/// A loaded image, as far as frames need it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Loaded {
    /// One more than its index.
    pub(crate) number: u16,
    pub(crate) start: usize,
    pub(crate) end: usize,
    /// The address of its `.eh_frame_hdr`, or 0.
    pub(crate) unwind_table: usize,
}

/// What is kept of an image beside its [`ImageRecord`].
#[derive(Debug)]
pub(crate) struct Extra {
    unwind_table: AtomicUsize,
    /// The update that saw it last; 0 once it is unloaded.
    seen: AtomicU32,
}

/// Something was loaded or unloaded since the last update, or may have been.
static MAY_HAVE_CHANGED: AtomicBool = AtomicBool::new(false);
/// Changes whenever an image is unloaded: what was known of its addresses is not true any more.
static GENERATION: AtomicU16 = AtomicU16::new(1);
/// One thread at a time updates; the others do not wait for it.
static IS_UPDATING: AtomicBool = AtomicBool::new(false);
static LOADS: AtomicU64 = AtomicU64::new(0);
static UNLOADS: AtomicU64 = AtomicU64::new(0);
static UPDATES: AtomicU32 = AtomicU32::new(0);
/// The addresses of the dynamic loader.
static LOADER_START: AtomicUsize = AtomicUsize::new(0);
static LOADER_END: AtomicUsize = AtomicUsize::new(0);

/// The number of the present set of images.
#[inline]
pub(crate) fn generation() -> u16 {
    GENERATION.load(Acquire)
}

/// Takes note of who calls: the dynamic loader allocates for what it loads, and frees when it
/// unloads, also where no function of the program is called for it.
#[inline]
pub(crate) fn note_caller(address: usize) {
    let start = LOADER_START.load(Relaxed);
    if address.wrapping_sub(start) < LOADER_END.load(Relaxed).wrapping_sub(start) {
        MAY_HAVE_CHANGED.store(true, Relaxed);
    }
}

/// Brings the list up to date, if the loader was at work.
#[inline]
pub(crate) fn refresh(log: &Log) {
    if MAY_HAVE_CHANGED.load(Relaxed) {
        refresh_now(log);
    }
}

#[cold]
fn refresh_now(log: &Log) {
    MAY_HAVE_CHANGED.store(false, Relaxed);
    update(log);
}

/// The loaded image that `address` is in.
pub(crate) fn find(log: &Log, address: usize) -> Option<Loaded> {
    known(log, address).or_else(|| {
        update(log);
        known(log, address)
    })
}

fn known(log: &Log, address: usize) -> Option<Loaded> {
    let count = log.header.images_len.load(Acquire) as usize;
    (0..count.min(IMAGES)).rev().find_map(|index| {
        let extra = &log.image_extras[index];
        let record = record(log, index);
        let (start, end) = (record.start as usize, record.end as usize);
        let is_in = extra.seen.load(Relaxed) != 0 && (start..end).contains(&address);
        is_in.then(|| Loaded {
            number: index as u16 + 1,
            start,
            end,
            unwind_table: extra.unwind_table.load(Relaxed),
        })
    })
}

fn record(log: &Log, index: usize) -> &ImageRecord {
    // SAFETY: records below `images_len` are complete; later only `unloaded` changes, which nobody
    // in this process reads.
    unsafe { &*log.images[index].get() }
}

/// Compares the list with the loader's.
#[cold]
pub(crate) fn update(log: &Log) {
    if take_turn() {
        update_alone(log);
        IS_UPDATING.store(false, Release);
    } else {
        MAY_HAVE_CHANGED.store(true, Relaxed);
    }
}

/// Becomes the one that may ask the loader. The one that is may wait for the loader's lock, which
/// our caller may have: nobody waits for long.
fn take_turn() -> bool {
    const PATIENCE: u32 = 20_000;
    (0..PATIENCE).any(|_| {
        core::hint::spin_loop();
        !IS_UPDATING.swap(true, Acquire)
    })
}

fn update_alone(log: &Log) {
    let (mut loads, mut unloads, mut is_first) = (0, 0, true);
    let number = UPDATES.load(Relaxed).wrapping_add(1).max(1);
    for_each_image(|image| {
        if is_first {
            is_first = false;
            (loads, unloads) = (image.loads, image.unloads);
            if is_known(loads, unloads) {
                return false;
            }
        }
        note(log, image, number);
        true
    });
    if is_first || is_known(loads, unloads) {
        return;
    }
    UPDATES.store(number, Relaxed);
    // The loader's list alone does not say whether something was unloaded, nor has it the
    // executable where that is linked to a fixed address.
    if unloads != UNLOADS.load(Relaxed) && loads != 0 {
        forget_unseen(log, number);
    }
    LOADS.store(loads, Relaxed);
    UNLOADS.store(unloads, Relaxed);
}

/// Says whether the list was updated when these were the numbers of loads and unloads.
fn is_known(loads: u64, unloads: u64) -> bool {
    loads != 0 && loads == LOADS.load(Relaxed) && unloads == UNLOADS.load(Relaxed)
}

/// Takes note that `image` is there.
fn note(log: &Log, image: &LoadedImage, number: u32) {
    let (start, end) = image.range();
    let unwind_table = image
        .header(PT_GNU_EH_FRAME)
        .map_or(0, |header| image.address(header));
    let count = log.header.images_len.load(Relaxed) as usize;
    let is_same = |index: &usize| {
        let record = record(log, *index);
        let extra = &log.image_extras[*index];
        extra.seen.load(Relaxed) != 0
            && (record.start, record.end) == (start as u64, end as u64)
            && extra.unwind_table.load(Relaxed) == unwind_table
            && path_of(record) == image.path()
    };
    if let Some(index) = (0..count.min(IMAGES)).rev().find(is_same) {
        return log.image_extras[index].seen.store(number, Relaxed);
    }
    if count >= IMAGES || start >= end {
        return;
    }
    let extra = &log.image_extras[count];
    extra.unwind_table.store(unwind_table, Relaxed);
    extra.seen.store(number, Relaxed);
    // SAFETY: the record is beyond `images_len`, so nobody reads it, and this thread alone updates.
    unsafe {
        log.images[count]
            .get()
            .write(describe(log, image, start, end))
    };
    log.header.images_len.store(count as u64 + 1, Release);
    if image.symbol(c"__tls_get_addr").is_some() {
        LOADER_START.store(start, Relaxed);
        LOADER_END.store(end, Relaxed);
    }
}

fn describe(log: &Log, image: &LoadedImage, start: usize, end: usize) -> ImageRecord {
    let mut id = [0; 32];
    let mut id_len = 0;
    for header in image
        .headers()
        .iter()
        .filter(|header| header.kind == PT_NOTE)
    {
        // SAFETY: notes are in a loaded segment, and are not written.
        let notes = unsafe {
            core::slice::from_raw_parts(
                image.address(header) as *const u8,
                header.memory_size as usize,
            )
        };
        if let Some(found) = build_id(notes) {
            id_len = found.len().min(id.len());
            id[..id_len].copy_from_slice(&found[..id_len]);
        }
    }
    let path = image.path();
    let at = if path.is_empty() {
        None
    } else {
        keep_path(log, path)
    };
    ImageRecord {
        path: at.unwrap_or(0) as u64,
        path_len: at.map_or(0, |_| path.len() as u32),
        build_id_len: id_len as u32,
        bias: image.bias as u64,
        start: start as u64,
        end: end as u64,
        loaded: log.tick(),
        unloaded: 0,
        build_id: id,
    }
}

fn path_of(record: &ImageRecord) -> &[u8] {
    if record.path == 0 {
        return &[];
    }
    // SAFETY: `keep_path` made it, of that length, and it is never freed.
    unsafe { core::slice::from_raw_parts(record.path as *const u8, record.path_len as usize) }
}

/// Copies `path` to where it stays.
fn keep_path(log: &Log, path: &[u8]) -> Option<usize> {
    const PIECE: usize = 1 << 16;
    static AT: AtomicUsize = AtomicUsize::new(0);
    static LEFT: AtomicUsize = AtomicUsize::new(0);
    if LEFT.load(Relaxed) < path.len() {
        let size = path.len().max(PIECE);
        AT.store(log.map(size)?, Relaxed);
        LEFT.store(size, Relaxed);
    }
    let at = AT.fetch_add(path.len(), Relaxed);
    LEFT.fetch_sub(path.len(), Relaxed);
    // SAFETY: so much was left of the piece, which the one thread that updates hands out once.
    unsafe { core::ptr::copy_nonoverlapping(path.as_ptr(), at as *mut u8, path.len()) };
    Some(at)
}

/// Takes note that what update `number` has not seen is gone.
fn forget_unseen(log: &Log, number: u32) {
    let count = log.header.images_len.load(Relaxed) as usize;
    for (image, extra) in log.images.iter().zip(log.image_extras).take(count) {
        let seen = extra.seen.load(Relaxed);
        if seen != 0 && seen != number {
            extra.seen.store(0, Relaxed);
            // SAFETY: this thread alone updates, and nobody in this process reads the field.
            unsafe { (*image.get()).unloaded = log.tick().max(1) };
        }
    }
    // 0 is never used: it is the generation of rules that were never written.
    let next = GENERATION.load(Relaxed).wrapping_add(1).max(1);
    if next == 1 {
        log.rules.iter().for_each(crate::rules::RuleSlot::clear);
    }
    GENERATION.store(next, Release);
}

/// Keeps the list from being updated until [`let_go`], so that no thread of the recorder holds the
/// loader's lock; or does nothing, where one has it for long.
pub(crate) fn hold() {
    take_turn();
}

/// Lets the list be updated, also in the child of a fork, where only this thread is.
pub(crate) fn let_go() {
    IS_UPDATING.store(false, Release);
}

/// The table of images, which only the one that updates writes.
pub(crate) type Images = [UnsafeCell<ImageRecord>; IMAGES];
