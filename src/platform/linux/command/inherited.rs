//! What this process was started with, so that a command begins as it would have without rleaks.
#![expect(
    unsafe_code,
    reason = "a function that runs before main, and signal dispositions"
)]

use std::sync::atomic::{AtomicBool, Ordering};

use nix::libc;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal};
use nix::sys::signal::{sigaction, sigprocmask};

/// Whether these signals were ignored when this process began: Rust's runtime ignores `SIGPIPE` always,
/// before `main`, and rleaks must not ignore `SIGCHLD` where it waits for children.
static WERE_IGNORED: [(Signal, AtomicBool); 2] = [
    (Signal::SIGPIPE, AtomicBool::new(false)),
    (Signal::SIGCHLD, AtomicBool::new(false)),
];

/// The C library calls what this section names before `main`.
// SAFETY: the section holds pointers to functions of this type, which are called once, by the only
// thread there is; this one uses nothing that has to be set up first.
#[used]
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = note_dispositions;

extern "C" fn note_dispositions() {
    for (signal, was_ignored) in &WERE_IGNORED {
        // SAFETY: all zeros is a valid `sigaction`: the default disposition.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        // SAFETY: `action` outlives the call; nothing is changed.
        let asked = unsafe { libc::sigaction(*signal as i32, std::ptr::null(), &raw mut action) };
        let is_ignored = asked == 0 && action.sa_sigaction == libc::SIG_IGN;
        was_ignored.store(is_ignored, Ordering::Relaxed);
    }
}

/// Makes the kernel keep the statuses of this process's children, also where its parent ignores those
/// of its own.
pub(in crate::platform::linux) fn keep_statuses_of_children() {
    set(Signal::SIGCHLD, SigHandler::SigDfl);
}

fn set(signal: Signal, handler: SigHandler) {
    let action = SigAction::new(handler, SaFlags::empty(), SigSet::empty());
    // SAFETY: no handler of ours is installed.
    let _ = unsafe { sigaction(signal, &action) };
}

/// The blocked and ignored signals that a command is to begin with.
#[derive(Clone, Copy, Debug)]
pub struct Disposition {
    blocked: SigSet,
}

impl Disposition {
    /// Those of this process now, before it blocks any itself.
    #[must_use]
    pub fn current() -> Self {
        let mut blocked = SigSet::empty();
        // Fails only for a wrong first argument.
        let _ = sigprocmask(SigmaskHow::SIG_BLOCK, None, Some(&mut blocked));
        Self { blocked }
    }

    /// Blocks `signals` in the calling thread, and in those that it starts, and returns what
    /// was in force before.
    pub(super) fn blocking(signals: &SigSet) -> nix::Result<Self> {
        let mut blocked = SigSet::empty();
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(signals), Some(&mut blocked))?;
        Ok(Self { blocked })
    }

    /// Makes the blocked signals those of the calling thread.
    pub(super) fn unblock(&self) {
        let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&self.blocked), None);
    }

    /// Puts all in force that an `exec` hands on.
    pub(super) fn restore(&self) {
        for (signal, was_ignored) in &WERE_IGNORED {
            let handler = if was_ignored.load(Ordering::Relaxed) {
                SigHandler::SigIgn
            } else {
                SigHandler::SigDfl
            };
            set(*signal, handler);
        }
        self.unblock();
    }
}
