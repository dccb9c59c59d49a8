//! What blocks are, each different answer once: there may be tens of millions of blocks.

use std::hash::{Hash, Hasher};

use rustc_hash::{FxHashMap, FxHasher};

/// What a block is, as far as its bytes tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Description<'a> {
    /// The class of the C++ object, or the name of the variable that the block's first word
    /// points into.
    pub type_name: Option<&'a str>,
    /// The start of the string that the block starts with, in quotes and escaped: no control characters.
    pub content: Option<&'a str>,
    /// The length of that string in bytes without the NUL. No more than 4096 bytes are looked at.
    pub content_length: Option<u64>,
}

/// Descriptions of blocks. Each has a number, and equal ones nearly always the same.
#[derive(Clone, Debug)]
pub struct Descriptions {
    entries: Vec<Entry>,
    /// All contents, one after the other.
    text: String,
    types: Vec<Box<str>>,
    type_numbers: FxHashMap<Box<str>, u32>,
    /// The last description for some of the bits of its hash: a map of all would be larger than they.
    recent: Vec<u32>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Where its content begins.
    start: usize,
    content_length: Option<u64>,
    /// The length of its content in the text, or [`NONE`].
    length: u32,
    /// The number of its type, or [`NONE`].
    type_number: u32,
}

const NONE: u32 = u32::MAX;
/// How many descriptions are compared with a new one, each of which has other bits in its hash.
const RECENT: usize = 4096;

impl Descriptions {
    /// The number of the description of a block that nothing is known of.
    pub const NOTHING: u32 = 0;

    /// A list with nothing but [`Self::NOTHING`].
    #[must_use]
    pub fn new() -> Self {
        Self {
            entries: vec![Entry {
                start: 0,
                content_length: None,
                length: NONE,
                type_number: NONE,
            }],
            text: String::new(),
            types: Vec::new(),
            type_numbers: FxHashMap::default(),
            recent: Vec::new(),
        }
    }

    /// The number of a description that is equal to `description`.
    pub fn number(&mut self, description: Description<'_>) -> u32 {
        if description == Description::default() {
            return Self::NOTHING;
        }
        if self.recent.is_empty() {
            self.recent = vec![Self::NOTHING; RECENT];
        }
        let place = place(&description);
        let known = self.recent[place];
        if self.get(known) == description {
            return known;
        }
        let number = self.add(description);
        self.recent[place] = number;
        number
    }

    /// Adds a description, and returns its number, which no other has.
    pub(super) fn add(&mut self, description: Description<'_>) -> u32 {
        let content = description.content.unwrap_or_default();
        let length = description.content.map(str::len);
        let entry = Entry {
            start: self.text.len(),
            content_length: description.content_length,
            length: length.and_then(|l| u32::try_from(l).ok()).unwrap_or(NONE),
            type_number: description.type_name.map_or(NONE, |n| self.type_of(n)),
        };
        self.text.push_str(content);
        self.entries.push(entry);
        number(self.entries.len() - 1)
    }

    /// The description with this number.
    #[must_use]
    pub fn get(&self, number: u32) -> Description<'_> {
        let entry = &self.entries[number as usize];
        let content = || &self.text[entry.start..entry.start + entry.length as usize];
        Description {
            type_name: self
                .types
                .get(entry.type_number as usize)
                .map(|name| &**name),
            content: (entry.length != NONE).then(content),
            content_length: entry.content_length,
        }
    }

    /// A number for the type of a description, which no other type has; `None` where it has no type.
    #[must_use]
    pub fn type_number(&self, number: u32) -> Option<u32> {
        Some(self.entries[number as usize].type_number).filter(|number| *number != NONE)
    }

    /// The name of the type with this number.
    #[must_use]
    pub fn type_name(&self, type_number: u32) -> &str {
        &self.types[type_number as usize]
    }

    /// Gives a description a type: what looked like a string is none then.
    pub(super) fn set_type(&mut self, number: u32, name: &str) {
        let type_number = self.type_of(name);
        let entry = &mut self.entries[number as usize];
        (entry.type_number, entry.length, entry.content_length) = (type_number, NONE, None);
    }

    /// The number of descriptions.
    pub(super) fn len(&self) -> u32 {
        number(self.entries.len())
    }

    fn type_of(&mut self, name: &str) -> u32 {
        if let Some(known) = self.type_numbers.get(name) {
            return *known;
        }
        let new = number(self.types.len());
        self.types.push(name.into());
        self.type_numbers.insert(name.into(), new);
        new
    }
}

impl Default for Descriptions {
    fn default() -> Self {
        Self::new()
    }
}

/// There are no more descriptions than blocks, which are numbered with 32 bits, and one of nothing.
fn number(index: usize) -> u32 {
    u32::try_from(index).expect("fewer than 2³² descriptions")
}

fn place(description: &Description<'_>) -> usize {
    let mut hasher = FxHasher::default();
    description.hash(&mut hasher);
    let hash = hasher.finish();
    usize::try_from(hash % RECENT as u64).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn nothing_is_known_of_nothing() {
        let mut descriptions = Descriptions::new();
        assert_eq!(
            descriptions.get(Descriptions::NOTHING),
            Description::default()
        );
        let number = descriptions.number(Description::default());
        assert_eq!(number, Descriptions::NOTHING);
        assert_eq!(descriptions.type_number(number), None);
    }

    #[test]
    fn what_gets_a_type_is_no_string() {
        let mut descriptions = Descriptions::new();
        let content = Description {
            content: Some("\"text\""),
            content_length: Some(4),
            ..Description::default()
        };
        let number = descriptions.number(content);
        assert_eq!(descriptions.number(content), number);
        descriptions.set_type(number, "Type");
        let typed = Description {
            type_name: Some("Type"),
            ..Description::default()
        };
        assert_eq!(descriptions.get(number), typed);
        let type_number = descriptions.type_number(number).expect("a type");
        assert_eq!(descriptions.type_name(type_number), "Type");
        assert_ne!(descriptions.number(content), number);
    }

    proptest! {
        #[test]
        fn each_description_is_found_again(
            all in prop::collection::vec(("[ab]{0,2}", any::<bool>(), "[ab]{0,2}", any::<bool>(), 0_u64..3), 0..100)
        ) {
            let mut descriptions = Descriptions::new();
            let all: Vec<_> = all.iter().map(|(name, has_name, text, has_text, length)| Description {
                type_name: has_name.then_some(name.as_str()),
                content: has_text.then_some(text.as_str()),
                content_length: length.checked_sub(1),
            }).collect();
            let numbers: Vec<u32> = all.iter().map(|one| descriptions.number(*one)).collect();
            for (number, one) in numbers.iter().zip(&all) {
                prop_assert_eq!(descriptions.get(*number), *one);
                let type_number = descriptions.type_number(*number);
                prop_assert_eq!(type_number.map(|number| descriptions.type_name(number)), one.type_name);
            }
        }
    }
}
