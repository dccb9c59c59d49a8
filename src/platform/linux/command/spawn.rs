//! Becoming a command, and starting one.
#![expect(unsafe_code, reason = "fork and _exit")]

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use nix::fcntl::OFlag;
use nix::libc;
use nix::unistd::{ForkResult, execvpe, fork, pipe2};

use super::inherited::Disposition;

/// A program, its arguments, and what its environment has that this process's has not.
#[derive(Clone, Debug)]
pub struct CommandLine {
    /// The program, looked for as a shell does, and its arguments.
    pub words: Vec<OsString>,
    /// Variables that are set.
    pub variables: Vec<(OsString, OsString)>,
}

impl CommandLine {
    /// Becomes the command: the process, its terminal and its files stay what they are. Returns only
    /// where that fails.
    pub fn become_it(&self, disposition: &Disposition) -> io::Error {
        let prepared = match self.prepare() {
            Ok(prepared) => prepared,
            Err(error) => return error,
        };
        disposition.restore();
        prepared.exec()
    }

    fn prepare(&self) -> io::Result<Prepared> {
        let text = |bytes: &OsStr| CString::new(bytes.as_bytes()).map_err(io::Error::other);
        let inherited = std::env::vars_os()
            .filter(|(name, _)| !self.variables.iter().any(|(changed, _)| changed == name));
        let variables = inherited.chain(self.variables.iter().cloned());
        let environment = variables.map(|(name, value)| {
            let both = [name.as_bytes(), b"=", value.as_bytes()].concat();
            text(&OsString::from_vec(both))
        });
        Ok(Prepared {
            words: self
                .words
                .iter()
                .map(|word| text(word))
                .collect::<Result<_, _>>()?,
            environment: environment.collect::<Result<_, _>>()?,
        })
    }

    /// Starts the command, which waits for [`Spawned::go`]. The calling process has one thread.
    pub(super) fn spawn(&self, disposition: &Disposition) -> io::Result<Spawned> {
        let prepared = self.prepare()?;
        let (go, may_go) = pipe2(OFlag::O_CLOEXEC)?;
        let (failure, failed) = pipe2(OFlag::O_CLOEXEC)?;
        // SAFETY: the caller has one thread, so nothing that another thread holds is cut off.
        let forked = unsafe { fork() };
        match forked? {
            ForkResult::Parent { child } => Ok(Spawned {
                pid: u32::try_from(child.as_raw()).map_err(io::Error::other)?,
                may_go: File::from(may_go),
                failure: File::from(failure),
            }),
            ForkResult::Child => {
                drop((may_go, failure));
                begin(&prepared, disposition, go, failed)
            }
        }
    }
}

/// What `exec` takes.
struct Prepared {
    words: Vec<CString>,
    environment: Vec<CString>,
}

impl Prepared {
    fn exec(&self) -> io::Error {
        let Some(file) = self.words.first() else {
            return io::ErrorKind::NotFound.into();
        };
        match execvpe(file, &self.words, &self.environment) {
            Err(error) => error.into(),
            Ok(never) => match never {},
        }
    }
}

/// The child: waits until it may go, and becomes the command. If rleaks has died meanwhile, it does
/// not wait.
fn begin(prepared: &Prepared, disposition: &Disposition, go: OwnedFd, failed: OwnedFd) -> ! {
    let _ = File::from(go).read(&mut [0]);
    disposition.restore();
    let error = prepared.exec().raw_os_error().unwrap_or(libc::ENOENT);
    let _ = File::from(failed).write_all(&error.to_ne_bytes());
    // SAFETY: ends this process; what the parent has registered for its own end is not run.
    unsafe { libc::_exit(127) }
}

/// A command that was started.
#[derive(Debug)]
pub(super) struct Spawned {
    pub(super) pid: u32,
    may_go: File,
    failure: File,
}

impl Spawned {
    /// Lets it go on to the program.
    pub(super) fn go(&mut self) {
        // It can have been killed.
        let _ = self.may_go.write_all(&[1]);
    }

    /// Why there is no such program, once the process has ended.
    pub(super) fn failure(&mut self) -> Option<io::Error> {
        let flags = OFlag::O_NONBLOCK.bits();
        // SAFETY: the call takes no pointer.
        unsafe { libc::fcntl(self.failure.as_raw_fd(), libc::F_SETFL, flags) };
        let mut error = [0; 4];
        self.failure.read_exact(&mut error).ok()?;
        Some(io::Error::from_raw_os_error(i32::from_ne_bytes(error)))
    }
}
