//! The recorder of the malloc stack log, as a file that can be preloaded.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;

use rleaks::stacklog::RECORDER;

static NEXT_NUMBER: AtomicU32 = AtomicU32::new(0);

/// Where the recorder is.
pub(crate) fn recorder() -> PathBuf {
    assert!(
        !RECORDER.is_empty(),
        "there is no recorder for this machine"
    );
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("rleaks");
    fs::create_dir_all(&folder).unwrap();
    // Written under a name of its own: a process may have another test's file loaded.
    let number = NEXT_NUMBER.fetch_add(1, Relaxed);
    let unfinished = folder.join(format!("{}-{number}", std::process::id()));
    fs::write(&unfinished, RECORDER).unwrap();
    let finished = folder.join("recorder.so");
    fs::rename(&unfinished, &finished).unwrap();
    finished
}

/// `program`, to be started under the recorder.
pub(crate) fn recorded(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env("LD_PRELOAD", recorder());
    command
}
