//! What works for one process. It is not stopped.

use super::system::System;
use super::{Check, TargetEntry};
use crate::heap::{self, Exporter, embedded_allocator};
use crate::platform::{ProcessInfo, Target, TargetFiles, thread_count, tracer};
use crate::report::text::Size;
use crate::snapshot::{Method, Module};
use crate::stacklog::{LogError, LogHeader, LogMode};
use crate::symbolize::{ModuleSymbols, SymbolSource, inventory};

/// Modules that are named where symbols are missing; of more, it says how many.
const NAMED_MODULES: usize = 3;

/// What was found out about a process.
#[derive(Debug)]
pub(super) struct Examined {
    pid: u32,
    name: String,
    threads: usize,
    /// What reading it shows, or why it cannot be read.
    readable: Result<Readable, String>,
    /// Why it can be read and not be stopped.
    traced: Result<(), String>,
}

/// What reading a process shows.
#[derive(Debug)]
struct Readable {
    allocator: Allocator,
    log: Result<Option<LogHeader>, LogError>,
    modules: Vec<ModuleSymbols>,
    /// Bytes that a snapshot holds.
    bytes: u64,
    /// Bytes that the copy takes.
    copy_size: u64,
}

/// The allocator that is in charge.
#[derive(Debug, Default, PartialEq, Eq)]
enum Allocator {
    Glibc(Option<String>),
    /// A library that is not known stands before glibc.
    Interposed(String),
    /// One that rleaks cannot walk, and where it is.
    Foreign(String, String),
    #[default]
    Unknown,
}

impl Examined {
    /// Reads what is needed of `process`, which runs on.
    pub(super) fn look(process: &ProcessInfo) -> Self {
        let pid = process.pid;
        Self {
            pid,
            name: process.name.clone(),
            threads: thread_count(pid),
            readable: Readable::look(pid).map_err(|error| format!("{error:#}")),
            traced: tracer(pid).map_err(|obstacle| obstacle.to_string()),
        }
    }

    /// What is printed of it.
    pub(super) fn entry(&self, system: &System) -> TargetEntry {
        let readable = self.readable.as_ref().ok();
        let pause = readable.and_then(|readable| readable.pause(system));
        TargetEntry {
            pid: self.pid,
            name: self.name.clone(),
            threads: self.threads,
            memory_bytes: readable.map(|readable| readable.bytes),
            copy_bytes: readable.map(|readable| readable.copy_size),
            expected_pause_seconds: pause,
            checks: self.checks(system),
        }
    }

    fn checks(&self, system: &System) -> Vec<Check> {
        let mut checks = vec![self.permission(system), self.threads()];
        if let Ok(readable) = &self.readable {
            checks.push(readable.allocator.check(readable.has_all_blocks()));
            checks.push(symbols(&readable.modules));
            checks.push(debug_info(&readable.modules));
            checks.push(stack_log(&readable.log));
            checks.push(readable.memory(system));
            checks.push(readable.expected_pause(system));
        }
        checks
    }

    fn permission(&self, system: &System) -> Check {
        const ID: &str = "permission";
        const LOSS: &str = "it cannot be scanned";
        if let Err(why) = self.readable.as_ref().and(self.traced.as_ref()) {
            return Check::failed(ID, why, LOSS);
        }
        match &system.tracing {
            Err(_) => Check::failed(ID, "it can be read, but nothing can be stopped", LOSS),
            Ok(()) => Check::ok(ID, "it can be read and stopped"),
        }
    }

    fn threads(&self) -> Check {
        let noun = if self.threads == 1 {
            "thread"
        } else {
            "threads"
        };
        Check::ok("threads", format!("{} {noun} to stop", self.threads))
    }
}

impl Readable {
    fn look(pid: u32) -> anyhow::Result<Self> {
        let target = Target::new(pid);
        // A survey for a stream takes no memory.
        let survey = target.survey(Method::Stream)?;
        let embedded = survey.executable().and_then(|file| {
            embedded_allocator(file.size(), |offset, buf| file.read_at(offset, buf))
        });
        let exporters = heap::exporters(survey.memory(), &survey.modules);
        let executable = survey.modules.first().map_or("", |module| &module.path);
        let header = heap::stack_log(&exporters);
        let log = header.map_or(Ok(None), |at| LogHeader::read(survey.memory(), at));
        // The recorder has no names, and no report needs them.
        let is_named = |module: &&Module| header.is_none_or(|at| !module.contains(at));
        let named: Vec<Module> = survey.modules.iter().filter(is_named).cloned().collect();
        Ok(Self {
            log,
            allocator: Allocator::in_charge(&exporters, embedded, executable),
            modules: inventory(&named, &TargetFiles::of_process(pid)),
            bytes: survey.bytes,
            copy_size: survey.copy_size(),
        })
    }

    /// Says whether a stack log knows all blocks that live.
    fn has_all_blocks(&self) -> bool {
        matches!(&self.log, Ok(Some(header)) if header.lack().is_none())
    }

    fn is_copied(&self, system: &System) -> bool {
        system
            .copy_limit
            .is_none_or(|limit| self.copy_size <= limit)
    }

    /// Seconds that copying takes; `None` where there will be no copy.
    fn pause(&self, system: &System) -> Option<f64> {
        let speed = system.copy_speed.as_ref().ok().copied().flatten()?;
        let is_known = self.is_copied(system) && speed > 0;
        is_known.then(|| self.bytes as f64 / speed as f64)
    }

    fn memory(&self, system: &System) -> Check {
        const ID: &str = "memory";
        let needed = Size(self.copy_size);
        let available = match system.available_memory {
            Some(bytes) => format!("{} of {} available", needed, Size(bytes)),
            None => needed.to_string(),
        };
        if self.is_copied(system) {
            return Check::ok(ID, format!("a copy needs {available}"));
        }
        Check::limited(
            ID,
            format!("a copy would need {available}: too much"),
            "it is read while it stands still (--snapshot=stream): a longer pause",
        )
    }

    fn expected_pause(&self, system: &System) -> Check {
        const ID: &str = "pause";
        match self.pause(system) {
            Some(seconds) => {
                // Stopping and releasing takes some time for the smallest process, too.
                let milliseconds = (seconds * 1000.0).max(0.1);
                let bytes = Size(self.bytes);
                Check::ok(ID, format!("about {milliseconds:.1} ms to copy {bytes}"))
            }
            None if self.is_copied(system) => Check::limited(
                ID,
                "not known",
                "how long it stands still shows in the report only",
            ),
            None => Check::limited(
                ID,
                "as long as the whole scan",
                "it stands still for seconds rather than milliseconds",
            ),
        }
    }
}

impl Allocator {
    fn in_charge(exporters: &[Exporter], embedded: Option<&'static str>, executable: &str) -> Self {
        let first = heap::allocators(exporters).next();
        match (first, embedded) {
            (
                Some(Exporter {
                    foreign: Some(name),
                    path,
                    ..
                }),
                _,
            ) => Self::Foreign((*name).to_owned(), path.clone()),
            (_, Some(name)) => Self::Foreign(name.to_owned(), executable.to_owned()),
            (Some(first), None) if first.is_glibc => {
                let version = exporters.iter().find_map(|e| e.glibc_version.clone());
                Self::Glibc(version)
            }
            (Some(first), None) => Self::Interposed(first.path.clone()),
            (None, None) => Self::Unknown,
        }
    }

    fn check(&self, all_blocks_are_logged: bool) -> Check {
        const ID: &str = "allocator";
        match self {
            Self::Foreign(name, path) if all_blocks_are_logged => Check::limited(
                ID,
                format!("{name}, in {path}"),
                "rleaks cannot read its heap yet: the stack log says which blocks live, and all \
                 other memory counts as a root",
            ),
            Self::Glibc(Some(version)) => Check::ok(ID, format!("glibc {version}")),
            Self::Glibc(None) => Check::ok(ID, "glibc, of a release that it does not tell"),
            Self::Interposed(path) => Check::limited(
                ID,
                format!("{path} stands before glibc's malloc"),
                "blocks that it does not get from glibc are not looked at",
            ),
            Self::Foreign(name, path) => Check::failed(
                ID,
                format!("{name}, in {path}"),
                "rleaks cannot read its heap yet: the process cannot be scanned",
            ),
            Self::Unknown => Check::limited(
                ID,
                "no library has a malloc: the program is linked statically, or has its own",
                "whether its heap can be read shows in a scan only",
            ),
        }
    }
}

fn symbols(modules: &[ModuleSymbols]) -> Check {
    const ID: &str = "symbols";
    let count = |source| modules.iter().filter(|m| m.source == source).count();
    let found = count(SymbolSource::Full) + count(SymbolSource::DebugFile);
    let mut parts = vec![format!("complete for {found} of {} modules", modules.len())];
    for (source, what) in [
        (SymbolSource::DebugFile, "of these in separate debug files"),
        (SymbolSource::Exported, "stripped to what they export"),
        (SymbolSource::Missing, "whose file is gone or replaced"),
    ] {
        if count(source) > 0 {
            parts.push(format!("{} {what}", count(source)));
        }
    }
    let message = parts.join(", ");
    if found == modules.len() {
        return Check::ok(ID, message);
    }
    let lacking = modules
        .iter()
        .filter(|m| m.source >= SymbolSource::Exported);
    let lacking: Vec<&str> = lacking.map(|module| file_name(&module.path)).collect();
    let loss = format!(
        "local variables and classes have no names in {}",
        list(&lacking)
    );
    Check::limited(ID, message, &loss)
}

fn debug_info(modules: &[ModuleSymbols]) -> Check {
    let lacking = modules.iter().filter(|module| !module.has_debug_info);
    let lacking: Vec<&str> = lacking.map(|module| file_name(&module.path)).collect();
    let having = modules.len() - lacking.len();
    let message = format!("in {having} of {} modules", modules.len());
    if lacking.is_empty() {
        return Check::ok("debug_info", message);
    }
    let loss = format!(
        "call stacks would have no files and lines in {}",
        list(&lacking)
    );
    Check::limited("debug_info", message, &loss)
}

fn stack_log(log: &Result<Option<LogHeader>, LogError>) -> Check {
    const ID: &str = "stack_log";
    const LOSS: &str = "leaks come without the call stacks that allocated them";
    match log {
        Ok(None) => Check::limited(ID, "no malloc stack log was found", LOSS),
        Err(error) => Check::failed(ID, format!("it cannot be used: {error}"), LOSS),
        Ok(Some(header)) => {
            let mode = match header.mode {
                LogMode::Lite => "lite",
                LogMode::Full => "full",
            };
            match header.lack() {
                None => Check::ok(ID, format!("{mode}, with nothing dropped")),
                Some(why) => Check::limited(
                    ID,
                    format!("{mode}: {why}"),
                    "some leaks come without the call stacks that allocated them",
                ),
            }
        }
    }
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

fn list(names: &[&str]) -> String {
    let mut text = names[..names.len().min(NAMED_MODULES)].join(", ");
    if names.len() > NAMED_MODULES {
        text.push_str(&format!(" and {} more", names.len() - NAMED_MODULES));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    fn module(path: &str, source: SymbolSource, has_debug_info: bool) -> ModuleSymbols {
        ModuleSymbols {
            path: path.to_owned(),
            source,
            has_debug_info,
        }
    }

    fn exporter(path: &str, foreign: Option<&'static str>, is_glibc: bool) -> Exporter {
        Exporter {
            path: path.to_owned(),
            foreign,
            is_glibc,
            glibc_version: is_glibc.then(|| "2.36".to_owned()),
            code: None,
            stack_log: None,
        }
    }

    #[test]
    fn symbols_are_counted_by_where_they_are() {
        let modules = [
            module("/bin/app", SymbolSource::Full, true),
            module("/lib/libc.so.6", SymbolSource::DebugFile, true),
            module("/lib/libz.so.1", SymbolSource::Exported, false),
            module("/opt/plugin.so", SymbolSource::Missing, false),
        ];
        let check = symbols(&modules);
        assert_eq!(
            check.message,
            "complete for 2 of 4 modules, 1 of these in separate debug files, 1 stripped to what they \
             export, 1 whose file is gone or replaced"
        );
        let loss = "local variables and classes have no names in libz.so.1, plugin.so";
        assert_eq!(check.loss.as_deref(), Some(loss));
        assert_eq!(symbols(&modules[..2]).status, Status::Ok);
        assert_eq!(debug_info(&modules).message, "in 2 of 4 modules");
        assert_eq!(debug_info(&modules[..2]).status, Status::Ok);
    }

    #[test]
    fn many_modules_are_counted_and_not_listed() {
        assert_eq!(list(&["a", "b", "c"]), "a, b, c");
        assert_eq!(list(&["a", "b", "c", "d", "e"]), "a, b, c and 2 more");
        assert_eq!(list(&[]), "");
    }

    #[test]
    fn the_allocator_in_charge_is_the_first_one() {
        let glibc = || exporter("/lib/libc.so.6", None, true);
        let jemalloc = exporter("/lib/libjemalloc.so.2", Some("jemalloc"), false);
        let own = exporter("/opt/malloc.so", None, false);
        for (exporters, embedded, expected) in [
            (
                vec![glibc()],
                None,
                Allocator::Glibc(Some("2.36".to_owned())),
            ),
            (
                vec![jemalloc, glibc()],
                None,
                Allocator::Foreign("jemalloc".to_owned(), "/lib/libjemalloc.so.2".to_owned()),
            ),
            (
                vec![glibc()],
                Some("mimalloc"),
                Allocator::Foreign("mimalloc".to_owned(), "/bin/app".to_owned()),
            ),
            (
                vec![own, glibc()],
                None,
                Allocator::Interposed("/opt/malloc.so".to_owned()),
            ),
            (vec![], None, Allocator::Unknown),
        ] {
            let found = Allocator::in_charge(&exporters, embedded, "/bin/app");
            assert_eq!(found, expected);
        }
    }
}
