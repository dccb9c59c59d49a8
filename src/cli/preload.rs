//! `rleaks preload-path`, and where the recorder's library is.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use super::ExitStatus;
use crate::platform::{make_public, private_folder, put_file};
use crate::stacklog::RECORDER;

/// Names a library to be used instead of the one that rleaks has in it.
const VARIABLE: &str = "RLEAKS_PRELOAD";
const PRELOAD: &str = "LD_PRELOAD";

/// Prints where the library is or, with `install`, where it has been copied to.
pub(crate) fn preload_path(install: Option<&Path>) -> anyhow::Result<ExitStatus> {
    let path = match install {
        Some(folder) => installed(folder)?,
        None => library()?,
    };
    let mut out = io::stdout().lock();
    out.write_all(path.as_os_str().as_bytes())?;
    out.write_all(b"\n")?;
    Ok(ExitStatus::Done)
}

fn installed(folder: &Path) -> anyhow::Result<PathBuf> {
    let contents = match chosen()? {
        Some(path) => fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?,
        None => embedded()?.to_vec(),
    };
    let folder = std::path::absolute(folder)?;
    make_public(&folder)
        .with_context(|| format!("cannot make the directory {}", folder.display()))?;
    let path = folder.join("librleaks_preload.so");
    put_file(&path, &contents, 0o755)
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// Where the library is that a program has to load to be recorded. It is written there if need be, and
/// stays: programs that were started with it start others.
pub(super) fn library() -> anyhow::Result<PathBuf> {
    if let Some(path) = chosen()? {
        return Ok(path);
    }
    let recorder = embedded()?;
    let folder = private_folder()?;
    let mut hasher = DefaultHasher::new();
    recorder.hash(&mut hasher);
    let version = env!("CARGO_PKG_VERSION");
    let path = folder.join(format!("{version}-{:016x}.so", hasher.finish()));
    put_file(&path, recorder, 0o600).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// The library that the user has named.
fn chosen() -> anyhow::Result<Option<PathBuf>> {
    let Some(path) = std::env::var_os(VARIABLE).filter(|path| !path.is_empty()) else {
        return Ok(None);
    };
    // The program may change its directory.
    let path = std::path::absolute(path)?;
    if !path.is_file() {
        bail!("{VARIABLE} is {}, which is no file", path.display());
    }
    Ok(Some(path))
}

/// The library as it was built with rleaks.
fn embedded() -> anyhow::Result<&'static [u8]> {
    if RECORDER.is_empty() {
        bail!("this rleaks was built without a recorder, which is for Linux on x86-64 only");
    }
    Ok(RECORDER)
}

/// The variable that makes the dynamic loader load `library` first, and then what it would have
/// loaded.
pub(super) fn preloading(library: &Path) -> anyhow::Result<(OsString, OsString)> {
    let path = library.as_os_str();
    if path
        .as_bytes()
        .iter()
        .any(|byte| matches!(byte, b' ' | b':'))
    {
        bail!(
            "the dynamic loader cannot load {}: it has a space or a colon in it; set TMPDIR or {VARIABLE} \
             to another place",
            library.display()
        );
    }
    let others = std::env::var_os(PRELOAD).filter(|others| !others.is_empty());
    Ok((OsString::from(PRELOAD), first_of(path, others)))
}

fn first_of(path: &OsStr, others: Option<OsString>) -> OsString {
    let mut value = path.to_owned();
    if let Some(others) = others {
        value.push(":");
        value.push(others);
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_user_preloads_stays() {
        let first = |others: Option<&str>| first_of(OsStr::new("/r.so"), others.map(Into::into));
        assert_eq!(first(None), "/r.so");
        assert_eq!(first(Some("/a.so b.so")), "/r.so:/a.so b.so");
    }

    #[test]
    fn a_path_that_the_loader_would_split_is_refused() {
        for path in ["/tmp/a b/r.so", "/tmp/a:b/r.so"] {
            let error = preloading(Path::new(path)).expect_err("refused");
            assert!(error.to_string().contains(path), "{error}");
        }
        let (name, value) = preloading(Path::new("/tmp/r.so")).expect("a variable");
        assert_eq!(name, PRELOAD);
        assert!(value.as_bytes().starts_with(b"/tmp/r.so"));
    }
}
