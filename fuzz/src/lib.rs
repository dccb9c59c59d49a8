//! What all fuzz targets share: an allocator that ends the process where a small input takes much
//! memory, and the macro that makes a target of a function.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Counts what is allocated, and aborts above a limit.
///
/// libFuzzer has such a limit too (`-malloc_limit_mb`), but it works with a sanitizer only.
pub struct Limited {
    live: AtomicUsize,
    limit: AtomicUsize,
}

impl Limited {
    #[expect(clippy::new_without_default, reason = "it must be const")]
    pub const fn new() -> Self {
        Self {
            live: AtomicUsize::new(0),
            limit: AtomicUsize::new(usize::MAX),
        }
    }

    /// Runs `target`, which may allocate `limit` bytes beyond what is allocated now.
    pub fn within(&self, limit: usize, target: impl FnOnce()) {
        let most = self.live.load(Relaxed).saturating_add(limit);
        self.limit.store(most, Relaxed);
        target();
        self.limit.store(usize::MAX, Relaxed);
    }

    fn add(&self, size: usize) {
        let live = self.live.fetch_add(size, Relaxed).wrapping_add(size);
        let limit = self.limit.load(Relaxed);
        // A panic on its way may take what it needs to tell where.
        if live > limit && !std::thread::panicking() {
            self.limit.store(usize::MAX, Relaxed);
            panic!("{live} bytes are allocated, of {limit} that are allowed; the last {size} here");
        }
    }
}

// SAFETY: each call goes to the system's allocator as it came. What is counted decides only whether
// the process ends.
unsafe impl GlobalAlloc for Limited {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.add(layout.size());
        // SAFETY: as for the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        self.add(layout.size());
        // SAFETY: as for the caller.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        self.add(size);
        self.live.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as for the caller.
        unsafe { System.realloc(block, layout, size) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        self.live.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as for the caller.
        unsafe { System.dealloc(block, layout) }
    }
}

/// A fuzz target: `function` is called with each input, and may take `base` bytes of memory and
/// `factor` more for each byte of the input.
#[macro_export]
macro_rules! target {
    ($function:path, base: $base:expr, factor: $factor:expr) => {
        #[global_allocator]
        static MEMORY: $crate::Limited = $crate::Limited::new();

        libfuzzer_sys::fuzz_target!(|input: &[u8]| {
            MEMORY.within($base + $factor * input.len(), || $function(input));
        });
    };
}
