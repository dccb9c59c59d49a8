use std::sync::Arc;
use std::time::SystemTime;

use super::testing::{CoreBuilder, Load, NoFiles};
use super::{CoreError, CoreFile, FileBytes, Machine, Opened};
use crate::addr::{Addr, AddrRange};

const MACHINES: [Machine; 3] = [Machine::I386, Machine::X86_64, Machine::Aarch64];
const DATA: u64 = 0x5000_0000;
const STACK: u64 = 0x7000_0000;

/// A process with a file, data and a stack.
fn process(machine: Machine) -> CoreBuilder {
    let mut registers = vec![0; 34];
    let stack_pointer = match machine {
        Machine::I386 => 15,
        Machine::X86_64 => 19,
        Machine::Aarch64 => 31,
    };
    registers[stack_pointer] = STACK + 16;
    let count = match machine {
        Machine::I386 => 17,
        Machine::X86_64 => 27,
        Machine::Aarch64 => 34,
    };
    CoreBuilder::new(machine)
        .thread(4242, &registers[..count])
        .auxv(&[(9, 0x1000_0010), (25, STACK + 24)])
        .files(&[(0x1000_0000, 0x1000_1000, 0, "/opt/program")])
        .load(Load {
            start: 0x1000_0000,
            flags: 5,
            memory_size: 0x1000,
            bytes: b"\x7fELF".to_vec(),
        })
        .memory(DATA, &[7; 64])
        .memory(STACK, &[9; 32])
}

fn parse(bytes: Vec<u8>) -> Result<CoreFile, CoreError> {
    CoreFile::parse(Arc::new(bytes))
}

fn opened(core: &CoreFile) -> Opened {
    Opened::new(core, SystemTime::UNIX_EPOCH, &NoFiles)
}

fn damaged_at(bytes: Vec<u8>) -> u64 {
    match parse(bytes) {
        Err(CoreError::Damaged(at, _) | CoreError::CutShort(at, _)) => at,
        other => panic!("{other:?}"),
    }
}

/// Looks at everything that a scan looks at.
fn use_all_of(core: &CoreFile) {
    let opened = opened(core);
    let all = AddrRange::new(Addr(0), Addr(u64::MAX));
    let resident = opened.snapshot.memory.resident(all);
    let size: u64 = resident.iter().map(AddrRange::size).sum();
    assert!(size <= core.bytes.size().saturating_mul(core.segments.len() as u64));
    for range in resident {
        let mut buf = [0; 16];
        assert!(opened.snapshot.memory.read(range.start, &mut buf) <= buf.len());
    }
}

#[test]
fn process_of_each_machine_is_read() {
    for machine in MACHINES {
        let core = parse(process(machine).build()).expect("a good file");
        let snapshot = opened(&core).snapshot;
        assert_eq!(snapshot.machine, machine);
        assert_eq!(snapshot.width, machine.width());
        let thread = &snapshot.threads[0];
        assert_eq!((thread.tid, thread.stack_pointer), (4242, Addr(STACK + 16)));
        let names: Vec<&str> = snapshot.regions.iter().map(|r| r.name.as_str()).collect();
        assert_eq!(names[0], "/opt/program");
        assert_eq!(names[2], "[stack]");
        assert_eq!(snapshot.memory.word32(Addr(DATA)), Some(0x0707_0707));
        // What was not saved cannot be read, nor what lies between.
        assert_eq!(snapshot.memory.word32(Addr(0x1000_0004)), None);
        assert_eq!(snapshot.memory.word32(Addr(DATA + 62)), None);
        assert_eq!(snapshot.process.executable, "/opt/program");
    }
}

#[test]
fn thread_pointers_are_those_of_each_machine() {
    let x86_64 = {
        let mut registers = [0; 27];
        registers[21] = 0x7777;
        CoreBuilder::new(Machine::X86_64).thread(1, &registers)
    };
    let aarch64 = CoreBuilder::new(Machine::Aarch64).thread(1, &[0; 34]).note(
        "LINUX",
        0x401,
        &0x7777_u64.to_le_bytes(),
    );
    let i386 = {
        let mut registers = [0; 17];
        registers[10] = 0x63;
        let descriptors: Vec<u8> = [[0xb, 1, 0, 0], [0xc, 0x7777, 0, 0]]
            .iter()
            .flatten()
            .flat_map(|word: &u32| word.to_le_bytes())
            .collect();
        CoreBuilder::new(Machine::I386)
            .thread(1, &registers)
            .note("LINUX", 0x200, &descriptors)
    };
    for builder in [x86_64, aarch64, i386] {
        let core = parse(builder.build()).expect("a good file");
        let threads = opened(&core).snapshot.threads;
        assert_eq!(threads[0].thread_pointer, Addr(0x7777));
    }
}

#[test]
fn file_that_is_cut_anywhere_is_an_error_or_says_how_much_is_missing() {
    for machine in MACHINES {
        let bytes = process(machine).build();
        for size in 0..bytes.len() {
            match parse(bytes[..size].to_vec()) {
                Ok(core) => {
                    assert_eq!(core.missing_bytes(), (bytes.len() - size) as u64);
                    let warnings = opened(&core).snapshot.warnings;
                    assert!(warnings.iter().any(|w| w.code == "core_cut_short"));
                    use_all_of(&core);
                }
                Err(CoreError::NotCore) => assert!(size < 20, "{size}"),
                Err(CoreError::CutShort(at, _)) => assert!(at <= size as u64 + 64, "{at} {size}"),
                Err(other) => panic!("{size}: {other}"),
            }
        }
    }
}

#[test]
fn damaged_bytes_anywhere_do_no_harm() {
    for machine in MACHINES {
        let bytes = process(machine).build();
        for at in 0..bytes.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut damaged = bytes.clone();
                damaged[at] = value;
                if let Ok(core) = parse(damaged) {
                    use_all_of(&core);
                }
            }
        }
    }
}

#[test]
fn segments_that_overlap_are_refused_where_they_stand() {
    let builder = CoreBuilder::new(Machine::X86_64)
        .memory(0x3000, &[1; 0x1000])
        .memory(0x2800, &[1; 0x1000]);
    assert_eq!(damaged_at(builder.build()), builder.header_of(0) as u64);
}

#[test]
fn segments_that_lie_about_their_sizes_are_refused_where_they_stand() {
    for (start, memory_size) in [(0x1000, 4), (u64::MAX - 2, 64)] {
        let builder = CoreBuilder::new(Machine::X86_64).load(Load {
            start,
            flags: 6,
            memory_size,
            bytes: vec![0; 8],
        });
        assert_eq!(damaged_at(builder.build()), builder.header_of(0) as u64);
    }
}

/// A size in the file that is larger than the file: what is there is used, the rest is missing.
#[test]
fn segment_beyond_the_end_of_the_file_takes_no_memory() {
    let builder = process(Machine::X86_64);
    let mut bytes = builder.build();
    let header = builder.header_of(1);
    for field in [32, 40] {
        bytes[header + field..header + field + 8].copy_from_slice(&(1_u64 << 28).to_le_bytes());
    }
    let core = parse(bytes).expect("usable");
    assert_eq!(core.missing_bytes(), (1 << 28) - 64 - 32);
    use_all_of(&core);
}

#[test]
fn counts_that_the_file_cannot_hold_are_refused() {
    let mut bytes = process(Machine::X86_64).build();
    bytes[56..58].copy_from_slice(&0xfffe_u16.to_le_bytes());
    assert_eq!(damaged_at(bytes.clone()), 64);
    // The first section header has the number.
    bytes[56..58].copy_from_slice(&0xffff_u16.to_le_bytes());
    let section = bytes.len() as u64;
    bytes[40..48].copy_from_slice(&section.to_le_bytes());
    bytes.resize(bytes.len() + 64, 0xff);
    assert_eq!(damaged_at(bytes), 64);
}

#[test]
fn number_of_many_segments_is_in_the_first_section_header() {
    let mut bytes = process(Machine::X86_64).build();
    let section = bytes.len();
    bytes[56..58].copy_from_slice(&0xffff_u16.to_le_bytes());
    bytes[40..48].copy_from_slice(&(section as u64).to_le_bytes());
    bytes.resize(section + 64, 0);
    bytes[section + 44..section + 48].copy_from_slice(&4_u32.to_le_bytes());
    let core = parse(bytes).expect("a good file");
    assert_eq!(core.segments.len(), 3);
}

#[test]
fn notes_larger_than_their_place_are_refused_where_they_stand() {
    let builder = CoreBuilder::new(Machine::X86_64).note("CORE", 6, &[0; 16]);
    let bytes = builder.build();
    let note = 64 + 56;
    for (field, value) in [(0, u32::MAX), (4, u32::MAX), (4, 17)] {
        let mut bytes = bytes.clone();
        bytes[note + field..note + field + 4].copy_from_slice(&value.to_le_bytes());
        assert_eq!(damaged_at(bytes), note as u64);
    }
}

/// Headers that name the same notes again and again would take more memory than the file has bytes.
#[test]
fn notes_that_are_named_again_and_again_are_refused() {
    let mut builder = CoreBuilder::new(Machine::X86_64);
    for _ in 0..64 {
        builder = builder.note("CORE", 0, &[]);
    }
    for number in 0..200 {
        builder = builder.memory(0x1000 * (number + 1), &[]);
    }
    let mut bytes = builder.build();
    let first: [u8; 56] = *bytes[64..].first_chunk().expect("a header");
    for index in 0..200 {
        let at = builder.header_of(index);
        bytes[at..at + 56].copy_from_slice(&first);
    }
    assert!(matches!(parse(bytes), Err(CoreError::Damaged(..))));
}

#[test]
fn other_machines_and_other_files_are_refused() {
    let good = process(Machine::X86_64).build();
    let with = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        parse(bytes).err()
    };
    assert_eq!(with(0, 0), Some(CoreError::NotCore));
    assert_eq!(with(16, 3), Some(CoreError::NotCore));
    assert_eq!(with(18, 8), Some(CoreError::Machine(2, 1, 8)));
    // x32.
    assert_eq!(with(4, 1), Some(CoreError::Machine(1, 1, 62)));
}

/// A file that becomes shorter while it is read.
struct Shrinking {
    bytes: Vec<u8>,
    size: u64,
}

impl FileBytes for Shrinking {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> usize {
        self.bytes.read_at(offset, buf)
    }
}

#[test]
fn file_that_shrinks_while_it_is_read_ends_early() {
    let bytes = process(Machine::X86_64).build();
    let size = bytes.len() as u64;
    for left in 0..bytes.len() {
        let file = Shrinking {
            bytes: bytes[..left].to_vec(),
            size,
        };
        if let Ok(core) = CoreFile::parse(Arc::new(file)) {
            let memory = opened(&core).snapshot.memory;
            let stack = bytes.len() - 32;
            let mut buf = [0; 32];
            let count = memory.read(Addr(STACK), &mut buf);
            assert_eq!(count, left.saturating_sub(stack));
        }
    }
}

#[test]
fn lists_of_files_that_lie_name_no_file() {
    for words in [[u64::MAX, 4096], [1 << 60, 4096], [3, 4096], [0, u64::MAX]] {
        let content: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let bytes = CoreBuilder::new(Machine::X86_64)
            .note("CORE", 0x4649_4c45, &content)
            .build();
        let core = parse(bytes).expect("good headers");
        assert!(opened(&core).snapshot.regions.is_empty());
    }
}
