//! Strings from the target, made safe for a terminal.

use std::fmt::{self, Write};

/// Shows a string without its control characters, which are written as Rust writes them:
/// `\n`, `\u{1b}`. So are the characters that reorder or hide text.
pub(super) struct Escaped<'a>(pub(super) &'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0;
        while let Some(position) = rest.find(is_unsafe) {
            f.write_str(&rest[..position])?;
            let mut after = rest[position..].chars();
            for character in after.by_ref().take(1) {
                write!(f, "{}", Visible(character))?;
            }
            rest = after.as_str();
        }
        f.write_str(rest)
    }
}

/// Says whether a character moves the cursor, changes the terminal, or changes the order or the
/// lines of the text around it.
fn is_unsafe(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{200e}'
                | '\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2066}'..='\u{2069}'
                | '\u{feff}'
        )
}

struct Visible(char);

impl fmt::Display for Visible {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            '\n' | '\t' | '\r' => self.0.escape_default().try_for_each(|c| f.write_char(c)),
            character => write!(f, "{}", character.escape_unicode()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_made_visible_and_letters_stay() {
        for (from, to) in [
            ("", ""),
            ("plain \\ \"text\"", "plain \\ \"text\""),
            ("grüße 漢字 🦀", "grüße 漢字 🦀"),
            ("\u{1b}[31mred", "\\u{1b}[31mred"),
            ("a\nb\tc\r", "a\\nb\\tc\\r"),
            ("\u{9b}2J\u{7f}\0", "\\u{9b}2J\\u{7f}\\u{0}"),
            ("user\u{202e}gpj.exe", "user\\u{202e}gpj.exe"),
        ] {
            assert_eq!(Escaped(from).to_string(), to);
        }
    }
}
