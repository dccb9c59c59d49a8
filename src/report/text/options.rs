//! What the reader of the text asked for.

use anstyle::{AnsiColor, Style};

/// How many entries the text shows if nobody says otherwise.
pub const DEFAULT_LIMIT: usize = 50;

/// What the text shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextOptions {
    /// How the leaks are shown.
    pub layout: Layout,
    /// Whether to leave out the header that says what was looked at and how.
    pub quiet: bool,
    /// How many groups, leaks or types, whichever the layout shows; `None` for all.
    pub limit: Option<usize>,
    /// The colours.
    pub palette: Palette,
}

impl Default for TextOptions {
    fn default() -> Self {
        Self {
            layout: Layout::Trees,
            quiet: false,
            limit: Some(DEFAULT_LIMIT),
            palette: Palette::plain(),
        }
    }
}

/// How the leaks are shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Layout {
    /// Trees of leaks below root leaks and root cycles, with the alike ones together.
    #[default]
    Trees,
    /// One entry for each leak.
    List,
    /// A table with one line for each type.
    Types,
}

/// The styles of the text's parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Palette {
    /// Lines that begin something.
    pub title: Style,
    /// `ROOT LEAK`, `ROOT CYCLE`.
    pub kind: Style,
    /// Strings found in leaked blocks.
    pub content: Style,
    /// Notes on what is not shown.
    pub note: Style,
    /// `warning:`.
    pub warning: Style,
}

impl Palette {
    /// No styles: the text has no escape sequences at all.
    #[must_use]
    pub fn plain() -> Self {
        Self {
            title: Style::new(),
            kind: Style::new(),
            content: Style::new(),
            note: Style::new(),
            warning: Style::new(),
        }
    }

    /// Colours. Write them through an `anstream::AutoStream`, which drops them where the output is
    /// no terminal.
    #[must_use]
    pub fn colored() -> Self {
        Self {
            title: Style::new().bold(),
            kind: AnsiColor::Red.on_default(),
            content: AnsiColor::Green.on_default(),
            note: Style::new().dimmed(),
            warning: AnsiColor::Yellow.on_default().bold(),
        }
    }
}
