//! Strings at the start of blocks.

/// Fewer printable characters are taken for chance.
const MIN_CHARACTERS: usize = 4;
/// More characters are not shown.
const MAX_SHOWN: usize = 80;

/// What may follow the bytes that a preview is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rest {
    /// The block ends with them.
    Nothing,
    /// The block goes on with bytes that were not read.
    More,
    /// The block goes on with bytes that cannot be read.
    Unreadable,
}

/// The string that `bytes` start with: printable characters in UTF-8, up to a NUL or, if nothing
/// follows, to their end.
///
/// `None` when a byte of it is no text or cannot be read, and when it is so short that chance may
/// have made it. Where more bytes were not read and no NUL was met, it is the part that was.
pub(super) fn string(bytes: &[u8], rest: Rest) -> Option<&str> {
    let end = bytes.iter().position(|byte| *byte == 0);
    if end.is_none() && rest == Rest::Unreadable {
        return None;
    }
    let text = match str::from_utf8(&bytes[..end.unwrap_or(bytes.len())]) {
        Ok(text) => text,
        // A character that is cut, because the block goes on behind it.
        Err(e) if e.error_len().is_none() && end.is_none() && rest == Rest::More => {
            str::from_utf8(&bytes[..e.valid_up_to()]).ok()?
        }
        Err(_) => return None,
    };
    let is_text = text.chars().nth(MIN_CHARACTERS - 1).is_some() && text.chars().all(is_printable);
    is_text.then_some(text)
}

/// `text` in quotes, escaped as in source code, and cut with `...` when it is long. It has no
/// control characters and nothing else that changes how a terminal shows the rest of the line.
pub(super) fn quoted(text: &str) -> String {
    match text.char_indices().nth(MAX_SHOWN) {
        Some((end, _)) => format!("{:?}...", &text[..end]),
        None => format!("{text:?}"),
    }
}

/// Says whether text has such characters. Some of them are shown escaped all the same.
fn is_printable(c: char) -> bool {
    match c {
        ' '..='~' | '\t' | '\n' | '\r' => true,
        '\0'..='\u{9f}' => false,
        // Spaces, joiners and marks of direction.
        '\u{a0}'
        | '\u{ad}'
        | '\u{2000}'..='\u{200f}'
        | '\u{2028}'..='\u{202f}'
        | '\u{2060}'..='\u{2069}'
        | '\u{3000}'
        | '\u{feff}' => true,
        // The standard library keeps every other character that it knows, combining ones too
        // when they are not the first.
        _ => String::from_iter(['a', c]).escape_debug().nth(1) == Some(c),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_string_ends_with_a_nul_or_with_its_block() {
        for (bytes, rest, text) in [
            (&b"hello\0\xff\xff"[..], Rest::More, Some("hello")),
            (b"hello", Rest::Nothing, Some("hello")),
            (b"abcd", Rest::Nothing, Some("abcd")),
            (b"a\tb\r\n\0", Rest::Nothing, Some("a\tb\r\n")),
            ("größer\0".as_bytes(), Rest::Nothing, Some("größer")),
            (
                "e\u{301}te\u{301}\0".as_bytes(),
                Rest::Nothing,
                Some("e\u{301}te\u{301}"),
            ),
            ("日本語😀".as_bytes(), Rest::Nothing, Some("日本語😀")),
            (b"hell\xc3", Rest::More, Some("hell")),
            (b"hello\0", Rest::Unreadable, Some("hello")),
            (b"hello", Rest::Unreadable, None),
        ] {
            assert_eq!(string(bytes, rest), text, "{bytes:?}");
        }
    }

    #[test]
    fn other_bytes_are_no_string() {
        for bytes in [
            &b""[..],
            b"\0hello",
            b"abc\0",
            b"hello\x01\0",
            b"hello\xff",
            b"hell\xc3",
            b"hell\xc3\0",
            b"\x1b[31mred\0",
            b"hello\x7f\0",
            b"hello\xc2\x9b\0",
            "\u{e000}\u{e000}\u{e000}\u{e000}".as_bytes(),
        ] {
            assert_eq!(string(bytes, Rest::Nothing), None, "{bytes:?}");
        }
    }

    #[test]
    fn a_quoted_string_is_escaped_and_cut() {
        for (text, shown) in [
            ("plain", r#""plain""#),
            ("a\"b\\c\n\t'", r#""a\"b\\c\n\t'""#),
            ("a\u{202e}b\u{a0}", r#""a\u{202e}b\u{a0}""#),
        ] {
            assert_eq!(quoted(text), shown);
        }
        assert_eq!(quoted(&"é".repeat(80)), format!("\"{}\"", "é".repeat(80)));
        assert_eq!(
            quoted(&"é".repeat(81)),
            format!("\"{}\"...", "é".repeat(80))
        );
    }

    proptest! {
        #[test]
        fn no_bytes_panic_or_show_control_characters(bytes: Vec<u8>, is_end: bool) {
            let rest = if is_end { Rest::Nothing } else { Rest::More };
            if let Some(text) = string(&bytes, rest) {
                prop_assert!(!quoted(text).chars().any(char::is_control));
            }
        }

        #[test]
        fn no_text_shows_control_characters(text: String) {
            prop_assert!(!quoted(&text).chars().any(char::is_control));
        }
    }
}
