//! The system call that a thread is in.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use nix::libc;

use crate::platform::linux::procfs;
use crate::snapshot::Thread;

const CLONE: u64 = 56;
const VFORK: u64 = 58;
const CLONE3: u64 = 435;
const WAIT4: u64 = 61;
const WAITID: u64 = 247;
/// Where `struct user_regs_struct` has the third and the fourth argument.
const THIRD: usize = 12;
const FOURTH: usize = 7;

/// The number and the arguments of a system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SystemCall {
    number: u64,
    third: u64,
    fourth: u64,
}

impl SystemCall {
    /// The one that a running thread sleeps in, if it does.
    pub(super) fn of_thread(pid: u32, tid: u32) -> Option<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/task/{tid}/syscall")).ok()?;
        Self::parse(&text)
    }

    fn parse(text: &str) -> Option<Self> {
        let mut fields = text.split_ascii_whitespace();
        let number = fields.next()?.parse().ok()?;
        let mut arguments =
            fields.map(|word| u64::from_str_radix(word.strip_prefix("0x")?, 16).ok());
        Some(Self {
            number,
            third: arguments.nth(2)??,
            fourth: arguments.next()??,
        })
    }

    /// The one that a stopped thread is in, if it is.
    pub(super) fn of_stopped(thread: &Thread) -> Option<Self> {
        Some(Self {
            number: thread.system_call?,
            third: *thread.general.get(THIRD)?,
            fourth: *thread.general.get(FOURTH)?,
        })
    }
}

/// Says whether thread `tid`, which runs, sleeps in a system call that can be interrupted, and in which it
/// does not wait for children of any kind.
pub(super) fn is_place(pid: u32, tid: u32) -> bool {
    let is_asleep = procfs::Status::read(pid, tid).is_ok_and(|status| status.state == 'S');
    let call = SystemCall::of_thread(pid, tid).filter(|_| is_asleep);
    call.is_some_and(|call| !is_waiting_for_any_child(&call))
}

/// Says whether thread `tid`, which runs, waits for children of any kind.
pub(super) fn waits_for_any_child(pid: u32, tid: u32) -> bool {
    SystemCall::of_thread(pid, tid).is_some_and(|call| is_waiting_for_any_child(&call))
}

/// Says whether thread `tid` waits for a child that runs in its place (vfork): it cannot be stopped.
pub(super) fn is_in_vfork(pid: u32, tid: u32) -> bool {
    let is_deep = procfs::Status::read(pid, tid).is_ok_and(|status| status.state == 'D');
    let call = SystemCall::of_thread(pid, tid).filter(|_| is_deep);
    call.is_some_and(|call| [CLONE, VFORK, CLONE3].contains(&call.number))
}

/// Says whether that is a wait for children of any kind: it would take notice of the child that rleaks makes,
/// which an ordinary wait passes over.
pub(super) fn is_waiting_for_any_child(call: &SystemCall) -> bool {
    let flags = match call.number {
        WAIT4 => call.third,
        WAITID => call.fourth,
        _ => return false,
    };
    let any = (libc::__WALL | libc::__WCLONE).cast_unsigned();
    flags & u64::from(any) != 0
}

/// The word at `at` in the memory of thread `tid`.
pub(super) fn word(tid: u32, at: u64) -> Option<u64> {
    let mut bytes = [0; 8];
    let file = File::open(format!("/proc/{tid}/mem")).ok()?;
    file.read_exact_at(&mut bytes, at).ok()?;
    Some(u64::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_waits_for_any_child_see_it() {
        for (text, expected) in [
            (
                "61 0xffffffff 0x0 0x40000000 0x0 0x0 0x0 0x7ffd 0x7f20",
                true,
            ),
            (
                "61 0xffffffff 0x0 0x80000000 0x0 0x0 0x0 0x7ffd 0x7f20",
                true,
            ),
            (
                "61 0xffffffff 0x0 0x1 0x40000000 0x0 0x0 0x7ffd 0x7f20",
                false,
            ),
            ("247 0x0 0x0 0x0 0x40000004 0x0 0x0 0x7ffd 0x7f20", true),
            ("247 0x0 0x0 0x40000000 0x4 0x0 0x0 0x7ffd 0x7f20", false),
            (
                "0 0x0 0x0 0x40000000 0x40000000 0x0 0x0 0x7ffd 0x7f20",
                false,
            ),
        ] {
            let call = SystemCall::parse(text).expect("a call");
            assert_eq!(is_waiting_for_any_child(&call), expected, "{text}");
        }
        for text in ["running", "-1 0x7ffd 0x7f20", ""] {
            assert_eq!(SystemCall::parse(text), None, "{text}");
        }
    }
}
