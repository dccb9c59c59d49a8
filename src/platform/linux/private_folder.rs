//! A folder in which only this user can write, for files that other processes of his are to trust.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::geteuid;

/// Why there is no such folder.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// It cannot be made.
    #[error("cannot make the directory {0}")]
    Create(PathBuf, #[source] io::Error),
    /// Somebody else can write there.
    #[error(
        "{0} is not a directory that only this user can write: remove it, or set TMPDIR to another \
         place"
    )]
    NotPrivate(PathBuf),
}

/// A folder of rleaks' own, below `$XDG_RUNTIME_DIR` or else `$TMPDIR` or `/tmp`.
///
/// # Errors
/// Says so where it cannot be made, or belongs to somebody else.
pub fn private_folder() -> Result<PathBuf, FolderError> {
    let folder = folder(std::env::var_os("XDG_RUNTIME_DIR"), std::env::temp_dir());
    make_private(&folder)?;
    Ok(folder)
}

fn folder(runtime: Option<OsString>, temporary: PathBuf) -> PathBuf {
    let user = geteuid().as_raw();
    // `sudo` can hand on that of another user. Libraries cannot be loaded from some.
    let is_good = |path: &PathBuf| {
        path.is_absolute()
            && fs::metadata(path).is_ok_and(|found| found.is_dir() && found.uid() == user)
            && statvfs(path).is_ok_and(|fs| !fs.flags().contains(FsFlags::ST_NOEXEC))
    };
    match runtime.map(PathBuf::from).filter(is_good) {
        Some(runtime) => runtime.join("rleaks"),
        None => temporary.join(format!("rleaks-{user}")),
    }
}

fn make_private(folder: &Path) -> Result<(), FolderError> {
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(FolderError::Create(folder.to_owned(), error));
        }
        _ => {}
    }
    // Of the name itself: a link could be turned to another place at any time.
    let found = fs::symlink_metadata(folder)
        .map_err(|error| FolderError::Create(folder.to_owned(), error))?;
    let is_private = found.is_dir()
        && found.uid() == geteuid().as_raw()
        && found.permissions().mode() & 0o022 == 0;
    if is_private {
        Ok(())
    } else {
        Err(FolderError::NotPrivate(folder.to_owned()))
    }
}

/// Makes `path` a file with these contents and this mode, unless it is one already. Who reads it
/// meanwhile sees all of the old file or all of the new one.
///
/// # Errors
/// It cannot be written.
pub fn put_file(path: &Path, contents: &[u8], mode: u32) -> io::Result<()> {
    if is_file_with(path, contents, mode) {
        return Ok(());
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.{}", std::process::id()));
    // One that was left by a process with this id, which has ended.
    let _ = fs::remove_file(&temporary);
    let mut options = OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&temporary)?;
    let written = file
        .write_all(contents)
        // The mode again: the umask may have taken a part of it.
        .and_then(|()| file.set_permissions(fs::Permissions::from_mode(mode)))
        .and_then(|()| fs::rename(&temporary, path));
    written.inspect_err(|_| {
        let _ = fs::remove_file(&temporary);
    })
}

fn is_file_with(path: &Path, contents: &[u8], mode: u32) -> bool {
    let is_good = fs::symlink_metadata(path).is_ok_and(|found| {
        found.is_file()
            && found.len() == contents.len() as u64
            && found.uid() == geteuid().as_raw()
            && found.permissions().mode() & 0o777 == mode
    });
    is_good && fs::read(path).is_ok_and(|found| found == contents)
}

/// Makes a directory that all users can read, and those above it that are not there.
///
/// # Errors
/// It cannot be made.
pub fn make_public(folder: &Path) -> io::Result<()> {
    let missing: Vec<&Path> = folder
        .ancestors()
        .take_while(|path| !path.as_os_str().is_empty() && !path.exists())
        .collect();
    for path in missing.into_iter().rev() {
        fs::create_dir(path)?;
        // Whatever the umask is.
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn the_runtime_directory_comes_first_if_it_is_the_users_own() {
        let own = tempfile::tempdir().expect("a folder");
        let runtime = |path: &Path| folder(Some(path.into()), PathBuf::from("/tmp"));
        assert_eq!(runtime(own.path()), own.path().join("rleaks"));
        let elsewhere = format!("/tmp/rleaks-{}", geteuid());
        assert_eq!(folder(None, PathBuf::from("/tmp")), Path::new(&elsewhere));
        for path in ["/no/such/folder", "relative", "/proc/version"] {
            assert_eq!(runtime(Path::new(path)), Path::new(&elsewhere), "{path}");
        }
    }

    #[test]
    fn a_folder_that_others_can_write_is_refused() {
        let parent = tempfile::tempdir().expect("a folder");
        let folder = parent.path().join("rleaks");
        make_private(&folder).expect("made");
        make_private(&folder).expect("used again");
        let mode = fs::symlink_metadata(&folder)
            .expect("it")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o700);
        let link = parent.path().join("link");
        symlink(&folder, &link).expect("a link");
        assert!(matches!(
            make_private(&link),
            Err(FolderError::NotPrivate(_))
        ));
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).expect("open");
        assert!(matches!(
            make_private(&folder),
            Err(FolderError::NotPrivate(_))
        ));
        let nowhere = parent.path().join("no").join("rleaks");
        assert!(matches!(
            make_private(&nowhere),
            Err(FolderError::Create(..))
        ));
    }

    #[test]
    fn a_file_is_replaced_only_if_it_differs() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("library.so");
        let inode = || fs::symlink_metadata(&path).expect("it").ino();
        put_file(&path, b"one", 0o600).expect("written");
        let first = inode();
        put_file(&path, b"one", 0o600).expect("kept");
        assert_eq!(inode(), first);
        put_file(&path, b"two", 0o600).expect("replaced");
        assert_eq!(fs::read(&path).expect("it"), b"two");
        fs::remove_file(&path).expect("removed");
        let other = folder.path().join("other");
        fs::write(&other, "two").expect("a file");
        symlink(&other, &path).expect("a link");
        put_file(&path, b"two", 0o755).expect("replaced");
        let found = fs::symlink_metadata(&path).expect("it");
        assert!(found.is_file());
        assert_eq!(found.permissions().mode() & 0o777, 0o755);
        assert_eq!(fs::read_dir(folder.path()).expect("it").count(), 2);
    }

    #[test]
    fn a_public_directory_can_be_read_by_all() {
        let parent = tempfile::tempdir().expect("a folder");
        let folder = parent.path().join("lib").join("rleaks");
        make_public(&folder).expect("made");
        for path in [&folder, &parent.path().join("lib")] {
            let mode = fs::metadata(path).expect("it").permissions().mode();
            assert_eq!(mode & 0o777, 0o755);
        }
        make_public(&folder).expect("there already");
    }
}
