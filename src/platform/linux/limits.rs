//! How much memory rleaks may take.

use std::fs;
use std::path::Path;

/// Bytes that this process can allocate without pushing others out: what the system has
/// (`MemAvailable`), and what the memory cgroups of rleaks leave.
///
/// `None` where neither is known.
#[must_use]
pub fn available_memory() -> Option<u64> {
    let system = fs::read_to_string("/proc/meminfo").ok();
    let system = system.and_then(|text| meminfo_available(&text));
    system.into_iter().chain(cgroup_available()).min()
}

pub(super) fn meminfo_available(text: &str) -> Option<u64> {
    let line = text
        .lines()
        .find(|line| line.starts_with("MemAvailable:"))?;
    let kibibytes: u64 = line.split_ascii_whitespace().nth(1)?.parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// The least that one of our own cgroup and its ancestors leaves.
fn cgroup_available() -> Option<u64> {
    let text = fs::read_to_string("/proc/self/cgroup").ok()?;
    let mut least = None;
    for line in text.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else {
            continue;
        };
        let (mount, limit, usage) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max", "memory.current"),
            c if c.split(',').any(|c| c == "memory") => (
                "/sys/fs/cgroup/memory",
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
            ),
            _ => continue,
        };
        for directory in Path::new(path).ancestors() {
            let relative = directory.strip_prefix("/").unwrap_or(directory);
            let directory = Path::new(mount).join(relative);
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
