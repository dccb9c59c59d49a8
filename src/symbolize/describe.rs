//! The types of blocks, by their first words.

use std::fmt;
use std::sync::{PoisonError, RwLock};

use rustc_hash::FxHashMap;

use super::symbolizer::{DataSymbol, Symbolizer};
use crate::addr::Addr;
use crate::heap::{Block, Heap};
use crate::memory::{Memory, Width};

/// Tells the types of blocks, from any number of threads.
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

    /// The type of `block`: the class of the C++ object, or the name of the variable that its first
    /// word points into.
    #[must_use]
    pub fn type_name(&self, block: &Block) -> Option<String> {
        let mut bytes = [0; 8];
        let size = usize::try_from(block.size).unwrap_or(8).min(8);
        let read = self.memory.read(block.start, &mut bytes[..size]);
        self.type_by_word(self.width.word(&bytes[..read])?)
    }

    /// The type of a block that starts with `word`.
    pub(super) fn type_by_word(&self, word: u64) -> Option<String> {
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
}

impl fmt::Debug for Describer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Describer").finish_non_exhaustive()
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
