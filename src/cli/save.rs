//! `rleaks TARGET --output-graph FILE`: saves a snapshot, to be looked at later.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use anyhow::{Context, anyhow, bail};

use super::ExitStatus;
use super::args::{LeaksArgs, SaveArgs};
use super::capture::{Captured, Purpose, capture};
use super::error::{self, printable};
use super::memory_limit::MemoryLimit;
use super::reduction::Reduction;
use super::target;
use crate::memory::Memory;
use crate::platform::{NewFile, ProcessInfo, Target, Written, interrupt_flag};
use crate::report::rfc3339;
use crate::report::text::Size;
use crate::snapshot::saved::{Compressed, CoreImage, WriteError, write_plain};
use crate::snapshot::{Capture, ContentLevel, Snapshot};

/// Saves a snapshot of each target. One that cannot be saved does not keep the others from it.
pub(crate) fn save(args: &LeaksArgs, path: &Path) -> anyhow::Result<ExitStatus> {
    let processes = target::find(&args.target)?;
    if let [process] = processes.as_slice() {
        return save_process(process, args, path);
    }
    if !path.is_dir() {
        bail!(
            "--all saves several files: {} must be a directory",
            printable(&path.to_string_lossy())
        );
    }
    let mut status = ExitStatus::Done;
    for process in processes {
        let one = save_process(&process, args, path)
            .with_context(|| format!("cannot save process {}", process.pid));
        status = status.max(one.unwrap_or_else(|error| error::report(&error)));
    }
    Ok(status)
}

fn save_process(
    process: &ProcessInfo,
    args: &LeaksArgs,
    path: &Path,
) -> anyhow::Result<ExitStatus> {
    let name = (process.name.as_str(), process.pid);
    let place = Place::new(path, name, &args.save)?;
    let method = args.scan.snapshot.into();
    let limit = MemoryLimit::new(args.scan.memory_limit);
    limit.begin()?;
    let target = Target::new(process.pid).with_memory_limit(args.scan.memory_limit);
    let captured = capture(&target, method, Purpose::Save)?;
    let saved = (args.save.compress, args.content_level());
    let said = write(captured, place, saved, limit)?;
    if !args.output.quiet {
        say(&said);
    }
    Ok(ExitStatus::Done)
}

/// A file that is ready to be written: what cannot be is known before a target is stopped.
pub(super) struct Place {
    path: PathBuf,
    file: NewFile,
}

impl Place {
    /// The file at `path` or, where that is a directory, one in it that is named after the process.
    pub(super) fn new(
        path: &Path,
        (name, pid): (&str, u32),
        args: &SaveArgs,
    ) -> anyhow::Result<Self> {
        if path == Path::new("-") {
            bail!("a snapshot cannot go to standard output: name a file, or a directory");
        }
        let path = if path.is_dir() {
            path.join(file_name(name, pid, SystemTime::now(), args.compress))
        } else {
            path.to_owned()
        };
        let file = NewFile::create(&path).map_err(|error| explained(error, &path))?;
        Ok(Self { path, file })
    }
}

/// `rleaks-NAME-PID-TIME.core`, with nothing in it that a shell would take for something else.
fn file_name(name: &str, pid: u32, now: SystemTime, compress: bool) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let name: String = name
        .chars()
        .map(|c| if is_plain(c) { c } else { '_' })
        .collect();
    let time = rfc3339(now).replace(['-', ':'], "");
    let ending = if compress { ".zst" } else { "" };
    format!("rleaks-{name}-{pid}-{time}.core{ending}")
}

/// Writes what was captured, and says what that came to. A target that stands still goes on when
/// its memory is in the file.
pub(super) fn write(
    mut captured: Captured,
    place: Place,
    (compress, level): (bool, ContentLevel),
    limit: MemoryLimit,
) -> anyhow::Result<String> {
    let stopped = captured.stopped.take();
    let reduction = match level {
        ContentLevel::Full => None,
        level => Some(Reduction::new(&captured, level, limit)?),
    };
    if let Some(reduction) = &reduction {
        reduction.reduce(&mut captured)?;
    }
    let whole = &*captured.snapshot.memory;
    let reduced = reduction
        .as_ref()
        .map(|reduction| reduction.memory(whole, captured.snapshot.width, &captured.heap.blocks));
    let memory: &dyn Memory = match &reduced {
        Some(reduced) => reduced,
        None => whole,
    };
    let ranges: Vec<_> = captured.parts.pages.ranges().collect();
    let image = CoreImage::new(
        &captured.snapshot,
        memory,
        (&captured.parts.pages, &ranges),
        (captured.facts.clone(), captured.capture_warnings),
    );
    let image = image.context(
        "the target has more memory than a 32-bit core file can hold, which ends at 4 GiB",
    )?;
    let mut out = Output::new(&place.file, compress);
    let written = out.memory(&image);
    let mut capture = captured.snapshot.capture.clone();
    if let Some(stopped) = stopped {
        let warning = stopped.account(&mut capture)?;
        if let Some(warning) = warning {
            say(&warning.message);
        }
    }
    let written = written.and_then(|()| out.end(&image, &capture));
    written.map_err(|error| match error {
        WriteError::Io(error) => explained(error, &place.path),
        WriteError::Interrupted => anyhow!(error),
    })?;
    let Place { path, file } = place;
    if let Some(reduction) = &reduction {
        reduction.check(&captured, file.temporary())?;
    }
    let written = file.finish().map_err(|error| explained(error, &path))?;
    Ok(summary(&captured.snapshot, &path, &written))
}

/// Where a file is written to.
enum Output<'a> {
    Plain(&'a NewFile),
    Compressed(Compressed<'a>),
}

impl<'a> Output<'a> {
    fn new(file: &'a NewFile, compress: bool) -> Self {
        if compress {
            Self::Compressed(Compressed::new(file))
        } else {
            Self::Plain(file)
        }
    }

    fn memory(&mut self, image: &CoreImage<'_>) -> Result<(), WriteError> {
        let interrupted = || interrupt_flag().load(Ordering::Relaxed);
        match self {
            Self::Plain(file) => write_plain(image, *file, &interrupted),
            Self::Compressed(container) => container.append(image, &interrupted),
        }
    }

    fn end(self, image: &CoreImage<'_>, capture: &Capture) -> Result<(), WriteError> {
        let tail = image.tail(capture);
        match self {
            Self::Plain(file) => image.write_tail(&tail, file)?,
            Self::Compressed(mut container) => {
                container.append(&tail, &|| false)?;
                container.finish()?;
            }
        }
        Ok(())
    }
}

/// What is wrong with the file, and what to do about it.
fn explained(error: io::Error, path: &Path) -> anyhow::Error {
    let remedy = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            ": make room there, name a file on another disk, or let --compress make it smaller"
        }
        io::ErrorKind::FileTooLarge => {
            ": raise the limit of file sizes (ulimit -f), name a file on another disk, or let \
             --compress make it smaller"
        }
        _ => "",
    };
    let path = printable(&path.to_string_lossy());
    anyhow!(error).context(format!("cannot write {path}{remedy}"))
}

fn summary(snapshot: &Snapshot, path: &Path, written: &Written) -> String {
    let process = &snapshot.process;
    format!(
        "saved process {} ({}) in {}: {}, of which {} on disk",
        process.pid,
        printable(&process.name),
        printable(&path.to_string_lossy()),
        Size(written.size),
        Size(written.on_disk),
    )
}

pub(super) fn say(text: &str) {
    // There is nowhere to say that it could not be said.
    let _ = io::stderr()
        .lock()
        .write_all(format!("rleaks: {text}\n").as_bytes());
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_generated_name_tells_which_process_and_when() {
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_356_191);
        assert_eq!(
            file_name("a b/c", 42, time, true),
            "rleaks-a_b_c-42-20261122T140311Z.core.zst"
        );
    }
}
