//! Room for what is found, counted while it is found.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

/// A number of bytes that several threads share.
#[derive(Debug)]
pub(super) struct Room {
    most: u64,
    taken: AtomicU64,
}

impl Room {
    pub(super) fn new(most: u64) -> Self {
        Self {
            most,
            taken: AtomicU64::new(0),
        }
    }

    pub(super) fn unlimited() -> Self {
        Self::new(u64::MAX)
    }

    /// Takes `bytes`, and says whether there was room for them. They are counted in any case.
    pub(super) fn take(&self, bytes: u64) -> bool {
        // Relaxed is enough: the number guards no other memory.
        let before = self.taken.fetch_add(bytes, Relaxed);
        before.saturating_add(bytes) <= self.most
    }

    /// Gives back what was taken.
    pub(super) fn give_back(&self, bytes: u64) {
        self.taken.fetch_sub(bytes, Relaxed);
    }

    /// What was taken, there or not.
    pub(super) fn taken(&self) -> u64 {
        self.taken.load(Relaxed)
    }

    /// Says whether more was taken than was there.
    pub(super) fn is_exceeded(&self) -> bool {
        self.taken() > self.most
    }
}
