//! Files of rleaks' user that are read piece by piece.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::SystemTime;

use crate::snapshot::core::FileBytes;

/// An open regular file. It is read, not mapped: one that is cut short meanwhile ends early.
#[derive(Debug)]
pub struct DiskFile {
    file: File,
    size: u64,
}

impl DiskFile {
    /// Opens the file at `path`.
    ///
    /// # Errors
    /// It cannot be opened, or is no regular file.
    pub fn open(path: &Path) -> io::Result<Self> {
        let mut options = File::options();
        // Opening a named pipe would wait for a writer.
        options.read(true).custom_flags(nix::libc::O_NONBLOCK);
        Self::new(options.open(path)?)
    }

    /// An open file.
    ///
    /// # Errors
    /// It is no regular file.
    pub fn new(file: File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::other("it is no regular file"));
        }
        Ok(Self {
            size: metadata.len(),
            file,
        })
    }
}

impl DiskFile {
    /// An open regular `file` of this size.
    pub(super) fn of(file: File, size: u64) -> Self {
        Self { file, size }
    }

    /// When it was last written to.
    #[must_use]
    pub fn modified(&self) -> SystemTime {
        let modified = self
            .file
            .metadata()
            .and_then(|metadata| metadata.modified());
        modified.unwrap_or(SystemTime::UNIX_EPOCH)
    }
}

/// An empty file in `folder` that has no name, and is gone when it is closed.
///
/// # Errors
/// No file can be made there, or not without a name.
#[cfg(target_os = "linux")]
pub fn unlinked_file(folder: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.read(true).write(true).mode(0o600);
    options.custom_flags(nix::libc::O_TMPFILE).open(folder)
}

impl FileBytes for DiskFile {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> usize {
        let mut done = 0;
        while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let at = offset.saturating_add(done as u64);
            match self.file.read_at(rest, at) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        done
    }
}
