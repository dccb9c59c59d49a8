//! The memory of rleaks itself.
#![cfg_attr(
    target_env = "gnu",
    expect(unsafe_code, reason = "the settings of glibc's malloc")
)]

use std::fs;
use std::sync::Once;

use super::watchdog::visible_pid;

/// The anonymous memory of this process and of the one that watches it, in bytes (`RssAnon` in
/// `/proc/PID/status`), when malloc has given back what is free. `None` where the kernel does not say.
#[must_use]
pub fn anonymous_memory() -> Option<u64> {
    give_back();
    let own = std::process::id();
    let watcher = Some(visible_pid()).filter(|watcher| *watcher != own);
    let of_watcher = watcher.and_then(anonymous_memory_of).unwrap_or(0);
    Some(anonymous_memory_of(own)?.saturating_add(of_watcher))
}

fn anonymous_memory_of(process: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("RssAnon:"))?;
    let kibibytes: u64 = line.split_ascii_whitespace().nth(1)?.parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// Makes malloc give memory back as soon as it is free: by default it keeps what it once had, tens of
/// megabytes for each thread.
pub fn keep_little_memory() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // The size from which on a block comes from the kernel and goes back to it: larger than the smallest buffers
        // that are needed again and again. What may be free at the end of a heap.
        #[cfg(target_env = "gnu")]
        for (setting, bytes) in [
            (nix::libc::M_MMAP_THRESHOLD, 128 << 10),
            (nix::libc::M_TRIM_THRESHOLD, 1 << 20),
        ] {
            // SAFETY: it takes no pointers, and may be called at any time: malloc locks its own state.
            unsafe { nix::libc::mallopt(setting, bytes) };
        }
    });
}

/// Gives back to the kernel what is free in malloc's heaps.
fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it touches free memory only, under malloc's own locks.
    unsafe {
        nix::libc::malloc_trim(0)
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anonymous_memory_is_what_was_written() {
        let before = anonymous_memory().expect("the kernel says it");
        let written = std::hint::black_box(vec![1_u8; 64 << 20]);
        let after = anonymous_memory().expect("the kernel says it");
        assert!(after >= before.saturating_add(32 << 20), "{before} {after}");
        drop(written);
    }
}
