//! The top and the bottom of the text: what was looked at, the totals, and the warnings.

use std::fmt;
use std::io::{self, Write};

use super::diff::By;
use super::escape::Escaped;
use super::options::Palette;
use super::size::{Count, Size};
use crate::report::{
    Capture, CaptureMethod, ComparedWith, Comparison, Report, StackLog, StackLogMode, Target,
    TargetKind,
};
use crate::warning::{Bias, Warning};

/// Writes who the target is and how its snapshot was taken.
pub(super) fn write_header(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    let Target { kind, .. } = report.target;
    line(out, "Process:", &ProcessName(&report.target))?;
    line(out, "Path:", &Escaped(&report.target.executable))?;
    line(out, "Code Type:", &CodeType(&report.target.arch))?;
    line(out, "Platform:", &Platform(&report.target.os))?;
    line(out, "Target Type:", &kind_name(kind))?;
    if let Some(status) = report.target.command_status {
        line(out, "Exit Status:", &status)?;
    }
    if let Some(signal) = &report.target.signal {
        line(out, "Signal:", &Escaped(signal))?;
    }
    writeln!(out)?;
    line(out, "Date/Time:", &DateTime(&report.capture.taken_at))?;
    let version = Escaped(&report.rleaks_version);
    line(out, "Analysis Tool:", &format_args!("rleaks {version}"))?;
    write_capture(&report.capture, out)?;
    if report.stack_log.mode != StackLogMode::None {
        line(out, "Stack Log:", &Recorded(&report.stack_log))?;
    }
    if let Some(comparison) = &report.comparison {
        line(out, "Compared With:", &With(comparison))?;
    }
    writeln!(out, "----")?;
    writeln!(out)
}

fn write_capture(capture: &Capture, out: &mut dyn Write) -> io::Result<()> {
    let memory = Size(capture.memory_bytes);
    let method = method_name(capture.method);
    line(
        out,
        "Capture:",
        &format_args!("{method}, {memory} of memory"),
    )?;
    if let Some(seconds) = capture.pause_seconds {
        line(out, "Pause:", &Pause { seconds, capture })?;
    }
    line(out, "Threads:", &capture.threads)
}

/// Writes a line of a header.
pub(super) fn line(out: &mut dyn Write, name: &str, value: &dyn fmt::Display) -> io::Result<()> {
    writeln!(out, "{name:<16} {value}")
}

/// The name and the pid.
pub(super) struct ProcessName<'a>(pub(super) &'a Target);

impl fmt::Display for ProcessName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", Escaped(&self.0.name))?;
        self.0.pid.map_or(Ok(()), |pid| write!(f, " [{pid}]"))
    }
}

/// `old.json of 2026-11-22 14:03:11 UTC, by address (it is the same process)`.
struct With<'a>(&'a Comparison);

impl fmt::Display for With<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", Escaped(&self.0.file))?;
        if let Some(taken_at) = &self.0.taken_at {
            write!(f, " of {}", DateTime(taken_at))?;
        }
        write!(f, ", by {}", By(self.0.by))
    }
}

struct CodeType<'a>(&'a str);

impl fmt::Display for CodeType<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            "x86_64" => f.write_str("X86-64"),
            "i386" => f.write_str("X86"),
            "aarch64" => f.write_str("ARM64"),
            other => write!(f, "{}", Escaped(other)),
        }
    }
}

struct Platform<'a>(&'a str);

impl fmt::Display for Platform<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            "linux" => f.write_str("Linux"),
            "macos" => f.write_str("macOS"),
            other => write!(f, "{}", Escaped(other)),
        }
    }
}

/// An RFC 3339 instant, as people write it: `2026-11-22 14:03:11 UTC`.
pub(super) struct DateTime<'a>(pub(super) &'a str);

impl fmt::Display for DateTime<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.strip_suffix('Z').and_then(|t| t.split_once('T')) {
            Some((date, time)) => write!(f, "{} {} UTC", Escaped(date), Escaped(time)),
            None => write!(f, "{}", Escaped(self.0)),
        }
    }
}

/// `12.3 ms in 2 stops, longest 8.0 ms`.
struct Pause<'a> {
    seconds: f64,
    capture: &'a Capture,
}

impl fmt::Display for Pause<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stops = self.capture.stops;
        let stops_counted = Count(u64::from(stops), "stop", "stops");
        write!(f, "{:.1} ms in {stops_counted}", self.seconds * 1e3)?;
        if stops > 1 {
            let longest = self.capture.longest_pause_seconds * 1e3;
            write!(f, ", longest {longest:.1} ms")?;
        }
        Ok(())
    }
}

/// `lite, one sample in 512K`.
struct Recorded<'a>(&'a StackLog);

impl fmt::Display for Recorded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0.mode {
            StackLogMode::None => "none",
            StackLogMode::Lite => "lite",
            StackLogMode::Full => "full",
        })?;
        let sample = self.0.sample_bytes;
        sample.map_or(Ok(()), |bytes| write!(f, ", one sample in {}", Size(bytes)))
    }
}

fn kind_name(kind: TargetKind) -> &'static str {
    match kind {
        TargetKind::Process => "live process",
        TargetKind::Core => "core file",
        TargetKind::Snapshot => "snapshot file",
    }
}

fn method_name(method: CaptureMethod) -> &'static str {
    match method {
        CaptureMethod::Copy => "copy",
        CaptureMethod::Stream => "stream",
        CaptureMethod::Fork => "fork",
        CaptureMethod::File => "file",
    }
}

/// Writes the two lines of totals. Scripts read them: their words are those of `leaks`.
pub(super) fn write_totals(
    report: &Report,
    palette: &Palette,
    out: &mut dyn Write,
) -> io::Result<()> {
    let process = ProcessNumber(&report.target);
    let nodes = Count(report.heap.blocks, "node", "nodes");
    // A part of a KB counts as one: a heap with blocks in it does not have 0 KB.
    let kilobytes = report.heap.bytes.div_ceil(1024);
    writeln!(
        out,
        "Process {process}: {nodes} malloced for {kilobytes} KB"
    )?;
    let leaks = match report.comparison {
        None => Count(report.summary.leaked_blocks, "leak", "leaks"),
        Some(_) => Count(report.summary.leaked_blocks, "new leak", "new leaks"),
    };
    let bytes = report.summary.leaked_bytes;
    let title = palette.title;
    writeln!(
        out,
        "{title}Process {process}: {leaks} for {bytes} total leaked bytes.{title:#}"
    )?;
    if let Some(comparison) = &report.comparison {
        write_comparison(comparison, out)?;
    }
    write_excluded(report, out)
}

/// Writes how many leaks the other report has, too, and how many only that has.
fn write_comparison(comparison: &Comparison, out: &mut dyn Write) -> io::Result<()> {
    let (known, lost) = match comparison.with {
        ComparedWith::Earlier => ("old", "gone"),
        ComparedWith::Baseline => ("known", "not found"),
    };
    let file = Escaped(&comparison.file);
    let (new, old, gone) = (
        comparison.new_blocks,
        comparison.old_blocks,
        comparison.gone_blocks,
    );
    let old_bytes = Count(comparison.old_bytes, "byte", "bytes");
    let gone_bytes = Count(comparison.gone_bytes, "byte", "bytes");
    writeln!(
        out,
        "Compared with {file}: {new} new, {old} {known} ({old_bytes}, not shown), {gone} {lost} ({gone_bytes})."
    )
}

/// What was left out, other than by a comparison, which has a line of its own.
fn write_excluded(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    let compared = report.comparison.as_ref();
    let (old_blocks, old_bytes) = compared.map_or((0, 0), |c| (c.old_blocks, c.old_bytes));
    let blocks = report.summary.suppressed_blocks.saturating_sub(old_blocks);
    if blocks == 0 {
        return Ok(());
    }
    let leaks = Count(blocks, "leak", "leaks");
    let bytes = report.summary.suppressed_bytes.saturating_sub(old_bytes);
    writeln!(out, "{leaks} for {bytes} bytes excluded (not shown)")
}

/// The process id, or the name where a file does not have the id.
struct ProcessNumber<'a>(&'a Target);

impl fmt::Display for ProcessNumber<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.pid {
            Some(pid) => write!(f, "{pid}"),
            None => write!(f, "{}", Escaped(&self.0.name)),
        }
    }
}

/// Writes what was not done, and which way it biases the result.
pub(super) fn write_warnings(
    warnings: &[Warning],
    palette: &Palette,
    out: &mut dyn Write,
) -> io::Result<()> {
    let style = palette.warning;
    for warning in warnings {
        let message = Escaped(&warning.message);
        let bias = bias_in_words(warning.bias);
        writeln!(out, "{style}warning:{style:#} {message} ({bias})")?;
    }
    Ok(())
}

fn bias_in_words(bias: Bias) -> &'static str {
    match bias {
        Bias::FalseLeaks => "blocks in use may be reported as leaks",
        Bias::MissedLeaks => "leaks may be missing from this report",
        Bias::None => "the leaks found are not affected",
    }
}
