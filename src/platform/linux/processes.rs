//! Which processes there are, from /proc.
//!
//! A process may vanish between two reads. One that vanishes before its `stat` was read is left
//! out; later, it is listed with what is still known.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use nix::unistd::{SysconfVar, sysconf};

use crate::platform::{ProcessInfo, ProcessState};

/// `PF_KTHREAD` of the kernel's `include/linux/sched.h`, in the flags that `stat` shows.
const KERNEL_THREAD: u64 = 0x0020_0000;

/// All processes that rleaks may see, in ascending order of their pid.
///
/// # Errors
///
/// /proc is not mounted, or cannot be read.
pub fn processes() -> io::Result<Vec<ProcessInfo>> {
    let mut list = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        if let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) {
            list.extend(read(pid));
        }
    }
    list.sort_unstable_by_key(|process| process.pid);
    Ok(list)
}

/// The process with id `pid`, or the one that the thread with id `pid` belongs to; `None` if there
/// is neither.
#[must_use]
pub fn process(pid: u32) -> Option<ProcessInfo> {
    read(thread_group(pid)?)
}

/// Says whether there is a process with id `pid` that `/proc` does not show to this user, as where
/// it is mounted with `hidepid`.
#[must_use]
pub fn is_hidden(pid: u32) -> bool {
    let Some(raw) = i32::try_from(pid).ok().filter(|pid| *pid > 0) else {
        return false;
    };
    // Signal 0 is none: the kernel only checks whether there is such a process, and whose it is.
    let asked = nix::sys::signal::kill(nix::unistd::Pid::from_raw(raw), None);
    asked == Err(nix::errno::Errno::EPERM) && !Path::new(&format!("/proc/{pid}")).exists()
}

fn read(pid: u32) -> Option<ProcessInfo> {
    let folder = format!("/proc/{pid}");
    let folder = Path::new(&folder);
    let stat = Stat::parse(&fs::read(folder.join("stat")).ok()?)?;
    // The folder's owner is the effective user, except that root owns it when the process cannot
    // be dumped: `status` says the truth in both cases.
    let uid = effective_uid(folder).or_else(|| Some(fs::metadata(folder).ok()?.uid()))?;
    Some(ProcessInfo {
        pid,
        parent_pid: stat.parent_pid,
        uid,
        name: stat.name,
        executable: executable(folder),
        command_line: arguments(&fs::read(folder.join("cmdline")).unwrap_or_default()),
        started: boot_time() + since_boot(stat.start_ticks),
        state: stat.state,
    })
}

/// The process that the thread `tid` belongs to: itself, if it is the first thread.
fn thread_group(tid: u32) -> Option<u32> {
    let status = fs::read(format!("/proc/{tid}/status")).ok()?;
    field(&status, "Tgid:")?.parse().ok()
}

fn effective_uid(folder: &Path) -> Option<u32> {
    let status = fs::read(folder.join("status")).ok()?;
    // Real, effective, saved, file system.
    let ids = field(&status, "Uid:")?;
    ids.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// The rest of the line of `status` that begins with `key`.
pub(super) fn field(status: &[u8], key: &str) -> Option<String> {
    let mut lines = status.split(|&byte| byte == b'\n');
    let rest = lines.find_map(|line| line.strip_prefix(key.as_bytes()))?;
    Some(String::from_utf8_lossy(rest).trim().to_owned())
}

/// The path behind `exe`. A kernel thread has none, and that of other users' processes cannot be
/// read without privilege.
fn executable(folder: &Path) -> Option<String> {
    let path = fs::read_link(folder.join("exe")).ok()?;
    let path = path.to_string_lossy();
    Some(path.strip_suffix(" (deleted)").unwrap_or(&path).to_owned())
}

/// The arguments in a `cmdline`, each of which ends with a zero byte.
///
/// A program that renames itself (`nginx: master process …`) overwrites them with one text, filled
/// up with zeros: empty arguments at the end are none.
pub(super) fn arguments(cmdline: &[u8]) -> Vec<String> {
    let used = cmdline.iter().rposition(|&byte| byte != 0);
    let used = &cmdline[..used.map_or(0, |last| last + 1)];
    if used.is_empty() {
        return Vec::new();
    }
    used.split(|&byte| byte == 0)
        .map(|argument| String::from_utf8_lossy(argument).into_owned())
        .collect()
}

/// The time when the system was started. It is read once: adjustments of the clock must not make
/// two processes change places.
fn boot_time() -> SystemTime {
    static BOOT: OnceLock<SystemTime> = OnceLock::new();
    *BOOT.get_or_init(|| {
        let stat = fs::read("/proc/stat").unwrap_or_default();
        let seconds = field(&stat, "btime ").and_then(|text| text.parse().ok());
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.unwrap_or(0))
    })
}

/// The time from the start of the system to that of the process whose `stat` this is.
pub(super) fn started(stat: &[u8]) -> Option<Duration> {
    Stat::parse(stat).map(|stat| since_boot(stat.start_ticks))
}

fn since_boot(ticks: u64) -> Duration {
    let per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten();
    let per_second = per_second
        .and_then(|n| u64::try_from(n).ok())
        .unwrap_or(100);
    let per_second = per_second.max(1);
    let fraction = Duration::from_secs(ticks % per_second);
    Duration::from_secs(ticks / per_second) + fraction / u32::try_from(per_second).unwrap_or(100)
}

/// The fields of `/proc/PID/stat` that are used, as proc(5) numbers them.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stat {
    name: String,
    state: ProcessState,
    parent_pid: u32,
    start_ticks: u64,
}

impl Stat {
    /// Parses the line. The name is in parentheses and may hold anything, parentheses, spaces and
    /// line ends too: it goes up to the last `)`.
    pub(super) fn parse(line: &[u8]) -> Option<Self> {
        let open = line.iter().position(|&byte| byte == b'(')?;
        let close = line.iter().rposition(|&byte| byte == b')')?;
        let name = String::from_utf8_lossy(line.get(open + 1..close)?).into_owned();
        let rest = String::from_utf8_lossy(&line[close + 1..]);
        let rest: Vec<&str> = rest.split_ascii_whitespace().collect();
        // The first field after the name is number 3.
        let number = |field: usize| rest.get(field - 3)?.parse::<u64>().ok();
        let state = state(rest.first()?, number(9)?, number(20)?);
        Some(Self {
            name,
            state,
            parent_pid: u32::try_from(number(4)?).ok()?,
            start_ticks: number(22)?,
        })
    }
}

fn state(letter: &str, flags: u64, threads: u64) -> ProcessState {
    if flags & KERNEL_THREAD != 0 {
        ProcessState::KernelThread
    } else if matches!(letter, "Z" | "X" | "x") && threads <= 1 {
        // With more threads, only the first one has ended, and the memory is still in use.
        ProcessState::Zombie
    } else {
        ProcessState::Alive
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_name_may_hold_parentheses_spaces_and_line_ends() {
        let stat = |name: &str| {
            let line = format!("77 ({name}) S 5 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 3 0 991 1 1");
            Stat::parse(line.as_bytes())
        };
        for name in ["sh", "a b", "x) R (y", ") S 1", "", "line\nend", "((("] {
            let expected = Stat {
                name: name.to_owned(),
                state: ProcessState::Alive,
                parent_pid: 5,
                start_ticks: 991,
            };
            assert_eq!(stat(name), Some(expected), "{name:?}");
        }
    }

    #[test]
    fn a_line_that_is_cut_off_is_no_process() {
        let line = b"77 (sh) S 5 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 3 0 991";
        assert!(Stat::parse(line).is_some());
        for end in 0..line.len() - 3 {
            assert_eq!(Stat::parse(&line[..end]), None, "cut at {end}");
        }
        for line in [
            "",
            ")(",
            "()",
            "1 (a",
            "1 (a) S x 1 1 0 -1 0 0 0 0 0 0 0 0 0 0 0 1 0 9",
        ] {
            assert_eq!(Stat::parse(line.as_bytes()), None, "{line:?}");
        }
    }

    #[test]
    fn a_process_whose_first_thread_has_ended_is_alive() {
        assert_eq!(state("Z", 0, 1), ProcessState::Zombie);
        assert_eq!(state("Z", 0, 2), ProcessState::Alive);
        assert_eq!(state("S", KERNEL_THREAD, 1), ProcessState::KernelThread);
    }

    #[test]
    fn arguments_keep_their_borders_and_survive_bad_utf8() {
        let table: [(&[u8], &[&str]); 6] = [
            (b"", &[]),
            (b"\0\0", &[]),
            (b"a\0", &["a"]),
            (b"a\0\0b c\0", &["a", "", "b c"]),
            (b"nginx: master process\0\0\0\0", &["nginx: master process"]),
            (b"\xff\0z\0", &["\u{fffd}", "z"]),
        ];
        for (cmdline, expected) in table {
            assert_eq!(arguments(cmdline), expected, "{cmdline:?}");
        }
    }

    #[test]
    fn the_test_itself_is_listed_and_so_is_each_of_its_threads() {
        let own = std::process::id();
        let list = processes().expect("/proc can be read");
        let me = list.iter().find(|p| p.pid == own).expect("this process");
        assert_eq!(me.state, ProcessState::Alive);
        assert_eq!(me.uid, nix::unistd::geteuid().as_raw());
        assert_eq!(me.parent_pid, std::os::unix::process::parent_id());
        assert_eq!(me.command_line, std::env::args().collect::<Vec<_>>());
        let path = std::env::current_exe().expect("its path");
        assert_eq!(me.executable.as_deref(), path.to_str());
        assert!(me.started <= SystemTime::now());

        let tid = nix::unistd::gettid().as_raw();
        let tid = u32::try_from(tid).expect("a thread id");
        assert_eq!(process(tid).map(|p| p.pid), Some(own));
    }

    #[test]
    fn a_zombie_is_known_as_one() {
        let mut child = Command::new("true")
            .stdout(Stdio::piped())
            .spawn()
            .expect("true");
        // The pipe is closed while the child ends, a moment before it is a zombie.
        let mut rest = Vec::new();
        let mut pipe = child.stdout.take().expect("a pipe");
        io::Read::read_to_end(&mut pipe, &mut rest).expect("end of file");
        while process(child.id()).is_some_and(|p| p.state == ProcessState::Alive) {
            std::thread::yield_now();
        }
        let zombie = process(child.id()).expect("not collected yet");
        assert_eq!(zombie.state, ProcessState::Zombie);
        assert_eq!(zombie.command(), "[true]");
        child.wait().expect("collected");
        assert_eq!(process(child.id()), None);
    }
}
