//! Compiles a fixture, at most once for each version of its source.

use std::ffi::OsStr;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;

static NEXT_NUMBER: AtomicU32 = AtomicU32::new(0);

/// What a fixture is compiled for, and how it is linked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Build {
    /// For x86-64, dynamically.
    Dynamic,
    Static,
    StaticPie,
    I386,
    I386Static,
}

impl Build {
    fn flags(self) -> &'static [&'static str] {
        match self {
            Self::Dynamic => &[],
            Self::Static => &["-static"],
            Self::StaticPie => &["-static-pie"],
            Self::I386 => &["-m32"],
            Self::I386Static => &["-m32", "-static"],
        }
    }
}

/// Compiles `fixtures/FILE` and returns where the result is.
///
/// Tests run in many processes and threads: each compiles under a name of its own and renames the
/// result, so that no half-written file is ever run and nobody waits for a lock.
pub(super) fn compile(file: &str, build: Build) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let source = folder.join(file);
    let (compiler, flags) = command_line(file);

    let mut hasher = DefaultHasher::new();
    (compiler, flags, build.flags()).hash(&mut hasher);
    for path in [&source, &folder.join("fixture.h")] {
        let text = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        text.hash(&mut hasher);
    }
    let stem = source.file_stem().and_then(OsStr::to_str).unwrap();
    let output =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{stem}-{:016x}", hasher.finish()));
    if output.exists() {
        return output;
    }

    let number = NEXT_NUMBER.fetch_add(1, Relaxed);
    let unfinished = output.with_extension(format!("{}-{number}", std::process::id()));
    let status = Command::new(compiler)
        .args(flags)
        .args(build.flags())
        .arg("-o")
        .args([&unfinished, &source])
        .status()
        .unwrap_or_else(|error| panic!("cannot run {compiler}: {error}"));
    assert!(status.success(), "{compiler} cannot compile {file}");
    fs::rename(&unfinished, &output).unwrap();
    output
}

fn command_line(file: &str) -> (&'static str, &'static [&'static str]) {
    if file == "tls_library.c" {
        let flags = &[
            "-O1",
            "-g",
            "-shared",
            "-fPIC",
            "-ftls-model=global-dynamic",
        ];
        return ("cc", flags);
    }
    let compiler = if file.ends_with(".cpp") { "c++" } else { "cc" };
    (compiler, &["-O1", "-g", "-pthread", "-Wall", "-Wextra"])
}
