//! What a module's dynamic section says, as it lies in the target's memory.
//!
//! Everything here may be garbage: a target can overwrite its own modules. Sizes are bounded by
//! the segments that hold the tables and by fixed limits, and what makes no sense is left out.

use goblin::container::{Container, Ctx, Endian};
use goblin::elf::dynamic::{
    DT_GNU_HASH, DT_HASH, DT_NEEDED, DT_NULL, DT_STRSZ, DT_STRTAB, DT_SYMTAB,
};
use goblin::elf::section_header::{SHN_ABS, SHN_UNDEF};
use goblin::elf::sym::{STT_FUNC, STT_GNU_IFUNC, STT_OBJECT, Sym};

use super::Module;
use crate::addr::{Addr, AddrRange};
use crate::memory::{Memory, Width};

const MAX_SYMBOLS: u64 = 1 << 20;
const MAX_STRINGS: u64 = 64 << 20;
/// Names can overlap: without this limit a small table could stand for terabytes of names.
const MAX_NAME: usize = 8 << 10;
const MAX_NAMES: usize = 256 << 20;
const MAX_DYNAMIC: u64 = 64 << 10;
const PIECE: u64 = 1 << 20;

/// A symbol that a module exports or imports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DynamicSymbol {
    /// The name, without a version.
    pub name: String,
    /// Where it lies in the target. Means nothing unless `is_defined`.
    pub value: Addr,
    /// Its size in bytes; 0 when it is not known.
    pub size: u64,
    /// It is code: a function, or a function that picks its implementation at load time.
    pub is_function: bool,
    /// It is a variable that all threads share, or a constant.
    pub is_data: bool,
    /// The module defines it; otherwise it imports it.
    pub is_defined: bool,
}

/// The symbols of `module`'s dynamic symbol table, read from `memory`.
///
/// Empty when the module has none or it cannot be read; cut after about a million symbols.
#[must_use]
pub fn dynamic_symbols(memory: &dyn Memory, module: &Module) -> Vec<DynamicSymbol> {
    let section = Dynamic::read(memory, module);
    section.symbols().unwrap_or_default()
}

/// The string that the first entry of type `tag` (`DT_SONAME`, …) of `module`'s dynamic section
/// names.
#[must_use]
pub fn dynamic_string(memory: &dyn Memory, module: &Module, tag: u64) -> Option<String> {
    let section = Dynamic::read(memory, module);
    section.string(section.entry(tag)?)
}

/// The libraries that `module` asks the dynamic loader for (`DT_NEEDED`), in their order.
#[must_use]
pub fn needed_libraries(memory: &dyn Memory, module: &Module) -> Vec<String> {
    let section = Dynamic::read(memory, module);
    let needed = section.entries.iter().filter(|(tag, _)| *tag == DT_NEEDED);
    needed.filter_map(|(_, at)| section.string(*at)).collect()
}

/// A module's dynamic section: pairs of tag and value.
struct Dynamic<'a> {
    memory: &'a dyn Memory,
    module: &'a Module,
    entries: Vec<(u64, u64)>,
}

impl<'a> Dynamic<'a> {
    fn read(memory: &'a dyn Memory, module: &'a Module) -> Self {
        let range = module.dynamic.unwrap_or_default();
        let bytes = read_up_to(memory, range.start, range.size().min(MAX_DYNAMIC));
        let entries = bytes
            .chunks_exact(module.width.pair_size())
            .filter_map(|entry| {
                let value = entry.get(module.width.size()..)?;
                Some((module.width.word(entry)?, module.width.word(value)?))
            })
            .take_while(|(tag, _)| *tag != DT_NULL)
            .collect();
        Self {
            memory,
            module,
            entries,
        }
    }

    fn entry(&self, tag: u64) -> Option<u64> {
        let mut entries = self.entries.iter();
        entries.find(|(t, _)| *t == tag).map(|(_, value)| *value)
    }

    /// Where the table that `tag` points to lies.
    ///
    /// glibc's loader has replaced the file's addresses by those in memory; musl's has not, and
    /// nobody does it for the vdso.
    fn table(&self, tag: u64) -> Option<Addr> {
        let value = self.entry(tag)?;
        let moved = self.module.relocated(value);
        let in_place = [Addr(value), moved].into_iter();
        let below_base = Addr(value) < self.module.base;
        in_place
            .skip(usize::from(below_base))
            .find(|addr| self.module.contains(*addr))
    }

    /// Up to `size` bytes at `start`, as far as its segment goes and can be read.
    fn bytes(&self, start: Addr, size: u64) -> Vec<u8> {
        let segments = self.module.segments.iter().map(|segment| segment.range);
        let wanted = AddrRange::with_size(start, size);
        let available = segments
            .map(|segment| segment.intersection(&wanted))
            .find(|part| part.start == start && !part.is_empty());
        available.map_or_else(Vec::new, |part| {
            read_up_to(self.memory, part.start, part.size())
        })
    }

    fn string(&self, at: u64) -> Option<String> {
        let start = self.table(DT_STRTAB)?.checked_add(at)?;
        if at >= self.entry(DT_STRSZ)? {
            return None;
        }
        let bytes = self.bytes(start, MAX_NAME as u64);
        name_at(&bytes, 0).filter(|name| !name.is_empty())
    }

    fn symbols(&self) -> Option<Vec<DynamicSymbol>> {
        let count = self.symbol_count()?.min(MAX_SYMBOLS);
        let (container, symbol_size) = match self.module.width {
            Width::Four => (Container::Little, 16),
            Width::Eight => (Container::Big, 24),
        };
        let table = self.bytes(self.table(DT_SYMTAB)?, count.saturating_mul(symbol_size));
        let strings_size = self.entry(DT_STRSZ)?.min(MAX_STRINGS);
        let strings = self.bytes(self.table(DT_STRTAB)?, strings_size);
        let context = Ctx::new(container, Endian::Little);
        let count = table
            .len()
            .checked_div(usize::try_from(symbol_size).ok()?)?;
        let mut names_left = MAX_NAMES;
        let symbols = Sym::parse(&table, 0, count, context).ok()?.into_iter();
        let symbols = symbols.filter_map(|symbol| self.symbol(&symbol, &strings));
        let symbols = symbols.map_while(|symbol| {
            names_left = names_left.checked_sub(symbol.name.len())?;
            Some(symbol)
        });
        Some(symbols.collect())
    }

    fn symbol(&self, symbol: &Sym, strings: &[u8]) -> Option<DynamicSymbol> {
        let name = name_at(strings, symbol.st_name)?;
        let section = u32::try_from(symbol.st_shndx).ok()?;
        let kind = symbol.st_type();
        let value = if section == SHN_ABS {
            Addr(symbol.st_value)
        } else {
            self.module.relocated(symbol.st_value)
        };
        (!name.is_empty()).then_some(DynamicSymbol {
            name,
            value,
            size: symbol.st_size,
            is_function: kind == STT_FUNC || kind == STT_GNU_IFUNC,
            is_data: kind == STT_OBJECT && section != SHN_ABS,
            is_defined: section != SHN_UNDEF,
        })
    }

    /// No entry holds the number of symbols: only the hash tables tell it.
    fn symbol_count(&self) -> Option<u64> {
        let count = |table: Addr| self.memory.word32(table.checked_add(4)?).map(u64::from);
        self.table(DT_HASH)
            .and_then(count)
            .or_else(|| self.gnu_hash_count(self.table(DT_GNU_HASH)?))
    }

    /// One more than the highest symbol that a GNU hash table at `table` lists.
    fn gnu_hash_count(&self, table: Addr) -> Option<u64> {
        let field = |offset| Some(u64::from(self.memory.word32(table.checked_add(offset)?)?));
        let (buckets, first, filter) = (field(0)?, field(4)?, field(8)?);
        let start = table.checked_add(
            filter
                .checked_mul(self.module.width.bytes())?
                .checked_add(16)?,
        )?;
        let bytes = self.bytes(start, buckets.min(MAX_SYMBOLS).saturating_mul(4));
        let last = words32(&bytes).max().map(u64::from);
        let last = last.filter(|last| *last != 0);
        let Some(last) = last else { return Some(first) };
        let before = buckets.checked_add(last.checked_sub(first)?)?;
        let chain = start.checked_add(before.checked_mul(4)?)?;
        last.checked_add(self.chain_length(chain))
    }

    /// The length of the chain of hash values at `chain`: the last one is odd.
    fn chain_length(&self, chain: Addr) -> u64 {
        let piece = PIECE / 256;
        let mut length = 0_u64;
        while length < MAX_SYMBOLS {
            let bytes = self.bytes(chain.saturating_add(length.saturating_mul(4)), piece);
            // The last value counts, and so does each before it.
            let mut in_piece = 0_u64;
            for value in words32(&bytes) {
                in_piece = in_piece.saturating_add(1);
                if value & 1 == 1 {
                    return length.saturating_add(in_piece);
                }
            }
            length = length.saturating_add(in_piece);
            if (bytes.len() as u64) < piece {
                break;
            }
        }
        length
    }
}

/// Up to `size` bytes at `start`. Reads piece by piece, so that a size which is a lie costs no
/// memory.
fn read_up_to(memory: &dyn Memory, start: Addr, size: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut piece = vec![0; usize::try_from(size.min(PIECE)).unwrap_or(0)];
    loop {
        let done = bytes.len() as u64;
        let left = usize::try_from(size.saturating_sub(done)).unwrap_or(usize::MAX);
        piece.truncate(left);
        let read = memory.read(start.saturating_add(done), &mut piece);
        bytes.extend_from_slice(piece.get(..read).unwrap_or_default());
        if read == 0 || read < piece.len() {
            return bytes;
        }
    }
}

/// The string that ends with a NUL and starts at `at`, cut at [`MAX_NAME`].
fn name_at(strings: &[u8], at: usize) -> Option<String> {
    let tail = strings.get(at..)?;
    let tail = tail.get(..MAX_NAME).unwrap_or(tail);
    let name = tail.split(|byte| *byte == 0).next()?;
    Some(String::from_utf8_lossy(name).into_owned())
}

fn words32(bytes: &[u8]) -> impl Iterator<Item = u32> + '_ {
    let (words, _) = bytes.as_chunks();
    words.iter().map(|word| u32::from_le_bytes(*word))
}
