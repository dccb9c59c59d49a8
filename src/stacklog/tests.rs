//! Logs that are whole, and logs that are damaged in every way that can be thought of.

use std::mem::offset_of;

use proptest::prelude::*;

use super::format::{
    BlockRecord, FLAG_BYPASSED, FLAG_FORKED, Header, MODE_FULL, MODE_OFF, MappingRecord, NODE_CUT,
    NODE_NONE, NodeRecord, STATE_BUSY, STATE_DEAD,
};
use super::testing::{HEADER, LOG, LogWriter};
use super::{
    Allocation, Allocations, CodeFrame, LiveRecord, LogError, LogHeader, LogMode, Records,
    StackLog, StackReader,
};
use crate::addr::{Addr, AddrRange};
use crate::snapshot::Snapshot;

fn code(addr: u64, image: Option<u32>) -> CodeFrame {
    CodeFrame {
        addr: Addr(addr),
        image,
        is_exact: false,
    }
}

fn open(snapshot: &Snapshot) -> StackLog {
    let found = StackLog::find(snapshot, Addr(HEADER));
    found.expect("a good log").expect("a log")
}

fn live(snapshot: &Snapshot) -> Result<Vec<LiveRecord>, LogError> {
    let log = open(snapshot);
    let records = Records::read(&log, &*snapshot.memory)?;
    let mut live = Vec::new();
    for area in records.areas() {
        live.extend(records.live_in(area)?);
    }
    Ok(live)
}

fn starts(snapshot: &Snapshot) -> Vec<u64> {
    let live = live(snapshot).expect("a good log").into_iter();
    live.map(|record| record.start.0).collect()
}

#[track_caller]
fn assert_damaged(log: LogWriter, what: &str) {
    let snapshot = log.snapshot();
    let error = match StackLog::find(&snapshot, Addr(HEADER)) {
        Ok(_) => live(&snapshot).expect_err("a damaged log"),
        Err(error) => error,
    };
    let said = error.to_string();
    assert!(said.contains(what), "{what:?} is not in {said:?}");
}

#[test]
fn header_tells_what_is_recorded() {
    let mut log = LogWriter::new();
    log.set32(offset_of!(Header, mode), MODE_FULL);
    log.set32(offset_of!(Header, flags), FLAG_FORKED);
    log.set(offset_of!(Header, sample_bytes), 512 << 10);
    log.set(offset_of!(Header, dropped_full), 3);
    log.set(offset_of!(Header, dropped_nested), 4);
    log.set(offset_of!(Header, cut_stacks), 5);
    let log = open(&log.snapshot());
    let header: &LogHeader = &log.header;
    assert_eq!(header.mode, LogMode::Full);
    assert!(header.is_forked && !header.is_bypassed && !header.is_scribbling);
    assert_eq!(header.sample_bytes, Some(512 << 10));
    assert_eq!((header.dropped(), header.cut_stacks), (7, 5));
    let codes: Vec<String> = log.warnings().into_iter().map(|w| w.code).collect();
    assert_eq!(codes, ["stack_log_full", "stack_log_nested", "stacks_cut"]);
}

#[test]
fn log_that_has_not_begun_or_is_off_is_no_log() {
    let mut log = LogWriter::new();
    log.set32(offset_of!(Header, mode), MODE_OFF);
    let found = StackLog::find(&log.snapshot(), Addr(HEADER));
    assert!(found.expect("no damage").is_none());
    let mut log = LogWriter::new();
    log.set(offset_of!(Header, magic), 0);
    let found = StackLog::find(&log.snapshot(), Addr(HEADER));
    assert!(found.expect("no damage").is_none());
}

#[test]
fn log_of_another_version_is_refused() {
    let mut log = LogWriter::new();
    log.set32(offset_of!(Header, version), 2);
    let refused = StackLog::find(&log.snapshot(), Addr(HEADER)).expect_err("another version");
    assert_eq!(refused, LogError::UnknownVersion(2));
    let warning = refused.warning();
    assert_eq!(warning.code, "stack_log_refused");
    assert!(warning.message.contains("version 2"), "{warning:?}");
}

#[test]
fn log_with_a_gap_knows_less_than_all_blocks() {
    let lack = |field: usize, value: u64| {
        let mut log = LogWriter::new();
        log.set(field, value);
        open(&log.snapshot()).header.lack().unwrap_or_default()
    };
    assert_eq!(lack(offset_of!(Header, dropped_full), 0), "");
    assert!(lack(offset_of!(Header, dropped_full), 2).contains("dropped 2"));
    assert!(lack(offset_of!(Header, dropped_nested), 1).contains("dropped 1"));
    assert!(lack(offset_of!(Header, sample_bytes), 1).contains("samples"));
    let mut log = LogWriter::new();
    log.set32(offset_of!(Header, flags), FLAG_BYPASSED);
    let lack = open(&log.snapshot()).header.lack();
    assert!(lack.is_some_and(|why| why.contains("do not pass")));
}

#[test]
fn live_blocks_come_in_ascending_order_and_dead_ones_not_at_all() {
    let mut log = LogWriter::new();
    let addresses = [
        0x5555_0000_1010,
        0x5555_0000_1020,
        0x5555_0000_10f0,
        0x5555_0000_0fe0,
        0x5555_0400_0010,
        0x7fff_ffff_fff0,
        0x10,
    ];
    for address in addresses {
        log.block(address, 24, NODE_NONE);
    }
    log.block_in_state(0x5555_0000_1080, 1, NODE_NONE, STATE_DEAD);
    log.block_in_state(0x5555_0000_1090, 1, NODE_NONE, STATE_BUSY);
    let mut sorted = addresses;
    sorted.sort_unstable();
    let snapshot = log.snapshot();
    assert_eq!(starts(&snapshot), sorted);

    let log = open(&snapshot);
    let records = Records::read(&log, &*snapshot.memory).expect("a good log");
    for area in records.areas() {
        records.live_in(area).expect("a good log");
    }
    assert_eq!(records.busy(), 1);
}

#[test]
fn records_of_many_chunks_are_found() {
    let mut log = LogWriter::new();
    let count = 3 * (1 << 16) / 2;
    for number in 0..count {
        log.block(0x5555_0000_0000 + 32 * number, 24, NODE_NONE);
    }
    assert_eq!(starts(&log.snapshot()).len() as u64, count);
}

#[test]
fn stack_has_its_frames_from_the_innermost_to_the_outermost() {
    let mut log = LogWriter::new();
    let image = log.image("/usr/lib/libfoo.so", 0x7f12_3000_0000, &[1, 2, 3]);
    let frames = [
        code(0x7f12_3000_1234, Some(image)),
        CodeFrame {
            is_exact: true,
            ..code(0x7f12_3000_2000, Some(image))
        },
        code(0x4000_0000, None),
    ];
    let complete = log.stack(&frames, NODE_NONE);
    let cut = log.stack(&frames[..2], NODE_CUT);
    let blocks = [
        log.block(0x5555_0000_1010, 61, complete),
        log.block(0x5555_0000_1060, 5, cut),
        log.block(0x5555_0000_1080, 6, NODE_NONE),
    ];
    let snapshot = log.snapshot();
    let (log, memory) = (open(&snapshot), &*snapshot.memory);
    let records = Records::read(&log, memory).expect("a good log");
    let wanted: Vec<_> = (0..).zip(blocks).collect();
    let known = Allocations::read(&log, &records, memory, &wanted).expect("a good log");

    let expected = Allocation {
        requested: 61,
        thread: 4242,
        stack: Some(complete),
        tick: 0,
    };
    assert_eq!(known.of_block(0), Some(&expected));
    let stack = known.stack(complete).expect("a stack");
    assert_eq!((&stack.frames[..], stack.is_cut), (&frames[..], false));
    let stack = known.stack(cut).expect("a stack");
    assert_eq!((&stack.frames[..], stack.is_cut), (&frames[..2], true));
    assert_eq!(known.of_block(2).expect("a block").stack, None);
    assert_eq!(known.of_block(3), None);

    let (number, image) = known.images().next().expect("an image");
    assert_eq!(number, 0);
    assert_eq!(image.path.as_deref(), Some("/usr/lib/libfoo.so"));
    assert_eq!(image.build_id.as_deref(), Some(&[1, 2, 3][..]));
    assert_eq!(image.bias, 0x7f12_3000_0000);
    assert!(!image.is_unloaded);
    assert_eq!(known.images().count(), 1);
}

#[test]
fn own_memory_is_what_was_mapped_and_nothing_else() {
    let mut log = LogWriter::new();
    log.block(0x5555_0000_1010, 24, NODE_NONE);
    let snapshot = log.snapshot();
    let log = open(&snapshot);
    let own = log.own_memory();
    assert_eq!(own.size(), log.header.mapped_bytes);
    assert!(own.contains(Addr(LOG)) && !own.contains(Addr(HEADER)));
}

#[test]
fn memory_that_cannot_be_the_logs_is_refused() {
    let mapping = |address: u64, size: u64| {
        let mut log = LogWriter::new();
        log.set(offset_of!(Header, mapped_bytes), u64::MAX);
        log.set(offset_of!(Header, mappings), address);
        log.memory
            .mapped
            .push(AddrRange::with_size(Addr(0x1000), 0x2000));
        let field = |offset: usize| address + offset as u64;
        let size_field = field(offset_of!(MappingRecord, size));
        log.memory.set_word(size_field, size);
        log
    };
    assert_damaged(mapping(0x1000, 0x3000), "its memory at 0x1000 cannot be");
    assert_damaged(mapping(0x1000, 8), "its memory at 0x1000 cannot be");
    assert_damaged(mapping(0x1000, u64::MAX), "its memory at 0x1000 cannot be");
    assert_damaged(mapping(0x9000, 0x1000), "its memory at 0x9000 cannot be");
    assert_damaged(mapping(0x1000, 0x1000), "its table of areas at");

    // A list that leads back to itself is longer than what was mapped.
    let mut log = mapping(0x1000, 0x1000);
    let previous = 0x1000 + offset_of!(MappingRecord, previous) as u64;
    log.memory.set_word(previous, 0x1000);
    log.set(offset_of!(Header, mapped_bytes), 0x1_0000);
    assert_damaged(log, "its memory at 0x1000 cannot be");
}

#[test]
fn chains_that_lead_astray_are_damage() {
    let mut log = LogWriter::new();
    let first = log.block(0x5555_0000_1010, 24, NODE_NONE);
    let second = log.block(0x5555_0000_2010, 24, NODE_NONE);
    let good = log.clone();
    let next = |log: &mut LogWriter, record: u32, value: u32| {
        let field = log.record(record) + offset_of!(BlockRecord, next) as u64;
        log.memory.set_word32(field, value);
    };
    next(&mut log, first, first);
    assert_damaged(log, "record 1 is in more than one place");
    let mut log = good.clone();
    next(&mut log, first, second);
    assert_damaged(log, "record 2 is in more than one place");
    let mut log = good.clone();
    next(&mut log, first, u32::MAX);
    assert_damaged(log, "record 4294967295, which does not exist");
    assert_eq!(starts(&good.snapshot()).len(), 2);
}

#[test]
fn parts_that_lie_elsewhere_or_in_each_other_are_damage() {
    let mut good = LogWriter::new();
    good.block(0x5555_0000_1010, 24, NODE_NONE);
    let (chunk, heads) = (good.record(0), good.head(0x5555_0000_1010));
    let table = |field: fn(&LogWriter) -> u64, index: u64, value: u64| {
        let mut log = good.clone();
        let at = field(&log) + 8 * index;
        log.memory.set_word(at, value);
        log
    };
    assert_damaged(
        table(|log| log.block_chunks, 0, 0x1000),
        "its part at 0x1000",
    );
    let mut log = table(|log| log.block_chunks, 1, chunk + 64);
    log.set(offset_of!(Header, blocks_end), 1 << 17);
    assert_damaged(log, "or in another part");
    assert_damaged(table(|log| log.areas, 9, heads & !0xffff), "its part at");
    assert_damaged(table(|log| log.areas, 9, u64::MAX), "its part at");
    let mut log = good.clone();
    log.set(offset_of!(Header, blocks_end), u64::MAX);
    assert_damaged(log, "records");
}

#[test]
fn stack_that_never_ends_is_cut() {
    let mut log = LogWriter::new();
    let outer = log.frame(code(0x1000, None), NODE_NONE);
    let inner = log.frame(code(0x2000, None), outer);
    let field = log.node(outer) + offset_of!(NodeRecord, parent) as u64;
    log.memory.set_word32(field, inner);
    log.set32(offset_of!(Header, depth), u32::MAX);
    let snapshot = log.snapshot();
    let log = open(&snapshot);
    let mut reader = StackReader::new(&log, &*snapshot.memory).expect("a good log");
    let stack = reader.stack(inner);
    assert!(stack.is_cut && stack.frames.len() == 4096);
    for number in [1, 100, 1 << 20, u32::MAX] {
        let stack = reader.stack(number);
        assert!(stack.is_cut && stack.frames.is_empty(), "{number}");
    }
}

/// A small log with all that a log has.
fn small() -> LogWriter {
    let mut log = LogWriter::new();
    let image = log.image("/bin/app", 0x5000_0000, &[7; 20]);
    for number in 0..20 {
        let stack = log.stack(
            &[
                code(0x5000_1000 + number, Some(image)),
                code(0x5000_2000, None),
            ],
            NODE_NONE,
        );
        log.block(0x5555_0000_0000 + 48 * number, number, stack);
    }
    log
}

proptest! {
    #[test]
    fn damage_anywhere_makes_no_panic_and_no_endless_loop(
        damage in prop::collection::vec(
            (any::<prop::sample::Index>(), 0..512_u64, prop_oneof![
                any::<u64>(), Just(0), Just(u64::MAX), LOG..LOG + 0x100_0000, 0..64_u64,
            ]),
            1..4,
        )
    ) {
        let mut log = small();
        let pages = log.memory.written();
        for (page, word, value) in damage {
            log.memory.set_word(pages[page.index(pages.len())] + 8 * word, value);
        }
        let snapshot = log.snapshot();
        if let Ok(Some(log)) = StackLog::find(&snapshot, Addr(HEADER)) {
            let memory = &*snapshot.memory;
            if let Ok(records) = Records::read(&log, memory) {
                let mut live = Vec::new();
                for area in records.areas() {
                    live.extend(records.live_in(area).unwrap_or_default());
                }
                let wanted: Vec<_> = (0..).zip(live.iter().map(|record| record.record)).collect();
                if let Ok(known) = Allocations::read(&log, &records, memory, &wanted) {
                    prop_assert!(known.stacks().all(|(_, stack)| stack.frames.len() <= 4096));
                    prop_assert!(known.images().count() <= live.len() + 1);
                }
            }
        }
    }

    #[test]
    fn every_block_that_was_recorded_is_found(
        blocks in prop::collection::btree_map(1..1_u64 << 43, (0..1_u64 << 40, any::<u32>()), 0..50)
    ) {
        let mut log = LogWriter::new();
        for (number, (requested, stack)) in &blocks {
            log.block(number << 4, *requested, *stack);
        }
        let found = live(&log.snapshot()).expect("a good log");
        let found = found.into_iter().map(|record| (record.start.0 >> 4, record.requested));
        let expected = blocks.iter().map(|(number, (requested, _))| (*number, *requested));
        prop_assert_eq!(found.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
    }
}
