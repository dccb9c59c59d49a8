//! The symbols of one module, by address: its data symbols in one table, its functions in another.

use std::cmp::Reverse;

/// A longer name is cut.
const MAX_NAME: usize = 8 << 10;
/// Names can overlap in a file: without this limit a small file could stand for terabytes.
const MAX_NAMES: usize = 256 << 20;
/// Symbols seldom lie inside each other; a file that piles them up is not worth the time.
const MAX_NESTING: usize = 64;

/// A named object in a module. Addresses are those of the file's symbol table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Symbol<'a> {
    pub(super) start: u64,
    /// The size in bytes; 0 when the file does not tell it.
    pub(super) size: u64,
    pub(super) name: &'a str,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    start: u64,
    size: u64,
    name: (u32, u32),
    is_local: bool,
}

/// Collects symbols from several sources, in any order.
#[derive(Debug, Default)]
pub(super) struct TableBuilder {
    entries: Vec<Entry>,
    /// Functions without a size. Theirs is the distance to the end of their section.
    unsized_entries: Vec<Entry>,
    names: String,
}

impl TableBuilder {
    /// Adds a symbol; `name` ends at its first NUL or at its end. A version after `@` is dropped.
    pub(super) fn add(&mut self, start: u64, size: u64, name: &[u8], is_local: bool) {
        let entry = self.entry(start, size, name, is_local);
        self.entries.extend(entry);
    }

    /// Adds a function that has no size, in a section that ends at `end`.
    pub(super) fn add_unsized(&mut self, start: u64, end: u64, name: &[u8], is_local: bool) {
        // The marks of assemblers and linkers name no function: `$x`, `.L1`, `.annobin_…`.
        if !matches!(name.first(), Some(b'$' | b'.')) {
            let entry = self.entry(start, end.saturating_sub(start), name, is_local);
            self.unsized_entries.extend(entry);
        }
    }

    /// The number of functions without a size.
    pub(super) fn unsized_count(&self) -> usize {
        self.unsized_entries.len()
    }

    /// Forgets the functions without a size that were added after the first `count`.
    pub(super) fn forget_unsized(&mut self, count: usize) {
        self.unsized_entries.truncate(count);
    }

    fn entry(&mut self, start: u64, size: u64, name: &[u8], is_local: bool) -> Option<Entry> {
        let name = &name[..name.len().min(MAX_NAME)];
        let end = name.iter().position(|byte| matches!(byte, 0 | b'@'));
        let name = String::from_utf8_lossy(&name[..end.unwrap_or(name.len())]);
        if name.is_empty() || self.names.len() + name.len() > MAX_NAMES {
            return None;
        }
        let offset = u32::try_from(self.names.len()).ok()?;
        let length = u32::try_from(name.len()).ok()?;
        self.names.push_str(&name);
        Some(Entry {
            start,
            size,
            name: (offset, length),
            is_local,
        })
    }

    /// The finished table: of several symbols at one address it keeps the one that says most.
    pub(super) fn finish(self) -> SymbolTable {
        let Self {
            mut entries,
            mut unsized_entries,
            names,
        } = self;
        unsized_entries.sort_unstable_by_key(|entry| entry.start);
        let bounded = bounded_by_the_next(&entries, &unsized_entries);
        entries.extend(bounded);
        entries.sort_unstable_by(|a, b| {
            let by_start = a.start.cmp(&b.start);
            by_start.then_with(|| preference(a, &names).cmp(&preference(b, &names)))
        });
        entries.dedup_by_key(|entry| entry.start);
        entries.shrink_to_fit();
        let mut end = 0;
        let highest_ends = entries.iter().map(|entry| {
            end = entry.start.saturating_add(entry.size.max(1)).max(end);
            end
        });
        SymbolTable {
            highest_ends: highest_ends.collect(),
            entries,
            names,
        }
    }
}

/// Those of `unsized_entries`, in ascending order, that are in none of `entries`, and each no longer
/// than up to the next symbol of any kind: a label inside a function is not a function.
fn bounded_by_the_next(entries: &[Entry], unsized_entries: &[Entry]) -> Vec<Entry> {
    if unsized_entries.is_empty() {
        return Vec::new();
    }
    let mut sized: Vec<(u64, u64)> = entries
        .iter()
        .map(|entry| (entry.start, entry.start.saturating_add(entry.size)))
        .collect();
    sized.sort_unstable();
    let mut highest_end = 0;
    for (_, end) in &mut sized {
        highest_end = highest_end.max(*end);
        *end = highest_end;
    }
    let bounded = unsized_entries.iter().filter_map(|entry| {
        let start = entry.start;
        let after = sized.partition_point(|(other, _)| *other <= start);
        let is_inside = after > 0 && sized[after - 1].1 > start;
        let later = unsized_entries.partition_point(|other| other.start <= start);
        let next = [
            sized.get(after).map(|(other, _)| *other),
            unsized_entries.get(later).map(|other| other.start),
        ];
        let next = next.into_iter().flatten().min().unwrap_or(u64::MAX);
        let size = entry.size.min(next - start);
        (!is_inside && size > 0).then_some(Entry { size, ..*entry })
    });
    bounded.collect()
}

/// Puts first the largest object, then global before local, the public alias (`environ`) before
/// the internal one (`__environ`), the shorter name.
fn preference<'a>(entry: &Entry, names: &'a str) -> impl Ord + use<'a> {
    let name = name_of(entry, names);
    let underscores = name.bytes().take_while(|byte| *byte == b'_').count();
    let prefix = if name.starts_with("_Z") {
        0
    } else {
        underscores
    };
    (
        Reverse(entry.size),
        entry.is_local,
        prefix,
        name.len(),
        name,
    )
}

fn name_of<'a>(entry: &Entry, names: &'a str) -> &'a str {
    let (offset, length) = (entry.name.0 as usize, entry.name.1 as usize);
    &names[offset..offset + length]
}

/// Symbols, in ascending order of their addresses, one per address.
#[derive(Debug, Default)]
pub(super) struct SymbolTable {
    entries: Vec<Entry>,
    /// The highest end of each entry and those before it.
    highest_ends: Vec<u64>,
    names: String,
}

impl SymbolTable {
    /// The innermost symbol that contains `address`. One without a size contains its start only.
    pub(super) fn find(&self, address: u64) -> Option<Symbol<'_>> {
        let after = self.entries.partition_point(|entry| entry.start <= address);
        let candidates = self.entries[..after]
            .iter()
            .zip(&self.highest_ends[..after]);
        candidates
            .rev()
            .take(MAX_NESTING)
            .take_while(|(_, highest_end)| **highest_end > address)
            .map(|(entry, _)| entry)
            .find(|entry| address - entry.start < entry.size.max(1))
            .map(|entry| Symbol {
                start: entry.start,
                size: entry.size,
                name: name_of(entry, &self.names),
            })
    }

    /// The number of symbols.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(symbols: &[(u64, u64, &str)]) -> SymbolTable {
        let mut builder = TableBuilder::default();
        for (start, size, name) in symbols {
            builder.add(*start, *size, name.as_bytes(), name.starts_with("local"));
        }
        builder.finish()
    }

    fn name_at(table: &SymbolTable, address: u64) -> Option<&str> {
        table.find(address).map(|symbol| symbol.name)
    }

    #[test]
    fn the_innermost_symbol_is_found() {
        let table = table(&[(10, 100, "outer"), (20, 8, "inner"), (30, 0, "point")]);
        for (address, name) in [
            (9, None),
            (10, Some("outer")),
            (20, Some("inner")),
            (27, Some("inner")),
            (28, Some("outer")),
            (30, Some("point")),
            (31, Some("outer")),
            (109, Some("outer")),
            (110, None),
            (u64::MAX, None),
        ] {
            assert_eq!(name_at(&table, address), name, "{address}");
        }
    }

    #[test]
    fn of_several_names_the_public_one_stays() {
        for (names, best) in [
            (["__environ", "environ"], "environ"),
            (["local_copy", "_global"], "_global"),
            (["stdin@@GLIBC_2.2.5", "stdin"], "stdin"),
            (["_ZTV1A", "b_longer"], "_ZTV1A"),
        ] {
            let table = table(&[(8, 8, names[0]), (8, 8, names[1])]);
            assert_eq!((name_at(&table, 8), table.len()), (Some(best), 1));
        }
    }

    #[test]
    fn the_largest_of_several_symbols_stays() {
        let table = table(&[(8, 0, "a"), (8, 16, "long_name"), (8, 4, "b")]);
        assert_eq!(name_at(&table, 9), Some("long_name"));
    }

    #[test]
    fn a_function_without_a_size_ends_at_the_next_symbol_or_with_its_section() {
        let mut builder = TableBuilder::default();
        for (start, size, name) in [(20, 10, "sized"), (50, 10, "other")] {
            builder.add(start, size, name.as_bytes(), false);
        }
        for (start, name) in [
            (10, "before"),
            (24, "label"),
            (30, "after"),
            (60, "last"),
            (64, "$x"),
            (90, "outside"),
        ] {
            builder.add_unsized(start, 80, name.as_bytes(), false);
        }
        let table = builder.finish();
        for (address, name) in [
            (9, None),
            (10, Some("before")),
            (19, Some("before")),
            (20, Some("sized")),
            (24, Some("sized")),
            (29, Some("sized")),
            (30, Some("after")),
            (49, Some("after")),
            (59, Some("other")),
            (60, Some("last")),
            (79, Some("last")),
            (80, None),
            (90, None),
        ] {
            assert_eq!(name_at(&table, address), name, "{address}");
        }
    }

    #[test]
    fn sizes_that_wrap_and_names_that_are_no_text_do_no_harm() {
        let mut builder = TableBuilder::default();
        builder.add(u64::MAX, u64::MAX, b"\xff\xfe", false);
        builder.add(1, u64::MAX, b"all\0rest", false);
        builder.add(2, 1, b"\0", false);
        builder.add(2, 1, b"@VERSION", false);
        let table = builder.finish();
        assert_eq!(table.len(), 2);
        assert_eq!(name_at(&table, u64::MAX - 1), Some("all"));
        assert_eq!(name_at(&table, 0), None);
    }
}
