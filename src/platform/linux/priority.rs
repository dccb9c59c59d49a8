//! Running before others while a target is being stopped.
#![expect(
    unsafe_code,
    reason = "changing the scheduling policy and the nice value has no safe wrapper"
)]

use nix::libc;

/// Makes the calling thread run before all normal ones, as far as that is allowed (root, or
/// `CAP_SYS_NICE`): it has to be served between the many threads of a busy target that it stops
/// one by one. What the thread starts does not inherit it.
///
/// There is no way back: a thread that asks for this ends when its work is done. It must sleep
/// where it waits, since nothing else may run on its processor meanwhile.
pub(super) fn run_before_others() {
    let lowest = libc::sched_param { sched_priority: 1 };
    // SAFETY: `lowest` outlives the call; 0 is the calling thread. Where the call is refused the
    // thread goes on as it is.
    unsafe {
        libc::sched_setscheduler(
            0,
            libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK,
            &raw const lowest,
        );
    }
}

/// Makes the process `pid`, which has to do nothing but to end, the least of all on any processor: a
/// program that runs before all others must not keep it from ending, nor be kept waiting by it.
pub(super) fn run_like_others(pid: u32) {
    let pid = libc::pid_t::try_from(pid).unwrap_or(libc::pid_t::MAX);
    let none = libc::sched_param { sched_priority: 0 };
    // SAFETY: `none` outlives the call. Where the call is refused the process stays as it is.
    unsafe { libc::sched_setscheduler(pid, libc::SCHED_OTHER, &raw const none) };
    set_nice(pid.unsigned_abs(), 0);
    let everywhere = [u64::MAX; 128];
    let size = size_of_val(&everywhere);
    // SAFETY: the kernel reads `size` bytes of `everywhere`, which has as many and outlives the call.
    unsafe { libc::sched_setaffinity(pid, size, everywhere.as_ptr().cast()) };
}

/// The nice value that is served most.
const SERVED_MOST: i32 = -20;

/// While it lives, one thread of a target is served before others, as far as that is allowed.
#[derive(Debug)]
pub(super) struct Served(Option<(u32, i32)>);

impl Served {
    pub(super) fn new(tid: u32) -> Self {
        let before = nice(tid);
        Self(set_nice(tid, SERVED_MOST).then_some((tid, before)))
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if let Some((tid, before)) = self.0 {
            set_nice(tid, before);
        }
    }
}

/// While it lives, the threads that this process has by now are served before those of others, as
/// far as that is allowed: a target stands still meanwhile. What a thread starts inherits it.
#[derive(Debug)]
pub(super) struct Hurry(Vec<(u32, i32)>);

impl Hurry {
    pub(super) fn new() -> Self {
        let threads = super::procfs::threads(std::process::id()).unwrap_or_default();
        let hurried = threads.into_iter().filter_map(|tid| {
            let nice = nice(tid);
            set_nice(tid, SERVED_MOST).then_some((tid, nice))
        });
        Self(hurried.collect())
    }
}

impl Drop for Hurry {
    fn drop(&mut self) {
        for (tid, nice) in &self.0 {
            set_nice(*tid, *nice);
        }
    }
}

fn nice(tid: u32) -> i32 {
    // SAFETY: the call takes no pointer.
    unsafe { libc::getpriority(libc::PRIO_PROCESS, tid) }
}

/// Says whether that was allowed.
fn set_nice(tid: u32, nice: i32) -> bool {
    // SAFETY: the call takes no pointer.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, tid, nice) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_as_nice_afterwards_as_before() {
        let tid = u32::try_from(nix::unistd::gettid().as_raw()).expect("a thread id");
        let before = nice(tid);
        let hurry = Hurry::new();
        let is_allowed = hurry.0.iter().any(|(hurried, _)| *hurried == tid);
        assert_eq!(nice(tid), if is_allowed { SERVED_MOST } else { before });
        drop(hurry);
        assert_eq!(nice(tid), before);
    }
}
