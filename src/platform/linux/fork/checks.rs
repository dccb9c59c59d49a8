//! Where no child is made of a target.
//!
//! Each of these would do harm to the target, or to the answer. What cannot be known before is found out by
//! the attempt, which then leaves the target as it was.

use std::fs;

use super::refusal::ForkRefusal;
use super::waits::{self, SystemCall};
use crate::memory::Width;
use crate::platform::linux::limits::{self, Room};
use crate::platform::linux::regions::RegionUse;
use crate::platform::linux::{kernel_release, procfs};
use crate::snapshot::{Region, Thread};

/// The first kernel that copies, for a child, pages to which a device writes: before, the target itself
/// would have got the copy, without what the device wrote.
const FIRST_KERNEL: (u32, u32) = (5, 12);
/// Processes for which there must be room: the target may want some itself.
const SPARE_PROCESSES: u64 = 4;
/// The share of the target's memory for which there must be room: what it writes until the scan is over is
/// there twice.
const WRITTEN: u64 = 2;

/// What is known of a target before it is stopped.
#[derive(Clone, Copy, Debug)]
pub(in crate::platform::linux) struct Facts<'a> {
    pub(in crate::platform::linux) pid: u32,
    pub(in crate::platform::linux) width: Option<Width>,
    pub(in crate::platform::linux) regions: &'a [Region],
    pub(in crate::platform::linux) uses: &'a [RegionUse],
    /// Bytes that a child would inherit.
    pub(in crate::platform::linux) bytes: u64,
}

/// Says so where a child must not be made.
pub(in crate::platform::linux) fn check(facts: &Facts<'_>) -> Result<(), ForkRefusal> {
    let release = kernel_release();
    if !is_new_enough(&release) {
        return Err(ForkRefusal::Kernel(release));
    }
    if facts.width != Some(Width::Eight) {
        return Err(ForkRefusal::Width);
    }
    if facts.uses.iter().any(|part| part.handled) {
        return Err(ForkRefusal::Userfaultfd);
    }
    check_asynchronous(facts)?;
    if fs::read("/proc/sys/vm/overcommit_memory").is_ok_and(|mode| mode.trim_ascii() == b"2") {
        return Err(ForkRefusal::Overcommit);
    }
    check_room(facts)
}

fn is_new_enough(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut number = || numbers.next().and_then(|number| number.parse().ok());
    let version: (Option<u32>, Option<u32>) = (number(), number());
    matches!(version, (Some(major), Some(minor)) if (major, minor) >= FIRST_KERNEL)
}

fn check_asynchronous(facts: &Facts<'_>) -> Result<(), ForkRefusal> {
    let is_mapped = |name| {
        facts
            .regions
            .iter()
            .any(|region| region.name.contains(name))
    };
    if is_mapped("[io_uring]") || procfs::has_io_uring(facts.pid) {
        return Err(ForkRefusal::Asynchronous("io_uring"));
    }
    if is_mapped("/[aio]") {
        return Err(ForkRefusal::Asynchronous("aio"));
    }
    Ok(())
}

fn check_room(facts: &Facts<'_>) -> Result<(), ForkRefusal> {
    let tables = facts.bytes / 256;
    let system = Room {
        needed: facts.bytes / WRITTEN + tables,
        left: limits::system_memory(),
    };
    // What its group may take is what the target may take: it must find as much as it could need.
    let group = Room {
        needed: facts.bytes + tables,
        left: limits::group_memory(facts.pid),
    };
    for (room, place) in [(system, "the system"), (group, "its control group")] {
        if !room.is_enough() {
            return Err(ForkRefusal::Memory {
                needed: room.needed >> 20,
                left: room.left.unwrap_or(0) >> 20,
                place,
            });
        }
    }
    match limits::group_processes(facts.pid) {
        Some(left) if left < SPARE_PROCESSES => Err(ForkRefusal::Processes(left)),
        _ => Ok(()),
    }
}

/// Says so where the stopped threads tell that a child must not be made.
pub(in crate::platform::linux) fn check_standstill(threads: &[Thread]) -> Result<(), ForkRefusal> {
    for thread in threads {
        if thread.width.is_none() {
            return Err(ForkRefusal::Asleep(thread.tid));
        }
        let call = SystemCall::of_stopped(thread);
        if call.is_some_and(|call| waits::is_waiting_for_any_child(&call)) {
            return Err(ForkRefusal::Waits(thread.tid));
        }
    }
    Ok(())
}

/// The thread of process `pid`, which runs, that is to make the child: one that sleeps in a system call. Which
/// of several is `turn`'s choice.
///
/// It is the main thread only where no other one does: signals that the process ignores are dropped unless the main
/// thread is traced (`tracer.rs` says what happens else), and this one is traced for longer than the others.
pub(in crate::platform::linux) fn place(pid: u32, turn: u32) -> Result<u32, ForkRefusal> {
    let threads = procfs::threads(pid).map_err(|error| ForkRefusal::Guardian(error.to_string()))?;
    for kind in ["pid", "time"] {
        // A child of it would be the first of a new namespace, which ends with it.
        if threads.iter().all(|tid| !is_own_namespace(*tid, kind)) {
            return Err(ForkRefusal::Namespace(kind));
        }
    }
    if let Some(tid) = threads.iter().find(|tid| waits::is_in_vfork(pid, **tid)) {
        return Err(ForkRefusal::Asleep(*tid));
    }
    if let Some(tid) = threads
        .iter()
        .find(|tid| waits::waits_for_any_child(pid, **tid))
    {
        return Err(ForkRefusal::Waits(*tid));
    }
    let is_held = |tid: &u32| procfs::Status::read(pid, *tid).is_ok_and(|s| s.state == 'T');
    if threads.iter().all(is_held) {
        return Err(ForkRefusal::JobControl);
    }
    let is_place = |tid: &u32| {
        waits::is_place(pid, *tid)
            && ["pid", "time"]
                .iter()
                .all(|kind| is_own_namespace(*tid, kind))
    };
    let (main, others): (Vec<u32>, Vec<u32>) = threads.into_iter().partition(|tid| *tid == pid);
    let mut places: Vec<u32> = others.into_iter().filter(is_place).collect();
    if places.is_empty() {
        places.extend(main.into_iter().filter(is_place));
    }
    let turn = usize::try_from(turn).unwrap_or(0);
    let place = places.get(turn % places.len().max(1)).copied();
    place.ok_or(ForkRefusal::NoSystemCall)
}

/// Says whether children of thread `tid` are in the same namespace as itself.
fn is_own_namespace(tid: u32, kind: &str) -> bool {
    let link = |name: String| fs::read_link(format!("/proc/{tid}/ns/{name}"));
    match (link(kind.to_owned()), link(format!("{kind}_for_children"))) {
        (Ok(own), Ok(children)) => own == children,
        // A kernel without such namespaces.
        (Err(_), Err(_)) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_compared_by_number() {
        for (release, expected) in [
            ("6.1.0-18-amd64", true),
            ("5.12.0", true),
            ("5.4.0", false),
            ("4.19", false),
            ("10.0-rc1", true),
            ("x", false),
        ] {
            assert_eq!(is_new_enough(release), expected, "{release}");
        }
    }

    #[test]
    fn a_thread_that_did_not_stop_or_waits_for_any_child_is_in_the_way() {
        let mut thread = Thread {
            tid: 7,
            width: Some(Width::Eight),
            system_call: Some(61),
            general: vec![0; 27],
            ..Thread::default()
        };
        assert_eq!(check_standstill(&[thread.clone()]), Ok(()));
        thread.general[12] = 0x4000_0000;
        assert_eq!(
            check_standstill(&[thread.clone()]),
            Err(ForkRefusal::Waits(7))
        );
        thread.width = None;
        assert_eq!(check_standstill(&[thread]), Err(ForkRefusal::Asleep(7)));
    }

    #[test]
    fn own_children_are_in_the_namespace_of_this_process() {
        let tid = std::process::id();
        assert!(is_own_namespace(tid, "pid") && is_own_namespace(tid, "time"));
    }
}
