//! What works on this system for this user.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Context;

use super::Check;
use crate::platform::{
    Privileges, Target, available_memory, copy_limit, copy_speed, kernel_release, page_map,
    privileges,
};
use crate::report::text::Size;
use crate::snapshot::Method;

/// What was found out about the system.
#[derive(Debug)]
pub(super) struct System {
    pub(super) kernel: String,
    pub(super) privileges: Privileges,
    /// What came of tracing a process of rleaks' own.
    pub(super) tracing: Result<(), String>,
    /// Whether the kernel can search page maps, or why they cannot be read.
    pub(super) page_map: Result<bool, String>,
    /// Bytes a second; `None` where the fast way is closed.
    pub(super) copy_speed: Result<Option<u64>, String>,
    pub(super) available_memory: Option<u64>,
    /// The largest target that is copied.
    pub(super) copy_limit: Option<u64>,
    pub(super) has_debug_files: bool,
}

impl System {
    /// Tries everything once.
    pub(super) fn look() -> Self {
        Self {
            kernel: kernel_release(),
            privileges: privileges(),
            tracing: trace_a_child().map_err(|error| format!("{error:#}")),
            page_map: page_map().map_err(|error| error.to_string()),
            copy_speed: copy_speed().map_err(|error| error.to_string()),
            available_memory: available_memory(),
            copy_limit: copy_limit(),
            has_debug_files: Path::new("/usr/lib/debug/.build-id").is_dir(),
        }
    }

    pub(super) fn checks(&self) -> Vec<Check> {
        vec![
            self.rights(),
            self.yama(),
            self.seccomp(),
            self.tracing(),
            self.copying(),
            self.page_map(),
            self.memory(),
            self.debug_files(),
        ]
    }

    fn rights(&self) -> Check {
        const ID: &str = "privileges";
        match (self.privileges.uid, self.privileges.may_trace) {
            (0, true) => Check::ok(ID, "root, with the capability cap_sys_ptrace"),
            (uid, true) => Check::ok(ID, format!("uid {uid}, with the capability cap_sys_ptrace")),
            (0, false) => Check::limited(
                ID,
                "root, without the capability cap_sys_ptrace: in a container, start that with \
                 --cap-add=SYS_PTRACE",
                "processes of other users cannot be scanned",
            ),
            (uid, false) => Check::limited(
                ID,
                format!("uid {uid}, without the capability cap_sys_ptrace"),
                "processes of other users cannot be scanned: run rleaks with sudo for those",
            ),
        }
    }

    fn yama(&self) -> Check {
        const ID: &str = "yama";
        let scope = |scope: u8| format!("ptrace_scope is {scope}");
        match (self.privileges.yama, self.privileges.may_trace) {
            (None, _) => Check::ok(ID, "not in this kernel"),
            (Some(0), _) => Check::ok(ID, "ptrace_scope is 0: no restriction"),
            (Some(3..), _) => Check::failed(
                ID,
                "ptrace_scope is 3: nobody may trace until the next boot",
                "no process can be scanned",
            ),
            (Some(n), true) => Check::ok(ID, scope(n) + ", which does not concern this user"),
            (Some(1), false) => Check::limited(
                ID,
                scope(1),
                "only processes that rleaks started can be scanned: run it with sudo for others",
            ),
            (Some(n), false) => Check::failed(
                ID,
                scope(n),
                "no process can be scanned without the capability cap_sys_ptrace: use sudo",
            ),
        }
    }

    fn seccomp(&self) -> Check {
        if self.privileges.is_filtered {
            let message = "a filter is on rleaks: `ptrace` and `copying` say whether it matters";
            return Check::ok("seccomp", message);
        }
        Check::ok("seccomp", "no filter on rleaks")
    }

    fn tracing(&self) -> Check {
        match &self.tracing {
            Ok(()) => Check::ok("ptrace", "stops and releases a process that rleaks started"),
            Err(why) => Check::failed("ptrace", why, "no process can be scanned"),
        }
    }

    fn copying(&self) -> Check {
        const ID: &str = "copying";
        match &self.copy_speed {
            Ok(Some(speed)) => {
                Check::ok(ID, format!("process_vm_readv, {} a second", Size(*speed)))
            }
            Ok(None) => Check::limited(
                ID,
                "process_vm_readv does not work",
                "memory is read through /proc/PID/mem: a longer pause",
            ),
            Err(why) => Check::limited(ID, why, "the pause cannot be predicted"),
        }
    }

    fn page_map(&self) -> Check {
        const ID: &str = "pagemap";
        match &self.page_map {
            Ok(true) => Check::ok(ID, "readable, and searched by the kernel (PAGEMAP_SCAN)"),
            Ok(false) => Check::limited(
                ID,
                "readable; this kernel has no PAGEMAP_SCAN (Linux 6.7 and later)",
                "a longer pause where a process has reserved far more memory than it uses",
            ),
            Err(why) => Check::failed(ID, why, "no process can be scanned"),
        }
    }

    fn memory(&self) -> Check {
        match self.available_memory {
            Some(bytes) => Check::ok("memory", format!("{} available", Size(bytes))),
            None => Check::limited(
                "memory",
                "not known how much is available",
                "a copy may be attempted that does not fit: choose --snapshot=stream",
            ),
        }
    }

    fn debug_files(&self) -> Check {
        const ID: &str = "debug_files";
        if self.has_debug_files {
            return Check::ok(ID, "in /usr/lib/debug");
        }
        Check::limited(
            ID,
            "none in /usr/lib/debug",
            "variables of stripped programs and libraries have no names",
        )
    }
}

/// Stops and releases a process of rleaks' own, which every system allows that allows any.
fn trace_a_child() -> anyhow::Result<()> {
    let mut child = Command::new(std::env::current_exe()?)
        .arg("demo-target")
        .stdin(Stdio::piped())
        // Not /dev/null, which a small container lacks.
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start a process to try it on")?;
    let target = Target::new(child.id());
    // A survey for a stream takes no memory.
    let survey = target.survey(Method::Stream);
    let traced = survey.and_then(|survey| target.stop(&survey).map(drop));
    // It ends when its input does; it may have ended already.
    let _ = child.kill();
    let _ = child.wait();
    Ok(traced?)
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    fn system() -> System {
        System {
            kernel: "6.1.0".to_owned(),
            privileges: Privileges {
                uid: 0,
                may_trace: true,
                is_filtered: false,
                yama: Some(1),
            },
            tracing: Ok(()),
            page_map: Ok(true),
            copy_speed: Ok(Some(5 << 30)),
            available_memory: Some(3 << 30),
            copy_limit: Some(2 << 30),
            has_debug_files: true,
        }
    }

    fn statuses(system: &System) -> Vec<Status> {
        system.checks().iter().map(|check| check.status).collect()
    }

    #[test]
    fn for_root_everything_works() {
        assert_eq!(statuses(&system()), [Status::Ok; 8]);
    }

    #[test]
    fn what_does_not_work_says_what_is_lost() {
        let mut all = system();
        all.privileges = Privileges {
            uid: 1000,
            may_trace: false,
            is_filtered: true,
            yama: Some(2),
        };
        all.tracing = Err("refused".to_owned());
        all.page_map = Err("no such file".to_owned());
        all.copy_speed = Ok(None);
        all.available_memory = None;
        all.has_debug_files = false;
        let expected = [
            "limited", "failed", "ok", "failed", "limited", "failed", "limited", "limited",
        ];
        let expected = expected.map(|word| match word {
            "ok" => Status::Ok,
            "limited" => Status::Limited,
            _ => Status::Failed,
        });
        assert_eq!(statuses(&all), expected);
        let silent = all.checks().into_iter().filter(|c| c.loss.is_none());
        assert_eq!(silent.map(|c| c.id).collect::<Vec<_>>(), ["seccomp"]);
    }

    #[test]
    fn yama_concerns_those_without_the_capability() {
        for (scope, may_trace, expected) in [
            (None, false, Status::Ok),
            (Some(0), false, Status::Ok),
            (Some(1), false, Status::Limited),
            (Some(1), true, Status::Ok),
            (Some(2), false, Status::Failed),
            (Some(2), true, Status::Ok),
            (Some(3), true, Status::Failed),
        ] {
            let mut one = system();
            one.privileges.yama = scope;
            one.privileges.may_trace = may_trace;
            assert_eq!(one.yama().status, expected, "{scope:?} {may_trace}");
        }
    }
}
