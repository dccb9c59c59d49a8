//! The report as JSON.

use std::io::{self, BufWriter, Write};

use serde::Serialize;

use super::model::Report;

/// Writes the report as one indented JSON document.
///
/// # Errors
/// Fails where `out` does.
pub fn write_pretty(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    write_document(out, |escaped| serde_json::to_writer_pretty(escaped, report))
}

/// Writes the report as one JSON document on one line, so that a file can have many.
///
/// # Errors
/// Fails where `out` does.
pub fn write_line(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    write_document(out, |escaped| serde_json::to_writer(escaped, report))
}

/// Writes anything that is no report, such as a schema, as an indented document.
///
/// # Errors
/// Fails where `out` does.
pub fn write_value(value: &impl Serialize, out: &mut dyn Write) -> io::Result<()> {
    write_document(out, |escaped| serde_json::to_writer_pretty(escaped, value))
}

fn write_document(
    out: &mut dyn Write,
    serialize: impl FnOnce(&mut ControlsEscaped<'_>) -> serde_json::Result<()>,
) -> io::Result<()> {
    let mut escaped = ControlsEscaped(BufWriter::new(out));
    serialize(&mut escaped)?;
    escaped.write_all(b"\n")?;
    escaped.flush()
}

/// Escapes the control characters that JSON lets pass (DEL, and U+0080 to U+009F), since a document
/// may be shown on a terminal. They occur nowhere but in strings, and `serde_json` writes whole
/// characters.
struct ControlsEscaped<'a>(BufWriter<&'a mut dyn Write>);

impl Write for ControlsEscaped<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut start = 0;
        for (end, control) in controls(bytes) {
            self.0.write_all(&bytes[start..end])?;
            write!(self.0, "\\u{:04x}", control.code)?;
            start = end + control.length;
        }
        self.0.write_all(&bytes[start..])?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// A control character in UTF-8.
struct Control {
    code: u8,
    length: usize,
}

/// Finds control characters and their positions.
fn controls(bytes: &[u8]) -> impl Iterator<Item = (usize, Control)> + '_ {
    bytes.iter().enumerate().filter_map(|(position, &byte)| {
        let control = |code, length| Some((position, Control { code, length }));
        match (byte, bytes.get(position + 1)) {
            (0x7f, _) => control(0x7f, 1),
            (0xc2, Some(&code @ 0x80..=0x9f)) => control(code, 2),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::fixture::{clean, leaky, with_stacks, written};

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
}
