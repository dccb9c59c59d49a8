//! `rleaks doctor`: what works for this user on this system, and for a process, and what a report
//! loses where it does not.

mod process;
mod render;
mod system;

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use anyhow::Context;
use serde::Serialize;

use super::ExitStatus;
use super::args::DoctorArgs;
use super::target;
use crate::report::json;
use process::Examined;
use system::System;

/// What `rleaks doctor --json` prints. Sizes are bytes.
#[derive(Debug, Serialize)]
struct Document {
    schema_version: u32,
    rleaks_version: &'static str,
    /// The release of the kernel.
    kernel: String,
    /// What was found out about the system.
    checks: Vec<Check>,
    /// What was found out about the target, if one was named.
    target: Option<TargetEntry>,
}

#[derive(Debug, Serialize)]
struct TargetEntry {
    pid: u32,
    name: String,
    threads: usize,
    /// `null` from here on where the target cannot be read.
    memory_bytes: Option<u64>,
    copy_bytes: Option<u64>,
    expected_pause_seconds: Option<f64>,
    checks: Vec<Check>,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Check {
    /// A stable word for scripts.
    id: &'static str,
    status: Status,
    /// What was found, for people.
    message: String,
    /// What a report loses, where it loses anything.
    loss: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Status {
    /// It works.
    Ok,
    /// It works less well, or for some targets only.
    Limited,
    /// It does not work.
    Failed,
}

impl Check {
    fn ok(id: &'static str, message: impl Into<String>) -> Self {
        Self {
            id,
            status: Status::Ok,
            message: message.into(),
            loss: None,
        }
    }

    fn limited(id: &'static str, message: impl Into<String>, loss: &str) -> Self {
        Self {
            status: Status::Limited,
            loss: Some(loss.to_owned()),
            ..Self::ok(id, message)
        }
    }

    fn failed(id: &'static str, message: impl Into<String>, loss: &str) -> Self {
        Self {
            status: Status::Failed,
            ..Self::limited(id, message, loss)
        }
    }
}

/// Looks at the system and, where one is named, at a process, which is not stopped.
pub(crate) fn doctor(args: &DoctorArgs) -> anyhow::Result<ExitStatus> {
    args.color.apply();
    let process = match args.target() {
        Some(named) => target::find(&named)?.into_iter().next(),
        None => None,
    };
    let system = System::look();
    let document = Document {
        schema_version: 1,
        rleaks_version: env!("CARGO_PKG_VERSION"),
        kernel: system.kernel.clone(),
        checks: system.checks(),
        target: process.map(|process| Examined::look(&process).entry(&system)),
    };
    print(&document, args.json.as_deref()).context("cannot write what was found")?;
    Ok(ExitStatus::Done)
}

fn print(document: &Document, json: Option<&Path>) -> io::Result<()> {
    match json {
        None => {
            let mut out = anstream::stdout().lock();
            out.write_all(render::text(document).as_bytes())?;
            out.flush()
        }
        Some(path) if path == Path::new("-") => {
            json::write_value(document, &mut io::stdout().lock())
        }
        Some(path) => json::write_value(document, &mut File::create(path)?),
    }
}
