//! A fuzz target: logs in which words were overwritten.

use std::sync::OnceLock;

use rustc_hash::FxHashSet;

use super::format::{IMAGES, NODE_CUT, NODE_NONE};
use super::testing::{HEADER, LogWriter};
use super::{Allocations, CodeFrame, LiveRecord, Records, StackLog, StackReader};
use crate::addr::Addr;
use crate::fuzzing::Input;
use crate::memory::Memory;

/// The stack log: reads a log in which words were overwritten as `input` says.
pub fn stack_log(input: &[u8]) {
    let mut log = sound().clone();
    let mut input = Input::new(input);
    let pages = log.memory.written();
    while !input.is_empty() {
        change(&mut log, &pages, &mut input);
    }
    let header_at = Addr(HEADER);
    let snapshot = log.snapshot();
    let memory = &*snapshot.memory;
    let Ok(Some(log)) = StackLog::find(&snapshot, header_at) else {
        return;
    };
    for range in log.own_memory().ranges() {
        assert!(snapshot.region_at(range.start).is_some());
    }
    let _ = (log.warnings(), log.header.lack());
    let Ok(records) = Records::read(&log, memory) else {
        return;
    };
    let mut live = Vec::new();
    for area in records.areas() {
        let Ok(found) = records.live_in(area) else {
            return;
        };
        assert!(found.is_sorted_by(|a, b| a.start < b.start));
        assert!(found.iter().all(|record| area.range.contains(record.start)));
        live.extend(found);
    }
    read_allocations(&log, &records, memory, &live);
}

fn read_allocations(
    log: &StackLog,
    records: &Records<'_>,
    memory: &dyn Memory,
    live: &[LiveRecord],
) {
    let mut seen = FxHashSet::default();
    assert!(live.iter().all(|record| seen.insert(record.record)));
    let blocks = (0..).zip(live.iter().map(|record| record.record));
    let blocks: Vec<(u32, u32)> = blocks.collect();
    let Ok(known) = Allocations::read(log, records, memory, &blocks) else {
        return;
    };
    let depth = usize::try_from(log.header.depth).expect("64 bits");
    for (_, stack) in known.stacks() {
        assert!(stack.frames.len() <= depth);
    }
    for (number, image) in known.images().map(|(n, image)| (n, image.clone())) {
        assert!(usize::try_from(number).is_ok_and(|number| number < IMAGES));
        assert!(image.build_id.is_none_or(|id| id.len() <= 32));
    }
    let mut reader = StackReader::new(log, memory).expect("it was read before");
    let _ = reader.stack(u32::MAX);
}

/// A log with some blocks, stacks and images.
fn sound() -> &'static LogWriter {
    static SOUND: OnceLock<LogWriter> = OnceLock::new();
    SOUND.get_or_init(|| {
        let mut log = LogWriter::new();
        let images = [
            ("/usr/bin/program", 0x5555_0000_0000),
            ("/usr/lib/libx.so", 0x7f12_0000_0000),
        ];
        let images = images.map(|(path, bias)| log.image(path, bias, &[7; 20]));
        let frame = |addr, image: usize| CodeFrame {
            addr: Addr(addr),
            image: images.get(image).copied(),
            is_exact: image == 2,
        };
        let frames = [
            frame(0x5555_0000_1234, 0),
            frame(0x7f12_0000_0777, 1),
            frame(0x1000, 2),
        ];
        let stacks = [
            log.stack(&frames, NODE_NONE),
            log.stack(&frames[..2], NODE_CUT),
        ];
        // Several in a region, several regions of an area, and two areas.
        for start in [
            0x5555_0000_0010,
            0x5555_0000_0050,
            0x5555_0000_0410,
            0x7e11_0000_0010,
        ] {
            for (offset, stack) in (0..).zip(stacks) {
                log.block(start + 32 * offset, 24, stack);
            }
        }
        log
    })
}

/// Overwrites a word, or a half of one, at a place that was written before: there is what is read.
fn change(log: &mut LogWriter, pages: &[u64], input: &mut Input<'_>) {
    let (kind, page, offset) = (input.byte(), input.index(1), input.number(2));
    let at = pages[page % pages.len()] + offset % 4088;
    let old = log.memory.word(Addr(at)).unwrap_or(0);
    match kind % 6 {
        0 => log.memory.set_word(at, input.number(8)),
        1 => log
            .memory
            .set_word32(at, u32::try_from(input.number(4)).expect("32 bits")),
        2 => log.memory.set_word(
            at,
            old.wrapping_add_signed(i64::from(input.byte().cast_signed())),
        ),
        3 => log.memory.set_word(at, old ^ 1 << (input.byte() % 64)),
        4 => log
            .memory
            .set_word(at, pages[input.index(1) % pages.len()] + input.number(2)),
        _ => {
            let other = pages[input.index(1) % pages.len()] + input.number(2) % 4088;
            let word = log.memory.word(Addr(other)).unwrap_or(0);
            log.memory.set_word(at, word);
        }
    }
}

#[cfg(test)]
#[test]
fn the_corpus_of_stack_log_is_harmless() {
    crate::fuzzing::run_corpus("stack_log", stack_log);
}
