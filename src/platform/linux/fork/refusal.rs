//! Why a target was not forked.

use nix::errno::Errno;
use nix::libc;

use super::protocol::Failure;
use crate::warning::{Bias, Warning};

/// Why no child could be made of the target, or none was tried to be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ForkRefusal {
    /// The kernel is too old.
    #[error(
        "Linux {0} cannot fork a process without harm to memory that a device writes to (5.12 can)"
    )]
    Kernel(String),
    /// The target is no 64-bit program.
    #[error("it is not a 64-bit program")]
    Width,
    /// The target is at its end.
    #[error("it is at its end")]
    AtEnd,
    /// The kernel maps no code into it.
    #[error("it has no code of the kernel (vdso) with a system call in it")]
    Vdso,
    /// A child would be in another namespace.
    #[error("its children are in another {0} namespace than itself")]
    Namespace(&'static str),
    /// A thread of the target serves page faults.
    #[error("it handles page faults itself (userfaultfd)")]
    Userfaultfd,
    /// The kernel works for the target in the background.
    #[error("it has asynchronous input and output under way ({0})")]
    Asynchronous(&'static str),
    /// The kernel promises no more memory than there is.
    #[error("the kernel promises no more memory than there is (vm.overcommit_memory is 2)")]
    Overcommit,
    /// There is too little memory.
    #[error(
        "its memory may need {needed} MiB more until the scan has read it, and {place} has {left} MiB left"
    )]
    Memory {
        /// What may be needed, in MiB.
        needed: u64,
        /// What there is, in MiB.
        left: u64,
        /// Where.
        place: &'static str,
    },
    /// There may be no more processes.
    #[error("its control group has room for {0} more processes only (pids.max)")]
    Processes(u64),
    /// A seccomp filter is on it.
    #[error("a seccomp filter is on it, which only root may suspend")]
    Seccomp,
    /// It handles its system calls itself.
    #[error("it handles its system calls itself (syscall user dispatch)")]
    Dispatch,
    /// A thread waits for any child.
    #[error("thread {0} waits for children of any kind (__WALL) and would see the child")]
    Waits(u32),
    /// A thread could not be stopped.
    #[error(
        "thread {0} sleeps in the kernel and could not be stopped (a parent in vfork, or a wait for a device)"
    )]
    Asleep(u32),
    /// Job control has stopped it.
    #[error("job control has stopped it")]
    JobControl,
    /// No thread is in a system call.
    #[error("no thread of it was found in a system call that can be interrupted")]
    NoSystemCall,
    /// It was disturbed each time.
    #[error("signals came in between each time")]
    Disturbed,
    /// Memory was marked differently before.
    #[error("what its children inherit of its memory has changed each time")]
    Changed,
    /// The kernel refused.
    #[error("the kernel refused: {}", explain(*.0))]
    Kept(i32),
    /// The guardian could not do its work.
    #[error("the guardian process could not do its work: {0}")]
    Guardian(String),
}

fn explain(errno: i32) -> String {
    match errno {
        libc::EAGAIN => {
            "there may be no more processes (RLIMIT_NPROC, a control group or the system's limits)"
                .to_owned()
        }
        libc::ENOMEM => "there is too little memory, or it may not be promised".to_owned(),
        _ => Errno::from_raw(errno).desc().to_owned(),
    }
}

impl ForkRefusal {
    /// Says whether that may be different in a moment.
    pub(in crate::platform::linux) fn may_pass(&self) -> bool {
        matches!(self, Self::NoSystemCall | Self::Disturbed | Self::Changed)
    }

    /// Says that the target was copied instead.
    pub(crate) fn warning(&self) -> Warning {
        Warning::new(
            "fork_not_used",
            format!("the process was not forked, since {self}: it was copied"),
            Bias::None,
        )
    }
}

impl From<Failure> for ForkRefusal {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Seccomp => Self::Seccomp,
            Failure::Dispatch => Self::Dispatch,
            Failure::JobControl => Self::JobControl,
            Failure::Vdso => Self::Vdso,
            Failure::NotInSystemCall => Self::NoSystemCall,
            // A thread that ended, or is late: another one is taken the next time.
            Failure::Disturbed | Failure::Ended | Failure::DoesNotStop => Self::Disturbed,
            Failure::Clone(libc::EINTR | 512..=516) => Self::Disturbed,
            Failure::Clone(errno) => Self::Kept(errno),
            Failure::System(errno) => Self::Guardian(explain(errno)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_a_sentence_of_the_report() {
        let message = ForkRefusal::from(Failure::Clone(libc::EAGAIN))
            .warning()
            .message;
        assert_eq!(
            message,
            "the process was not forked, since the kernel refused: there may be no more processes \
             (RLIMIT_NPROC, a control group or the system's limits): it was copied"
        );
        assert!(!ForkRefusal::from(Failure::Seccomp).may_pass());
        assert!(ForkRefusal::from(Failure::Clone(513)).may_pass());
    }
}
