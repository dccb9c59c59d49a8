//! Files that appear whole or not at all.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::snapshot::saved::NewBytes;

/// What a file came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Its size, holes included.
    pub size: u64,
    /// The bytes that it takes.
    pub on_disk: u64,
}

/// A file that is being written under another name. It gets its own when it is finished; if that is
/// never, it is removed.
#[derive(Debug)]
pub struct NewFile {
    file: File,
    temporary: PathBuf,
    path: PathBuf,
    finished: bool,
}

impl NewFile {
    /// Begins a file at `path` that its owner alone can read. It replaces a regular file of that
    /// name, if there is one, and nothing else.
    ///
    /// # Errors
    /// There is something else of that name, or no file can be made beside it.
    pub fn create(path: &Path) -> io::Result<Self> {
        check_is_regular(path)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let temporary = path.with_file_name(format!(".{name}.{}.part", std::process::id()));
        // One that was left by a process with this id, which has ended.
        let _ = fs::remove_file(&temporary);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        Ok(Self {
            file: options.open(&temporary)?,
            temporary,
            path: path.to_owned(),
            finished: false,
        })
    }

    /// Where it is until it is finished.
    #[must_use]
    pub fn temporary(&self) -> &Path {
        &self.temporary
    }

    /// Gives it its name.
    ///
    /// # Errors
    /// What was written cannot be stored, or something else has taken the name meanwhile.
    pub fn finish(mut self) -> io::Result<Written> {
        // A full disk, or one that is elsewhere, may tell only now.
        self.file.sync_data()?;
        check_is_regular(&self.path)?;
        fs::rename(&self.temporary, &self.path)?;
        self.finished = true;
        let metadata = self.file.metadata()?;
        Ok(Written {
            size: metadata.len(),
            // Whatever the block size: stat(2).
            on_disk: metadata.blocks().saturating_mul(512),
        })
    }
}

impl NewBytes for NewFile {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn set_size(&self, size: u64) -> io::Result<()> {
        self.file.set_len(size)
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.finished {
            // There is nothing else that could be done about it.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

fn check_is_regular(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_file() => Ok(()),
        Ok(_) => Err(io::Error::other(
            "there is something of that name that is no regular file, and is not replaced",
        )),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).expect("a folder");
        let name = |entry: io::Result<fs::DirEntry>| entry.expect("it").file_name();
        entries
            .map(|e| name(e).into_string().expect("UTF-8"))
            .collect()
    }

    #[test]
    fn a_file_has_its_name_only_when_it_is_finished() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("app.core");
        fs::write(&path, "old").expect("a file");
        let file = NewFile::create(&path).expect("begun");
        file.write_at(3, b"new").expect("written");
        assert_eq!(fs::read(&path).expect("it"), b"old");
        file.finish().expect("finished");
        assert_eq!(fs::read(&path).expect("it"), b"\0\0\0new");
        let mode = fs::metadata(&path).expect("it").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(names(folder.path()), ["app.core"]);
    }

    #[test]
    fn a_file_that_is_given_up_leaves_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        drop(NewFile::create(&folder.path().join("app.core")).expect("begun"));
        assert!(names(folder.path()).is_empty());
    }

    #[test]
    fn only_a_regular_file_is_replaced() {
        let folder = tempfile::tempdir().expect("a folder");
        let link = folder.path().join("link");
        symlink("/nowhere", &link).expect("a link");
        for path in [&link, folder.path(), Path::new("/dev/null")] {
            assert!(NewFile::create(path).is_err(), "{}", path.display());
        }
        assert_eq!(names(folder.path()), ["link"]);
    }
}
