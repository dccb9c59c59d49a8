//! debuginfod: servers that give the debug information of a build id.
//!
//! rleaks asks no server itself. Where the user has named servers in `DEBUGINFOD_URLS`, it looks into
//! the cache of the usual client, and then runs that client, `debuginfod-find`: it knows the
//! user's proxies, timeouts, headers and certificates, and other debuggers find what it fetched.

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// The client of the debuginfod servers that the user has chosen.
#[derive(Debug)]
pub struct Debuginfod {
    program: OsString,
    cache: Option<PathBuf>,
}

impl Debuginfod {
    /// The client, if the user has named servers in `DEBUGINFOD_URLS`.
    #[must_use]
    pub fn from_environment() -> Option<Self> {
        let urls = env::var_os("DEBUGINFOD_URLS")?;
        let is_empty = urls.to_string_lossy().trim().is_empty();
        (!is_empty).then(|| Self {
            program: OsString::from("debuginfod-find"),
            cache: cache_directory(&|name| env::var_os(name)),
        })
    }

    /// The path of a file with the debug information for `build_id`. It may take as long as the
    /// client waits for its servers.
    #[must_use]
    pub fn debug_file(&self, build_id: &[u8]) -> Option<String> {
        let id: String = build_id.iter().map(|byte| format!("{byte:02x}")).collect();
        self.cached(&id).or_else(|| self.fetched(&id))
    }

    /// An empty file in the cache says that the servers had nothing.
    fn cached(&self, id: &str) -> Option<String> {
        let path = self.cache.as_ref()?.join(id).join("debuginfo");
        let is_there = path.metadata().is_ok_and(|file| file.len() > 0);
        is_there.then(|| path.into_os_string().into_string().ok())?
    }

    fn fetched(&self, id: &str) -> Option<String> {
        let output = Command::new(&self.program)
            .args(["debuginfo", id])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .output()
            .ok()?;
        let path = String::from_utf8(output.stdout).ok()?;
        let path = path.trim_end_matches('\n');
        (output.status.success() && !path.is_empty()).then(|| path.to_owned())
    }
}

/// Where the client keeps what it fetched, as its manual page says.
fn cache_directory(variable: &dyn Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let set = |name| variable(name).filter(|value| !value.is_empty());
    set("DEBUGINFOD_CACHE_PATH")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(set("XDG_CACHE_HOME")?).join("debuginfod_client")))
        .or_else(|| Some(PathBuf::from(set("HOME")?).join(".cache/debuginfod_client")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    /// A client that gives `/fetched/ID` for what begins with `1`.
    fn client(directory: &tempfile::TempDir) -> Debuginfod {
        let program = directory.path().join("client");
        let script = "#!/bin/sh\ncase \"$1 $2\" in\n'debuginfo 1'*) echo \"/fetched/$2\" ;;\n\
                      *) echo oops; exit 1 ;;\nesac\n";
        fs::write(&program, script).expect("a script");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("its mode");
        Debuginfod {
            program: program.into(),
            cache: Some(directory.path().to_owned()),
        }
    }

    #[test]
    fn the_cache_comes_before_the_client() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let client = client(&directory);
        for id in ["10ab", "2000"] {
            fs::create_dir(directory.path().join(id)).expect("a directory");
        }
        let cached = directory.path().join("10ab/debuginfo");
        fs::write(&cached, b"here").expect("a file");
        fs::write(directory.path().join("2000/debuginfo"), b"").expect("an empty file");
        let cached = cached.to_str().expect("a path in UTF-8");
        assert_eq!(client.debug_file(&[0x10, 0xab]).as_deref(), Some(cached));
        let fetched = client.debug_file(&[0x10, 0xac]);
        assert_eq!(fetched.as_deref(), Some("/fetched/10ac"));
        assert_eq!(client.debug_file(&[0x20, 0]), None);
    }

    #[test]
    fn a_client_that_is_not_there_finds_nothing() {
        let client = Debuginfod {
            program: "/no/such/client".into(),
            cache: None,
        };
        assert_eq!(client.debug_file(&[0x10]), None);
    }

    #[test]
    fn the_cache_is_where_the_client_has_it() {
        for (set, cache) in [
            (&[("HOME", "/h")][..], Some("/h/.cache/debuginfod_client")),
            (
                &[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")],
                Some("/x/debuginfod_client"),
            ),
            (
                &[("XDG_CACHE_HOME", "/x"), ("DEBUGINFOD_CACHE_PATH", "/d")],
                Some("/d"),
            ),
            (&[("HOME", "")], None),
        ] {
            let variable = |name: &str| {
                let found = set.iter().find(|(known, _)| *known == name);
                found.map(|(_, value)| OsString::from(value))
            };
            assert_eq!(cache_directory(&variable), cache.map(PathBuf::from));
        }
    }
}
