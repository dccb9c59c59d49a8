//! What was found, as one screen of text.

use std::fmt::Write;

use anstyle::{AnsiColor, Style};

use super::{Check, Document, Status};
use crate::cli::error::printable;

/// The text, with colours: an `anstream` stream drops them where they do not belong.
pub(super) fn text(document: &Document) -> String {
    let bold = Style::new().bold();
    let mut text = format!(
        "{bold}rleaks {} on Linux {}{bold:#}\n",
        document.rleaks_version,
        printable(&document.kernel)
    );
    push_checks(&document.checks, &mut text);
    if let Some(target) = &document.target {
        let name = printable(&target.name);
        // Writing to a string does not fail.
        let _ = write!(text, "\n{bold}Process {} ({name}){bold:#}\n", target.pid);
        push_checks(&target.checks, &mut text);
    }
    text
}

fn push_checks(checks: &[Check], text: &mut String) {
    let width = checks.iter().map(|check| check.id.len()).max().unwrap_or(0);
    for check in checks {
        let (mark, style) = mark(check.status);
        let message = printable(&check.message);
        let _ = writeln!(
            text,
            "  {style}{mark}{style:#}  {:width$}  {message}",
            check.id
        );
        if let Some(loss) = &check.loss {
            let loss = printable(loss);
            let _ = writeln!(text, "      {:width$}  -> {loss}", "");
        }
    }
}

fn mark(status: Status) -> (&'static str, Style) {
    match status {
        Status::Ok => ("ok", AnsiColor::Green.on_default()),
        Status::Limited => (" !", AnsiColor::Yellow.on_default()),
        Status::Failed => ("!!", AnsiColor::Red.on_default().bold()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::TargetEntry;

    fn document() -> Document {
        Document {
            schema_version: 1,
            rleaks_version: "0.1.0",
            kernel: "6.1.0".to_owned(),
            checks: vec![
                Check::ok("yama", "not in this kernel"),
                Check::limited("privileges", "uid 1000", "the processes of others"),
            ],
            target: Some(TargetEntry {
                pid: 77,
                name: "a\u{1b}b".to_owned(),
                threads: 1,
                memory_bytes: None,
                copy_bytes: None,
                expected_pause_seconds: None,
                checks: vec![Check::failed("permission", "refused", "all of it")],
            }),
        }
    }

    #[test]
    fn json_has_a_stable_shape() {
        let json = serde_json::to_string(&document()).expect("a document");
        insta::assert_snapshot!(json.replace("],", "],\n"), @r#"
        {"schema_version":1,"rleaks_version":"0.1.0","kernel":"6.1.0","checks":[{"id":"yama","status":"ok","message":"not in this kernel","loss":null},{"id":"privileges","status":"limited","message":"uid 1000","loss":"the processes of others"}],
        "target":{"pid":77,"name":"a\u001bb","threads":1,"memory_bytes":null,"copy_bytes":null,"expected_pause_seconds":null,"checks":[{"id":"permission","status":"failed","message":"refused","loss":"all of it"}]}}
        "#);
    }

    #[test]
    fn lines_are_aligned_and_losses_stand_below() {
        let document = document();
        let plain = anstream::adapter::strip_str(&text(&document)).to_string();
        insta::assert_snapshot!(plain, @r"
        rleaks 0.1.0 on Linux 6.1.0
          ok  yama        not in this kernel
           !  privileges  uid 1000
                          -> the processes of others

        Process 77 (a�b)
          !!  permission  refused
                          -> all of it
        ");
        assert!(text(&document).contains("\u{1b}["));
    }
}
