//! What `/proc` says about who may trace whom.

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::landlock::has_landlock;
use super::obstacles::{self, Credentials, Facts, Life, Obstacle, Refusal};
use super::processes::{self, field};
use super::ptrace;
use crate::platform::ProcessState;

/// More generations than any tree of processes has.
const MAX_GENERATIONS: usize = 1000;

/// Why the kernel refused, for process `pid`, what `refusal` says.
pub(super) fn explain(pid: u32, refusal: Refusal) -> Obstacle {
    obstacles::decide(&collect(pid), refusal)
}

/// Who traces process `pid` and is named so.
pub(super) fn traced_by(pid: u32, tracer: u32) -> Obstacle {
    let name = process_name(tracer);
    Obstacle::AlreadyTraced { pid, tracer, name }
}

/// Says so when the program of process `pid` is for another architecture.
pub(super) fn architecture(pid: u32) -> Option<Obstacle> {
    let path = format!("/proc/{pid}/exe");
    let name = fs::read_link(&path).ok()?;
    let name = name.file_name()?.to_string_lossy().into_owned();
    let mut header = [0; 20];
    File::open(path).ok()?.read_exact(&mut header).ok()?;
    obstacles::architecture(pid, &name, &header)
}

/// The credentials of this process.
pub(super) fn own_credentials() -> Credentials {
    credentials(&fs::read("/proc/self/status").unwrap_or_default())
}

/// Says whether a seccomp filter is on this process.
pub(super) fn is_filtered() -> bool {
    const FILTER: &str = "2";
    let status = fs::read("/proc/self/status").unwrap_or_default();
    field(&status, "Seccomp:").as_deref() == Some(FILTER)
}

/// The scope of Yama; `None` where the kernel has no Yama.
pub(super) fn yama_scope() -> Option<u8> {
    let text = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").ok()?;
    text.trim().parse().ok()
}

fn collect(pid: u32) -> Facts {
    let status = fs::read(format!("/proc/{pid}/status")).unwrap_or_default();
    let target = credentials(&status);
    let tracer = field(&status, "TracerPid:").and_then(|text| text.parse().ok());
    let own = own_credentials();
    let modules = security_modules(pid);
    Facts {
        pid,
        own_pid: std::process::id(),
        life: life(pid),
        same_namespace: is_in_own_namespace(pid, &own, modules.as_ref()),
        own,
        dumpable: is_dumpable(pid, &target),
        // Not its memory map: who may monitor performance may read that one without tracing.
        readable: fs::read_link(format!("/proc/{pid}/ns/user")).is_ok(),
        yama: yama_scope(),
        descendant: is_descendant(pid),
        tracer: tracer
            .filter(|pid| *pid != 0)
            .map(|pid| (pid, process_name(pid))),
        filtered: is_filtered() && !ptrace::is_answered_by_the_kernel(),
        landlock: has_landlock(),
        modules,
        target,
    }
}

fn life(pid: u32) -> Life {
    match processes::process(pid).map(|process| process.state) {
        None => Life::Gone,
        Some(ProcessState::Zombie) => Life::Zombie,
        Some(ProcessState::KernelThread) => Life::KernelThread,
        Some(ProcessState::Alive) => Life::Alive,
    }
}

fn credentials(status: &[u8]) -> Credentials {
    let ids = |key| {
        let text = field(status, key).unwrap_or_default();
        let mut ids = text
            .split_ascii_whitespace()
            .filter_map(|id| id.parse().ok());
        [(); 4].map(|()| ids.next().unwrap_or(u32::MAX))
    };
    let set = |key| {
        let text = field(status, key).unwrap_or_default();
        u64::from_str_radix(&text, 16).unwrap_or(0)
    };
    Credentials {
        uids: ids("Uid:"),
        gids: ids("Gid:"),
        permitted: set("CapPrm:"),
        effective: set("CapEff:"),
    }
}

/// Says whether `/proc` is there and can be read.
///
/// # Errors
/// Names what is in the way.
pub fn check_proc() -> Result<(), Obstacle> {
    match fs::read("/proc/self/stat").map_err(|error| error.kind()) {
        Err(ErrorKind::PermissionDenied) => Err(Obstacle::ProcForbidden),
        Err(ErrorKind::NotFound) => Err(Obstacle::ProcMissing),
        _ => Ok(()),
    }
}

/// The link of the first user namespace of the system, `PROC_USER_INIT_INO` of the kernel's
/// `include/linux/proc_ns.h`. A capability that one has there counts everywhere.
const FIRST_USER_NAMESPACE: &str = "user:[4026531837]";

/// Compares the namespaces by their links. Where that of the target may not be read, two that map
/// users differently are two; and so they are where rleaks has the capability and no security module
/// could have refused.
fn is_in_own_namespace(pid: u32, own: &Credentials, modules: Option<&String>) -> bool {
    let link = |process: &str| fs::read_link(format!("/proc/{process}/ns/user"));
    let map = |process: &str| fs::read(format!("/proc/{process}/uid_map")).ok();
    match (link("self"), link(&pid.to_string())) {
        (Ok(own), Ok(other)) => own == other,
        (_, Err(error)) if error.kind() != ErrorKind::PermissionDenied => true,
        (Ok(first), _) if first == Path::new(FIRST_USER_NAMESPACE) && own.may_trace() => true,
        _ if own.may_trace() && modules.is_none() => false,
        _ => map(&pid.to_string()).is_none_or(|other| Some(other) == map("self")),
    }
}

/// The kernel gives the files of a process that may not be dumped to root. Of root's own processes
/// that tells nothing.
fn is_dumpable(pid: u32, target: &Credentials) -> bool {
    let owner = fs::metadata(format!("/proc/{pid}/environ")).map(|file| file.uid());
    owner.is_ok_and(|uid| uid == target.uids[1])
}

fn is_descendant(pid: u32) -> bool {
    let own = std::process::id();
    let mut youngest = pid;
    for _ in 0..MAX_GENERATIONS {
        let Some(process) = processes::process(youngest).filter(|p| p.parent_pid != 0) else {
            return false;
        };
        if process.parent_pid == own {
            return true;
        }
        youngest = process.parent_pid;
    }
    false
}

fn process_name(pid: u32) -> String {
    processes::process(pid).map_or_else(|| "unknown".to_owned(), |process| process.name)
}

/// The security modules that could refuse, and what they call both processes. Of the modules that
/// every kernel has, none refuses what the other questions do not explain.
fn security_modules(pid: u32) -> Option<String> {
    const DECIDING: [&str; 5] = ["apparmor", "selinux", "smack", "tomoyo", "bpf"];
    let list = fs::read_to_string("/sys/kernel/security/lsm").unwrap_or_default();
    let modules = list
        .trim()
        .split(',')
        .filter(|name| DECIDING.contains(name));
    let mut text = modules.collect::<Vec<_>>().join(", ");
    const UNCONFINED: &str = "unconfined";
    let label = |process: &str| {
        let label = fs::read(format!("/proc/{process}/attr/current")).unwrap_or_default();
        String::from_utf8_lossy(&label)
            .trim_matches(['\0', '\n', ' '])
            .to_owned()
    };
    let (own, other) = (label("self"), label(&pid.to_string()));
    if text == "apparmor" && [&own, &other].iter().all(|label| *label == UNCONFINED) {
        // It refuses nothing between two processes that no profile confines.
        return None;
    }
    if !own.is_empty() {
        let name = if text.is_empty() {
            "its"
        } else {
            text.as_str()
        };
        text = format!("{name}: rleaks is {own}, the process is {other}");
    }
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_read_from_status() {
        let status = b"Name:\tx\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nCapPrm:\t0000000000080000\nCapEff:\t00000000000800ff\n";
        let found = credentials(status);
        assert_eq!((found.uids, found.gids), ([1, 2, 3, 4], [5, 6, 7, 8]));
        assert_eq!((found.permitted, found.effective), (0x80000, 0x800ff));
        assert!(found.may_trace());
        assert_eq!(credentials(b"").uids, [u32::MAX; 4]);
    }

    #[test]
    fn the_facts_of_this_process_are_true() {
        let own = std::process::id();
        let facts = collect(own);
        assert_eq!(facts.own, facts.target);
        assert_eq!(facts.life, Life::Alive);
        assert!(facts.same_namespace && facts.dumpable && facts.readable && !facts.descendant);
        assert_eq!(explain(own, Refusal::Request), Obstacle::Itself(own));
        assert_eq!(architecture(own), None);
    }

    #[test]
    fn processes_can_be_seen_and_traced_here() {
        assert_eq!(check_proc(), Ok(()));
        // A filter may be on the tests; it allows ptrace, or no other test would pass.
        assert!(ptrace::is_answered_by_the_kernel());
    }

    #[test]
    fn a_child_is_a_descendant_of_its_parent_only() {
        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .expect("cat");
        assert!(is_descendant(child.id()));
        assert!(!is_descendant(std::os::unix::process::parent_id()));
        drop(child.stdin.take());
        child.wait().expect("it ends");
        assert_eq!(collect(child.id()).life, Life::Gone);
    }
}
