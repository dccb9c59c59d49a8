//! How much memory rleaks may take.

use std::fs;
use std::path::Path;

/// Bytes that this process can allocate without pushing others out: what the system has
/// (`MemAvailable`), and what the memory cgroups of rleaks leave.
///
/// `None` where neither is known.
#[must_use]
pub fn available_memory() -> Option<u64> {
    system_memory().into_iter().chain(cgroup_available()).min()
}

pub(super) fn meminfo_available(text: &str) -> Option<u64> {
    let line = text
        .lines()
        .find(|line| line.starts_with("MemAvailable:"))?;
    let kibibytes: u64 = line.split_ascii_whitespace().nth(1)?.parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// What is needed of something, and what is left, if that is known.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    pub(super) needed: u64,
    pub(super) left: Option<u64>,
}

impl Room {
    pub(super) fn is_enough(&self) -> bool {
        self.left.is_none_or(|left| left >= self.needed)
    }
}

/// What the system has of memory.
pub(super) fn system_memory() -> Option<u64> {
    meminfo_available(&fs::read_to_string("/proc/meminfo").ok()?)
}

/// What the memory cgroups of process `pid` leave it.
pub(super) fn group_memory(pid: u32) -> Option<u64> {
    group_left(&pid.to_string(), &MEMORY)
}

/// How many more processes and threads the cgroups of process `pid` leave it.
pub(super) fn group_processes(pid: u32) -> Option<u64> {
    group_left(&pid.to_string(), &PROCESSES)
}

/// The least that one of our own cgroup and its ancestors leaves.
fn cgroup_available() -> Option<u64> {
    group_left("self", &MEMORY)
}

/// A controller of cgroups: its name, and its files with a limit and what is used of it, in the hierarchy
/// that all controllers share and in one of its own.
struct Controller {
    name: &'static str,
    shared: (&'static str, &'static str),
    own: (&'static str, &'static str),
}

const MEMORY: Controller = Controller {
    name: "memory",
    shared: ("memory.max", "memory.current"),
    own: ("memory.limit_in_bytes", "memory.usage_in_bytes"),
};
const PROCESSES: Controller = Controller {
    name: "pids",
    shared: ("pids.max", "pids.current"),
    own: ("pids.max", "pids.current"),
};

/// The least that the cgroup of a process and its ancestors leave.
fn group_left(process: &str, controller: &Controller) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{process}/cgroup")).ok()?;
    let mut least = None;
    for line in text.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else {
            continue;
        };
        let (mount, (limit, usage)) = match controllers {
            "" => ("/sys/fs/cgroup".to_owned(), controller.shared),
            c if c.split(',').any(|c| c == controller.name) => (
                format!("/sys/fs/cgroup/{}", controller.name),
                controller.own,
            ),
            _ => continue,
        };
        for directory in Path::new(path).ancestors() {
            let relative = directory.strip_prefix("/").unwrap_or(directory);
            let directory = Path::new(&mount).join(relative);
            let left = number(&directory.join(limit))
                .zip(number(&directory.join(usage)))
                .map(|(limit, usage)| limit.saturating_sub(usage));
            least = least.into_iter().chain(left).min();
        }
    }
    least
}

/// The number in a file; `None` for `max` and for a file that is not there.
fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_memory_is_read_in_bytes() {
        let text = "MemTotal:  100 kB\nMemFree:  10 kB\nMemAvailable:      60 kB\n";
        assert_eq!(meminfo_available(text), Some(61_440));
        assert_eq!(meminfo_available("MemTotal: 1 kB\n"), None);
        assert!(available_memory().is_some_and(|bytes| bytes > 1 << 20));
    }
}
