//! Names as the programmer wrote them.

use std::fmt;

use cpp_demangle::{DemangleOptions, Symbol};

/// A mangled name that is longer stays as it is.
const MAX_MANGLED: usize = 4 << 10;
/// A readable name that is longer is cut.
const MAX_READABLE: usize = 1 << 10;

/// The readable form of a symbol's name: Rust and C++ names are demangled, others stay. A very
/// long one is cut and ends with `...`.
#[must_use]
pub fn demangle(name: &str) -> String {
    if name.len() > MAX_MANGLED {
        return shortened(name);
    }
    rust_name(name)
        .or_else(|| cpp_name(name))
        .unwrap_or_else(|| shortened(name))
}

/// The class whose vtable the C++ symbol `name` is: `_ZTVSt9exception` gives `std::exception`.
#[must_use]
pub fn vtable_class(name: &str) -> Option<String> {
    if !name.starts_with("_ZTV") {
        return None;
    }
    let readable = demangle(name);
    let class = readable.strip_prefix("vtable for ")?;
    Some(class.to_owned())
}

fn rust_name(name: &str) -> Option<String> {
    let readable = rustc_demangle::try_demangle(name).ok()?;
    let mut text = LimitedText::default();
    // An error says that the text is full.
    let _ = fmt::write(&mut text, format_args!("{readable:#}"));
    Some(text.finish())
}

fn cpp_name(name: &str) -> Option<String> {
    if !name.starts_with("_Z") {
        return None;
    }
    let mut text = LimitedText::default();
    let symbol = Symbol::new(name).ok()?;
    let result = symbol.structured_demangle(&mut text, &DemangleOptions::new());
    if result.is_err() && !text.is_full {
        return None;
    }
    Some(as_binutils_write(text.finish()))
}

/// Replaces the crate's own notation `{vtable(X)}` by the one that people know, and names the
/// parts of a construction vtable in the right order.
fn as_binutils_write(readable: String) -> String {
    let construction = readable.strip_prefix("construction vtable for ");
    if let Some((whole, base)) = construction.and_then(|parts| parts.split_once("-in-")) {
        return format!("construction vtable for {base}-in-{whole}");
    }
    for (prefix, words) in [("{vtable(", "vtable for "), ("{vtt(", "VTT for ")] {
        if let Some(rest) = readable.strip_prefix(prefix) {
            return format!("{words}{}", rest.strip_suffix(")}").unwrap_or(rest));
        }
    }
    readable
}

fn shortened(name: &str) -> String {
    let mut text = LimitedText::default();
    let _ = fmt::Write::write_str(&mut text, name);
    text.finish()
}

/// Text that takes up to [`MAX_READABLE`] bytes: a short mangled name can stand for gigabytes.
#[derive(Default)]
struct LimitedText {
    text: String,
    is_full: bool,
}

impl LimitedText {
    fn finish(mut self) -> String {
        if self.is_full {
            self.text.push_str("...");
        }
        self.text
    }
}

impl fmt::Write for LimitedText {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        let left = MAX_READABLE - self.text.len();
        let fits = s.floor_char_boundary(left);
        self.text.push_str(&s[..fits]);
        self.is_full |= fits < s.len();
        if self.is_full {
            Err(fmt::Error)
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_of_three_languages_are_readable() {
        for (name, readable) in [
            ("main_arena", "main_arena"),
            ("_ZSt4cout", "std::cout"),
            ("_ZTV3Foo", "vtable for Foo"),
            ("_ZTT3Foo", "VTT for Foo"),
            ("_ZTI3Foo", "typeinfo for Foo"),
            ("_ZTC1D0_1B", "construction vtable for B-in-D"),
            (
                "_ZN4core3fmt5Write9write_fmt17h0123456789abcdefE",
                "core::fmt::Write::write_fmt",
            ),
            ("_RNvC7mycrate6GLOBAL", "mycrate::GLOBAL"),
            ("_Znonsense", "_Znonsense"),
            ("", ""),
        ] {
            assert_eq!(demangle(name), readable, "{name}");
        }
    }

    #[test]
    fn a_vtable_names_its_class() {
        for (name, class) in [
            ("_ZTVSt9exception", Some("std::exception")),
            (
                "_ZTVN5outer5inner4BaseIiEE",
                Some("outer::inner::Base<int>"),
            ),
            ("_ZTISt9exception", None),
            ("_ZTV", None),
            ("vtable for X", None),
        ] {
            assert_eq!(vtable_class(name).as_deref(), class, "{name}");
        }
    }

    #[test]
    fn long_names_are_cut() {
        let long = "é".repeat(10_000);
        let cut = demangle(&long);
        assert!(cut.ends_with("é...") && cut.len() <= MAX_READABLE + 3);
        // Each substitution doubles the length: 2^40 bytes if nothing stopped it.
        let doubling: String = (0..40).map(|_| "S_S_").collect();
        assert!(demangle(&format!("_ZTV1AI{doubling}E")).len() < 2 * MAX_READABLE);
    }

    #[test]
    fn deep_nesting_does_not_overflow_the_stack() {
        for (piece, count) in [("P", 4000), ("1AI", 1300), ("N1A", 1300), ("F", 4000)] {
            let _ = demangle(&format!("_ZTV{}", piece.repeat(count)));
        }
    }

    proptest! {
        #[test]
        fn no_name_panics(name in "(_Z|_R|_ZTV|_ZN)[A-Za-z0-9_$.]{0,60}") {
            let _ = demangle(&name);
        }
    }
}
