//! The page by which processes tell that they are about to end ([`super::format::ExitPage`]), on the
//! side of rleaks.
//!
//! The watched processes can write anything into it: what they say decides only how long they wait.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::mem::{offset_of, size_of};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::format::{
    EXIT_GO_ON, EXIT_SLOTS, EXIT_WAITING, ExitPage as Layout, ExitSlot, MAGIC, VERSION,
};
use crate::platform::{SharedPage, Waiter, Waiters, process};

const PREFIX: &str = "exit-page.";
const PATIENCE: Duration = Duration::from_secs(1);

/// A page of this process, in a file that is removed when this is dropped.
#[derive(Debug)]
pub struct ExitPage {
    page: SharedPage,
    path: PathBuf,
}

impl ExitPage {
    /// Makes a page in `folder`, which only the user can write.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn create(folder: &Path) -> io::Result<Self> {
        remove_pages_of_the_dead(folder);
        let own_pid = std::process::id();
        let path = folder.join(format!("{PREFIX}{own_pid}"));
        // A process that had this id before and was killed can have left one.
        let _ = fs::remove_file(&path);
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create_new(true).mode(0o600);
        let mut file = options.open(&path)?;
        let page = begin(&mut file, own_pid).inspect_err(|_| {
            let _ = fs::remove_file(&path);
        })?;
        Ok(Self { page, path })
    }

    /// Where the file is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
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

fn remove_pages_of_the_dead(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        let pid = pid.and_then(|pid| pid.parse().ok());
        if pid.is_some_and(|pid| process(pid).is_none()) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

impl Drop for ExitPage {
    fn drop(&mut self) {
        // Whoever comes next removes it, too.
        let _ = fs::remove_file(&self.path);
    }
}

fn state_of(slot: usize) -> usize {
    offset_of!(Layout, slots) + slot * size_of::<ExitSlot>() + offset_of!(ExitSlot, state)
}

fn pid_of(slot: usize) -> usize {
    offset_of!(Layout, slots) + slot * size_of::<ExitSlot>() + offset_of!(ExitSlot, pid)
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
        other.word(state_of(3)).store(EXIT_WAITING, Ordering::Release);
        other.word(16).fetch_add(1, Ordering::Release);
        assert_eq!(page.ring(0), 1);
        assert_eq!(page.waiting(), [Waiter { slot: 3, pid: 7 }]);
        page.go_on(3);
        assert_eq!(other.word(state_of(3)).load(Ordering::Relaxed), EXIT_GO_ON);
        page.go_on(4);
        assert_eq!(other.word(state_of(4)).load(Ordering::Relaxed), EXIT_FREE);
    }

    #[test]
    fn the_file_goes_with_the_page_and_with_its_process() {
        let folder = tempfile::tempdir().expect("a folder");
        // No process has this id: it is above the largest one.
        let left = folder.path().join("exit-page.4194305");
        let other = folder.path().join("exit-page.txt");
        for file in [&left, &other] {
            fs::write(file, "").expect("a file");
        }
        let page = ExitPage::create(folder.path()).expect("a page");
        assert!(page.path().exists() && !left.exists() && other.exists());
        let path = page.path().to_owned();
        drop(page);
        assert!(!path.exists());
    }
}
