//! What a block is, by what it holds.

use std::fmt;
use std::sync::{PoisonError, RwLock};

use rustc_hash::FxHashMap;

use super::preview::{self, Rest};
use super::symbolizer::{DataSymbol, Symbolizer};
use crate::addr::Addr;
use crate::heap::{Block, Heap};
use crate::memory::{Memory, Width};

/// Bytes that are read of every block: the first word, and most strings.
const HEAD: usize = 128;
/// Bytes that are read of a block that starts with a long string.
const MAX_READ: usize = 4096;

/// What a block is, as far as its bytes tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Description {
    /// The class of the C++ object, or the name of the variable that the block's first word
    /// points into.
    pub type_name: Option<String>,
    /// The string that the block starts with, if the block has no type.
    pub content: Option<Content>,
}

/// A string at the start of a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    /// Its length in bytes without the NUL. No more than 4096 bytes are looked at.
    pub length: u64,
    /// Its start, in quotes and escaped: no control characters.
    pub text: String,
}

/// Describes blocks, from any number of threads.
pub struct Describer<'a> {
    memory: &'a dyn Memory,
    width: Width,
    symbolizer: &'a Symbolizer<'a>,
    heap: &'a Heap,
    /// The type for each first word that points into a module: leaks have few different ones.
    types: RwLock<FxHashMap<u64, Option<String>>>,
}

impl<'a> Describer<'a> {
    /// A describer of blocks of `heap`.
    ///
    /// A first word that points into what the heap owns, variables of the allocator such as glibc's
    /// `main_arena` included, says nothing: it may be left over from a free list.
    #[must_use]
    pub fn new(
        memory: &'a dyn Memory,
        width: Width,
        symbolizer: &'a Symbolizer<'a>,
        heap: &'a Heap,
    ) -> Self {
        Self {
            memory,
            width,
            symbolizer,
            heap,
            types: RwLock::default(),
        }
    }

    /// The type of `block`, or the string that it starts with.
    #[must_use]
    pub fn describe(&self, block: &Block) -> Description {
        let head = self.head(block, HEAD);
        let type_name = self.type_by_first_word(&head);
        let content = match type_name {
            Some(_) => None,
            None => self.content(block, &head),
        };
        Description { type_name, content }
    }

    /// The type of `block` only, for reports that must not show what a block holds.
    #[must_use]
    pub fn type_name(&self, block: &Block) -> Option<String> {
        self.type_by_first_word(&self.head(block, 8))
    }

    /// The first `size` bytes of `block`, or all, or those that can be read.
    fn head(&self, block: &Block, size: usize) -> Vec<u8> {
        let size = usize::try_from(block.size).unwrap_or(size).min(size);
        let mut bytes = vec![0; size];
        let read = self.memory.read(block.start, &mut bytes);
        bytes.truncate(read);
        bytes
    }

    fn type_by_first_word(&self, head: &[u8]) -> Option<String> {
        let word = self.width.word(head)?;
        let is_telling =
            self.symbolizer.is_in_module(Addr(word)) && !self.heap.owned.contains(Addr(word));
        is_telling.then(|| self.pointed_type(word))?
    }

    fn pointed_type(&self, word: u64) -> Option<String> {
        // A panic of another thread leaves the map whole.
        let known = self.types.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known.get(&word) {
            return known.clone();
        }
        drop(known);
        let symbol = self.symbolizer.data_symbol(Addr(word));
        let type_name = symbol.and_then(|symbol| type_of_pointer_to(symbol, self.width.bytes()));
        let mut known = self.types.write().unwrap_or_else(PoisonError::into_inner);
        known.insert(word, type_name.clone());
        type_name
    }

    fn content(&self, block: &Block, head: &[u8]) -> Option<Content> {
        let text = preview::string(head, rest(block, head, HEAD))?;
        // A character of up to four bytes may have been cut.
        let may_go_on = text.len() + 4 > head.len() && (head.len() as u64) < block.size;
        if !may_go_on {
            return Some(content(text));
        }
        let longer = self.head(block, MAX_READ);
        preview::string(&longer, rest(block, &longer, MAX_READ)).map(content)
    }
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

impl fmt::Debug for Describer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Describer").finish_non_exhaustive()
    }
}

fn content(text: &str) -> Content {
    Content {
        length: text.len() as u64,
        text: preview::quoted(text),
    }
}

/// What an object is whose first word points into `symbol`.
///
/// A vtable starts with two words, the offset to the top and the type info; objects point behind
/// them.
fn type_of_pointer_to(symbol: DataSymbol, word: u64) -> Option<String> {
    let Some(class) = symbol.class else {
        return Some(symbol.name);
    };
    let is_address_point = symbol.offset >= 2 * word && symbol.offset.is_multiple_of(word);
    is_address_point.then_some(class)
}
