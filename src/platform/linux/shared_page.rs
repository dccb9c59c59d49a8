//! A file that two processes have mapped, and the words in it on which they wait for each other.
#![expect(unsafe_code, reason = "atomic words in a shared mapping, and futex")]

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use memmap2::{MmapOptions, MmapRaw};
use nix::libc;

/// The mapping of a file whose words other processes may change at any time.
#[derive(Debug)]
pub struct SharedPage {
    map: MmapRaw,
    inode: u64,
}

impl SharedPage {
    /// Maps the whole of `file`. A process that shortens the file can end this one: nobody but the
    /// user may be able to write it.
    ///
    /// # Errors
    /// The file cannot be mapped.
    pub fn map(file: &File) -> io::Result<Self> {
        Ok(Self {
            map: MmapOptions::new().map_raw(file)?,
            inode: file.metadata()?.ino(),
        })
    }

    /// The inode number of the file.
    #[must_use]
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// The word at `offset`, which is a multiple of 4 within the file.
    ///
    /// # Panics
    /// If it is not.
    #[must_use]
    pub fn word(&self, offset: usize) -> &AtomicU32 {
        let fits = offset
            .checked_add(4)
            .is_some_and(|end| end <= self.map.len());
        assert!(fits && offset.is_multiple_of(4), "no word at {offset}");
        // SAFETY: `offset` is within the mapping, as was just checked.
        let at = unsafe { self.map.as_mut_ptr().add(offset) };
        // SAFETY: the mapping begins at a page, so the word is aligned; it lasts as long as `self`, and
        // every access to it, here and in the other process, is atomic.
        unsafe { AtomicU32::from_ptr(at.cast()) }
    }

    /// Waits until the word at `offset` is no longer `value`, or somebody wakes who waits there, or
    /// `patience` is over.
    pub fn wait(&self, offset: usize, value: u32, patience: Duration) {
        let timeout = libc::timespec {
            tv_sec: libc::time_t::try_from(patience.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: i64::from(patience.subsec_nanos()),
        };
        let word = self.word(offset).as_ptr();
        // SAFETY: `word` and `timeout` outlive the call; the kernel only reads them.
        unsafe {
            libc::syscall(
                libc::SYS_futex,
                word,
                libc::FUTEX_WAIT,
                value,
                &raw const timeout,
            )
        };
    }

    /// Wakes all who wait at the word at `offset`.
    pub fn wake(&self, offset: usize) {
        let word = self.word(offset).as_ptr();
        // SAFETY: `word` outlives the call; the kernel only uses its address.
        unsafe { libc::syscall(libc::SYS_futex, word, libc::FUTEX_WAKE, i32::MAX) };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;

    fn page() -> SharedPage {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(64).expect("64 bytes");
        SharedPage::map(&file).expect("a mapping")
    }

    #[test]
    fn two_mappings_of_a_file_share_their_words() {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(64).expect("64 bytes");
        let one = SharedPage::map(&file).expect("a mapping");
        let other = SharedPage::map(&file).expect("a mapping");
        one.word(60).store(7, Ordering::Relaxed);
        assert_eq!(other.word(60).load(Ordering::Relaxed), 7);
        assert_eq!(one.inode(), other.inode());
    }

    #[test]
    fn who_waits_is_woken() {
        let page = page();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while page.word(0).load(Ordering::Acquire) == 0 {
                    page.wait(0, 0, Duration::from_secs(60));
                }
            });
            page.word(0).store(1, Ordering::Release);
            page.wake(0);
        });
    }

    #[test]
    #[should_panic(expected = "no word at 61")]
    fn there_is_no_word_across_the_end() {
        let _ = page().word(61);
    }
}
