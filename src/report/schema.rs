//! The JSON Schema of the report.

use std::io::{self, Write};

use schemars::Schema;
use schemars::generate::SchemaSettings;

use super::json;
use super::model::{Report, SCHEMA_VERSION};

/// Writes the JSON Schema of what `rleaks --json` writes.
///
/// # Errors
/// Fails where `out` does.
pub fn write_schema(out: &mut dyn Write) -> io::Result<()> {
    json::write_value(&schema(), out)
}

fn schema() -> Schema {
    // For what we write: every field is there, and null where it is not known.
    let generator = SchemaSettings::draft2020_12()
        .for_serialize()
        .into_generator();
    let mut schema = generator.into_root_schema_for::<Report>();
    let title = format!("rleaks report, schema version {SCHEMA_VERSION}");
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
}
