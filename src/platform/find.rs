//! Which process a user means.

use super::process::{ProcessInfo, ProcessState};

/// How well a process fits a name; the best rank that any process reaches wins.
///
/// A process has up to three names: the one that the kernel keeps for it, the last part of its
/// executable's path, and the last part of its first argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// One of its names is the word.
    Exact,
    /// One of them is, if case does not count.
    IgnoringCase,
    /// One of them begins with the word, case not counted.
    Prefix,
    /// One of them contains the word, case not counted.
    Substring,
}

/// Which of several processes of the same rank is meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// There must be only one.
    #[default]
    Only,
    /// The one that was started last; of those, the one with the highest pid.
    Newest,
    /// The one that was started first; of those, the one with the lowest pid.
    Oldest,
    /// Each, in the order of their start.
    All,
}

/// Why no process was found.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// There is none with this pid.
    #[error("no process has pid {0}: `ps -e` lists those that run")]
    NoSuchPid(String),
    /// The number is that of a thread.
    #[error("{tid} is a thread of process {pid}: give rleaks the pid {pid}")]
    IsThread {
        /// The number that was given.
        tid: u32,
        /// Its process.
        pid: u32,
    },
    /// There is none with this name.
    #[error(
        "no process is named {name}: {}",
        suggestion.as_ref().map_or_else(
            || "`ps -e` lists those that run".to_owned(),
            |near| format!("did you mean {near}?"),
        )
    )]
    NoSuchName {
        /// The name that was given.
        name: String,
        /// The most similar name of a process that runs.
        suggestion: Option<String>,
    },
    /// Only rleaks and those that it was started from have this name.
    #[error(
        "no process is named {name} but rleaks itself or those that it was started from: give \
         the pid if you mean one of these, {}",
        .pids.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ")
    )]
    OnlyFamily {
        /// The name that was given.
        name: String,
        /// The ancestors that have it.
        pids: Vec<u32>,
    },
    /// Several processes fit a name equally well.
    #[error(
        "{} processes are named {name}: give a pid, or choose with --newest, --oldest or --all",
        .candidates.len()
    )]
    Ambiguous {
        /// The name that was given.
        name: String,
        /// The processes, in the order of their start.
        candidates: Vec<ProcessInfo>,
    },
    /// It has ended.
    #[error(
        "process {pid} ({name}) has ended and its memory is gone; \
         it is listed until its parent, process {parent_pid}, collects it"
    )]
    Zombie {
        /// Its pid.
        pid: u32,
        /// Its name.
        name: String,
        /// Its parent.
        parent_pid: u32,
    },
    /// It is a part of the kernel.
    #[error("process {pid} ({name}) is a kernel thread: it has no memory of its own to scan")]
    KernelThread {
        /// Its pid.
        pid: u32,
        /// Its name.
        name: String,
    },
    /// It is rleaks.
    #[error("process {0} is this rleaks itself: it cannot stop and scan itself")]
    Itself(u32),
}

/// Checks that `found`, what the system says about `digits`, is a process that can be scanned.
///
/// # Errors
///
/// There is no such process, it has no memory, or it is `own_pid`.
pub fn find_by_pid(
    digits: &str,
    found: Option<ProcessInfo>,
    own_pid: u32,
) -> Result<ProcessInfo, FindError> {
    let Some(process) = found else {
        return Err(FindError::NoSuchPid(digits.to_owned()));
    };
    let (pid, name) = (process.pid, process.name.clone());
    match digits.parse() {
        _ if pid == own_pid => return Err(FindError::Itself(pid)),
        Ok(tid) if tid != pid => return Err(FindError::IsThread { tid, pid }),
        _ => {}
    }
    match process.state {
        ProcessState::Alive => Ok(process),
        ProcessState::KernelThread => Err(FindError::KernelThread { pid, name }),
        ProcessState::Zombie => Err(FindError::Zombie {
            pid,
            name,
            parent_pid: process.parent_pid,
        }),
    }
}

/// The processes of `all` that `name` and `choice` mean: at least one, in the order of their start.
///
/// Kernel threads, zombies, `own_pid` and its ancestors (the shell, sudo and the terminal that
/// rleaks was started from) are never meant by a name.
///
/// # Errors
///
/// No process has the name, or several have and `choice` is [`Choice::Only`].
pub fn find_by_name(
    all: &[ProcessInfo],
    name: &str,
    choice: Choice,
    own_pid: u32,
) -> Result<Vec<ProcessInfo>, FindError> {
    let family = with_ancestors(all, own_pid);
    let candidates = || {
        all.iter()
            .filter(|p| p.state == ProcessState::Alive && !family.contains(&p.pid))
    };
    let Some(best) = candidates().filter_map(|p| rank(p, name)).min() else {
        let is_meant = |p: &&ProcessInfo| p.pid != own_pid && rank(p, name) == Some(Rank::Exact);
        let ancestors = all.iter().filter(|p| family.contains(&p.pid));
        let pids: Vec<u32> = ancestors.filter(is_meant).map(|p| p.pid).collect();
        if !pids.is_empty() {
            let name = name.to_owned();
            return Err(FindError::OnlyFamily { name, pids });
        }
        return Err(FindError::NoSuchName {
            name: name.to_owned(),
            suggestion: nearest(candidates(), name),
        });
    };
    let fitting = candidates().filter(|p| rank(p, name) == Some(best));
    choose(fitting.cloned().collect(), name, choice)
}

fn choose(
    mut fitting: Vec<ProcessInfo>,
    name: &str,
    choice: Choice,
) -> Result<Vec<ProcessInfo>, FindError> {
    fitting.sort_by_key(|process| (process.started, process.pid));
    match choice {
        Choice::All => Ok(fitting),
        Choice::Newest => Ok(fitting.split_off(fitting.len().saturating_sub(1))),
        Choice::Oldest => {
            fitting.truncate(1);
            Ok(fitting)
        }
        Choice::Only if fitting.len() == 1 => Ok(fitting),
        Choice::Only => Err(FindError::Ambiguous {
            name: name.to_owned(),
            candidates: fitting,
        }),
    }
}

/// `pid`, its parent, and so on.
fn with_ancestors(all: &[ProcessInfo], pid: u32) -> Vec<u32> {
    let mut family = vec![pid];
    let mut youngest = pid;
    while let Some(process) = all.iter().find(|p| p.pid == youngest) {
        // The list is not of one instant: a pid that was used again could close a circle.
        if family.contains(&process.parent_pid) {
            break;
        }
        youngest = process.parent_pid;
        family.push(youngest);
    }
    family
}

/// How well `process` fits `name`; `None` if it does not. An empty name fits nothing.
fn rank(process: &ProcessInfo, name: &str) -> Option<Rank> {
    if name.is_empty() {
        return None;
    }
    let folded = name.to_lowercase();
    let one = |own: &str| {
        let own_folded = own.to_lowercase();
        if own == name {
            Some(Rank::Exact)
        } else if own_folded == folded {
            Some(Rank::IgnoringCase)
        } else if own_folded.starts_with(&folded) {
            Some(Rank::Prefix)
        } else {
            own_folded.contains(&folded).then_some(Rank::Substring)
        }
    };
    names(process).filter_map(one).min()
}

/// The names of a process: the kernel's, the executable's, and that of the first argument.
fn names(process: &ProcessInfo) -> impl Iterator<Item = &str> {
    let executable = process.executable.as_deref().map(last_part);
    let first_argument = process.command_line.first().map(|word| last_part(word));
    [
        Some(process.name.as_str()),
        cut_name(process),
        executable,
        first_argument,
    ]
    .into_iter()
    .flatten()
    .filter(|name| !name.is_empty())
}

/// The whole name of a script whose name the kernel had to cut to 15 bytes: the interpreter gets
/// the script as its first or, with an option in the `#!` line, second own argument.
fn cut_name(process: &ProcessInfo) -> Option<&str> {
    const KEPT: usize = 15;
    if process.name.len() != KEPT {
        return None;
    }
    let arguments = process.command_line.iter().skip(1).take(2);
    arguments
        .map(|word| last_part(word))
        .find(|word| word.starts_with(&process.name))
}

fn last_part(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// The name that is most similar to `name`, if one is similar at all.
fn nearest<'a>(processes: impl Iterator<Item = &'a ProcessInfo>, name: &str) -> Option<String> {
    const SIMILAR: f64 = 0.6;
    let scored = processes.flat_map(names).map(|own| {
        let score =
            strsim::normalized_damerau_levenshtein(&own.to_lowercase(), &name.to_lowercase());
        (score, own)
    });
    let best = scored.filter(|(score, _)| *score >= SIMILAR);
    // Equally similar names: the first in the alphabet, so that the answer is always the same.
    let best = best.max_by(|(a, x), (b, y)| a.total_cmp(b).then_with(|| y.cmp(x)));
    best.map(|(_, own)| own.to_owned())
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;

    /// A process that was started `pid` seconds after the epoch.
    fn process(
        pid: u32,
        parent_pid: u32,
        name: &str,
        path: &str,
        arguments: &[&str],
    ) -> ProcessInfo {
        ProcessInfo {
            pid,
            parent_pid,
            uid: 0,
            name: name.to_owned(),
            executable: (!path.is_empty()).then(|| path.to_owned()),
            command_line: arguments.iter().map(|&word| word.to_owned()).collect(),
            started: SystemTime::UNIX_EPOCH + Duration::from_secs(pid.into()),
            state: ProcessState::Alive,
        }
    }

    fn named(pid: u32, name: &str) -> ProcessInfo {
        process(pid, 1, name, &format!("/usr/bin/{name}"), &[name])
    }

    fn pids(all: &[ProcessInfo], name: &str, choice: Choice) -> Vec<u32> {
        let found = find_by_name(all, name, choice, 1000).expect("a process");
        found.iter().map(|p| p.pid).collect()
    }

    fn message(all: &[ProcessInfo], name: &str) -> String {
        let error = find_by_name(all, name, Choice::Only, 1000).expect_err("no process");
        error.to_string()
    }

    #[test]
    fn the_best_rank_wins() {
        let all = [
            named(10, "xmonox"),
            named(11, "mono-sgen"),
            named(12, "MONO"),
            named(13, "mono"),
        ];
        assert_eq!(pids(&all, "mono", Choice::All), [13]);
        assert_eq!(pids(&all[..3], "mono", Choice::All), [12]);
        assert_eq!(pids(&all[..2], "mono", Choice::All), [11]);
        assert_eq!(pids(&all[..1], "mono", Choice::All), [10]);
        assert_eq!(pids(&all, "ONO-S", Choice::Only), [11]);
    }

    #[test]
    fn a_long_name_fits_exactly_though_the_kernel_cuts_it() {
        let long = "a-daemon-with-a-long-name";
        let kept = "a-daemon-with-a";
        let script = ["/bin/sh", "-e", "./a-daemon-with-a-long-name"];
        let table = [
            process(1, 0, kept, "/opt/a-daemon-with-a-long-name", &[]),
            process(2, 0, kept, "", &["/opt/a-daemon-with-a-long-name", "-v"]),
            process(
                3,
                0,
                kept,
                "/bin/dash",
                &script[..1]
                    .iter()
                    .chain(&script[2..])
                    .copied()
                    .collect::<Vec<_>>(),
            ),
            process(4, 0, kept, "/bin/dash", &script),
        ];
        for one in &table {
            assert_eq!(rank(one, long), Some(Rank::Exact), "{one:?}");
            assert_eq!(rank(one, kept), Some(Rank::Exact), "{one:?}");
        }
        let other = process(5, 0, "short", "/bin/dash", &["sh", "short-and-long"]);
        assert_eq!(rank(&other, "short-and-long"), None);
    }

    #[test]
    fn rleaks_and_its_ancestors_are_never_meant_by_a_name() {
        let all = [
            named(1, "init"),
            named(20, "bash"),
            process(30, 20, "sudo", "/usr/bin/sudo", &["sudo", "rleaks", "bash"]),
            process(1000, 30, "rleaks", "/usr/bin/rleaks", &["rleaks", "bash"]),
            named(40, "bash"),
        ];
        assert_eq!(pids(&all, "bash", Choice::All), [40]);
        assert!(message(&all, "rleaks").starts_with("no process is named rleaks"));
        assert_eq!(
            message(&all, "sudo"),
            "no process is named sudo but rleaks itself or those that it was started from: give \
             the pid if you mean one of these, 30"
        );
    }

    #[test]
    fn parents_in_a_circle_end_the_walk() {
        let all = [process(5, 6, "a", "", &[]), process(6, 5, "b", "", &[])];
        assert_eq!(with_ancestors(&all, 5), [5, 6]);
    }

    #[test]
    fn several_at_the_best_rank_need_a_choice() {
        let mut all = [
            named(9, "app"),
            named(7, "app"),
            named(8, "app"),
            named(6, "application"),
        ];
        all[0].started = SystemTime::UNIX_EPOCH;
        assert_eq!(
            message(&all, "app"),
            "3 processes are named app: give a pid, or choose with --newest, --oldest or --all"
        );
        assert_eq!(pids(&all, "app", Choice::Newest), [8]);
        assert_eq!(pids(&all, "app", Choice::Oldest), [9]);
        assert_eq!(pids(&all, "app", Choice::All), [9, 7, 8]);
    }

    #[test]
    fn processes_of_the_same_instant_are_ordered_by_pid() {
        let mut all = [named(8, "app"), named(7, "app")];
        all[0].started = all[1].started;
        assert_eq!(pids(&all, "app", Choice::Newest), [8]);
        assert_eq!(pids(&all, "app", Choice::Oldest), [7]);
    }

    #[test]
    fn what_has_no_memory_is_never_meant_by_a_name() {
        let mut all = [named(2, "kworker"), named(3, "gone"), named(4, "goner")];
        all[0].state = ProcessState::KernelThread;
        all[1].state = ProcessState::Zombie;
        assert!(message(&all, "kworker").starts_with("no process is named kworker"));
        assert_eq!(pids(&all, "gone", Choice::Only), [4]);
    }

    #[test]
    fn a_name_that_is_nearly_right_is_suggested() {
        let all = [named(2, "mono-sgen"), named(3, "nginx")];
        assert_eq!(
            message(&all, "mono-segn"),
            "no process is named mono-segn: did you mean mono-sgen?"
        );
        assert_eq!(
            message(&all, "postgres"),
            "no process is named postgres: `ps -e` lists those that run"
        );
        assert!(message(&all, "").starts_with("no process is named"));
    }

    #[test]
    fn a_pid_that_cannot_be_scanned_says_why() {
        let mut zombie = named(5, "gone");
        zombie.state = ProcessState::Zombie;
        let mut kernel = named(2, "kthreadd");
        kernel.state = ProcessState::KernelThread;
        let table = [
            ("99", None, "no process has pid 99"),
            ("5", Some(zombie), "process 5 (gone) has ended"),
            ("2", Some(kernel), "process 2 (kthreadd) is a kernel thread"),
            (
                "1000",
                Some(named(1000, "rleaks")),
                "process 1000 is this rleaks itself",
            ),
            (
                "1001",
                Some(named(1000, "rleaks")),
                "process 1000 is this rleaks itself",
            ),
            ("41", Some(named(40, "app")), "41 is a thread of process 40"),
        ];
        for (digits, found, expected) in table {
            let error = find_by_pid(digits, found, 1000)
                .expect_err(expected)
                .to_string();
            assert!(error.starts_with(expected), "{error}");
        }
        assert!(find_by_pid("040", Some(named(40, "app")), 1000).is_ok());
    }
}
