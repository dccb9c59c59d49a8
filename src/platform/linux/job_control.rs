//! Signals that must not take effect while a target stands still.
#![expect(unsafe_code, reason = "installing a signal handler")]

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, raise, sigaction};

/// What a terminal uses to stop a program. Taken literally they would stop rleaks while it holds
/// the target stopped, and so freeze the target.
const STOPPING: [Signal; 3] = [Signal::SIGTSTP, Signal::SIGTTIN, Signal::SIGTTOU];
/// What asks a program to end.
const ENDING: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

/// The stopping signal that arrived while a target stood still; 0 if none did.
static POSTPONED: AtomicI32 = AtomicI32::new(0);

extern "C" fn postpone(signal: i32) {
    POSTPONED.store(signal, Ordering::Relaxed);
}

/// While it lives, stopping signals wait; when it is dropped they take effect.
#[derive(Debug)]
pub(super) struct JobControlHeld(Vec<(Signal, SigAction)>);

impl JobControlHeld {
    pub(super) fn new() -> Self {
        let handler = SigHandler::Handler(postpone);
        let action = SigAction::new(handler, SaFlags::SA_RESTART, SigSet::empty());
        let previous = STOPPING.iter().filter_map(|signal| {
            // SAFETY: `postpone` only stores to an atomic, which is safe in a signal handler.
            let previous = unsafe { sigaction(*signal, &action) };
            previous.ok().map(|previous| (*signal, previous))
        });
        Self(previous.collect())
    }
}

impl Drop for JobControlHeld {
    fn drop(&mut self) {
        for (signal, previous) in &self.0 {
            // SAFETY: this is the action that was in force before, whatever it was.
            let _ = unsafe { sigaction(*signal, previous) };
        }
        if let Ok(signal) = Signal::try_from(POSTPONED.swap(0, Ordering::Relaxed)) {
            let _ = raise(signal);
        }
    }
}

/// The flag that SIGINT, SIGTERM and SIGHUP set from the first call on: whoever stops a target
/// looks at it and lets the target go before rleaks ends.
pub fn interrupt_flag() -> &'static Arc<AtomicBool> {
    static FLAG: OnceLock<Arc<AtomicBool>> = OnceLock::new();
    FLAG.get_or_init(|| {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in ENDING {
            // A second one ends rleaks at once. An error would mean that the signal cannot be
            // caught; these can.
            let _ =
                signal_hook::flag::register_conditional_default(signal as i32, Arc::clone(&flag));
            let _ = signal_hook::flag::register(signal as i32, Arc::clone(&flag));
        }
        flag
    })
}
