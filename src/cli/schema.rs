//! `rleaks schema`: the JSON Schema of the report.

use anyhow::Context;

use super::ExitStatus;
use crate::report::write_schema;

/// Prints the schema on standard output.
pub(crate) fn schema() -> anyhow::Result<ExitStatus> {
    write_schema(&mut std::io::stdout().lock()).context("cannot write the schema")?;
    Ok(ExitStatus::Done)
}
