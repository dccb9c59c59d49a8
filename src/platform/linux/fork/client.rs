//! The guardian as rleaks sees it.

use std::io;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::protocol::{Failure, NewProcess, Outcome, Reply, Request, receive, send};
use super::refusal::ForkRefusal;
use crate::platform::linux::registers;
use crate::snapshot::Thread;

/// The command by which this program is a guardian.
const COMMAND: &str = "guardian";

/// A guardian that has been started. When it is dropped, the guardian undoes what it did, and ends.
#[derive(Debug)]
pub(in crate::platform::linux) struct Guardian {
    process: Mutex<Child>,
    stream: Mutex<UnixStream>,
    /// It was asked to let its thread go, and has not been heard yet.
    is_releasing: AtomicBool,
}

/// A thread of the target that the guardian has seized.
#[derive(Clone, Debug)]
pub(in crate::platform::linux) struct Guarded {
    pub(in crate::platform::linux) tid: u32,
    guardian: Arc<Guardian>,
}

impl Guardian {
    /// Starts it: this program once more, in a process group of its own, so that keys of the terminal do not
    /// reach it.
    pub(in crate::platform::linux) fn start() -> Result<Arc<Self>, ForkRefusal> {
        Self::try_start().map(Arc::new).map_err(|e| failed(&e))
    }

    fn try_start() -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        let copies = [theirs.try_clone()?, theirs.try_clone()?].map(OwnedFd::from);
        let [output, errors] = copies;
        let process = Command::new("/proc/self/exe")
            .arg(COMMAND)
            .stdin(OwnedFd::from(theirs))
            // Not /dev/null, which a small container lacks. Nothing is written there.
            .stdout(output)
            .stderr(errors)
            .current_dir("/")
            .process_group(0)
            .spawn()?;
        Ok(Self {
            process: Mutex::new(process),
            stream: Mutex::new(ours),
            is_releasing: AtomicBool::new(false),
        })
    }

    fn tell(&self, request: &Request) -> io::Result<()> {
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        send(request, &mut *stream)
    }

    fn hear(&self) -> io::Result<Reply> {
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        receive(&mut *stream)
    }

    fn ask(&self, request: &Request) -> Result<Reply, ForkRefusal> {
        self.tell(request).map_err(|error| failed(&error))?;
        self.answer()
    }

    fn answer(&self) -> Result<Reply, ForkRefusal> {
        match self.hear().map_err(|error| failed(&error))? {
            Reply::Failed(failure) => Err(failure.into()),
            reply => Ok(reply),
        }
    }

    /// Makes the guardian the tracer of thread `tid`, which runs on.
    pub(in crate::platform::linux) fn seize(
        self: &Arc<Self>,
        pid: u32,
        tid: u32,
        limit: Duration,
    ) -> Result<Guarded, ForkRefusal> {
        self.ask(&Request::Seize { pid, tid, limit })?;
        Ok(Guarded {
            tid,
            guardian: Arc::clone(self),
        })
    }

    /// Asks for the child, without waiting for it. The thread that is guarded stands still.
    pub(in crate::platform::linux) fn begin_child(
        &self,
        lifetime: Duration,
    ) -> Result<(), ForkRefusal> {
        let told = self.tell(&Request::Clone { lifetime });
        told.map_err(|error| failed(&error))
    }

    /// Waits until the child is there.
    pub(in crate::platform::linux) fn finish_child(&self) -> Result<NewProcess, ForkRefusal> {
        match self.answer()? {
            Reply::Child(child) => Ok(child),
            _ => Err(unexpected()),
        }
    }

    /// Ends the `child` of process `pid`. Where the guardian itself has ended, and the child with it, another one
    /// makes the process forget it. `None` where that is impossible, too.
    pub(in crate::platform::linux) fn end(&self, pid: u32, child: NewProcess) -> Option<Outcome> {
        let reply = self.ask(&Request::End).or_else(|_| {
            let another = Self::start()?;
            another.ask(&Request::Forget { pid, child })
        });
        match reply {
            Ok(Reply::Ended(outcome)) => Some(outcome),
            _ => None,
        }
    }
}

impl Guarded {
    /// Asks for the thread to be stopped, without waiting for it.
    pub(in crate::platform::linux) fn begin_stop(&self) -> Result<(), ForkRefusal> {
        let told = self.guardian.tell(&Request::Stop);
        told.map_err(|error| failed(&error))
    }

    /// Waits until the thread stands still, and reads its registers.
    pub(in crate::platform::linux) fn finish_stop(&self) -> Result<Thread, ForkRefusal> {
        match self.guardian.answer()? {
            Reply::Stopped { general, vector } => {
                Ok(registers::of_other_process(self.tid, general, vector))
            }
            _ => Err(unexpected()),
        }
    }

    /// Asks for the thread to go on, once the guardian has done what it was asked before, without waiting for it.
    pub(in crate::platform::linux) fn begin_release(&self) {
        // Where the guardian is gone, the kernel has let go of the thread.
        let is_told = self.guardian.tell(&Request::Release).is_ok();
        self.guardian.is_releasing.store(is_told, Ordering::Relaxed);
    }

    /// Lets the thread go on, and waits until it does.
    pub(in crate::platform::linux) fn release(&self) {
        if !self.guardian.is_releasing.load(Ordering::Relaxed) {
            self.begin_release();
        }
        if self.guardian.is_releasing.swap(false, Ordering::Relaxed) {
            // The answer to an earlier request, for which nobody waited, may come first.
            while self.guardian.hear().is_ok_and(|reply| reply != Reply::Done) {}
        }
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        let stream = self
            .stream
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        let _ = stream.shutdown(Shutdown::Both);
        let process = self
            .process
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        let _ = process.wait();
    }
}

fn failed(error: &io::Error) -> ForkRefusal {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    ForkRefusal::Guardian(match error.kind() {
        BrokenPipe | ConnectionReset | UnexpectedEof => "it was ended (SIGKILL)".to_owned(),
        _ => error.to_string(),
    })
}

fn unexpected() -> ForkRefusal {
    Failure::System(nix::libc::EPROTO).into()
}
