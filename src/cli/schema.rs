//! `rleaks schema`: the JSON Schema of the report, or of a diff.

use anyhow::Context;

use super::ExitStatus;
use super::args::SchemaOf;
use crate::report::{write_diff_schema, write_schema};

/// Prints a schema on standard output.
pub(crate) fn schema(of: SchemaOf) -> anyhow::Result<ExitStatus> {
    let mut out = std::io::stdout().lock();
    let written = match of {
        SchemaOf::Report => write_schema(&mut out),
        SchemaOf::Diff => write_diff_schema(&mut out),
    };
    written.context("cannot write the schema")?;
    Ok(ExitStatus::Done)
}
