//! A core file of the kernel's or a debugger's: the files that it needs, and what is to be said where
//! they are not here.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::bail;

use super::args::FileArgs;
use super::capture::{Captured, Found};
use super::error::printable;
use crate::heap::{self, embedded_allocator};
use crate::platform::{DiskFile, TargetFiles};
use crate::snapshot::core::{CoreFile, FileBytes, ImageFiles, Lack, Lacking, Opened};
use crate::stacklog;
use crate::warning::{Bias, Warning};

/// So many files are named in a message.
const NAMED: usize = 4;

/// The files on this machine that those of the target are.
struct Files<'a> {
    here: TargetFiles,
    program: Option<&'a Path>,
}

impl ImageFiles for Files<'_> {
    fn open(&self, path: &str, is_program: bool) -> Option<Arc<dyn FileBytes>> {
        match self.program.filter(|_| is_program) {
            Some(program) => Some(Arc::new(DiskFile::open(program).ok()?)),
            None => Some(Arc::new(DiskFile::from(self.here.file(path)?))),
        }
    }
}

/// The files below the directory that stands for the target's root directory.
fn root(args: &FileArgs) -> TargetFiles {
    TargetFiles::under(args.sysroot.as_deref().unwrap_or(Path::new("/")))
}

/// Walks the heap in `core`, which was made at about `taken_at`.
pub(super) fn read(
    core: &CoreFile,
    taken_at: SystemTime,
    args: &FileArgs,
) -> anyhow::Result<(Captured, TargetFiles)> {
    let opener = Files {
        here: root(args),
        program: args.exe.as_deref(),
    };
    let mut opened = Opened::new(core, taken_at, &opener);
    let snapshot = &opened.snapshot;
    let exporters = heap::exporters(&opened.images, &snapshot.modules);
    refuse_without_symbols(&opened, exporters.is_empty())?;
    let inside_malloc = snapshot.threads.iter();
    let inside_malloc = inside_malloc
        .clone()
        .any(|thread| heap::is_inside_malloc(thread, &opened.images, &exporters));
    let program = opened.program.as_ref();
    let embedded = program.and_then(|file| {
        embedded_allocator(file.size(), |offset, buf| {
            file.read_at(offset, buf) == buf.len()
        })
    });
    // The symbol that tells where the log is, is in the recorder's file alone.
    let stack_log = heap::stack_log(&exporters).or_else(|| stacklog::search(snapshot));
    let found = Found {
        exporters,
        embedded,
        inside_malloc: Some(inside_malloc),
        stack_log,
    };
    opened.snapshot.warnings.extend(warnings(&opened.lacking));
    let executable = opened.snapshot.process.executable.clone();
    let unsaved = unsaved_memory(&opened);
    let captured = found.walk(opened.snapshot);
    let captured = captured.map_err(|error| match unsaved {
        Some(unsaved) => error.context(unsaved),
        None => error,
    })?;
    let Some(captured) = captured else {
        bail!("a heap in a file is taken as it is");
    };
    Ok((captured, files(&executable, args)))
}

/// The target's files, of which `executable` is the program.
pub(super) fn files(executable: &str, args: &FileArgs) -> TargetFiles {
    match &args.exe {
        Some(own) => root(args).with_substitute(executable, own),
        None => root(args),
    }
}

/// What of the memory is not in the file, in words: that explains a heap which is not there, or not whole.
fn unsaved_memory(opened: &Opened) -> Option<String> {
    const CODES: [&str; 2] = ["core_cut_short", "core_memory_unsaved"];
    let mut warnings = opened.snapshot.warnings.iter();
    let unsaved = warnings.find(|warning| CODES.contains(&warning.code.as_str()));
    unsaved.map(|warning| warning.message.clone())
}

/// Without the symbols of its libraries nobody knows whose malloc a program calls.
fn refuse_without_symbols(opened: &Opened, is_unknown: bool) -> anyhow::Result<()> {
    let program = &opened.snapshot.process.executable;
    let mut lacking = opened.lacking.iter();
    let is_needed =
        |lacking: &&Lacking| lacking.lack != Lack::Unverified && lacking.path != *program;
    if !is_unknown || !lacking.any(|lacking| is_needed(&lacking)) {
        return Ok(());
    }
    bail!(
        "whose malloc the program calls is in files that are not here: {}; give the directory that has the \
         target's files with --sysroot DIR, and the executable with --exe PATH",
        list(opened.lacking.iter().filter(is_needed))
    )
}

fn warnings(lacking: &[Lacking]) -> impl Iterator<Item = Warning> {
    let not_here = |lacking: &&Lacking| lacking.lack != Lack::Unverified;
    let missing = lacking.iter().any(|lacking| not_here(&lacking)).then(|| {
        Warning::new(
            "core_files_missing",
            format!(
                "files of the target are not here: {}; if one of them replaces malloc, the blocks that it \
                 got by itself are not looked at, and its functions have no names (--sysroot DIR, \
                 --exe PATH)",
                list(lacking.iter().filter(not_here))
            ),
            Bias::MissedLeaks,
        )
    });
    let is_unverified = |lacking: &&Lacking| lacking.lack == Lack::Unverified;
    let unverified = lacking.iter().any(|lacking| is_unverified(&lacking)).then(|| {
        Warning::new(
            "core_files_unverified",
            format!(
                "the core file has no first pages of its images (coredump_filter), so nothing tells \
                 whether the files here are the same: {}",
                list(lacking.iter().filter(is_unverified))
            ),
            Bias::FalseLeaks,
        )
    });
    missing.into_iter().chain(unverified)
}

/// The first of `lacking`, with what is wrong with each.
fn list<'a>(lacking: impl Iterator<Item = &'a Lacking>) -> String {
    let all: Vec<String> = lacking.map(described).collect();
    let shown = all
        .iter()
        .take(NAMED)
        .cloned()
        .collect::<Vec<_>>()
        .join(", ");
    match all.len().saturating_sub(NAMED) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

fn described(lacking: &Lacking) -> String {
    let path = printable(&lacking.path);
    let digits = |id: &Vec<u8>| {
        id.iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
    };
    let id = |id: &Option<Vec<u8>>| id.as_ref().map(digits);
    match (&lacking.lack, id(&lacking.build_id)) {
        (Lack::Missing, Some(id)) => format!("{path} (build id {id})"),
        (Lack::Missing | Lack::Unverified, _) => path,
        (Lack::Other(found), Some(wanted)) => format!(
            "{path} (the target's has build id {wanted}, the one here {})",
            id(found).unwrap_or_else(|| "none".to_owned())
        ),
        (Lack::Other(_), None) => format!("{path} (the one here is another)"),
    }
}
