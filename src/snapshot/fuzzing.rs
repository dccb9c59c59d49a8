//! A fuzz target: the images that a hostile process has loaded.

use super::{Module, Region, Snapshot, dynamic_string, dynamic_symbols, modules, needed_libraries};
use crate::addr::{Addr, AddrRange};
use crate::fuzzing::Input;
use crate::memory::{FakeMemory, Memory};

const BASE: u64 = 0x7f00_0000_0000;
const PAGE: u64 = 4096;
const DT_SONAME: u64 = 14;

/// Modules and their dynamic sections: `input` is first some regions, and then the memory in them.
pub fn images(input: &[u8]) {
    let snapshot = process(input);
    for pair in snapshot.modules.windows(2) {
        assert!(pair[0].base <= pair[1].base);
    }
    let segments = snapshot.modules.iter().flat_map(|module| &module.segments);
    let mut ranges: Vec<AddrRange> = segments.map(|segment| segment.range).collect();
    ranges.sort_unstable();
    for pair in ranges.windows(2) {
        assert!(pair[0].end <= pair[1].start, "{pair:?}");
    }
    let memory = &*snapshot.memory;
    for module in &snapshot.modules {
        check(memory, module, input.len());
    }
}

fn check(memory: &dyn Memory, module: &Module, size: usize) {
    for symbol in dynamic_symbols(memory, module) {
        assert!(!symbol.name.is_empty());
    }
    // A library takes an entry of eight bytes at least.
    assert!(needed_libraries(memory, module).len() <= size);
    let _ = dynamic_string(memory, module, DT_SONAME);
}

/// A process with the memory and the modules that `input` gives it.
pub(crate) fn process(input: &[u8]) -> Snapshot {
    let mut input = Input::new(input);
    let count = input.byte() % 16;
    let mut regions: Vec<Region> = (0..count).map(|_| region(&mut input)).collect();
    // Those of the kernel overlap never.
    let mut end = Addr(0);
    regions.sort_by_key(|region| region.range.start);
    regions.retain(|region| {
        let is_apart = region.range.start >= end;
        end = end.max(region.range.end);
        is_apart
    });
    let memory = Part(FakeMemory {
        base: BASE,
        bytes: input.rest().to_vec(),
    });
    Snapshot {
        modules: modules(&memory, &regions),
        regions,
        ..Snapshot::of_memory(Box::new(memory))
    }
}

/// Memory that knows where it ends, as that of each target does.
struct Part(FakeMemory);

impl Memory for Part {
    fn read(&self, addr: Addr, buf: &mut [u8]) -> usize {
        self.0.read(addr, buf)
    }

    fn resident(&self, range: AddrRange) -> Vec<AddrRange> {
        let all = AddrRange::with_size(Addr(self.0.base), self.0.bytes.len() as u64);
        let part = all.intersection(&range);
        (!part.is_empty()).then_some(part).into_iter().collect()
    }
}

/// Four bytes: the place, the size, the offset in the file, and the rest.
fn region(input: &mut Input<'_>) -> Region {
    let start = Addr(BASE + input.number(1) * PAGE);
    let (pages, offset, flags) = (1 + input.number(1), input.number(1), input.byte());
    let is_set = |bit: u8| flags & 1 << bit != 0;
    Region {
        range: AddrRange::with_size(start, pages * PAGE),
        readable: !is_set(0),
        writable: is_set(1),
        executable: is_set(2),
        shared: is_set(3),
        offset: offset * PAGE,
        file: (0, 0, u64::from(flags >> 6)),
        name: match is_set(4) {
            true => "[vdso]".to_owned(),
            false => "/usr/lib/libc.so.6".to_owned(),
        },
    }
}
