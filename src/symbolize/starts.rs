//! The starts of blocks, as far as they tell without symbols what the blocks are.
//!
//! Symbols are in files, and a target that stands still may be the one that serves them: so its blocks
//! are looked at first, and what that has found is named when the target runs again.

use std::fmt;
use std::ops::Range;

use rayon::prelude::*;
use rustc_hash::FxHashMap;

use super::describe::Describer;
use super::descriptions::{Description, Descriptions};
use super::preview::{self, Rest};
use super::symbolizer::Segments;
use crate::addr::Addr;
use crate::heap::{Block, Heap};
use crate::memory::{Memory, Width};
use crate::snapshot::Module;

/// Bytes that are read of every block: the first word, and most strings.
const HEAD: usize = 128;
/// Bytes that are read of a block that starts with a long string.
const MAX_READ: usize = 4096;
/// Bytes between two heads that are read with them: less than a page, so that no page is read that has
/// nothing of a block. A call costs as much.
const MAX_GAP: u64 = 2048;
/// Bytes that are read at once.
const WINDOW: usize = 64 << 10;
/// Blocks that one task looks at.
const PART: usize = 16 << 10;
/// Parts that are looked at before they are joined.
const PARTS: usize = 64;

/// How much of what blocks hold may be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// Their types, and the strings that they start with.
    Contents,
    /// Their types only.
    Types,
}

/// Where blocks are.
pub struct Source<'a> {
    /// What they hold.
    pub memory: &'a dyn Memory,
    /// The size of the target's pointers.
    pub width: Width,
    /// The modules that first words may point into.
    pub modules: &'a [Module],
    /// The heap that the blocks are of.
    pub heap: &'a Heap,
    /// How much of them may be shown.
    pub shown: Shown,
}

impl fmt::Debug for Source<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source")
            .field("shown", &self.shown)
            .finish_non_exhaustive()
    }
}

/// What some blocks are.
#[derive(Clone, Debug, Default)]
pub struct Described {
    /// The number of each block's description, in the order of the blocks.
    pub numbers: Vec<u32>,
    /// All descriptions.
    pub descriptions: Descriptions,
}

/// What some blocks start with.
#[derive(Debug, Default)]
pub struct Starts {
    /// The number of each block's description.
    numbers: Vec<u32>,
    descriptions: Descriptions,
    /// Descriptions of blocks whose first word may point to what says their type, in ascending order.
    words: Vec<(u32, u64)>,
    /// Those of them that have nothing else.
    known: FxHashMap<u64, u32>,
}

impl Starts {
    /// Looks at `count` blocks, in parallel. `block` tells each of them; they are in ascending order. One that is no
    /// block starts with nothing.
    #[must_use]
    pub fn read(
        source: &Source<'_>,
        count: usize,
        block: impl Fn(usize) -> Option<Block> + Sync,
    ) -> Self {
        let segments = Segments::new(source.modules);
        let read = |range: Range<usize>| {
            let blocks: Vec<Option<Block>> = range.map(&block).collect();
            Reader::new(source, &segments).read(&blocks)
        };
        let mut all = Self::default();
        for start in (0..count).step_by(PART * PARTS) {
            let end = count.min(start + PART * PARTS);
            let parts = (start..end).into_par_iter().step_by(PART);
            let parts: Vec<Self> = parts
                .map(|first| read(first..end.min(first + PART)))
                .collect();
            parts.into_iter().for_each(|part| all.append(part));
        }
        all
    }

    /// Leaves out the blocks for which `is_kept` says no; it is asked for the index of each, in ascending order.
    pub fn retain(&mut self, mut is_kept: impl FnMut(usize) -> bool) {
        let mut indices = 0..;
        self.numbers
            .retain(|_| indices.next().is_some_and(&mut is_kept));
    }

    /// Names the types.
    #[must_use]
    pub fn described(self, describer: &Describer<'_>) -> Described {
        let mut descriptions = self.descriptions;
        for (number, word) in self.words {
            if let Some(name) = describer.type_by_word(word) {
                descriptions.set_type(number, &name);
            }
        }
        Described {
            numbers: self.numbers,
            descriptions,
        }
    }

    fn add(&mut self, word: Option<u64>, content: Description<'_>) {
        let number = self.number(word, content);
        self.numbers.push(number);
    }

    fn number(&mut self, word: Option<u64>, content: Description<'_>) -> u32 {
        let Some(word) = word else {
            return self.descriptions.number(content);
        };
        let is_word_only = content == Description::default();
        if let Some(known) = self.known.get(&word).filter(|_| is_word_only) {
            return *known;
        }
        let number = self.descriptions.add(content);
        self.words.push((number, word));
        if is_word_only {
            self.known.insert(word, number);
        }
        number
    }

    /// Adds the blocks of `part`, which come next.
    fn append(&mut self, part: Self) {
        let mut words = part.words.into_iter().peekable();
        let new: Vec<u32> = (0..part.descriptions.len())
            .map(|number| {
                let word = words.next_if(|(other, _)| *other == number);
                self.number(word.map(|(_, word)| word), part.descriptions.get(number))
            })
            .collect();
        let numbers = part.numbers.into_iter();
        self.numbers
            .extend(numbers.map(|number| new[number as usize]));
    }
}

/// Looks at blocks in ascending order.
struct Reader<'a> {
    source: &'a Source<'a>,
    segments: &'a Segments,
    /// Bytes from `start` on that have been read.
    bytes: Vec<u8>,
    filled: usize,
    start: Addr,
    longer: Vec<u8>,
}

impl<'a> Reader<'a> {
    fn new(source: &'a Source<'a>, segments: &'a Segments) -> Self {
        Self {
            source,
            segments,
            bytes: vec![0; WINDOW],
            filled: 0,
            start: Addr(0),
            longer: Vec::new(),
        }
    }

    fn read(mut self, blocks: &[Option<Block>]) -> Starts {
        let mut starts = Starts {
            numbers: Vec::with_capacity(blocks.len()),
            ..Starts::default()
        };
        for (index, block) in blocks.iter().enumerate() {
            let Some(block) = block else {
                starts.add(None, Description::default());
                continue;
            };
            if !self.has(block) {
                self.fill(block, &blocks[index + 1..]);
            }
            self.add_to(&mut starts, block);
        }
        starts
    }

    /// The bytes of a block that are looked at.
    fn head_size(&self, block: &Block) -> usize {
        let wanted = match self.source.shown {
            Shown::Contents => HEAD,
            Shown::Types => self.source.width.size(),
        };
        usize::try_from(block.size).unwrap_or(wanted).min(wanted)
    }

    /// Where the head of a block begins in the bytes that have been read.
    fn offset(&self, block: &Block) -> Option<usize> {
        let offset = block.start.0.checked_sub(self.start.0)?;
        usize::try_from(offset)
            .ok()
            .filter(|offset| *offset <= self.filled)
    }

    /// Says whether the head of a block has been read, to its end.
    fn has(&self, block: &Block) -> bool {
        let end = self
            .offset(block)
            .and_then(|offset| offset.checked_add(self.head_size(block)));
        end.is_some_and(|end| end <= self.filled)
    }

    /// Reads the head of `first`, and with it those of the blocks after it that are near.
    fn fill(&mut self, first: &Block, next: &[Option<Block>]) {
        let end = |block: &Block| block.start.saturating_add(self.head_size(block) as u64);
        let mut read = end(first);
        for block in next.iter().flatten() {
            let gap = block.start.0.saturating_sub(read.0);
            let all = end(block).0.saturating_sub(first.start.0);
            if gap > MAX_GAP || all > WINDOW as u64 {
                break;
            }
            read = read.max(end(block));
        }
        let size = usize::try_from(read.0.saturating_sub(first.start.0)).unwrap_or(WINDOW);
        self.start = first.start;
        let bytes = &mut self.bytes[..size.min(WINDOW)];
        self.filled = self.source.memory.read(first.start, bytes);
    }

    fn add_to(&mut self, starts: &mut Starts, block: &Block) {
        let offset = self.offset(block).unwrap_or(self.filled);
        let end = self
            .filled
            .min(offset.saturating_add(self.head_size(block)));
        let head = &self.bytes[offset..end];
        let word = self
            .source
            .width
            .word(head)
            .filter(|word| self.is_telling(*word));
        let text = match self.source.shown {
            Shown::Contents => text(self.source.memory, block, head, &mut self.longer),
            Shown::Types => None,
        };
        let quoted = text.map(preview::quoted);
        let content = Description {
            type_name: None,
            content: quoted.as_deref(),
            content_length: text.map(|text| text.len() as u64),
        };
        starts.add(word, content);
    }

    /// Says whether the type of a block may be told by this first word.
    fn is_telling(&self, word: u64) -> bool {
        self.segments.module(Addr(word)).is_some() && !self.source.heap.owned.contains(Addr(word))
    }
}

/// The string that `block` starts with. `head` is its start, and `longer` is for more of it.
fn text<'a>(
    memory: &dyn Memory,
    block: &Block,
    head: &'a [u8],
    longer: &'a mut Vec<u8>,
) -> Option<&'a str> {
    let text = preview::string(head, rest(block, head, HEAD))?;
    // A character of up to four bytes may have been cut.
    let may_go_on = text.len() + 4 > head.len() && (head.len() as u64) < block.size;
    if !may_go_on {
        return Some(text);
    }
    let size = usize::try_from(block.size)
        .unwrap_or(MAX_READ)
        .min(MAX_READ);
    longer.resize(size, 0);
    let read = memory.read(block.start, longer);
    longer.truncate(read);
    preview::string(longer, rest(block, longer, MAX_READ))
}

/// What follows `bytes` in `block`, of which `wanted` were asked for.
fn rest(block: &Block, bytes: &[u8], wanted: usize) -> Rest {
    if bytes.len() as u64 >= block.size {
        Rest::Nothing
    } else if bytes.len() == wanted {
        Rest::More
    } else {
        Rest::Unreadable
    }
}
