//! `rleaks schema`: the JSON Schema of the report.

use anyhow::bail;

use super::ExitStatus;

/// Prints the schema on standard output.
pub(crate) fn schema() -> anyhow::Result<ExitStatus> {
    bail!("the report's schema is not there yet")
}
