//! Addresses in JSON: strings, since many readers of JSON lose the bits of a number above 2^53.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::addr::Addr;

/// The distance in bytes from the start of a module. JSON writes it like an address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Offset(pub u64);

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl Serialize for Addr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(Digits::of(self.0).text())
    }
}

impl Serialize for Offset {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(Digits::of(self.0).text())
    }
}

/// A number as its `Display` has it. A report may have a hundred million of them, and this is faster.
struct Digits {
    bytes: [u8; 18],
    start: usize,
}

impl Digits {
    fn of(mut value: u64) -> Self {
        let mut bytes = [0; 18];
        let mut start = bytes.len();
        loop {
            start -= 1;
            bytes[start] = b"0123456789abcdef"[usize::from(value.to_le_bytes()[0] & 0xf)];
            value >>= 4;
            if value == 0 {
                break;
            }
        }
        start -= 2;
        bytes[start..start + 2].copy_from_slice(b"0x");
        Self { bytes, start }
    }

    fn text(&self) -> &str {
        str::from_utf8(&self.bytes[self.start..]).unwrap_or_default()
    }
}

impl<'de> Deserialize<'de> for Addr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        hex_number(deserializer).map(Self)
    }
}

impl<'de> Deserialize<'de> for Offset {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        hex_number(deserializer).map(Self)
    }
}

impl JsonSchema for Addr {
    fn schema_name() -> Cow<'static, str> {
        "Address".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        hex_schema("An address in the target.")
    }
}

impl JsonSchema for Offset {
    fn schema_name() -> Cow<'static, str> {
        "Offset".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        hex_schema("The distance in bytes from the start of a module.")
    }
}

fn hex_schema(description: &str) -> Schema {
    json_schema!({
        "description": description,
        "type": "string",
        "pattern": "^0x[0-9a-f]+$",
    })
}

fn hex_number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let text = Cow::<str>::deserialize(deserializer)?;
    text.strip_prefix("0x")
        .filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
        .and_then(|digits| u64::from_str_radix(digits, 16).ok())
        .ok_or_else(|| de::Error::invalid_value(de::Unexpected::Str(&text), &"a number like 0x1f"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_address_is_a_hexadecimal_string_in_json() {
        let json = serde_json::to_string(&Addr(u64::MAX)).expect("a string");
        assert_eq!(json, "\"0xffffffffffffffff\"");
        let read: Addr = serde_json::from_str(&json).expect("an address");
        assert_eq!(read, Addr(u64::MAX));
    }

    #[test]
    fn what_is_no_hexadecimal_number_is_no_address() {
        for json in [
            "\"\"",
            "\"0x\"",
            "\"10\"",
            "\"0x+1\"",
            "\"0x10000000000000000\"",
            "16",
        ] {
            assert!(serde_json::from_str::<Addr>(json).is_err(), "{json}");
        }
    }

    proptest! {
        #[test]
        fn a_number_is_written_as_it_is_shown(value: u64, shift in 0_u32..64) {
            let value = value >> shift;
            let digits = Digits::of(value);
            prop_assert_eq!(digits.text(), Addr(value).to_string());
        }
    }

    #[test]
    fn zero_has_a_digit() {
        assert_eq!(Digits::of(0).text(), "0x0");
    }
}
