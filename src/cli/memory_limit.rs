//! `--memory-limit`: how much memory rleaks takes, and what is said where that is too little.
//!
//! What rleaks holds is measured, and what the next step takes is computed before it is done.

use super::args::ScanArgs;
use crate::platform::{anonymous_memory, keep_little_memory};

/// What each thread takes of itself, and for the smallest things that it does.
const THREAD: u64 = 1 << 20;
/// What is not computed: small tables, and what malloc cannot give back.
const SMALL: u64 = 2 << 20;
/// What is said to be enough is more by one part in so many: what rleaks has is not always the same.
const MARGIN: u64 = 32;
const MIB: u64 = 1 << 20;

/// How much anonymous memory rleaks may have, if there is a limit.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct MemoryLimit(Option<u64>);

/// The limit is below what the target needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "--memory-limit {} is too small: this target needs at least {}",
    size(*.limit),
    size(.needed.div_ceil(MIB) * MIB)
)]
pub(super) struct TooSmall {
    limit: u64,
    needed: u64,
}

impl MemoryLimit {
    pub(super) fn new(limit: Option<u64>) -> Self {
        Self(limit)
    }

    /// The limit that `args` set.
    pub(super) fn of(args: &ScanArgs) -> Self {
        Self(args.memory_limit)
    }

    /// Takes it into account from here on. Nothing is known of the target yet.
    ///
    /// # Errors
    /// rleaks by itself takes more.
    pub(super) fn begin(self) -> Result<(), TooSmall> {
        if self.0.is_none() {
            return Ok(());
        }
        keep_little_memory();
        let threads = rayon::current_num_threads() as u64;
        self.check(threads * THREAD)
    }

    /// The bytes that rleaks may take beside what it has; `None` where there is no limit.
    pub(super) fn room(self) -> Option<u64> {
        self.0.map(|limit| limit.saturating_sub(held()))
    }

    /// Makes sure that there is room for `more` bytes.
    ///
    /// # Errors
    /// There is not.
    pub(super) fn check(self, more: u64) -> Result<(), TooSmall> {
        match self.room() {
            Some(room) if room < more => Err(self.too_small(more)),
            _ => Ok(()),
        }
    }

    /// What is said where `more` bytes are needed and there is no room for them.
    pub(super) fn too_small(self, more: u64) -> TooSmall {
        let needed = held().saturating_add(more);
        TooSmall {
            limit: self.0.unwrap_or(u64::MAX),
            needed: needed.saturating_add(needed / MARGIN),
        }
    }
}

/// What rleaks has, and what is not computed.
fn held() -> u64 {
    anonymous_memory().unwrap_or(0).saturating_add(SMALL)
}

/// A size as it would be typed.
fn size(bytes: u64) -> String {
    let units = [(40, "T"), (30, "G"), (20, "M"), (10, "K")];
    let unit = units
        .iter()
        .find(|(shift, _)| bytes > 0 && bytes.is_multiple_of(1 << shift));
    match unit {
        Some((shift, name)) => format!("{}{name}", bytes >> shift),
        None => bytes.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::args::parse_size;
    use super::*;

    #[test]
    fn what_is_needed_is_said_as_it_is_typed() {
        let error = TooSmall {
            limit: 20 << 20,
            needed: (36 << 20) + 1,
        };
        assert_eq!(
            error.to_string(),
            "--memory-limit 20M is too small: this target needs at least 37M"
        );
        for bytes in [1, 1000, 1 << 10, 1025 << 10, 3 << 30, 1 << 40] {
            assert_eq!(parse_size(&size(bytes)), Ok(bytes));
        }
    }

    #[test]
    fn without_a_limit_there_is_room_for_anything() {
        let limit = MemoryLimit::new(None);
        assert_eq!(limit.room(), None);
        assert_eq!(limit.check(u64::MAX), Ok(()));
        let limit = MemoryLimit::new(Some(MIB));
        assert_eq!(limit.room(), Some(0));
        assert!(limit.check(1).is_err());
    }
}
