//! The end of a guardian that hangs.

use std::time::Duration;

use nix::sys::signal::{SigEvent, SigevNotify, Signal};
use nix::sys::timer::{Expiration, Timer, TimerSetTimeFlags};
use nix::time::ClockId;

/// A timer of the kernel that kills this process: whatever it is doing, even while it is stopped.
pub(super) struct Alarm(Timer);

impl Alarm {
    /// A timer that is not set yet; `None` where there is none to be had.
    pub(super) fn new() -> Option<Self> {
        let kill = SigEvent::new(SigevNotify::SigevSignal {
            signal: Signal::SIGKILL,
            si_value: 0,
        });
        Timer::new(ClockId::CLOCK_MONOTONIC, kill).ok().map(Self)
    }

    /// This process is killed in `time`, unless the alarm is cleared or set anew.
    pub(super) fn set(&mut self, time: Duration) {
        let time = time.max(Duration::from_millis(1));
        // It can be set: the time is valid, and the timer exists.
        let _ = self
            .0
            .set(Expiration::OneShot(time.into()), TimerSetTimeFlags::empty());
    }

    pub(super) fn clear(&mut self) {
        let never = Expiration::OneShot(Duration::ZERO.into());
        let _ = self.0.set(never, TimerSetTimeFlags::empty());
    }
}
