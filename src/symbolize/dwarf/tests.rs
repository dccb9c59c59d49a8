//! Debug information that no compiler would make.

use std::path::Path;
use std::sync::OnceLock;

use gimli::SectionId;
use proptest::prelude::*;

use super::*;
use crate::addr::{Addr, AddrRange};
use crate::platform::TargetFiles;

/// Where the code of the tests is.
const CODE: AddrRange = AddrRange {
    start: Addr(0x1000),
    end: Addr(0x10000),
};

/// Units of DWARF 4 in the making.
#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    /// Writes a unit with the abbreviations of [`ABBREVIATIONS`], whose entries `write` writes.
    fn unit(&mut self, write: impl FnOnce(&mut Self)) {
        let start = self.0.len();
        self.0.extend([0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 8]);
        write(self);
        let length = u32::try_from(self.0.len() - start - 4).expect("a small unit");
        self.0[start..start + 4].copy_from_slice(&length.to_le_bytes());
    }

    /// An entry of the kind `code` with the code of all tests.
    fn entry(&mut self, code: u8) {
        self.0.push(code);
        self.0.extend(CODE.start.0.to_le_bytes());
        self.0.extend(CODE.size().to_le_bytes());
    }

    fn number(&mut self, number: u32) {
        self.0.extend(number.to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        self.0.extend(text.as_bytes());
        self.0.push(0);
    }

    /// The offset of the next entry in the first unit.
    fn offset(&self) -> u32 {
        u32::try_from(self.0.len()).expect("a small unit")
    }
}

const UNIT: u8 = 1;
const FUNCTION: u8 = 2;
const INLINED: u8 = 3;
const NAMED_BY: u8 = 4;
const FUNCTION_OF_RANGES: u8 = 5;
const UNIT_OF_LINES: u8 = 6;
const NAMELESS: u8 = 7;

/// Tags, whether there are children, and attributes with their forms.
const ABBREVIATIONS: &[u8] = &[
    UNIT,
    0x11,
    1,
    0x11,
    0x01,
    0x12,
    0x07,
    0,
    0, // low_pc: addr, high_pc: data8
    FUNCTION,
    0x2e,
    1,
    0x11,
    0x01,
    0x12,
    0x07,
    0x03,
    0x08,
    0,
    0, // name: string
    INLINED,
    0x1d,
    1,
    0x11,
    0x01,
    0x12,
    0x07,
    0,
    0, //
    NAMED_BY,
    0x2e,
    0,
    0x31,
    0x13,
    0,
    0, // abstract_origin: ref4
    FUNCTION_OF_RANGES,
    0x2e,
    0,
    0x55,
    0x17,
    0,
    0, // ranges: sec_offset
    UNIT_OF_LINES,
    0x11,
    0,
    0x10,
    0x17,
    0,
    0, // stmt_list: sec_offset
    NAMELESS,
    0x2e,
    1,
    0x11,
    0x01,
    0x12,
    0x07,
    0x31,
    0x13,
    0,
    0,
    0,
];

fn debug_info(sections: &[(SectionId, Vec<u8>)]) -> DebugInfo {
    let load = |id| {
        let found = sections.iter().find(|(known, _)| *known == id);
        Ok::<_, ()>(found.map(|(_, bytes)| bytes.clone()).unwrap_or_default())
    };
    DebugInfo {
        main: DwarfSections::load(load).expect("sections"),
        supplement: None,
    }
}

fn locate(info: &DebugInfo, addresses: &[u64]) -> Result<Vec<Option<Located>>, OutOfProportion> {
    let files = TargetFiles::under(Path::new("/nowhere"));
    let split = SplitFiles {
        files: &files,
        paths: Vec::new(),
    };
    info.locate(addresses, &[CODE].into_iter().collect(), &split)
}

/// What is said of an address in the code by `entries`, with `others` as further sections.
fn located(
    writer: Writer,
    others: &[(SectionId, Vec<u8>)],
) -> Result<Option<Located>, OutOfProportion> {
    let own = [
        (SectionId::DebugInfo, writer.0),
        (SectionId::DebugAbbrev, ABBREVIATIONS.to_vec()),
    ];
    let info = debug_info(&[&own, others].concat());
    Ok(locate(&info, &[0x1234])?.remove(0))
}

#[test]
fn a_function_is_found() {
    let mut writer = Writer::default();
    writer.unit(|unit| {
        unit.entry(UNIT);
        unit.entry(FUNCTION);
        unit.text("plain");
        unit.entry(INLINED);
    });
    let located = located(writer, &[])
        .expect("an answer")
        .expect("a function");
    assert_eq!(located.name(), Some("plain"));
    assert_eq!(located.function_start, Some(CODE.start.0));
    assert_eq!(located.calls.len(), 2);
}

#[test]
fn inlined_calls_may_be_nested_as_deeply_as_a_file_likes() {
    for depth in [10_000, 1_000_000] {
        let mut writer = Writer::default();
        writer.unit(|unit| {
            unit.entry(UNIT);
            unit.entry(FUNCTION);
            unit.text("deep");
            for _ in 0..depth {
                unit.entry(INLINED);
            }
        });
        match located(writer, &[]) {
            // The calls that fit.
            Ok(Some(located)) => assert_eq!(located.calls.len(), 257),
            // No program nests them so deeply: the unit makes no sense.
            other => assert_eq!(other, Ok(None)),
        }
    }
}

#[test]
fn names_that_refer_to_each_other_are_none() {
    let mut writer = Writer::default();
    writer.unit(|unit| {
        unit.entry(UNIT);
        let first = unit.offset();
        let size = 5;
        for next in [first + size, first + 2 * size, first] {
            unit.0.push(NAMED_BY);
            unit.number(next);
        }
        unit.entry(NAMELESS);
        unit.number(first);
        unit.0.extend([0, 0]);
    });
    let located = located(writer, &[])
        .expect("an answer")
        .expect("a function");
    assert_eq!((located.name(), located.calls.len()), (None, 1));
}

#[test]
fn ranges_that_all_functions_share_are_out_of_proportion() {
    let mut writer = Writer::default();
    writer.unit(|unit| {
        unit.entry(UNIT);
        for _ in 0..100_000 {
            unit.0.push(FUNCTION_OF_RANGES);
            unit.number(0);
        }
    });
    let range = [1u64.to_le_bytes(), 2u64.to_le_bytes()].concat();
    let ranges = (SectionId::DebugRanges, range.repeat(100_000));
    assert_eq!(located(writer, &[ranges]), Err(OutOfProportion));
}

/// A line program of DWARF 4 with a header of `header` bytes and `rows` rows.
fn line_program(rows: usize) -> Vec<u8> {
    let mut program = vec![0, 0, 0, 0, 4, 0, 0, 0, 0, 0];
    // Sizes and the base of special opcodes; no standard opcodes, no directories, no files.
    program.extend([1, 1, 1, 0, 1, 1, 0, 0]);
    let header = u32::try_from(program.len() - 10).expect("a small header");
    program[6..10].copy_from_slice(&header.to_le_bytes());
    program.extend(vec![1; rows]);
    let length = u32::try_from(program.len() - 4).expect("a small program");
    program[..4].copy_from_slice(&length.to_le_bytes());
    program
}

#[test]
fn a_line_program_that_all_units_share_is_out_of_proportion() {
    let mut writer = Writer::default();
    for _ in 0..10_000 {
        writer.unit(|unit| {
            unit.0.push(UNIT_OF_LINES);
            unit.number(0);
        });
    }
    let lines = (SectionId::DebugLine, line_program(1_000_000));
    assert_eq!(located(writer, &[lines]), Err(OutOfProportion));
}

#[test]
fn a_header_of_a_line_program_that_is_too_long_is_not_read() {
    let mut writer = Writer::default();
    writer.unit(|unit| {
        unit.0.push(UNIT_OF_LINES);
        unit.number(0);
    });
    let mut lines = line_program(64 << 20);
    lines[6..10].copy_from_slice(&(60u32 << 20).to_le_bytes());
    let lines = (SectionId::DebugLine, lines);
    assert_eq!(located(writer, &[lines]), Ok(None));
}

/// The sections of a program that g++ built, for DWARF 4 and 5.
fn real_sections() -> &'static [Sections; 2] {
    static SECTIONS: OnceLock<[Sections; 2]> = OnceLock::new();
    SECTIONS.get_or_init(|| ["-gdwarf-4", "-gdwarf-5"].map(compiled))
}

type Sections = Vec<(SectionId, Vec<u8>)>;

fn compiled(version: &str) -> Sections {
    const IDS: [SectionId; 8] = [
        SectionId::DebugInfo,
        SectionId::DebugAbbrev,
        SectionId::DebugLine,
        SectionId::DebugRanges,
        SectionId::DebugRngLists,
        SectionId::DebugStr,
        SectionId::DebugLineStr,
        SectionId::DebugAddr,
    ];
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (source, program) = (
        directory.path().join("a.cc"),
        directory.path().join("program"),
    );
    let text = "static inline int twice(int n) { return n * 2; }\n\
                template <class T> T sum(T n) { T s = 0; for (T i = 0; i < n; i++) s += twice(i); return s; }\n\
                int main(int argc, char **) { return argc > 3 ? sum(argc) : sum(7l); }\n";
    std::fs::write(&source, text).expect("the source");
    let output = std::process::Command::new("g++")
        .args(["-O2", version, "-o"])
        .args([&program, &source])
        .output();
    assert!(output.expect("g++").status.success());
    let elf = ElfFile::parse(std::fs::read(&program).expect("the program"));
    let elf = elf.expect("an ELF file");
    let sections = IDS.map(|id| (id, elf.debug_section(id.name()).unwrap_or_default()));
    sections.into()
}

fn exercise(sections: &[(SectionId, Vec<u8>)]) {
    let addresses: Vec<u64> = (CODE.start.0..0x1400).step_by(3).collect();
    let _ = locate(&debug_info(sections), &addresses);
}

#[test]
fn sections_that_are_cut_short_do_not_panic() {
    for sections in real_sections() {
        exercise(sections);
        for index in 0..sections.len() {
            let mut sections = sections.clone();
            let length = sections[index].1.len();
            for length in (0..length).step_by(length / 60 + 1) {
                sections[index].1.truncate(length);
                exercise(&sections);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn damaged_sections_do_not_panic(
        version in 0..2usize,
        damage: Vec<(prop::sample::Index, prop::sample::Index, u8)>,
    ) {
        let mut sections = real_sections()[version].clone();
        for (section, at, value) in damage {
            let (_, bytes) = section.get_mut(&mut sections);
            if !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
        }
        exercise(&sections);
    }

    #[test]
    fn random_sections_do_not_panic(
        which: prop::sample::Index,
        version in 0..2usize,
        random in prop::collection::vec(any::<u8>(), 0..2000),
    ) {
        let mut sections = real_sections()[version].clone();
        let (_, bytes) = which.get_mut(&mut sections);
        *bytes = random;
        exercise(&sections);
    }
}
