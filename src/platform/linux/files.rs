//! Files as a target sees them.
//!
//! Files are read, never mapped: a file that shrinks while it is mapped would kill rleaks.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat, openat2};
use nix::sys::stat::Mode;

use super::procfs::Status;
use crate::addr::Addr;
use crate::platform::DiskFile;

/// Names a file without opening it: no driver, pipe or lease is touched before the type is known.
const NAME_ONLY: OFlag = OFlag::O_PATH.union(OFlag::O_CLOEXEC);

/// An open regular file that is read piece by piece.
#[derive(Debug)]
pub struct RegularFile {
    file: File,
    size: u64,
    inode: u64,
    owner: u32,
}

impl RegularFile {
    /// The size in bytes when it was opened.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The inode number.
    #[must_use]
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// Fills `buf` with the bytes at `offset`, and says whether the file has that many.
    #[must_use]
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> bool {
        self.file.read_exact_at(buf, offset).is_ok()
    }

    /// Opens the file that `name` names, unless it is a device, a pipe, a directory, …
    fn reopen(name: OwnedFd) -> Option<Self> {
        let name = File::from(name);
        if !name.metadata().ok()?.is_file() {
            return None;
        }
        let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let file = File::options()
            .read(true)
            .custom_flags(flags.bits())
            .open(own_path(&name))
            .ok()?;
        let metadata = file.metadata().ok()?;
        Some(Self {
            size: metadata.len(),
            inode: metadata.ino(),
            owner: metadata.uid(),
            file,
        })
    }
}

impl From<RegularFile> for DiskFile {
    fn from(file: RegularFile) -> Self {
        Self::of(file.file, file.size)
    }
}

/// The files that a target sees, and those that rleaks itself sees.
///
/// It holds on to the target's root directory, so its files stay within reach when the target has
/// exited.
#[derive(Debug)]
pub struct TargetFiles {
    process: Option<OwnedFd>,
    root: Option<OwnedFd>,
    own_root: Option<OwnedFd>,
    /// The process id that the target knows itself by, and its user.
    identity: Option<(u32, u32)>,
    /// A path in the target, and the path here of the file that stands for it.
    substitute: Option<(String, PathBuf)>,
}

impl TargetFiles {
    /// The files that process `pid` sees. Nothing fails here: what may not be opened is not found.
    #[must_use]
    pub fn of_process(pid: u32) -> Self {
        let process = directory(Path::new(&format!("/proc/{pid}")));
        let root = process.as_ref().and_then(|process| {
            let flags = NAME_ONLY | OFlag::O_DIRECTORY;
            openat(process, "root", flags, Mode::empty()).ok()
        });
        Self {
            process,
            root,
            own_root: directory(Path::new("/")),
            identity: identity(pid),
            substitute: None,
        }
    }

    /// The files below `root`, for a target that no longer runs.
    #[must_use]
    pub fn under(root: &Path) -> Self {
        Self {
            process: None,
            root: directory(root),
            own_root: directory(Path::new("/")),
            identity: None,
            substitute: None,
        }
    }

    /// These files, but for the one at `path` in the target: that is `own` here.
    #[must_use]
    pub fn with_substitute(mut self, path: &str, own: &Path) -> Self {
        self.substitute = Some((path.to_owned(), own.to_owned()));
        self
    }

    /// The regular file that has the absolute path `path` in the target's mount namespace.
    ///
    /// Symbolic links are followed, but never out of the target's root directory.
    #[must_use]
    pub fn file(&self, path: &str) -> Option<RegularFile> {
        let substitute = self.substitute.as_ref().filter(|(of, _)| of == path);
        if let Some((_, own)) = substitute {
            return RegularFile::reopen(open(own, NAME_ONLY, Mode::empty()).ok()?);
        }
        regular_file_in(self.root.as_ref()?, path)
    }

    /// The regular file that has the absolute path `path` for rleaks itself.
    #[must_use]
    pub fn own_file(&self, path: &str) -> Option<RegularFile> {
        regular_file_in(self.own_root.as_ref()?, path)
    }

    /// The target's executable: also when it is deleted, and when the target's root directory is
    /// not the one that its path begins at, as after chroot.
    #[must_use]
    pub fn executable(&self) -> Option<RegularFile> {
        let name = openat(self.process.as_ref()?, "exe", NAME_ONLY, Mode::empty()).ok()?;
        RegularFile::reopen(name)
    }

    /// The file in which the target's JIT compiler names its code, `/tmp/perf-PID.map`.
    ///
    /// Everyone may write in `/tmp`: the file must belong to the target's user or to root.
    #[must_use]
    pub fn perf_map(&self) -> Option<RegularFile> {
        let (pid, user) = self.identity?;
        let map = self.file(&format!("/tmp/perf-{pid}.map"))?;
        (map.owner == user || map.owner == 0).then_some(map)
    }

    /// The file that the target has mapped at `base`, where a mapping starts: also when it is
    /// deleted. The kernel shows it to privileged users only.
    #[must_use]
    pub fn mapped_at(&self, base: Addr) -> Option<RegularFile> {
        let process = self.process.as_ref()?;
        let prefix = format!("{:x}-", base.0);
        let mappings = std::fs::read_dir(own_path(process) + "/map_files").ok()?;
        let mapping = mappings
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .find(|name| name.starts_with(&prefix))?;
        let path = format!("map_files/{mapping}");
        let name = openat(process, path.as_str(), NAME_ONLY, Mode::empty()).ok()?;
        RegularFile::reopen(name)
    }
}

/// The process id in the innermost namespace of process `pid`, and its effective user.
fn identity(pid: u32) -> Option<(u32, u32)> {
    let status = Status::read(pid, pid).ok()?;
    let user = std::fs::metadata(format!("/proc/{pid}/task")).ok()?.uid();
    Some((status.inner_tid, user))
}

fn directory(path: &Path) -> Option<OwnedFd> {
    open(path, NAME_ONLY | OFlag::O_DIRECTORY, Mode::empty()).ok()
}

/// The path under which this process reaches what `fd` names.
fn own_path(fd: &impl AsRawFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

fn regular_file_in(root: &OwnedFd, path: &str) -> Option<RegularFile> {
    let path = Path::new(path);
    if !path.is_absolute() {
        return None;
    }
    let name = match resolve_in_root(root, path) {
        // Linux before 5.6, and containers whose filter does not know the call.
        Err(Errno::ENOSYS | Errno::EPERM) => resolve_without_links(root, path).ok()?,
        resolved => resolved.ok()?,
    };
    RegularFile::reopen(name)
}

/// Names the file `path` as a process would whose root directory is `root`.
fn resolve_in_root(root: &OwnedFd, path: &Path) -> nix::Result<OwnedFd> {
    let resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    openat2(root, path, OpenHow::new().flags(NAME_ONLY).resolve(resolve))
}

/// Names the file `path` below `root`, and fails where a part of the path is a symbolic link. The
/// kernel's paths of mapped files have none.
fn resolve_without_links(root: &OwnedFd, path: &Path) -> io::Result<OwnedFd> {
    let mut at = root.as_fd().try_clone_to_owned()?;
    for component in path.components() {
        match component {
            Component::Normal(name) => at = resolve_one(&at, name)?,
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(io::ErrorKind::InvalidInput.into());
            }
        }
    }
    Ok(at)
}

fn resolve_one(directory: &OwnedFd, name: &OsStr) -> io::Result<OwnedFd> {
    let flags = NAME_ONLY | OFlag::O_NOFOLLOW;
    let next = openat(directory, name, flags, Mode::empty())?;
    let file = File::from(next);
    // A link is named like any file then; as a directory of the next part it would fail anyway.
    if file.metadata()?.is_symlink() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// A root directory with a file, links that stay in it, and things that are no regular files.
    fn root() -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a temporary directory");
        let at = |name: &str| root.path().join(name);
        std::fs::create_dir_all(at("usr/lib")).expect("a directory");
        std::fs::write(at("usr/lib/a.so"), b"inside").expect("a file");
        symlink("/usr/lib", at("lib")).expect("a link");
        symlink("../../../../../usr/lib/a.so", at("up")).expect("a link");
        symlink("/proc/self/exe", at("exe")).expect("a link");
        symlink("/etc/passwd", at("passwd")).expect("a link");
        symlink("/proc/1/root/etc/passwd", at("through")).expect("a link");
        symlink("/etc", at("etc")).expect("a link");
        symlink("/second", at("first")).expect("a link");
        symlink("/first", at("second")).expect("a link");
        nix::unistd::mkfifo(&at("pipe"), Mode::S_IRUSR).expect("a pipe");
        root
    }

    fn content(file: &RegularFile) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(file.size()).expect("a small file")];
        assert!(file.read_at(0, &mut bytes));
        bytes
    }

    #[test]
    fn links_are_followed_within_the_targets_root() {
        let root = root();
        let files = TargetFiles::under(root.path());
        for path in ["/usr/lib/a.so", "/lib/a.so", "/up", "/../usr/lib/a.so"] {
            let file = files.file(path).expect(path);
            assert_eq!(content(&file), b"inside", "{path}");
            assert!(!file.read_at(1, &mut [0; 6]));
        }
    }

    #[test]
    fn nothing_outside_the_root_and_no_special_file_is_opened() {
        let root = root();
        let files = TargetFiles::under(root.path());
        for path in [
            "/exe",
            "/passwd",
            "/through",
            "/etc/passwd",
            "/first",
            "/pipe",
            "/usr",
            "/",
            "",
            "[vdso]",
            "usr/lib/a.so",
            "/a\0b",
        ] {
            assert!(files.file(path).is_none(), "{path}");
        }
        assert!(files.own_file("/dev/null").is_none());
    }

    #[test]
    fn without_openat2_links_are_refused() {
        let root = root();
        let fd = directory(root.path()).expect("the root");
        let resolves = |path: &str| resolve_without_links(&fd, Path::new(path)).is_ok();
        assert!(resolves("/usr/lib/a.so"));
        for path in [
            "/lib/a.so",
            "/up",
            "/first",
            "/usr/../usr/lib/a.so",
            "/none",
        ] {
            assert!(!resolves(path), "{path}");
        }
    }

    #[test]
    fn a_process_shows_its_own_files() {
        let files = TargetFiles::of_process(std::process::id());
        let path = std::env::current_exe().expect("the path of this program");
        let path = path.to_str().expect("a path in UTF-8");
        let size = std::fs::metadata(path).expect("its size").len();
        assert_eq!(files.file(path).expect("this program").size(), size);
        assert!(TargetFiles::of_process(u32::MAX).file(path).is_none());
    }

    #[test]
    fn a_perf_map_must_be_the_users_or_roots() {
        let root = root();
        let files = |pid, user| TargetFiles {
            identity: Some((pid, user)),
            ..TargetFiles::under(root.path())
        };
        std::fs::create_dir(root.path().join("tmp")).expect("a directory");
        let map = root.path().join("tmp/perf-17.map");
        std::fs::write(&map, b"10 20 f").expect("a map");
        let owner = std::fs::metadata(&map).expect("its owner").uid();
        assert!(files(17, owner).perf_map().is_some());
        assert!(files(18, owner).perf_map().is_none());
        assert_eq!(files(17, owner + 1).perf_map().is_some(), owner == 0);
        std::fs::remove_file(&map).expect("the map");
        symlink("/etc/passwd", &map).expect("a link");
        assert!(files(17, owner).perf_map().is_none());
    }

    #[test]
    fn a_deleted_file_is_found_where_it_is_mapped() {
        use std::io::{Read, Write};
        let directory = tempfile::tempdir().expect("a temporary directory");
        let program = directory.path().join("waits");
        std::fs::copy("/bin/cat", &program).expect("a program");
        let mut waiting = std::process::Command::new(&program)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("a process");
        // When it answers, it is mapped.
        let mut stdin = waiting.stdin.take().expect("its input");
        stdin.write_all(b"x").expect("a byte");
        let mut stdout = waiting.stdout.take().expect("its output");
        stdout.read_exact(&mut [0]).expect("the byte");
        std::fs::remove_file(&program).expect("the program");
        let files = TargetFiles::of_process(waiting.id());
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", waiting.id()));
        let maps = maps.expect("the mappings");
        let base = maps.split('-').next().expect("an address");
        let base = Addr(u64::from_str_radix(base, 16).expect("an address"));
        let found = files.mapped_at(base);
        let executable = files.executable();
        drop(stdin);
        waiting.wait().expect("the process ends");
        let original = std::fs::read("/bin/cat").expect("the program");
        // The kernel shows it to root alone.
        let expected = nix::unistd::geteuid().is_root().then_some(original);
        assert_eq!(found.map(|file| content(&file)), expected);
        // Its owner may open the executable.
        let executable = executable.map(|file| content(&file));
        assert_eq!(executable, std::fs::read("/bin/cat").ok());
        assert!(files.mapped_at(base).is_none());
    }
}
