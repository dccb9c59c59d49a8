//! The page by which processes tell that they are about to end ([`super::format::ExitPage`]), on the
//! side of rleaks.
//!
//! The watched processes can write anything into it: what they say decides only how long they wait.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::mem::{offset_of, size_of};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::format::{
    EXIT_GO_ON, EXIT_SLOTS, EXIT_WAITING, ExitPage as Layout, ExitSlot, MAGIC, VERSION,
};
use crate::platform::{SharedPage, Waiter, Waiters};

const PREFIX: &str = "exit-page.";
const PATIENCE: Duration = Duration::from_secs(1);

/// A page of this process, in a file.
#[derive(Debug)]
pub struct ExitPage {
    page: SharedPage,
    path: PathBuf,
    /// Locked: who finds a page that is not locked knows that its process has ended.
    _file: File,
}

impl ExitPage {
    /// Makes a page in `folder`, which only the user can write.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn create(folder: &Path) -> io::Result<Self> {
        remove_left_pages(folder);
        let own_pid = std::process::id();
        let mut number = 0_u32;
        loop {
            let path = folder.join(format!("{PREFIX}{own_pid}.{number}"));
            match Self::create_at(path, own_pid) {
                // It belongs to a process of the same number in another pid namespace.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    number = number.wrapping_add(1);
                }
                other => return other,
            }
        }
    }

    fn create_at(path: PathBuf, own_pid: u32) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create_new(true).mode(0o600);
        let mut file = options.open(&path)?;
        // Somebody who looks for left pages may be faster, and removes this one.
        let is_ours = file.try_lock().is_ok()
            && fs::metadata(&path)
                .is_ok_and(|found| file.metadata().is_ok_and(|own| own.ino() == found.ino()));
        if !is_ours {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let page = begin(&mut file, own_pid).inspect_err(|_| {
            let _ = fs::remove_file(&path);
        })?;
        Ok(Self {
            page,
            path,
            _file: file,
        })
    }

    /// Where the file is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the file: processes that begin from now on do not wait when they end.
    pub fn remove(&self) {
        // Otherwise whoever comes next does it.
        let _ = fs::remove_file(&self.path);
    }

    /// Says whether the recorder was at work in the expected process.
    #[must_use]
    pub fn was_present(&self) -> bool {
        let present = self.page.word(offset_of!(Layout, present));
        present.load(Ordering::Acquire) != 0
    }
}

/// Writes what does not change, and maps the rest.
fn begin(file: &mut File, own_pid: u32) -> io::Result<SharedPage> {
    file.set_len(size_of::<Layout>() as u64)?;
    file.write_all(&MAGIC)?;
    file.write_all(&VERSION.to_le_bytes())?;
    file.write_all(&own_pid.to_le_bytes())?;
    SharedPage::map(file)
}

/// Removes pages of processes that were killed.
fn remove_left_pages(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let is_page = entry.file_name().as_bytes().starts_with(PREFIX.as_bytes());
        let is_left = is_page && File::open(entry.path()).is_ok_and(|page| page.try_lock().is_ok());
        if is_left {
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn slot_at(slot: usize) -> usize {
    let before = slot.saturating_mul(size_of::<ExitSlot>());
    before.saturating_add(offset_of!(Layout, slots))
}

fn state_of(slot: usize) -> usize {
    slot_at(slot).saturating_add(offset_of!(ExitSlot, state))
}

fn pid_of(slot: usize) -> usize {
    slot_at(slot).saturating_add(offset_of!(ExitSlot, pid))
}

impl Waiters for ExitPage {
    fn expect(&self, pid: u32) {
        let only = self.page.word(offset_of!(Layout, only));
        only.store(pid, Ordering::Release);
    }

    fn ring(&self, seen: u32) -> u32 {
        let doorbell = offset_of!(Layout, doorbell);
        self.page.wait(doorbell, seen, PATIENCE);
        self.page.word(doorbell).load(Ordering::Acquire)
    }

    fn waiting(&self) -> Vec<Waiter> {
        let state = |slot| self.page.word(state_of(slot)).load(Ordering::Acquire);
        let pid = |slot| self.page.word(pid_of(slot)).load(Ordering::Relaxed);
        (0..EXIT_SLOTS)
            .filter(|slot| state(*slot) == EXIT_WAITING)
            .map(|slot| Waiter {
                slot,
                pid: pid(slot),
            })
            .collect()
    }

    fn go_on(&self, slot: usize) {
        let state = self.page.word(state_of(slot));
        // Only from this state: the slot may have changed hands.
        let _ = state.compare_exchange(
            EXIT_WAITING,
            EXIT_GO_ON,
            Ordering::AcqRel,
            Ordering::Relaxed,
        );
        self.page.wake(state_of(slot));
    }

    fn inode(&self) -> u64 {
        self.page.inode()
    }
}

#[cfg(test)]
mod tests {
    use super::super::format::EXIT_FREE;
    use super::*;

    #[test]
    fn a_process_that_waits_is_seen_and_let_go_on() {
        let folder = tempfile::tempdir().expect("a folder");
        let page = ExitPage::create(folder.path()).expect("a page");
        page.expect(7);
        let file = File::options().read(true).write(true).open(page.path());
        let other = SharedPage::map(&file.expect("the file")).expect("a mapping");
        assert_eq!(other.word(8).load(Ordering::Relaxed), VERSION);
        assert_eq!(other.word(12).load(Ordering::Relaxed), std::process::id());
        assert_eq!(other.word(20).load(Ordering::Relaxed), 7);
        assert_eq!(page.waiting(), []);
        assert!(!page.was_present());

        other.word(pid_of(3)).store(7, Ordering::Relaxed);
        other
            .word(state_of(3))
            .store(EXIT_WAITING, Ordering::Release);
        other.word(16).fetch_add(1, Ordering::Release);
        assert_eq!(page.ring(0), 1);
        assert_eq!(page.waiting(), [Waiter { slot: 3, pid: 7 }]);
        page.go_on(3);
        assert_eq!(other.word(state_of(3)).load(Ordering::Relaxed), EXIT_GO_ON);
        page.go_on(4);
        assert_eq!(other.word(state_of(4)).load(Ordering::Relaxed), EXIT_FREE);
    }

    #[test]
    fn only_pages_of_processes_that_have_ended_are_removed() {
        let folder = tempfile::tempdir().expect("a folder");
        let left = folder.path().join("exit-page.1234.0");
        let other = folder.path().join("0.1.0-1234.so");
        for file in [&left, &other] {
            fs::write(file, "").expect("a file");
        }
        let first = ExitPage::create(folder.path()).expect("a page");
        assert!(first.path().exists() && !left.exists() && other.exists());
        let second = ExitPage::create(folder.path()).expect("a page");
        assert!(first.path().exists() && second.path().exists());
        assert_ne!(first.path(), second.path());
        second.remove();
        assert!(first.path().exists() && !second.path().exists());
    }
}
