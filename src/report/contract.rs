//! The documented shape of version 1 of the JSON, against what is written.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use super::fixture::{with_stacks, written};
use super::json;

/// The documented sample, with every field and in the documented order.
const SAMPLE: &str = r#"
{ "schema_version": 1, "rleaks_version": "0.1.0",
  "target":  {"kind": "process", "pid": 4242, "name": "mono-sgen", "executable": "/usr/bin/mono-sgen",
              "command_line": ["mono-sgen", "program.exe"], "command_status": null, "signal": null, "os": "linux", "arch": "x86_64", "pointer_size": 8},
  "capture": {"taken_at": "2026-11-22T14:03:11Z", "method": "copy", "stops": 1, "pause_seconds": 0.0123,
              "longest_pause_seconds": 0.0123, "total_seconds": 0.51, "threads": 4, "memory_bytes": 123456},
  "zones":   [{"id": 0, "name": "glibc main arena", "allocator": "glibc 2.36", "blocks": 120, "bytes": 4096}],
  "heap":    {"blocks": 120, "bytes": 4096},
  "summary": {"leaked_blocks": 3, "leaked_bytes": 208, "root_leaks": 1, "root_cycles": 0, "indirect": 2,
              "suppressed_blocks": 0, "suppressed_bytes": 0},
  "leaks":   [{"address": "0x55", "size": 64, "requested": 61, "zone": 0, "kind": "root_leak", "parent": null,
               "held_blocks": 2, "held_bytes": 144, "type": null, "content": "\".../lib/mono/4.5//Facades\"",
               "stack": 7, "thread": 4242}],
  "groups":  [{"kind": "root_leak", "stack": 7, "type": null, "blocks": 1, "bytes": 64, "held_blocks": 2, "held_bytes": 144,
               "leaks": ["0x55"]}],
  "stacks":  [{"id": 7, "frames": [{"address": "0x7f", "module": "/usr/lib/libc.so.6", "offset": "0x1234",
               "function": "load_aot_module", "file": "aot-runtime.c", "line": 2298, "inlined": false}]}],
  "stack_log": {"mode": "none", "dropped": 0, "sample_bytes": null},
  "warnings": [{"code": "region_unreadable", "message": "...", "bias": "false_leaks"}] }
"#;

/// Fields that were added to the sample's.
const ADDED: [&str; 15] = [
    ".capture.content",
    ".target.started_milliseconds",
    ".target.address_space",
    ".modules",
    ".modules.path",
    ".modules.build_id",
    ".comparison",
    ".leaks.allocated_milliseconds",
    ".leaks.tree_parent",
    ".leaks.content_length",
    ".groups.estimated_blocks",
    ".groups.estimated_bytes",
    ".stacks.frames.function_offset",
    ".stacks.cut",
    ".stack_log.cut_stacks",
];

#[test]
fn a_document_has_the_documented_fields_in_the_documented_order() {
    let document = written(|out| json::write_line(&with_stacks(), out));
    let mut fields_written = fields(&document);
    fields_written.retain(|field| !ADDED.contains(&field.as_str()));
    assert_eq!(fields_written, fields(SAMPLE));
}

#[test]
fn the_documented_sample_is_a_report() {
    let sample: super::Report = serde_json::from_str(SAMPLE).expect("the sample is a report");
    assert!(sample.has_leaks());
    let leak = sample.leaks.get(0).expect("a leak");
    assert_eq!(leak.requested(), Some(61));
}

/// The paths of a document's fields, in the order in which each is first there.
fn fields(document: &str) -> Vec<String> {
    let mut found = Vec::new();
    let path = String::new();
    let fields = Fields {
        path,
        found: &mut found,
    };
    fields
        .deserialize(&mut serde_json::Deserializer::from_str(document))
        .expect("the document is JSON");
    found
}

/// Collects the paths of fields below `path`. An array's elements have the path of the array.
struct Fields<'a> {
    path: String,
    found: &'a mut Vec<String>,
}

impl Fields<'_> {
    fn below(&mut self, key: &str) -> Fields<'_> {
        let path = format!("{}{key}", self.path);
        if !key.is_empty() && !self.found.contains(&path) {
            self.found.push(path.clone());
        }
        Fields {
            path,
            found: self.found,
        }
    }
}

impl<'de> DeserializeSeed<'de> for Fields<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Fields<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            map.next_value_seed(self.below(&format!(".{key}")))?;
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element_seed(self.below(""))?.is_some() {}
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}
