//! Small files of `/proc/PID`: proc(5) documents their formats.

use std::fs;
use std::io;

use crate::addr::Addr;
use crate::memory::Width;
use crate::snapshot::{KernelValue, Thread};
use crate::warning::{Bias, Warning};

/// The ids of all processes.
pub(super) fn pids() -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter_map(|name| name.parse().ok()).collect()
}

/// The thread ids of process `pid`.
pub(super) fn threads(pid: u32) -> io::Result<Vec<u32>> {
    let mut threads = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
        if let Some(tid) = entry?
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        {
            threads.push(tid);
        }
    }
    Ok(threads)
}

/// What rleaks needs of `/proc/PID/task/TID/status`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Status {
    /// `R`, `S`, `D`, `Z`, …
    pub(super) state: char,
    /// The process that traces the thread; 0 if none does.
    pub(super) tracer: u32,
    /// The thread id in the innermost pid namespace.
    pub(super) inner_tid: u32,
    /// The parent process.
    pub(super) parent: u32,
}

impl Status {
    pub(super) fn read(pid: u32, tid: u32) -> io::Result<Self> {
        let text = fs::read(format!("/proc/{pid}/task/{tid}/status"))?;
        Ok(Self::parse(&String::from_utf8_lossy(&text)))
    }

    pub(super) fn parse(text: &str) -> Self {
        let mut status = Self::default();
        for line in text.lines() {
            let Some((name, value)) = line.split_once(':') else {
                continue;
            };
            let value = value.trim();
            match name {
                "State" => status.state = value.chars().next().unwrap_or('?'),
                "TracerPid" => status.tracer = value.parse().unwrap_or(0),
                "PPid" => status.parent = value.parse().unwrap_or(0),
                "Pid" if status.inner_tid == 0 => status.inner_tid = value.parse().unwrap_or(0),
                "NSpid" => {
                    let innermost = value.split_ascii_whitespace().last();
                    status.inner_tid = innermost.and_then(|v| v.parse().ok()).unwrap_or(0);
                }
                _ => {}
            }
        }
        status
    }
}

/// The id of thread `tid` in the innermost pid namespace.
pub(super) fn inner_tid(pid: u32, tid: u32) -> u32 {
    Status::read(pid, tid).map_or(tid, |status| status.inner_tid)
}

/// What is known of a thread that sleeps in the kernel and was not stopped: the arguments of its
/// system call, its stack pointer and its next instruction.
pub(super) fn sleeping_thread(pid: u32, tid: u32) -> io::Result<Thread> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{tid}/syscall"))?;
    let mut thread = parse_system_call(&text);
    thread.tid = tid;
    thread.inner_tid = tid;
    Ok(thread)
}

/// `232 0x5 0x7f… … 0x7ffd… 0x7f…`: number, six arguments, stack pointer, instruction; `-1` and no
/// arguments outside system calls; `running`.
pub(super) fn parse_system_call(text: &str) -> Thread {
    let mut fields = text.split_ascii_whitespace();
    let number = fields.next().and_then(|number| number.parse().ok());
    let words: Vec<u64> = fields
        .filter_map(|word| u64::from_str_radix(word.strip_prefix("0x")?, 16).ok())
        .collect();
    let from_end = |index: usize| words.iter().rev().nth(index).copied().map_or(Addr(0), Addr);
    Thread {
        instruction_pointer: from_end(0),
        stack_pointer: from_end(1),
        system_call: number,
        general: words,
        ..Thread::default()
    }
}

/// The pairs of type and value in the bytes of an auxiliary vector.
pub(super) fn parse_auxv(bytes: &[u8], width: Width) -> Vec<(u64, u64)> {
    let words: Vec<u64> = width.words(bytes).collect();
    words
        .chunks_exact(2)
        .map(|pair| (pair[0], pair[1]))
        .collect()
}

/// What the kernel holds for a process.
#[derive(Debug, Default)]
pub(super) struct KernelHeld {
    pub(super) values: Vec<KernelValue>,
    pub(super) warnings: Vec<Warning>,
}

/// Words that the kernel holds for process `pid`: the user data of its epoll sets, of its queued
/// `io_uring` requests, and the values of its POSIX timers.
pub(super) fn kernel_held(pid: u32) -> KernelHeld {
    let mut held = KernelHeld::default();
    let info = |fd| fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}")).unwrap_or_default();
    for (fd, kind) in descriptors(pid) {
        match kind {
            Descriptor::Epoll => held.values.extend(epoll_values(fd, &info(fd))),
            Descriptor::IoUring => {
                held.values.extend(io_uring_values(fd, &info(fd)));
                held.warnings.push(io_uring_warning(fd));
            }
        }
    }
    if let Ok(text) = fs::read_to_string(format!("/proc/{pid}/timers")) {
        held.values.extend(timer_values(&text));
    }
    held
}

/// Says whether process `pid` has an `io_uring` instance open.
pub(super) fn has_io_uring(pid: u32) -> bool {
    let mut descriptors = descriptors(pid).into_iter();
    descriptors.any(|(_, kind)| kind == Descriptor::IoUring)
}

/// A file descriptor behind which the kernel holds words of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Descriptor {
    Epoll,
    IoUring,
}

fn descriptors(pid: u32) -> Vec<(u32, Descriptor)> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| {
            let kind = match fs::read_link(entry.path()).ok()?.to_str()? {
                "anon_inode:[eventpoll]" => Descriptor::Epoll,
                "anon_inode:[io_uring]" => Descriptor::IoUring,
                _ => return None,
            };
            Some((entry.file_name().to_str()?.parse().ok()?, kind))
        })
        .collect()
}

/// Decimal numbers behind `user_data:` or `user_data=`, in lines of queued and completed requests.
pub(super) fn io_uring_values(fd: u32, text: &str) -> Vec<KernelValue> {
    text.split("user_data")
        .skip(1)
        .filter_map(|rest| {
            let rest = rest.strip_prefix([':', '='])?;
            let digits = rest
                .find(|c: char| !c.is_ascii_digit())
                .unwrap_or(rest.len());
            Some(KernelValue {
                value: rest[..digits].parse().ok()?,
                holder: format!("io_uring fd {fd}"),
            })
        })
        .collect()
}

/// Requests that the kernel is working on are in no queue, and nothing shows their user data.
fn io_uring_warning(fd: u32) -> Warning {
    Warning::new(
        "io_uring",
        format!(
            "the kernel does not show the user data of requests in flight of io_uring fd {fd}: what \
             only they reference is reported as leaked"
        ),
        Bias::FalseLeaks,
    )
}

/// Lines such as `tfd:        7 events:       19 data:     55d0c8a01234  pos:0 ino:3 sdev:8`.
pub(super) fn epoll_values(fd: u32, text: &str) -> Vec<KernelValue> {
    text.lines()
        .filter(|line| line.starts_with("tfd:"))
        .filter_map(|line| {
            let watched = line.strip_prefix("tfd:")?.split_ascii_whitespace().next()?;
            let data = line
                .split_once("data:")?
                .1
                .split_ascii_whitespace()
                .next()?;
            Some(KernelValue {
                value: u64::from_str_radix(data, 16).ok()?,
                holder: format!("epoll fd {fd}, watching fd {watched}"),
            })
        })
        .collect()
}

/// Lines `ID: 0` followed by `signal: 14/000055d0c8a01234`.
pub(super) fn timer_values(text: &str) -> Vec<KernelValue> {
    let mut id = "";
    let mut values = Vec::new();
    for line in text.lines() {
        if let Some(value) = line.strip_prefix("ID:") {
            id = value.trim();
        }
        let value = line.strip_prefix("signal:").and_then(|v| v.split_once('/'));
        let value = value.and_then(|(_, v)| u64::from_str_radix(v.trim(), 16).ok());
        values.extend(value.map(|value| KernelValue {
            value,
            holder: format!("POSIX timer {id}"),
        }));
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_has_the_innermost_thread_id() {
        let text = "Name:\tx\nState:\tt (tracing stop)\nPid:\t77\nPPid:\t5\nTracerPid:\t9\nNSpid:\t77\t3\t1\n";
        let expected = Status {
            state: 't',
            tracer: 9,
            inner_tid: 1,
            parent: 5,
        };
        assert_eq!(Status::parse(text), expected);
        assert_eq!(Status::parse("Pid:\t77\n").inner_tid, 77);
    }

    #[test]
    fn a_sleeping_thread_shows_its_arguments_and_stack() {
        let thread = parse_system_call("61 0xa 0x7ff1 0x0 0x0 0x0 0x5 0x7ffd10 0x7f20\n");
        assert_eq!(thread.system_call, Some(61));
        assert_eq!(
            (thread.stack_pointer, thread.instruction_pointer),
            (Addr(0x7f_fd10), Addr(0x7f20))
        );
        assert!(thread.general.contains(&0x7ff1));
        let outside = parse_system_call("-1 0x7ffd10 0x7f20\n");
        assert_eq!(
            (outside.system_call, outside.stack_pointer),
            (None, Addr(0x7f_fd10))
        );
        assert_eq!(parse_system_call("running\n"), Thread::default());
    }

    #[test]
    fn epoll_data_and_timer_values_are_found() {
        let text = "pos:\t0\nflags:\t02\ntfd:        7 events:       19 data:     55d0c8a01230  pos:0 ino:3 sdev:8\ntfd: 8 events: 1 data: ffffffff00000008 pos:0\ntfd: x\n";
        let values = epoll_values(5, text);
        assert_eq!(values.len(), 2);
        assert_eq!(values[0].value, 0x55d0_c8a0_1230);
        assert_eq!(values[0].holder, "epoll fd 5, watching fd 7");
        let text = "ID: 1\nsignal: 14/000055d0c8a01240\nnotify: signal/pid.77\nClockID: 0\n";
        let values = timer_values(text);
        assert_eq!(
            (values[0].value, values[0].holder.as_str()),
            (0x55d0_c8a0_1240, "POSIX timer 1")
        );
    }

    #[test]
    fn user_data_of_io_uring_requests_is_found() {
        let text = "SQEs:\t1\n    0: opcode:READ, fd:3, flags:0, off:0, addr:0x1, rw_flags:0x0, buf_index:0 user_data:94321\nCQEs:\t1\n    7: user_data:18446744073709551615, res:4, flag:0\nCqOverflowList:\n  user_data=5, res=0, flags=0\n user_data:x\n";
        let values: Vec<u64> = io_uring_values(6, text).iter().map(|v| v.value).collect();
        assert_eq!(values, [94321, u64::MAX, 5]);
    }

    #[test]
    fn a_vector_of_pairs_is_read() {
        let pairs = parse_auxv(
            &fs::read("/proc/self/auxv").expect("own auxv"),
            Width::Eight,
        );
        assert!(
            pairs
                .iter()
                .any(|(kind, value)| *kind == nix::libc::AT_PAGESZ && *value == 4096)
        );
    }
}
