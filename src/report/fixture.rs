//! Hand-built results that the tests of all writers share.

use std::io::{self, Write};
use std::time::{Duration, UNIX_EPOCH};

use super::group::groups;
use super::{Frame, Offset, Report, Stack, StackLogMode};
use crate::addr::{Addr, AddrRange};
use crate::heap::{Block, Heap, Zone};
use crate::memory::FakeMemory;
use crate::scan::{self, LeakKind};
use crate::snapshot::{Capture, Method, Process, Snapshot, Thread};
use crate::symbolize::{Described, Description};
use crate::warning::{Bias, Warning};

const HEAP: AddrRange = AddrRange {
    start: Addr(0x5555_0000_0000),
    end: Addr(0x5556_0000_0000),
};

/// What `write` writes.
pub(super) fn written(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> String {
    let mut out = Vec::new();
    write(&mut out).expect("a vector takes everything");
    String::from_utf8(out).expect("all output is UTF-8")
}

/// A stopped Mono with four threads and nothing to read.
pub(super) fn snapshot() -> Snapshot {
    Snapshot {
        source: crate::snapshot::Source::Process,
        machine: crate::snapshot::Machine::X86_64,
        width: crate::memory::Width::Eight,
        process: Process {
            pid: 4242,
            parent_pid: 1,
            name: "mono-sgen".to_owned(),
            executable: "/usr/bin/mono-sgen".to_owned(),
            command_line: vec!["mono-sgen".to_owned(), "program.exe".to_owned()],
            started: Some(Duration::from_millis(81_230)),
            user: 1000,
            signal: None,
        },
        capture: Capture {
            taken_at: UNIX_EPOCH + Duration::from_secs(1_795_356_191),
            method: Method::Copy,
            stops: 2,
            pause: Duration::from_micros(12_300),
            longest_pause: Duration::from_micros(8_000),
            memory_bytes: 123_456,
            content: crate::snapshot::ContentLevel::Full,
        },
        regions: Vec::new(),
        modules: Vec::new(),
        threads: vec![Thread::default(); 4],
        kernel_values: Vec::new(),
        auxv: vec![(3, 0x5500_0000_0040), (25, 0x7ffe_0000_0019)],
        memory: Box::new(FakeMemory::zeroed(0, 0)),
        warnings: Vec::new(),
    }
}

/// A heap of blocks with these sizes, 0x1000 bytes apart.
pub(super) fn heap(sizes: &[u64]) -> Heap {
    let block = |(i, size): (u64, &u64)| Block {
        start: HEAP.start.saturating_add(i * 0x1000),
        size: *size,
    };
    Heap {
        blocks: (0..).zip(sizes).map(block).collect(),
        zones: vec![Zone {
            name: "glibc main arena".to_owned(),
            allocator: "glibc 2.36".to_owned(),
            blocks: sizes.len() as u64,
            bytes: sizes.iter().sum(),
        }],
        zone_ranges: vec![(HEAP, 0)],
        ..Heap::default()
    }
}

/// A leak of a block. All blocks below it and below its parent must leak as well: they have the same numbers.
pub(super) fn leak(block: u32, kind: LeakKind, tree_parent: Option<u32>) -> scan::Leak {
    scan::Leak {
        block,
        kind,
        parent: tree_parent.filter(|_| kind == LeakKind::Indirect).into(),
        tree_parent: tree_parent.into(),
        held_blocks: 0,
        held_bytes: 0,
    }
}

pub(super) fn report(
    heap: &Heap,
    leaks: &[scan::Leak],
    describe: impl Fn(u32) -> Description<'static>,
) -> Report {
    let total = Duration::from_millis(510);
    let mut described = Described::default();
    for leak in leaks {
        let number = described.descriptions.number(describe(leak.block));
        described.numbers.push(number);
    }
    let mut report = Report::new(&snapshot(), heap, leaks.to_vec(), described, None, total);
    // The golden outputs are the same for each version and on each machine.
    report.rleaks_version = "0.1.0".to_owned();
    report.target.os = "linux".to_owned();
    report.target.arch = "x86_64".to_owned();
    report
}

/// A target with a heap and no leaks.
pub(super) fn clean() -> Report {
    report(&heap(&[64]), &[], |_| Description::default())
}

/// Leaks of all kinds: a root leak that holds a chain of two, a cycle of two that holds a block,
/// and seven root leaks that are alike; and a block that is in use.
pub(super) fn leaky() -> Report {
    let heap = heap(&[64, 80, 64, 40, 40, 24, 24, 24, 24, 24, 24, 24, 24, 4096]);
    let mut leaks = vec![
        scan::Leak {
            held_blocks: 2,
            held_bytes: 144,
            ..leak(0, LeakKind::RootLeak, None)
        },
        scan::Leak {
            held_blocks: 1,
            held_bytes: 64,
            ..leak(1, LeakKind::Indirect, Some(0))
        },
        leak(2, LeakKind::Indirect, Some(1)),
        scan::Leak {
            held_blocks: 1,
            held_bytes: 24,
            ..leak(3, LeakKind::RootCycle, None)
        },
        leak(4, LeakKind::RootCycle, Some(3)),
        leak(5, LeakKind::Indirect, Some(4)),
    ];
    leaks.extend((6..13).map(|block| leak(block, LeakKind::RootLeak, None)));
    let mut report = report(&heap, &leaks, describe);
    report.warnings = vec![
        Warning::new(
            "region_unreadable",
            "4 KB of [stack] could not be read",
            Bias::FalseLeaks,
        ),
        Warning::new(
            "unknown_allocator",
            "the arena at 0x7f0000000000 was treated as a root",
            Bias::MissedLeaks,
        ),
    ];
    report
}

fn describe(block: u32) -> Description<'static> {
    let content = |length, text: &'static str| Description {
        type_name: None,
        content: Some(text),
        content_length: Some(length),
    };
    match block {
        0 => content(61, r#"".../lib/mono/4.5//Facades""#),
        3 | 4 => Description {
            type_name: Some("Node<char>"),
            ..Description::default()
        },
        5 => content(9, "\"\u{1b}[31m\u{9b}2J\u{7f}\n\""),
        6 => content(14, "\"grüße 漢字\""),
        _ => Description::default(),
    }
}

/// [`leaky`], as it is where the target recorded its allocations.
pub(super) fn with_stacks() -> Report {
    let mut report = leaky();
    report.stack_log.mode = StackLogMode::Lite;
    report.stacks = vec![load_stack(), main_stack()];
    report.leaks.edit(|leaks| {
        for leak in leaks {
            leak.stack = match leak.size {
                64 => Some(7),
                24 => Some(9),
                _ => None,
            };
            leak.thread = leak.stack.map(|_| 4242);
            leak.requested = leak.stack.map(|_| leak.size - 3);
        }
    });
    report.groups = groups(&report.leaks, None);
    report
}

fn load_stack() -> Stack {
    Stack {
        id: 7,
        cut: false,
        frames: vec![
            frame(0x7f00_0000_1234, "libc.so.6", "malloc", 20, None),
            Frame {
                inlined: true,
                ..frame(
                    0x5500_0000_2298,
                    "mono-sgen",
                    "concat",
                    0,
                    Some(("strutil.h", 12)),
                )
            },
            frame(
                0x5500_0000_2298,
                "mono-sgen",
                "load_aot_module",
                1600,
                Some(("aot/aot-runtime.c", 2298)),
            ),
            Frame {
                address: Addr(0x7e00_0000_0010),
                ..Frame::default()
            },
            frame(0x5500_0000_1000, "mono-sgen", "main", 16, None),
        ],
    }
}

fn main_stack() -> Stack {
    Stack {
        id: 9,
        cut: true,
        frames: vec![
            frame(0x7f00_0000_1234, "libc.so.6", "malloc", 20, None),
            Frame {
                function: None,
                function_offset: None,
                ..frame(0x5500_0000_3000, "mono-sgen", "", 0, None)
            },
        ],
    }
}

fn frame(
    address: u64,
    module: &str,
    function: &str,
    function_offset: u64,
    source: Option<(&str, u32)>,
) -> Frame {
    Frame {
        address: Addr(address),
        module: Some(format!("/usr/lib/{module}")),
        offset: Some(Offset(address & 0xffff)),
        function: Some(function.to_owned()),
        function_offset: Some(function_offset),
        file: source.map(|(file, _)| format!("/src/{file}")),
        line: source.map(|(_, line)| line),
        inlined: false,
    }
}

/// A leaked list: `length` blocks of 16 bytes, each of which holds the next.
pub(super) fn chain(length: u32) -> Report {
    let heap = heap(&vec![16; length as usize]);
    let held = |block| length - 1 - block;
    let leaks: Vec<_> = (0..length)
        .map(|block| {
            let (kind, parent) = match block.checked_sub(1) {
                None => (LeakKind::RootLeak, None),
                parent => (LeakKind::Indirect, parent),
            };
            scan::Leak {
                held_blocks: held(block),
                held_bytes: 16 * u64::from(held(block)),
                ..leak(block, kind, parent)
            }
        })
        .collect();
    report(&heap, &leaks, |_| Description::default())
}

/// A leak that holds `children` blocks of ascending size.
pub(super) fn wide(children: u32) -> Report {
    let sizes: Vec<_> = (0..=children).map(|i| u64::from(16 * i + 8)).collect();
    let heap = heap(&sizes);
    let mut leaks = vec![scan::Leak {
        held_blocks: children,
        held_bytes: sizes[1..].iter().sum(),
        ..leak(0, LeakKind::RootLeak, None)
    }];
    leaks.extend((1..=children).map(|block| leak(block, LeakKind::Indirect, Some(0))));
    report(&heap, &leaks, |_| Description::default())
}

/// `count` leaks: a chain of four and 96 single ones in each hundred, of which each has one of 20 sizes, and a
/// string of its own or one that many have.
pub(super) fn many(count: u32) -> Report {
    let size = |block: u32| match block % 100 {
        0..4 => 16,
        place => 24 + 8 * u64::from(place % 20),
    };
    let heap = heap(&(0..count).map(size).collect::<Vec<_>>());
    let leaks: Vec<_> = (0..count)
        .map(|block| match block % 100 {
            place @ 0..4 => scan::Leak {
                held_blocks: 3 - place,
                held_bytes: 16 * u64::from(3 - place),
                ..match place {
                    0 => leak(block, LeakKind::RootLeak, None),
                    _ => leak(block, LeakKind::Indirect, Some(block - 1)),
                }
            },
            _ => leak(block, LeakKind::RootLeak, None),
        })
        .collect();
    let mut described = Described::default();
    for block in 0..count {
        let text = match block % 4 {
            0 => "\"the same\"".to_owned(),
            _ => format!("\"number {block}\""),
        };
        let description = Description {
            content: Some(&text).filter(|_| block % 2 == 0).map(|text| &**text),
            content_length: (block % 2 == 0).then_some(text.len() as u64),
            type_name: (block % 5 == 3).then_some("Type"),
        };
        let number = described.descriptions.number(description);
        described.numbers.push(number);
    }
    let total = Duration::from_millis(510);
    Report::new(&snapshot(), &heap, leaks, described, None, total)
}
