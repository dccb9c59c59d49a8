//! What goes wrong with a capture, and what is behind it.

use std::fs;
use std::io;
use std::time::Duration;

use nix::libc;

use super::cost::Costs;
use super::fork::ForkRefusal;
use super::obstacle_facts;
use super::obstacles::{Obstacle, Refusal};
use super::suspend::SuspendError;

/// Why a process could not be captured. In each case it runs on.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// Something is in the way, and it is known what.
    #[error(transparent)]
    Obstacle(#[from] Obstacle),
    /// It could not be stopped.
    #[error(transparent)]
    Suspend(#[from] SuspendError),
    /// No child can be made of it at this moment.
    #[error(transparent)]
    Fork(#[from] ForkRefusal),
    /// No way that is allowed is short enough.
    #[error(
        "no allowed way to keep the memory of process {pid} stops it for {} ms at most: {costs}{hint}",
        limit.as_millis()
    )]
    TooLong {
        /// The process.
        pid: u32,
        /// How long it may stand still.
        limit: Duration,
        /// How long it would.
        costs: Costs,
        /// What would help.
        hint: &'static str,
    },
    /// The child that held its memory is gone.
    #[error(
        "the child that held the memory of process {0} was ended before the scan was over, for lack of \
         memory or because the scan took too long: use --snapshot=copy"
    )]
    Lost(u32),
    /// A file of `/proc` could not be read.
    #[error("cannot read {path}{}", remedy(.source))]
    Proc {
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// Memory for the copy could not be had.
    #[error("cannot allocate {0} bytes for the copy: use --snapshot=stream")]
    Buffer(u64, #[source] io::Error),
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => ": the kernel does not offer this file",
        _ => "",
    }
}

/// The error of a file of `/proc`. It takes time where the kernel refused: the reason is looked for.
pub(super) fn proc_error(pid: u32, name: &str, source: io::Error) -> CaptureError {
    match source.raw_os_error() {
        Some(libc::EACCES | libc::EPERM) => obstacle_facts::explain(pid, Refusal::File).into(),
        Some(libc::ESRCH) => explained(SuspendError::NoMemory(pid)),
        _ if !fs::exists(format!("/proc/{pid}")).unwrap_or(true) => {
            Obstacle::NoSuchProcess(pid).into()
        }
        _ => CaptureError::Proc {
            path: format!("/proc/{pid}/{name}"),
            source,
        },
    }
}

/// The obstacle behind what the kernel said.
pub(super) fn explained(error: SuspendError) -> CaptureError {
    match error {
        SuspendError::Fork(refusal) => refusal.into(),
        SuspendError::NoSuchProcess(pid) => Obstacle::NoSuchProcess(pid).into(),
        SuspendError::AlreadyTraced(pid, tracer) => obstacle_facts::traced_by(pid, tracer).into(),
        SuspendError::Denied(pid) => obstacle_facts::explain(pid, Refusal::Request).into(),
        SuspendError::Other(pid, ref source)
            if matches!(source.raw_os_error(), Some(libc::ENOSYS | libc::EACCES)) =>
        {
            obstacle_facts::explain(pid, Refusal::Request).into()
        }
        SuspendError::NoMemory(pid) => match obstacle_facts::explain(pid, Refusal::File) {
            found @ (Obstacle::NoSuchProcess(_)
            | Obstacle::Zombie(_)
            | Obstacle::KernelThread(_)) => found.into(),
            _ => SuspendError::NoMemory(pid).into(),
        },
        other => other.into(),
    }
}
