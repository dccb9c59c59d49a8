//! The names that a JIT compiler gives its code: `/tmp/perf-PID.map`.
//!
//! Each line has the start and the size of a piece of code in hexadecimal digits, and its name. The
//! compiler only appends: where it has put other code in the place of old code, both are in the
//! file, and nothing says which of the two was recorded.

use super::elf::Bytes;
use crate::addr::Addr;

/// What is behind this in a file is not read.
const MAX_FILE: u64 = 512 << 20;
const PIECE: usize = 1 << 20;
/// A longer line is none.
const MAX_LINE: usize = 8 << 10;
/// A longer name is cut.
const MAX_NAME: usize = 1 << 10;
/// Pieces of code are small: most addresses are in one, and each is in few.
const MAX_MATCHES: usize = 10_000_000;

/// A piece of code that a JIT compiler made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct JitCode {
    pub(super) start: Addr,
    pub(super) name: String,
}

/// The code that each of `addresses`, which are in ascending order, is in. There is none for an
/// address that pieces with different names claim.
pub(super) fn named(map: &impl Bytes, addresses: &[Addr]) -> Vec<Option<JitCode>> {
    let mut search = Search {
        addresses,
        found: vec![Found::Nothing; addresses.len()],
        matches: 0,
    };
    if each_line(map, |line| search.look_at(line)).is_none() {
        return vec![None; addresses.len()];
    }
    let found = search.found.into_iter();
    found
        .map(|found| match found {
            Found::Code(code) => Some(code),
            Found::Nothing | Found::Different => None,
        })
        .collect()
}

struct Search<'a> {
    addresses: &'a [Addr],
    found: Vec<Found>,
    matches: usize,
}

#[derive(Clone)]
enum Found {
    Nothing,
    Code(JitCode),
    Different,
}

impl Search<'_> {
    /// Notes which addresses `line` names; `None` when the file makes no sense.
    fn look_at(&mut self, line: &[u8]) -> Option<()> {
        let Some((start, end, name)) = parse(line) else {
            return Some(());
        };
        let first = self.addresses.partition_point(|address| *address < start);
        let inside = self.addresses[first..].partition_point(|address| *address < end);
        self.matches += inside;
        for found in &mut self.found[first..first + inside] {
            match found {
                Found::Different => {}
                Found::Code(code) if code.name.as_bytes() != name => *found = Found::Different,
                Found::Nothing | Found::Code(_) => {
                    let name = String::from_utf8_lossy(name).into_owned();
                    *found = Found::Code(JitCode { start, name });
                }
            }
        }
        (self.matches <= MAX_MATCHES).then_some(())
    }
}

/// The start, the end and the name of the code in `line`.
fn parse(line: &[u8]) -> Option<(Addr, Addr, &[u8])> {
    let mut fields = line.trim_ascii().splitn(3, |byte| *byte == b' ');
    let start = Addr(hex_number(fields.next()?)?);
    let size = hex_number(fields.next()?)?;
    let name = fields.next()?.trim_ascii();
    let name = &name[..name.len().min(MAX_NAME)];
    (!name.is_empty()).then_some((start, start.checked_add(size)?, name))
}

fn hex_number(digits: &[u8]) -> Option<u64> {
    let digits = str::from_utf8(digits).ok()?;
    let digits = digits.strip_prefix("0x").unwrap_or(digits);
    u64::from_str_radix(digits, 16).ok()
}

/// Calls `visit` for each line of `file`, as long as it gives something.
fn each_line(file: &impl Bytes, mut visit: impl FnMut(&[u8]) -> Option<()>) -> Option<()> {
    let size = file.size().min(MAX_FILE);
    let mut pending = Vec::new();
    let mut offset = 0;
    while offset < size {
        let length = usize::try_from(size - offset).unwrap_or(PIECE).min(PIECE);
        let kept = pending.len();
        pending.resize(kept + length, 0);
        if !file.read_at(offset, &mut pending[kept..]) {
            // It was cut short meanwhile.
            pending.truncate(kept);
            break;
        }
        offset += length as u64;
        let complete = pending.iter().rposition(|byte| *byte == b'\n');
        let complete = complete.map_or(0, |newline| newline + 1);
        for line in pending[..complete].split(|byte| *byte == b'\n') {
            visit(line)?;
        }
        pending.drain(..complete);
        if pending.len() > MAX_LINE {
            pending.clear();
        }
    }
    visit(&pending)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name_at(map: &str, address: u64) -> Option<(String, u64)> {
        let found = named(&map.as_bytes().to_vec(), &[Addr(address)]);
        let code = found.into_iter().next()??;
        Some((code.name, code.start.0))
    }

    #[test]
    fn code_is_named_within_its_size() {
        let map = "1000 20 first\n0x2000 10 LazyCompile:*f /a b.js:1:2\r\n\n3000 8 last";
        for (address, found) in [
            (0xfff, None),
            (0x1000, Some(("first", 0x1000))),
            (0x101f, Some(("first", 0x1000))),
            (0x1020, None),
            (0x2008, Some(("LazyCompile:*f /a b.js:1:2", 0x2000))),
            (0x3007, Some(("last", 0x3000))),
            (0x3008, None),
        ] {
            let found = found.map(|(name, start)| (name.to_owned(), start));
            assert_eq!(name_at(map, address), found, "{address:#x}");
        }
    }

    #[test]
    fn code_with_two_names_has_none() {
        let map = "1000 20 old\n1010 20 new\n1010 20 new\n";
        assert_eq!(name_at(map, 0x1008).expect("the old one").0, "old");
        assert_eq!(name_at(map, 0x1010), None);
        assert_eq!(name_at(map, 0x1020).expect("the new one").0, "new");
    }

    #[test]
    fn lines_that_make_no_sense_are_passed_over() {
        for line in [
            "",
            "1000",
            "1000 20",
            "1000 20  ",
            "xyz 20 f",
            "1000 -1 f",
            "ffffffffffffffff 20 f",
            "1 1ffffffffffffffff f",
            "\u{fffd} \0",
        ] {
            let map = format!("{line}\n1000 20 good\n{line}");
            assert_eq!(name_at(&map, 0x1004).expect(line).0, "good");
        }
        let long = "x".repeat(3 * PIECE);
        assert_eq!(name_at(&long, 0), None);
        let map = format!("1000 20 good\n{long}\n2000 20 {long}\n3000 20 after");
        assert_eq!(name_at(&map, 0x1004).expect("a name").0, "good");
        assert_eq!(name_at(&map, 0x3004).expect("a name").0, "after");
    }

    #[test]
    fn lines_are_whole_across_the_pieces_that_are_read() {
        let line = |index: u64| format!("{:x} 10 f{index}\n", 0x10000 + 16 * index);
        let map: String = (0..200_000).map(line).collect();
        let map = map.into_bytes();
        let addresses: Vec<Addr> = (0..200_000).map(|i| Addr(0x10004 + 16 * i)).collect();
        for (index, code) in named(&map, &addresses).into_iter().enumerate() {
            assert_eq!(code.expect("a name").name, format!("f{index}"));
        }
    }

    #[test]
    fn a_file_whose_every_line_claims_everything_names_nothing() {
        let line = "0 ffffffffffffffff f\n";
        let map = line.repeat(11_000).into_bytes();
        let addresses: Vec<Addr> = (0..1000).map(Addr).collect();
        assert!(named(&map, &addresses).iter().all(Option::is_none));
    }

    proptest! {
        #[test]
        fn no_file_panics(map: Vec<u8>, text in "[0-9a-f x\n]{0,200}") {
            let _ = named(&map, &[Addr(0), Addr(1), Addr(u64::MAX)]);
            let _ = named(&text.into_bytes(), &[Addr(0), Addr(0x10), Addr(0xfff)]);
        }
    }
}
