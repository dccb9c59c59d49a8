//! For how long each way to keep a target's memory would stop it.

use std::time::Duration;

use crate::snapshot::Method;
use crate::warning::{Bias, Warning};

/// What every stop takes, and what each thread adds to it.
const STOP: Duration = Duration::from_millis(1);
const THREAD: Duration = Duration::from_micros(30);
/// What the kernel takes for a page that a child inherits.
const SMALL_PAGE: Duration = Duration::from_nanos(80);
const HUGE_PAGE: Duration = Duration::from_nanos(2200);
/// While a target is read in place, references are extracted: so much slower than a copy that is.
const EXTRACTION: u32 = 8;
/// A stop of this length is worth a word.
const LONG: Duration = Duration::from_secs(1);
/// The code of the warning that a child would stop the target for less.
pub(super) const FORK_IS_SHORTER: &str = "fork_is_shorter";
/// Copies of fewer bytes are not that long.
pub(super) const MUCH: u64 = 1 << 30;

/// What a stop has to do.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Work {
    pub(super) threads: u32,
    /// Bytes that a snapshot holds.
    pub(super) bytes: u64,
    /// Of these, those in huge pages.
    pub(super) huge: u64,
    /// Of these, those that a child does not get.
    pub(super) apart: u64,
    /// Bytes that are copied in a second.
    pub(super) speed: u64,
}

/// How long a target would stand still, by each way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Costs {
    copy: Duration,
    stream: Duration,
    /// `None` where no child can be made.
    fork: Option<Duration>,
}

impl Costs {
    pub(super) fn of(work: &Work, can_fork: bool) -> Self {
        let stop = STOP.saturating_add(THREAD.saturating_mul(work.threads));
        let copying = |bytes: u64| {
            let milliseconds = bytes.saturating_mul(1000) / work.speed.max(1);
            Duration::from_millis(milliseconds)
        };
        let small = work
            .bytes
            .saturating_sub(work.huge)
            .saturating_sub(work.apart);
        let pages =
            times(SMALL_PAGE, small >> 12).saturating_add(times(HUGE_PAGE, work.huge >> 21));
        Self {
            copy: stop.saturating_add(copying(work.bytes)),
            stream: stop.saturating_add(copying(work.bytes).saturating_mul(EXTRACTION)),
            fork: can_fork.then(|| {
                // The target is stopped once more when all is read.
                stop.saturating_mul(2)
                    .saturating_add(pages)
                    .saturating_add(copying(work.apart))
            }),
        }
    }

    pub(super) fn can_fork_within(&self, limit: Duration) -> bool {
        self.fork.is_some_and(|fork| fork <= limit)
    }

    fn of_method(&self, method: Method) -> Option<Duration> {
        match method {
            Method::Copy => Some(self.copy),
            Method::Stream => Some(self.stream),
            Method::Fork => self.fork,
            Method::File => None,
        }
    }

    /// The first of the `allowed` ways that stops the target for at most `limit`.
    pub(super) fn within(&self, limit: Duration, allowed: &[Method]) -> Option<Method> {
        let is_short = |method: &Method| self.of_method(*method).is_some_and(|time| time <= limit);
        allowed.iter().copied().find(is_short)
    }

    /// Says so where a copy stops the target for long, and a child would not.
    pub(super) fn notice(&self) -> Option<Warning> {
        let fork = self
            .fork
            .filter(|fork| *fork < self.copy && self.copy > LONG)?;
        Some(Warning::new(
            FORK_IS_SHORTER,
            format!(
                "a copy stops the process for about {:.1} s: --snapshot=fork would for about {:.1} s",
                self.copy.as_secs_f64(),
                fork.as_secs_f64()
            ),
            Bias::None,
        ))
    }
}

/// `copy for about 310 ms, stream for about 2480 ms, fork for about 21 ms`.
impl std::fmt::Display for Costs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let time = |time: Duration| format!("for about {} ms", time.as_millis().max(1));
        write!(f, "copy {}, stream {}", time(self.copy), time(self.stream))?;
        match self.fork {
            Some(fork) => write!(f, ", fork {}", time(fork)),
            None => write!(f, ", and it cannot be forked"),
        }
    }
}

fn times(one: Duration, count: u64) -> Duration {
    one.saturating_mul(u32::try_from(count).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORK: Work = Work {
        threads: 0,
        bytes: 4 << 30,
        huge: 0,
        apart: 0,
        speed: 2 << 30,
    };

    #[test]
    fn fork_is_cheap_by_pages_and_copy_by_bytes() {
        let costs = Costs::of(&WORK, true);
        assert_eq!(costs.copy, Duration::from_millis(2001));
        assert_eq!(costs.stream, Duration::from_millis(16_001));
        let fork = costs.fork.expect("a child");
        assert!(
            fork > Duration::from_millis(80) && fork < Duration::from_millis(100),
            "{fork:?}"
        );
        let huge = Costs::of(
            &Work {
                huge: 4 << 30,
                ..WORK
            },
            true,
        );
        assert!(huge.fork < Some(Duration::from_millis(10)), "{huge:?}");
        let apart = Costs::of(
            &Work {
                apart: 4 << 30,
                ..WORK
            },
            true,
        );
        assert!(apart.fork > Some(costs.copy), "{apart:?}");
    }

    #[test]
    fn first_allowed_way_that_is_short_enough_is_taken() {
        let costs = Costs::of(&WORK, true);
        let within = |ms, allowed| costs.within(Duration::from_millis(ms), allowed);
        let all = &[Method::Fork, Method::Copy, Method::Stream];
        assert_eq!(
            within(5000, &[Method::Copy, Method::Stream]),
            Some(Method::Copy)
        );
        assert_eq!(within(100, all), Some(Method::Fork));
        assert_eq!(within(100, &[Method::Copy, Method::Stream]), None);
        assert_eq!(
            Costs::of(&WORK, false).within(Duration::from_millis(100), all),
            None
        );
    }

    #[test]
    fn long_copies_are_worth_a_word() {
        let notice = Costs::of(&WORK, true).notice().expect("a word");
        assert_eq!(
            notice.message,
            "a copy stops the process for about 2.0 s: --snapshot=fork would for about 0.1 s"
        );
        assert_eq!(Costs::of(&WORK, false).notice(), None);
        let short = Work {
            bytes: 1 << 30,
            ..WORK
        };
        assert_eq!(Costs::of(&short, true).notice(), None);
    }
}
