//! The report as JSON.

use std::io::{self, Write};
use std::panic::resume_unwind;
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::thread;

use memchr::memchr2_iter;
use serde::Serialize;
use serde_json::Serializer;
use serde_json::ser::Formatter;

use super::model::Report;

/// Writes the report as one indented JSON document.
///
/// # Errors
/// Fails where `out` does.
pub fn write_pretty(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    write_document(out, |parts| write_indented(parts, report))
}

/// Writes the report as one JSON document on one line, so that a file can have many.
///
/// # Errors
/// Fails where `out` does.
pub fn write_line(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    write_document(out, |parts| serde_json::to_writer(parts, report))
}

/// Writes anything that is no report, such as a schema, as an indented document.
///
/// # Errors
/// Fails where `out` does.
pub fn write_value(value: &(impl Serialize + Sync), out: &mut dyn Write) -> io::Result<()> {
    write_document(out, |parts| write_indented(parts, value))
}

fn write_indented(parts: &mut Parts, value: &impl Serialize) -> serde_json::Result<()> {
    value.serialize(&mut Serializer::with_formatter(parts, Indented::default()))
}

/// What `serde_json`'s `PrettyFormatter` writes. That one hands on each step of the indentation by itself,
/// which takes a third of the time of a report with many leaks.
#[derive(Default)]
struct Indented {
    depth: usize,
    /// The innermost array or object that is open has a value, so that its bracket gets a line of its own.
    has_value: bool,
}

/// A comma, the end of a line, and the deepest indentation that is written at once.
const LINE: &[u8] = b",\n                                ";
const STEP: usize = 2;

impl Indented {
    fn open(&mut self, out: &mut (impl Write + ?Sized), bracket: &[u8]) -> io::Result<()> {
        self.depth += 1;
        self.has_value = false;
        out.write_all(bracket)
    }

    fn close(&mut self, out: &mut (impl Write + ?Sized), bracket: &[u8]) -> io::Result<()> {
        self.depth -= 1;
        if self.has_value {
            self.line(out, true)?;
        }
        self.has_value = true;
        out.write_all(bracket)
    }

    /// Ends a line, with a comma unless the next value is the first, and indents.
    #[inline]
    fn line(&self, out: &mut (impl Write + ?Sized), first: bool) -> io::Result<()> {
        let spaces = self.depth * STEP;
        let now = spaces.min(LINE.len() - 2);
        out.write_all(&LINE[usize::from(first)..now + 2])?;
        (now..spaces).try_for_each(|_| out.write_all(b" "))
    }
}

impl Formatter for Indented {
    fn begin_array<W: Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        self.open(out, b"[")
    }

    fn end_array<W: Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        self.close(out, b"]")
    }

    fn begin_object<W: Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        self.open(out, b"{")
    }

    fn end_object<W: Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        self.close(out, b"}")
    }

    #[inline]
    fn begin_array_value<W: Write + ?Sized>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.has_value = true;
        self.line(out, first)
    }

    #[inline]
    fn begin_object_key<W: Write + ?Sized>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.has_value = true;
        self.line(out, first)
    }

    #[inline]
    fn begin_object_value<W: Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b": ")
    }
}

/// A part of a document: what is written at once.
const PART: usize = 256 << 10;
/// Parts that wait to be written.
const WAITING: usize = 4;

/// Writes a document part by part: one is made while another is written, and none is kept.
fn write_document(
    out: &mut dyn Write,
    serialize: impl FnOnce(&mut Parts) -> serde_json::Result<()> + Send,
) -> io::Result<()> {
    let (sender, receiver) = sync_channel(WAITING);
    let (giver, written) = channel();
    thread::scope(|scope| {
        let serializer = thread::Builder::new().spawn_scoped(scope, || {
            let mut parts = Parts {
                part: Vec::new(),
                sender,
                written,
            };
            serialize(&mut parts)?;
            parts.write_all(b"\n")?;
            parts.flush()
        })?;
        // Where a part cannot be written, the receiver ends here, and with it the serializer.
        let written = receiver.into_iter().try_for_each(|part| {
            write_escaped(&part, out)?;
            // At the end there is nobody who could use it.
            let _ = giver.send(part);
            Ok(())
        });
        let serialized = serializer
            .join()
            .unwrap_or_else(|panic| resume_unwind(panic));
        written.and(serialized)?;
        out.flush()
    })
}

/// Hands a document on in parts. No character is in two of them: `serde_json` writes whole ones.
struct Parts {
    part: Vec<u8>,
    sender: SyncSender<Vec<u8>>,
    /// Parts that were written, to be used again: their memory need not come from the kernel each time.
    written: Receiver<Vec<u8>>,
}

impl Write for Parts {
    #[inline]
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write(bytes).map(drop)
    }

    #[inline]
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.part.extend_from_slice(bytes);
        if self.part.len() >= PART {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let mut next = self.written.try_recv().unwrap_or_default();
        next.clear();
        let part = std::mem::replace(&mut self.part, next);
        let sent = self.sender.send(part);
        sent.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// Writes a part, and escapes the control characters that JSON lets pass (DEL, and U+0080 to U+009F), since
/// a document may be shown on a terminal. They occur nowhere but in strings.
fn write_escaped(part: &[u8], out: &mut dyn Write) -> io::Result<()> {
    let mut start = 0;
    for end in memchr2_iter(0x7f, 0xc2, part) {
        let (code, length) = match part[end..] {
            [0x7f, ..] => (0x7f, 1),
            [_, code @ 0x80..=0x9f, ..] => (code, 2),
            _ => continue,
        };
        out.write_all(&part[start..end])?;
        write!(out, "\\u{code:04x}")?;
        start = end + length;
    }
    out.write_all(&part[start..])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::report::fixture::{chain, clean, leaky, with_stacks, written};

    fn pretty(report: &Report) -> String {
        written(|out| write_pretty(report, out))
    }

    fn line(report: &Report) -> String {
        written(|out| write_line(report, out))
    }

    #[test]
    fn the_format_changes_only_on_purpose() {
        insta::assert_snapshot!("document", pretty(&with_stacks()));
    }

    #[test]
    fn a_document_is_indented_as_is_usual() {
        let nested = (0..20).fold(json!([]), |inner, _| json!([{ "inner": inner }, {}]));
        let mut written = Vec::new();
        write_value(&nested, &mut written).expect("written");
        let expected = serde_json::to_string_pretty(&nested).expect("written");
        assert_eq!(written, (expected + "\n").as_bytes());
    }

    #[test]
    fn a_report_survives_a_round_trip() {
        for report in [clean(), leaky(), with_stacks()] {
            for document in [pretty(&report), line(&report)] {
                let read: Report = serde_json::from_str(&document).expect("a report");
                assert_eq!(read, report);
            }
        }
    }

    #[test]
    fn a_document_on_a_line_is_one_line() {
        let document = line(&with_stacks());
        assert_eq!(document.find('\n'), Some(document.len() - 1));
    }

    #[test]
    fn a_document_has_no_control_characters() {
        let document = pretty(&leaky());
        assert!(document.chars().all(|c| c == '\n' || !c.is_control()));
        assert!(document.contains(r#""\"\u001b[31m\u009b2J\u007f\n\"""#));
        assert!(document.contains("grüße 漢字"));
    }

    #[test]
    fn a_field_that_may_be_null_may_be_missing() {
        let document = line(&clean()).replace(r#""pid":4242,"#, "");
        let read: Report = serde_json::from_str(&document).expect("a report");
        assert_eq!(read.target.pid, None);
    }

    /// Takes some bytes, and then no more.
    struct Full(usize);

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let taken = bytes.len().min(self.0);
            self.0 -= taken;
            if taken == 0 {
                Err(io::ErrorKind::StorageFull.into())
            } else {
                Ok(taken)
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_cannot_be_written_is_an_error_wherever_that_is_seen() {
        let report = chain(10_000);
        let length = line(&report).len();
        assert!(length > PART * (WAITING + 2));
        for room in [0, 1, PART, length / 2, length - 1] {
            let written = write_line(&report, &mut Full(room));
            let error = written.expect_err("there is no room");
            assert_eq!(error.kind(), io::ErrorKind::StorageFull, "{room}");
        }
        write_line(&report, &mut Full(length)).expect("there is room");
    }

    #[test]
    fn a_large_report_is_read_back_as_it_was() {
        let report = chain(10_000);
        for document in [pretty(&report), line(&report)] {
            let read: Report = serde_json::from_str(&document).expect("a report");
            assert_eq!(read, report);
        }
    }
}
