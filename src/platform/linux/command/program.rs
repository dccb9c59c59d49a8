//! The file that a command runs, and whether the recorder can be at work in it.
#![expect(
    unsafe_code,
    reason = "extended attributes and the capabilities of files"
)]

use std::ffi::{CString, OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use goblin::elf::header::{ELFCLASS64, EM_386, EM_X86_64};
use nix::libc;
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::{AccessFlags, access, getgid, getuid};

use super::executable::Executable;

/// How often the interpreter of a script may be a script.
const MAX_INTERPRETERS: usize = 5;
/// The longest first line of a script that the kernel looks at.
const MAX_FIRST_LINE: u64 = 256;

/// The loaders that heed `LD_PRELOAD` and can load the recorder: glibc's and musl's.
const LOADERS: [&str; 2] = ["ld-linux", "ld-musl"];

/// Why a command cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// No directory of the path has it.
    #[error("no program is named {0}: none of the directories in PATH has it")]
    NotInPath(String),
    /// There is no such file.
    #[error("there is no program {0}")]
    NoSuchFile(String),
    /// It is there.
    #[error("{0} cannot be run: it is a directory, or this user may not execute it")]
    NotExecutable(String),
    /// It is a script, and its first line names another file that is not there.
    #[error("{0} cannot be run: there is no {1}, which its first line names")]
    NoInterpreter(String, String),
}

/// Why the recorder cannot be at work in a program, or cannot see its allocations.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Limit {
    /// It loads no libraries.
    #[error("it is statically linked, so no library can be loaded into it")]
    Static,
    /// It has an allocator and a way to end of its own.
    #[error("it is a Go program, which does not use malloc")]
    Go,
    /// It is for another machine, or of another width.
    #[error("it is a program for {0}, and the recorder is for x86-64")]
    Architecture(&'static str),
    /// It uses a C library that the recorder does not know.
    #[error("its dynamic loader {0} is not known to load libraries by LD_PRELOAD")]
    Library(String),
    /// The loader ignores `LD_PRELOAD` in it.
    #[error(
        "it runs with other privileges than its user ({0}), so no library can be loaded into it"
    )]
    Privileged(&'static str),
    /// Its own malloc is called, not the recorder's.
    #[error("it has a malloc of its own, so its allocations cannot be seen")]
    OwnMalloc,
}

impl Limit {
    /// Says whether the recorder is loaded all the same, and tells of the program's end.
    #[must_use]
    pub fn sees_the_end(&self) -> bool {
        *self == Self::OwnMalloc
    }

    /// Says whether the program starts with the recorder in `LD_PRELOAD`, for the sake of the programs
    /// that it starts. A loader that cannot load it complains, or ends the program.
    #[must_use]
    pub fn bears_the_recorder(&self) -> bool {
        !matches!(self, Self::Architecture(_) | Self::Library(_))
    }
}

/// The file that is executed for a command: of a script, that of its interpreter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramFile {
    /// Where it is.
    pub path: PathBuf,
}

impl ProgramFile {
    /// Finds the program of a command as `exec` does.
    ///
    /// # Errors
    /// Says so where there is none, or none that may be executed.
    pub fn find(word: &OsStr) -> Result<Self, RunError> {
        let name = || word.to_string_lossy().into_owned();
        if word.as_bytes().contains(&b'/') {
            return match fs::metadata(word) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    Err(RunError::NoSuchFile(name()))
                }
                _ if is_executable(Path::new(word)) => Self::behind(PathBuf::from(word)),
                _ => Err(RunError::NotExecutable(name())),
            };
        }
        let path = std::env::var_os("PATH").unwrap_or_else(|| OsString::from("/bin:/usr/bin"));
        let mut files = std::env::split_paths(&path).map(|folder| folder.join(word));
        let mut not_executable = None;
        let found = files.find(|file| {
            let is_executable = is_executable(file);
            if !is_executable && file.exists() {
                not_executable = Some(file.clone());
            }
            is_executable
        });
        match (found, not_executable) {
            (Some(file), _) => Self::behind(file),
            (None, Some(file)) => Err(RunError::NotExecutable(file.display().to_string())),
            (None, None) => Err(RunError::NotInPath(name())),
        }
    }

    /// The interpreter of a script, and the program itself of any other.
    fn behind(mut path: PathBuf) -> Result<Self, RunError> {
        for _ in 0..MAX_INTERPRETERS {
            match interpreter(&path) {
                None => break,
                Some(interpreter) if !interpreter.exists() => {
                    let name = |path: &Path| path.display().to_string();
                    return Err(RunError::NoInterpreter(name(&path), name(&interpreter)));
                }
                Some(interpreter) => path = interpreter,
            }
        }
        Ok(Self { path })
    }

    /// What keeps the recorder from its work in this program. `None` also where the file cannot be read.
    #[must_use]
    pub fn limit(&self) -> Option<Limit> {
        let file = File::open(&self.path).ok()?;
        let executable = Executable::parse(&|offset, size| {
            let mut bytes = vec![0; usize::try_from(size).ok()?];
            file.read_exact_at(&mut bytes, offset).ok()?;
            Some(bytes)
        })?;
        of_executable(&executable).or_else(|| privilege(&self.path).map(Limit::Privileged))
    }

    /// Says whether the kernel gives it more rights than its user has, unless it is traced.
    #[must_use]
    pub fn gains_privileges(&self) -> bool {
        privilege(&self.path).is_some()
    }
}

/// What the headers of a program tell. What is hardest for the recorder comes first.
fn of_executable(executable: &Executable) -> Option<Limit> {
    let machine = match (executable.machine, executable.class) {
        (EM_X86_64, ELFCLASS64) => None,
        (EM_X86_64, _) => Some("x32"),
        (EM_386, _) => Some("i386"),
        _ => Some("another machine"),
    };
    if let Some(machine) = machine {
        return Some(Limit::Architecture(machine));
    }
    match &executable.interpreter {
        _ if executable.is_go => Some(Limit::Go),
        None => Some(Limit::Static),
        Some(loader) if !LOADERS.iter().any(|known| loader.contains(known)) => {
            Some(Limit::Library(loader.clone()))
        }
        Some(_) => executable.defines_malloc.then_some(Limit::OwnMalloc),
    }
}

fn is_executable(path: &Path) -> bool {
    let is_file = fs::metadata(path).is_ok_and(|metadata| metadata.is_file());
    is_file && access(path, AccessFlags::X_OK).is_ok()
}

/// The interpreter in the first line of a script. A file that is none and no program either is run by
/// the shell.
fn interpreter(path: &Path) -> Option<PathBuf> {
    let mut start = Vec::new();
    let file = File::open(path).ok()?;
    file.take(MAX_FIRST_LINE).read_to_end(&mut start).ok()?;
    if start.starts_with(b"\x7fELF") {
        return None;
    }
    let Some(line) = start.strip_prefix(b"#!") else {
        return Some(PathBuf::from("/bin/sh"));
    };
    let line = line.split(|byte| *byte == b'\n').next()?;
    let mut words = line.split(|byte| matches!(byte, b' ' | b'\t'));
    let word = words.find(|word| !word.is_empty())?;
    Some(PathBuf::from(OsString::from_vec(word.to_vec())))
}

/// By what the kernel gives the program other rights than those of its user.
fn privilege(path: &Path) -> Option<&'static str> {
    let metadata = fs::metadata(path).ok()?;
    let is_ignored = statvfs(path).is_ok_and(|fs| fs.flags().contains(FsFlags::ST_NOSUID))
        || nix::sys::prctl::get_no_new_privs().unwrap_or(false);
    let mode = metadata.permissions().mode();
    let of_group = mode & (libc::S_ISGID | libc::S_IXGRP) == libc::S_ISGID | libc::S_IXGRP;
    if is_ignored {
        None
    } else if mode & libc::S_ISUID != 0 && metadata.uid() != getuid().as_raw() {
        Some("set-user-ID")
    } else if of_group && metadata.gid() != getgid().as_raw() {
        Some("set-group-ID")
    } else if !getuid().is_root() && has_capabilities(path) {
        Some("file capabilities")
    } else {
        None
    }
}

fn has_capabilities(path: &Path) -> bool {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else {
        return false;
    };
    let name = c"security.capability".as_ptr();
    // SAFETY: both strings outlive the call; with a size of 0 the kernel writes nothing.
    let size = unsafe { libc::getxattr(path.as_ptr(), name, std::ptr::null_mut(), 0) };
    size > 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn executable() -> Executable {
        Executable {
            class: ELFCLASS64,
            machine: EM_X86_64,
            interpreter: Some("/lib64/ld-linux-x86-64.so.2".to_owned()),
            ..Executable::default()
        }
    }

    #[test]
    fn what_a_program_is_decides_what_the_recorder_can_do() {
        assert_eq!(of_executable(&executable()), None);
        let own = Executable {
            defines_malloc: true,
            ..executable()
        };
        let go = Executable {
            is_go: true,
            ..executable()
        };
        let fixed = Executable {
            interpreter: None,
            ..executable()
        };
        let narrow = Executable {
            class: 1,
            machine: EM_386,
            ..executable()
        };
        let loader = |path: &str| Executable {
            interpreter: Some(path.to_owned()),
            ..executable()
        };
        let strange = "/system/bin/linker64".to_owned();
        assert_eq!(of_executable(&own), Some(Limit::OwnMalloc));
        assert_eq!(of_executable(&go), Some(Limit::Go));
        assert_eq!(of_executable(&fixed), Some(Limit::Static));
        assert_eq!(of_executable(&narrow), Some(Limit::Architecture("i386")));
        assert_eq!(of_executable(&loader("/lib/ld-musl-x86_64.so.1")), None);
        assert_eq!(
            of_executable(&loader(&strange)),
            Some(Limit::Library(strange))
        );
    }

    #[test]
    fn a_program_is_found_in_the_path_and_behind_a_script() {
        let shell = ProgramFile::find(OsStr::new("sh")).expect("a shell");
        assert!(shell.path.ends_with("sh"), "{shell:?}");
        assert_eq!(shell.limit(), None);
        let folder = tempfile::tempdir().expect("a folder");
        let script = folder.path().join("script");
        fs::write(&script, "#! /usr/bin/env python3\n").expect("a script");
        let refused = ProgramFile::find(script.as_os_str());
        assert!(matches!(refused, Err(RunError::NotExecutable(_))));
        let mode = fs::Permissions::from_mode(0o755);
        fs::set_permissions(&script, mode).expect("executable");
        let found = ProgramFile::find(script.as_os_str()).expect("a script");
        assert_eq!(found.path, Path::new("/usr/bin/env"));
    }

    #[test]
    fn a_program_that_is_nowhere_is_not_found() {
        let find = |name: &str| ProgramFile::find(OsStr::new(name));
        assert!(matches!(
            find("no-such-program"),
            Err(RunError::NotInPath(_))
        ));
        assert!(matches!(find("./no-such"), Err(RunError::NoSuchFile(_))));
        assert!(matches!(find("/"), Err(RunError::NotExecutable(_))));
    }
}
