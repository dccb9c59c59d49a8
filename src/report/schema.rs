//! The JSON Schema of the report.

use std::io::{self, Write};

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema};

use super::compare::{DIFF_SCHEMA_VERSION, Diff};
use super::json;
use super::model::{Report, SCHEMA_VERSION};

/// Writes the JSON Schema of what `rleaks --json` writes.
///
/// # Errors
/// Fails where `out` does.
pub fn write_schema(out: &mut dyn Write) -> io::Result<()> {
    let title = format!("rleaks report, schema version {SCHEMA_VERSION}");
    json::write_value(&schema::<Report>(title), out)
}

/// Writes the JSON Schema of what `rleaks diff --json` writes.
///
/// # Errors
/// Fails where `out` does.
pub fn write_diff_schema(out: &mut dyn Write) -> io::Result<()> {
    let title = format!("rleaks diff, schema version {DIFF_SCHEMA_VERSION}");
    json::write_value(&schema::<Diff>(title), out)
}

fn schema<T: JsonSchema>(title: String) -> Schema {
    // For what we write: every field is there, and null where it is not known.
    let generator = SchemaSettings::draft2020_12()
        .for_serialize()
        .into_generator();
    let mut schema = generator.into_root_schema_for::<T>();
    schema.insert("title".to_owned(), title.into());
    schema
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::fixture::written;

    #[test]
    fn the_schema_changes_only_on_purpose() {
        insta::assert_snapshot!("schema", written(|out| write_schema(out)));
    }

    #[test]
    fn the_schema_of_a_diff_changes_only_on_purpose() {
        insta::assert_snapshot!("diff_schema", written(|out| write_diff_schema(out)));
    }
}
