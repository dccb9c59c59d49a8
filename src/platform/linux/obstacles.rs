//! Why a process cannot be scanned, and what to do about it.
//!
//! The kernel says no more than "not permitted". What it looked at can be looked at too: the
//! questions are asked in its own order, that of `__ptrace_may_access` in `kernel/ptrace.c` (users,
//! then whether the process may be dumped, then the security modules, of which the capability check
//! and Yama are two), and what is left over is put down to what alone can remain.

/// What stands between rleaks and a process.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Obstacle {
    /// There is no such process, or it ended.
    #[error("no process has pid {0}: `ps -e` lists those that run")]
    NoSuchProcess(u32),
    /// It has ended.
    #[error(
        "process {0} has ended and its memory is gone; it is listed until its parent collects it"
    )]
    Zombie(u32),
    /// It is a part of the kernel.
    #[error("process {0} is a kernel thread: it has no memory of its own to scan")]
    KernelThread(u32),
    /// It is rleaks.
    #[error("process {0} is this rleaks itself: it cannot stop and scan itself")]
    Itself(u32),
    /// It belongs to another user.
    #[error("process {pid} belongs to another user, uid {uid}: {remedy}")]
    OtherUser {
        /// Its pid.
        pid: u32,
        /// The user.
        uid: u32,
        /// What to do.
        remedy: Remedy,
    },
    /// It is protected although it belongs to the same user.
    #[error(
        "process {0} is protected from being read (it is set-uid or set-gid, has file \
         capabilities, or called prctl(PR_SET_DUMPABLE, 0)): {1}"
    )]
    Undumpable(u32, Remedy),
    /// It may do more than rleaks.
    #[error("process {0} has capabilities that rleaks lacks: {1}")]
    MoreCapabilities(u32, Remedy),
    /// It is in a user namespace in which rleaks has no rights.
    #[error(
        "process {0} is in another user namespace, in which rleaks has no rights: run rleaks with \
         sudo outside of that namespace, or as root inside of it"
    )]
    UserNamespace(u32),
    /// Yama 1: ancestors only.
    #[error(
        "process {0} may be traced only by the process that started it \
         (/proc/sys/kernel/yama/ptrace_scope is 1): {1}"
    )]
    YamaAncestors(u32, Remedy),
    /// Yama 2: with the capability only.
    #[error(
        "only administrators may trace processes (/proc/sys/kernel/yama/ptrace_scope is 2), so \
         not process {0}: {1}"
    )]
    YamaAdministrators(u32, Remedy),
    /// Yama 3: nobody.
    #[error(
        "nobody may trace process {0} or any other (/proc/sys/kernel/yama/ptrace_scope is 3): this \
         setting holds until the next boot, for root too; scan the program on another machine"
    )]
    YamaNobody(u32),
    /// Somebody else has it.
    #[error(
        "process {pid} is already being traced by process {tracer} ({name}): end that debugger or \
         tracer first"
    )]
    AlreadyTraced {
        /// Its pid.
        pid: u32,
        /// Who traces it.
        tracer: u32,
        /// The tracer's name.
        name: String,
    },
    /// rleaks itself may not call ptrace.
    #[error(
        "a seccomp filter keeps rleaks from tracing process {0}: allow ptrace and \
         process_vm_readv in it; in a container, start that with --cap-add=SYS_PTRACE or with a \
         seccomp profile that allows them"
    )]
    Seccomp(u32),
    /// A security module refuses.
    #[error(
        "a security module ({modules}) keeps rleaks from tracing process {pid}: allow ptrace in \
         its policy, or run rleaks outside of the container or profile that it confines"
    )]
    SecurityModule {
        /// The process.
        pid: u32,
        /// The modules that the system has, and the labels of both.
        modules: String,
    },
    /// rleaks is in a Landlock domain.
    #[error(
        "Landlock keeps rleaks from tracing process {0}: rleaks runs in a sandbox that the process \
         is not in; run rleaks outside of it, or in the same one"
    )]
    Landlock(u32),
    /// rleaks may not even look at processes.
    #[error(
        "rleaks may not read the files of /proc, although they are there: a sandbox (Landlock) or a \
         security module forbids it; run rleaks outside of it, or allow reading below /proc"
    )]
    ProcForbidden,
    /// There is no `/proc`.
    #[error("/proc is not mounted, and rleaks finds processes there: mount -t proc proc /proc")]
    ProcMissing,
    /// Another instruction set.
    #[error("process {0} is a program for {1}: rleaks reads x86-64 and i386 programs only")]
    Architecture(u32, String),
    /// An emulator.
    #[error(
        "process {0} is run by the emulator {1}: rleaks would see the emulator's heap, not that of \
         the program; run both rleaks and the program on the machine that they are for"
    )]
    Emulated(u32, String),
    /// `/proc` does not show it.
    #[error(
        "process {0} belongs to another user and is hidden (/proc is mounted with hidepid): run \
         rleaks with sudo"
    )]
    Hidden(u32),
    /// None of these, and the rights are there.
    #[error(
        "the kernel does not let rleaks trace process {0}, though it has the capability \
         cap_sys_ptrace: a tracer outside of this container may hold the process (end that first), \
         or a security module refuses (run rleaks outside of what it confines)"
    )]
    Unexplained(u32),
    /// None of these.
    #[error("not allowed to trace process {0}: {1}")]
    Denied(u32, Remedy),
}

/// How to get the right to trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// rleaks does not run as root.
    Sudo,
    /// rleaks runs as root, but not with all of its rights.
    Capability,
}

impl std::fmt::Display for Remedy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Sudo => "run rleaks with sudo, or give it the capability cap_sys_ptrace",
            Self::Capability => {
                "rleaks runs as root, but without the capability cap_sys_ptrace; in a container, \
                 start that with --cap-add=SYS_PTRACE"
            }
        })
    }
}

/// What the kernel refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// To open a file of `/proc/PID`.
    File,
    /// A ptrace request.
    Request,
}

/// Whether there is anything to trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    Gone,
    Zombie,
    KernelThread,
    Alive,
}

/// Who a process is for the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Credentials {
    /// Real, effective, saved, for files.
    pub(super) uids: [u32; 4],
    /// The same.
    pub(super) gids: [u32; 4],
    /// The capabilities that it may use.
    pub(super) permitted: u64,
    /// The capabilities that it uses.
    pub(super) effective: u64,
}

/// What decides whether rleaks may trace a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) pid: u32,
    pub(super) own_pid: u32,
    pub(super) life: Life,
    pub(super) own: Credentials,
    pub(super) target: Credentials,
    pub(super) same_namespace: bool,
    /// Its files in `/proc` are its user's, not root's.
    pub(super) dumpable: bool,
    /// What needs less rights than tracing is allowed: the links in `/proc/PID/ns` can be read.
    pub(super) readable: bool,
    /// `/proc/sys/kernel/yama/ptrace_scope`, where the kernel has Yama.
    pub(super) yama: Option<u8>,
    /// rleaks is an ancestor.
    pub(super) descendant: bool,
    /// The tracer's pid and name.
    pub(super) tracer: Option<(u32, String)>,
    /// A seccomp filter on rleaks answers its ptrace requests.
    pub(super) filtered: bool,
    /// The security modules that could refuse, with labels.
    pub(super) modules: Option<String>,
    /// The kernel has Landlock.
    pub(super) landlock: bool,
}

const CAP_SYS_PTRACE: u32 = 19;

impl Credentials {
    /// Says whether it has the capability `cap_sys_ptrace`.
    pub(super) fn may_trace(&self) -> bool {
        self.effective >> CAP_SYS_PTRACE & 1 == 1
    }

    fn remedy(&self) -> Remedy {
        match self.uids[1] {
            0 => Remedy::Capability,
            _ => Remedy::Sudo,
        }
    }
}

/// Why the kernel refused what `refusal` says, by `facts`.
pub(super) fn decide(facts: &Facts, refusal: Refusal) -> Obstacle {
    let pid = facts.pid;
    nothing_to_trace(facts)
        .or_else(|| users(facts, refusal))
        .or_else(|| yama(facts))
        .or_else(|| {
            let (tracer, name) = facts.tracer.clone()?;
            Some(Obstacle::AlreadyTraced { pid, tracer, name })
        })
        .or_else(|| {
            let is_filter = facts.filtered && refusal == Refusal::Request;
            is_filter.then_some(Obstacle::Seccomp(pid))
        })
        .or_else(|| {
            let modules = facts.modules.clone()?;
            Some(Obstacle::SecurityModule { pid, modules })
        })
        .or_else(|| {
            // It forbids to look as it forbids to trace; a tracer forbids the latter only.
            let is_landlock = facts.landlock && !facts.readable;
            is_landlock.then_some(Obstacle::Landlock(pid))
        })
        .unwrap_or(match facts.own.may_trace() {
            true => Obstacle::Unexplained(pid),
            false => Obstacle::Denied(pid, facts.own.remedy()),
        })
}

fn nothing_to_trace(facts: &Facts) -> Option<Obstacle> {
    let pid = facts.pid;
    match facts.life {
        Life::Gone => Some(Obstacle::NoSuchProcess(pid)),
        _ if pid == facts.own_pid => Some(Obstacle::Itself(pid)),
        Life::Zombie => Some(Obstacle::Zombie(pid)),
        Life::KernelThread => Some(Obstacle::KernelThread(pid)),
        Life::Alive => None,
    }
}

/// Users, user namespaces, dumpability and capabilities. None of them is in the way of a rleaks
/// that has the capability in the target's own namespace.
fn users(facts: &Facts, refusal: Refusal) -> Option<Obstacle> {
    let (pid, own, target) = (facts.pid, &facts.own, &facts.target);
    let remedy = own.remedy();
    // A file is opened with the rights of the fourth id, a request is made with those of the first.
    let index = match refusal {
        Refusal::File => 3,
        Refusal::Request => 0,
    };
    let other = |theirs: &[u32; 4], ours: &[u32; 4]| {
        [1, 0, 2]
            .map(|i| theirs[i])
            .into_iter()
            .find(|id| *id != ours[index])
    };
    let other_user = other(&target.uids, &own.uids);
    match other_user {
        _ if own.may_trace() && facts.same_namespace => None,
        Some(uid) if !own.may_trace() => Some(Obstacle::OtherUser { pid, uid, remedy }),
        _ if !facts.same_namespace => Some(Obstacle::UserNamespace(pid)),
        _ if !facts.dumpable || other(&target.gids, &own.gids).is_some() => {
            Some(Obstacle::Undumpable(pid, remedy))
        }
        _ if target.permitted & !own.permitted != 0 => {
            Some(Obstacle::MoreCapabilities(pid, remedy))
        }
        _ => None,
    }
}

fn yama(facts: &Facts) -> Option<Obstacle> {
    let (pid, remedy) = (facts.pid, facts.own.remedy());
    match facts.yama? {
        3.. => Some(Obstacle::YamaNobody(pid)),
        // Yama looks only at who wants to trace; who may not even read was refused by another.
        _ if facts.own.may_trace() || !facts.readable => None,
        2 => Some(Obstacle::YamaAdministrators(pid, remedy)),
        1 if !facts.descendant => Some(Obstacle::YamaAncestors(pid, remedy)),
        _ => None,
    }
}

/// Says so when the program in a file that begins with `header` and is named `name` cannot be read.
pub(super) fn architecture(pid: u32, name: &str, header: &[u8; 20]) -> Option<Obstacle> {
    const CLASS_32: u8 = 1;
    const I386: u16 = 3;
    const X86_64: u16 = 62;
    if !header.starts_with(b"\x7fELF") {
        return None;
    }
    let little = header[5] == 1;
    let machine = [header[18], header[19]];
    let machine = if little {
        u16::from_le_bytes(machine)
    } else {
        u16::from_be_bytes(machine)
    };
    let what = match (machine, header[4]) {
        (X86_64, CLASS_32) => "x32 (x86-64 with 32-bit pointers)".to_owned(),
        (X86_64, _) => return emulator(name).map(|name| Obstacle::Emulated(pid, name)),
        (I386, CLASS_32) => return None,
        (40, _) => "arm (32-bit)".to_owned(),
        (183, _) => "aarch64".to_owned(),
        (243, _) => "RISC-V".to_owned(),
        (other, _) => format!("another architecture (ELF machine {other})"),
    };
    Some(Obstacle::Architecture(pid, what))
}

/// The name of qemu's emulator of user programs. That of whole machines is a program like others.
fn emulator(name: &str) -> Option<String> {
    let guest = name.strip_prefix("qemu-")?;
    let guest = guest.strip_suffix("-static").unwrap_or(guest);
    const GUESTS: [&str; 14] = [
        "aarch64",
        "aarch64_be",
        "arm",
        "armeb",
        "i386",
        "m68k",
        "mips",
        "mips64el",
        "mipsel",
        "ppc64le",
        "riscv32",
        "riscv64",
        "s390x",
        "x86_64",
    ];
    GUESTS.contains(&guest).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAPABLE: u64 = 1 << CAP_SYS_PTRACE;

    fn user(uid: u32) -> Credentials {
        Credentials {
            uids: [uid; 4],
            gids: [uid; 4],
            ..Credentials::default()
        }
    }

    fn capable(uid: u32) -> Credentials {
        Credentials {
            permitted: CAPABLE,
            effective: CAPABLE,
            ..user(uid)
        }
    }

    /// A process of the same unprivileged user, with nothing in the way.
    fn facts() -> Facts {
        Facts {
            pid: 77,
            own_pid: 5,
            life: Life::Alive,
            own: user(1000),
            target: user(1000),
            same_namespace: true,
            dumpable: true,
            readable: true,
            yama: None,
            descendant: false,
            tracer: None,
            filtered: false,
            modules: None,
            landlock: false,
        }
    }

    fn check(change: impl Fn(&mut Facts), expected: &Obstacle) {
        for refusal in [Refusal::File, Refusal::Request] {
            let mut facts = facts();
            change(&mut facts);
            assert_eq!(decide(&facts, refusal), *expected, "{refusal:?} {facts:?}");
        }
    }

    #[test]
    fn what_has_no_memory_is_said_before_all_else() {
        let root = |f: &mut Facts| f.target = user(0);
        check(
            |f| {
                root(f);
                f.life = Life::Gone
            },
            &Obstacle::NoSuchProcess(77),
        );
        check(
            |f| {
                root(f);
                f.life = Life::Zombie
            },
            &Obstacle::Zombie(77),
        );
        check(
            |f| {
                root(f);
                f.life = Life::KernelThread
            },
            &Obstacle::KernelThread(77),
        );
        check(|f| f.own_pid = 77, &Obstacle::Itself(77));
    }

    #[test]
    fn another_user_is_named_with_the_id_that_differs() {
        let other = |uid, remedy| Obstacle::OtherUser {
            pid: 77,
            uid,
            remedy,
        };
        check(|f| f.target = user(0), &other(0, Remedy::Sudo));
        check(
            |f| f.target.uids = [1001, 1000, 1000, 1000],
            &other(1001, Remedy::Sudo),
        );
        check(
            |f| f.target.uids = [1000, 0, 1000, 0],
            &other(0, Remedy::Sudo),
        );
        let root_without_rights = |f: &mut Facts| f.own = user(0);
        check(root_without_rights, &other(1000, Remedy::Capability));
    }

    #[test]
    fn files_and_requests_are_judged_by_different_ids() {
        let mut facts = facts();
        facts.own.uids = [1000, 0, 0, 0];
        facts.own.gids = [1000, 0, 0, 0];
        facts.target = user(0);
        let expected = Obstacle::OtherUser {
            pid: 77,
            uid: 0,
            remedy: Remedy::Capability,
        };
        assert_eq!(decide(&facts, Refusal::Request), expected);
        assert_eq!(
            decide(&facts, Refusal::File),
            Obstacle::Denied(77, Remedy::Capability)
        );
    }

    #[test]
    fn the_same_users_process_may_be_protected() {
        let undumpable = Obstacle::Undumpable(77, Remedy::Sudo);
        check(|f| f.dumpable = false, &undumpable);
        check(|f| f.target.gids = [1000, 5, 5, 5], &undumpable);
        let more = Obstacle::MoreCapabilities(77, Remedy::Sudo);
        check(|f| f.target.permitted = 1 << 10, &more);
    }

    #[test]
    fn rights_in_another_user_namespace_do_not_count() {
        check(|f| f.same_namespace = false, &Obstacle::UserNamespace(77));
        let root_of_a_container = |f: &mut Facts| {
            f.own = capable(0);
            f.target = user(65534);
            f.same_namespace = false;
        };
        check(root_of_a_container, &Obstacle::UserNamespace(77));
    }

    #[test]
    fn yama_is_told_by_its_scope() {
        let denied = Obstacle::Denied(77, Remedy::Sudo);
        check(|f| f.yama = Some(0), &denied);
        check(
            |f| f.yama = Some(1),
            &Obstacle::YamaAncestors(77, Remedy::Sudo),
        );
        check(
            |f| {
                f.yama = Some(1);
                f.descendant = true
            },
            &denied,
        );
        check(
            |f| f.yama = Some(2),
            &Obstacle::YamaAdministrators(77, Remedy::Sudo),
        );
        check(
            |f| {
                f.yama = Some(2);
                f.readable = false
            },
            &denied,
        );
        check(|f| f.yama = Some(3), &Obstacle::YamaNobody(77));
        let root = |f: &mut Facts| {
            f.own = capable(0);
            f.yama = Some(3);
        };
        check(root, &Obstacle::YamaNobody(77));
        check(
            |f| {
                f.yama = Some(1);
                f.dumpable = false
            },
            &Obstacle::Undumpable(77, Remedy::Sudo),
        );
    }

    #[test]
    fn a_tracer_is_named() {
        let traced = Obstacle::AlreadyTraced {
            pid: 77,
            tracer: 9,
            name: "gdb".to_owned(),
        };
        check(|f| f.tracer = Some((9, "gdb".to_owned())), &traced);
    }

    #[test]
    fn what_is_left_is_put_down_to_filters_and_security_modules() {
        let mut filtered = facts();
        filtered.own = capable(0);
        filtered.filtered = true;
        assert_eq!(decide(&filtered, Refusal::Request), Obstacle::Seccomp(77));
        // A filter sees no files.
        let unexplained = Obstacle::Unexplained(77);
        assert_eq!(decide(&filtered, Refusal::File), unexplained);
        let modules = "apparmor".to_owned();
        let refused = Obstacle::SecurityModule {
            pid: 77,
            modules: modules.clone(),
        };
        check(|f| f.modules = Some(modules.clone()), &refused);
    }

    #[test]
    fn landlock_forbids_to_look_too() {
        let in_a_sandbox = |f: &mut Facts| (f.landlock, f.readable) = (true, false);
        check(in_a_sandbox, &Obstacle::Landlock(77));
        let root = |f: &mut Facts| {
            in_a_sandbox(f);
            f.own = capable(0);
        };
        check(root, &Obstacle::Landlock(77));
        check(
            |f| {
                root(f);
                f.readable = true;
            },
            &Obstacle::Unexplained(77),
        );
        // The usual rules come first.
        check(
            |f| {
                in_a_sandbox(f);
                f.dumpable = false;
            },
            &Obstacle::Undumpable(77, Remedy::Sudo),
        );
    }

    #[test]
    fn each_message_names_the_process_and_what_to_do() {
        let sudo = Remedy::Sudo;
        let traced = Obstacle::AlreadyTraced {
            pid: 77,
            tracer: 9,
            name: "gdb".to_owned(),
        };
        let module = Obstacle::SecurityModule {
            pid: 77,
            modules: "selinux".to_owned(),
        };
        for (obstacle, word) in [
            (
                Obstacle::OtherUser {
                    pid: 77,
                    uid: 0,
                    remedy: sudo,
                },
                "uid 0: run rleaks with sudo",
            ),
            (Obstacle::Undumpable(77, sudo), "run rleaks with sudo"),
            (Obstacle::MoreCapabilities(77, sudo), "run rleaks with sudo"),
            (Obstacle::UserNamespace(77), "run rleaks with sudo outside"),
            (
                Obstacle::YamaAncestors(77, sudo),
                "ptrace_scope is 1): run rleaks with sudo",
            ),
            (Obstacle::YamaAdministrators(77, sudo), "ptrace_scope is 2)"),
            (Obstacle::YamaNobody(77), "until the next boot"),
            (Obstacle::Unexplained(77), "end that first"),
            (Obstacle::Hidden(77), "run rleaks with sudo"),
            (Obstacle::Seccomp(77), "--cap-add=SYS_PTRACE"),
            (Obstacle::Landlock(77), "run rleaks outside of it"),
            (module, "(selinux)"),
            (traced, "by process 9 (gdb): end that"),
            (
                Obstacle::Denied(77, Remedy::Capability),
                "--cap-add=SYS_PTRACE",
            ),
        ] {
            let message = obstacle.to_string();
            assert!(
                message.contains("process 77") && message.contains(word),
                "{message}"
            );
            assert!(!message.contains("  "), "{message}");
        }
    }

    #[test]
    fn another_architecture_is_named() {
        let header = |class: u8, order: u8, machine: [u8; 2]| {
            let mut header = [0; 20];
            header[..4].copy_from_slice(b"\x7fELF");
            (header[4], header[5]) = (class, order);
            header[18..].copy_from_slice(&machine);
            header
        };
        let native = header(2, 1, [62, 0]);
        for (name, bytes, expected) in [
            ("app", native, None),
            ("qemu-system-aarch64", native, None),
            (
                "qemu-aarch64-static",
                native,
                Some("run by the emulator qemu-aarch64-static"),
            ),
            ("qemu-arm", native, Some("run by the emulator qemu-arm")),
            ("app", header(1, 1, [3, 0]), None),
            ("app", header(1, 1, [62, 0]), Some("a program for x32")),
            ("app", header(2, 1, [183, 0]), Some("a program for aarch64")),
            ("app", header(2, 2, [0, 22]), Some("(ELF machine 22)")),
            ("app", [0; 20], None),
        ] {
            let found = architecture(77, name, &bytes).map(|obstacle| obstacle.to_string());
            let is_right = match (&found, expected) {
                (Some(message), Some(part)) => message.contains(part),
                (found, expected) => found.is_none() && expected.is_none(),
            };
            assert!(is_right, "{name}: {found:?}");
        }
    }
}
