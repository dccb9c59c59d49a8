//! Compiles a fixture, at most once for each version of its source.

use std::ffi::OsStr;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;

static NEXT_NUMBER: AtomicU32 = AtomicU32::new(0);

/// How a fixture is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Build {
    /// As its language is usually built here.
    Usual,
    /// Statically linked.
    Static,
    /// Statically linked, to be loaded anywhere.
    StaticPie,
    /// For i386.
    I386,
    /// For i386, statically linked.
    I386Static,
    /// With musl's libc, dynamically linked.
    Musl,
    /// With musl's libc, statically linked.
    MuslStatic,
    /// With `AddressSanitizer`.
    AddressSanitizer,
}

/// The builds that differ from the usual one in their width, or in that nothing is loaded.
pub(crate) const WIDTHS: [Build; 4] = [
    Build::I386,
    Build::I386Static,
    Build::Static,
    Build::StaticPie,
];

impl Build {
    /// What is added to the usual flags.
    fn flags(self) -> &'static [&'static str] {
        match self {
            Self::Static => &["-static"],
            Self::StaticPie => &["-static-pie"],
            Self::I386 => &["-m32"],
            Self::I386Static => &["-m32", "-static"],
            Self::Usual | Self::Musl | Self::MuslStatic | Self::AddressSanitizer => &[],
        }
    }
}

/// Compiles `fixtures/FILE` and returns where the result is.
pub(crate) fn compile(file: &str) -> PathBuf {
    compile_as(file, Build::Usual)
}

/// The same, built in a way of its own.
///
/// Tests run in many processes and threads: each compiles under a name of its own and renames the
/// result, so that no half-written file is ever run and nobody waits for a lock.
pub(crate) fn compile_as(file: &str, build: Build) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let source = folder.join(file);
    let (compiler, flags) = command_line(file, build);

    let mut hasher = DefaultHasher::new();
    (compiler, flags, build.flags()).hash(&mut hasher);
    for path in [&source, &folder.join("fixture.h"), &folder.join("busy.h")] {
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
    let mut command = Command::new(compiler);
    if compiler == "mcs" {
        command.arg(format!("-out:{}", unfinished.display()));
    } else {
        command.arg("-o").arg(&unfinished);
    }
    let status = command
        .args(flags)
        .args(build.flags())
        .arg(&source)
        .status()
        .unwrap_or_else(|error| panic!("cannot run {compiler}: {error}"));
    assert!(status.success(), "{compiler} cannot compile {file}");
    fs::rename(&unfinished, &output).unwrap();
    output
}

fn command_line(file: &str, build: Build) -> (&'static str, &'static [&'static str]) {
    if file.ends_with("_library.c") {
        let flags = &[
            "-O1",
            "-g",
            "-shared",
            "-fPIC",
            "-ftls-model=global-dynamic",
        ];
        return ("cc", flags);
    }
    match build {
        Build::Usual if file.ends_with(".cs") => ("mcs", &["-unsafe"]),
        Build::Usual | Build::Static | Build::StaticPie | Build::I386 | Build::I386Static => {
            let compiler = if file.ends_with(".cpp") { "c++" } else { "cc" };
            (compiler, &["-O1", "-g", "-pthread", "-Wall", "-Wextra"])
        }
        Build::Musl => ("musl-gcc", &["-O1", "-g"]),
        Build::MuslStatic => ("musl-gcc", &["-O1", "-g", "-static"]),
        Build::AddressSanitizer => ("cc", &["-O1", "-g", "-fsanitize=address"]),
    }
}
