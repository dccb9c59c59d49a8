//! Reports read back from JSON.

use serde::Deserialize;
use serde_json::Deserializer;

use super::model::{Report, SCHEMA_VERSION};

/// What of a message is shown: it may quote the file, of which nothing is trusted.
const LONGEST_MESSAGE: usize = 200;

/// Why a file cannot be read as reports.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It has nothing in it.
    #[error("it is empty: it has no report of rleaks --json")]
    Empty,
    /// A later rleaks wrote it.
    #[error(
        "at line {line} a report of schema version {version} begins, and this rleaks reads version {SCHEMA_VERSION}: use the rleaks that wrote it"
    )]
    Version {
        /// The line where the document begins, from 1.
        line: usize,
        /// The version that it says it has.
        version: u64,
    },
    /// It is no JSON, it is cut short, or it is no report.
    #[error("line {line}, column {column}: {message}: it is no report of rleaks --json")]
    Malformed {
        /// The line, from 1.
        line: usize,
        /// The column in bytes, from 1; 0 before the first one.
        column: usize,
        /// What is wrong there.
        message: String,
    },
}

/// Reads the reports in `json`, one after the other: what `rleaks --json` writes of one target or of
/// several. There is at least one. Fields that are not known are ignored.
///
/// # Errors
/// Says where `json` is no report, or one of another schema version.
pub fn read_reports(json: &[u8]) -> Result<Vec<Report>, ReadError> {
    let mut reports = Vec::new();
    let mut stream = Deserializer::from_slice(json).into_iter::<Report>();
    loop {
        let start = stream.byte_offset();
        match stream.next() {
            None => break,
            Some(read) => reports.push(checked(read, json, start)?),
        }
    }
    if reports.is_empty() {
        return Err(ReadError::Empty);
    }
    Ok(reports)
}

/// The report that was read of the document that begins at `start`, or behind blanks there.
fn checked(
    read: serde_json::Result<Report>,
    json: &[u8],
    start: usize,
) -> Result<Report, ReadError> {
    let version = match &read {
        Ok(report) => Some(u64::from(report.schema_version)),
        Err(_) => version_of(json.get(start..).unwrap_or_default()),
    };
    if let Some(version) = version.filter(|version| *version != u64::from(SCHEMA_VERSION)) {
        let line = line_of_document(json, start);
        return Err(ReadError::Version { line, version });
    }
    read.map_err(|error| malformed(&error))
}

/// The schema version of the first document, where that is JSON.
fn version_of(json: &[u8]) -> Option<u64> {
    #[derive(Deserialize)]
    struct Versioned {
        schema_version: u64,
    }
    let mut stream = Deserializer::from_slice(json).into_iter::<Versioned>();
    Some(stream.next()?.ok()?.schema_version)
}

fn line_of_document(json: &[u8], start: usize) -> usize {
    let blanks = json.get(start..).unwrap_or_default();
    let blanks = blanks.iter().take_while(|byte| byte.is_ascii_whitespace());
    let before = json.iter().take(start + blanks.count());
    before.filter(|byte| **byte == b'\n').count() + 1
}

fn malformed(error: &serde_json::Error) -> ReadError {
    let (line, column) = (error.line(), error.column());
    let text = error.to_string();
    let message = text
        .strip_suffix(&format!(" at line {line} column {column}"))
        .unwrap_or(&text);
    let short = message.chars().take(LONGEST_MESSAGE).collect();
    ReadError::Malformed {
        line,
        column,
        message: short,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::report::fixture::{clean, leaky, with_stacks, written};
    use crate::report::json;

    fn line(report: &Report) -> String {
        written(|out| json::write_line(report, out))
    }

    fn pretty(report: &Report) -> String {
        written(|out| json::write_pretty(report, out))
    }

    fn message(json: &str) -> String {
        read_reports(json.as_bytes())
            .expect_err("an error")
            .to_string()
    }

    #[test]
    fn reports_are_read_one_after_the_other_in_both_forms() {
        let json = line(&clean()) + "\n" + &pretty(&leaky()) + &line(&with_stacks());
        let reports = read_reports(json.as_bytes()).expect("three reports");
        assert_eq!(reports, [clean(), leaky(), with_stacks()]);
    }

    #[test]
    fn fields_that_are_not_known_are_ignored_and_added_ones_may_be_missing() {
        let json = line(&with_stacks()).replace(r#""pid":"#, r#""new":{"a":[1]},"pid":"#);
        let json = json
            .replace(r#""modules":[],"#, "")
            .replace(r#""comparison":null,"#, "")
            .replace(r#","allocated_milliseconds":null"#, "")
            .replace(r#""started_milliseconds":81230,"#, "");
        let mut expected = with_stacks();
        expected.target.started_milliseconds = None;
        let reports = read_reports(json.as_bytes()).expect("a report");
        assert_eq!(reports, [expected]);
    }

    #[test]
    fn another_schema_version_is_refused_whatever_else_changed() {
        let second = line(&clean()).replace(r#""schema_version":1"#, r#""schema_version":2"#);
        let changed = second.replace(r#""leaks":[]"#, r#""leaks":{}"#);
        for later in [second, changed] {
            let said = message(&format!("{}{later}", pretty(&clean())));
            let lines = pretty(&clean()).lines().count() + 1;
            assert!(
                said.starts_with(&format!(
                    "at line {lines} a report of schema version 2 begins"
                )),
                "{said}"
            );
        }
    }

    #[test]
    fn an_error_names_line_and_column() {
        for (json, place) in [
            ("", "it is empty"),
            (" \n\n", "it is empty"),
            ("{}", "line 1, column 2: missing field `schema_version`"),
            (
                "{\n\"schema_version\": x",
                "line 2, column 19: expected value",
            ),
            ("\u{7f}ELF", "line 1, column 1: expected value"),
            ("[1]", "line 1, column 3: invalid length"),
            ("7", "line 1, column 1: invalid type"),
        ] {
            let said = message(json);
            assert!(said.starts_with(place), "{json:?}: {said}");
        }
    }

    #[test]
    fn what_an_error_quotes_is_short() {
        let kind = "x".repeat(100_000);
        let json = line(&leaky()).replacen("root_leak", &kind, 1);
        assert!(message(&json).len() < 300);
    }

    #[test]
    fn nesting_does_not_exhaust_the_stack() {
        let deep = "[".repeat(1_000_000);
        assert!(message(&deep).starts_with("line 1"));
        let with = |field: &str| line(&clean()).replace(r#""pid":"#, &format!("{field},\"pid\":"));
        assert!(message(&with(&format!(r#""name":{deep}"#))).starts_with("line 1"));
        let closed = format!(r#""x":{deep}{}"#, "]".repeat(1_000_000));
        let read = read_reports(with(&closed).as_bytes()).expect("a field that is not known");
        assert_eq!(read, [clean()]);
    }

    #[test]
    fn a_report_that_is_cut_short_is_an_error_wherever_the_cut_is() {
        let json = line(&with_stacks());
        for end in 1..json.len() - 1 {
            let read = read_reports(&json.as_bytes()[..end]);
            assert!(read.is_err(), "cut at {end}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(
            at in any::<prop::sample::Index>(),
            bytes in prop::collection::vec(any::<u8>(), 0..8),
            removed in 0_usize..8,
        ) {
            let mut json = line(&with_stacks()).into_bytes();
            let at = at.index(json.len());
            let end = (at + removed).min(json.len());
            json.splice(at..end, bytes);
            if let Ok(reports) = read_reports(&json) {
                prop_assert!(!reports.is_empty());
            }
        }
    }
}
