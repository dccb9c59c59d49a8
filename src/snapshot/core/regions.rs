//! VM mappings, as far as a core file tells of them.
//!
//! It has neither names nor whether a mapping is shared: those are concluded, and what is not certain is
//! left open.

use super::notes::MappedFile;
use super::{CoreFile, CoreSegment};
use crate::addr::{Addr, AddrRange, RangeSet};
use crate::snapshot::{Region, Thread};

const AT_ENTRY: u64 = 9;
const AT_RANDOM: u64 = 25;
const AT_SYSINFO_EHDR: u64 = 33;
/// `brk` begins at most so far above the executable (`arch_randomize_brk` in Linux, of all machines).
const BRK_DISTANCE: u64 = 1 << 30;
/// From here on addresses are the kernel's; a core file has the `vsyscall` page among them.
const KERNEL: Addr = Addr(0xffff_0000_0000_0000);

/// The mappings of `core`, in ascending order.
pub(super) fn regions(
    core: &CoreFile,
    files: &[MappedFile],
    auxv: &[(u64, u64)],
    threads: &[Thread],
) -> Vec<Region> {
    let segments = core
        .segments
        .iter()
        .filter(|segment| segment.range.start < KERNEL);
    let mut regions: Vec<Region> = segments.map(|segment| region(segment, files)).collect();
    let known: RangeSet = regions.iter().map(|region| region.range).collect();
    regions.extend(files.iter().flat_map(|file| unlisted(file, &known)));
    regions.sort_by_key(|region| region.range.start);
    identify_files(&mut regions);
    name(&mut regions, auxv, threads);
    regions
}

fn region(segment: &CoreSegment, files: &[MappedFile]) -> Region {
    let after = files.partition_point(|file| file.range.start <= segment.range.start);
    let file = after.checked_sub(1).and_then(|index| files.get(index));
    let file = file.filter(|file| file.range.contains(segment.range.start));
    Region {
        range: segment.range,
        readable: segment.readable,
        writable: segment.writable,
        executable: segment.executable,
        shared: file.is_some_and(|file| is_shared(&file.path)),
        offset: file.map_or(0, |file| file.offset_at(segment.range.start)),
        name: file.map_or_else(String::new, |file| file.path.clone()),
        ..Region::default()
    }
}

/// The parts of a mapped file that no segment has: debuggers leave out what they do not save. What may
/// be done with them is not known; it was not written to.
fn unlisted(file: &MappedFile, known: &RangeSet) -> Vec<Region> {
    let gaps = known.gaps(file.range).into_iter();
    let parts = gaps.map(|range| Region {
        range,
        readable: true,
        executable: true,
        shared: is_shared(&file.path),
        offset: file.offset_at(range.start),
        name: file.path.clone(),
        ..Region::default()
    });
    parts.collect()
}

/// Says whether a file of this name is memory that processes share.
fn is_shared(path: &str) -> bool {
    const SHARED: [&str; 4] = ["/dev/shm/", "/memfd:", "/SYSV", "/dev/zero"];
    SHARED.iter().any(|start| path.starts_with(start))
}

/// Gives each file a number in place of its inode.
fn identify_files(regions: &mut [Region]) {
    let mut numbers = rustc_hash::FxHashMap::<String, u64>::default();
    for region in regions.iter_mut().filter(|region| !region.name.is_empty()) {
        let next = (numbers.len() as u64).saturating_add(1);
        let number = *numbers.entry(region.name.clone()).or_insert(next);
        region.file = (0, 0, number);
    }
}

/// Names those that the kernel would name: the main stack, the vdso, and what `brk` gave.
fn name(regions: &mut [Region], auxv: &[(u64, u64)], threads: &[Thread]) {
    let value = |kind| {
        auxv.iter()
            .find(|(k, _)| *k == kind)
            .map(|(_, value)| Addr(*value))
    };
    // Without the vector, the first thread is the main one as a rule.
    let stack = value(AT_RANDOM).or_else(|| threads.first().map(|thread| thread.stack_pointer));
    let brk = value(AT_ENTRY).and_then(|entry| brk(regions, entry));
    let places = [
        (value(AT_SYSINFO_EHDR), "[vdso]"),
        (stack, "[stack]"),
        (brk, "[heap]"),
    ];
    for (addr, name) in places {
        let mut regions = regions.iter_mut();
        let region = regions.find(|region| addr.is_some_and(|addr| region.range.contains(addr)));
        if let Some(region) = region.filter(|region| region.name.is_empty()) {
            name.clone_into(&mut region.name);
        }
    }
}

/// Where the memory of `brk` begins: the first private memory above the executable, of which `entry` is
/// an address. What adjoins the executable is its `.bss`.
fn brk(regions: &[Region], entry: Addr) -> Option<Addr> {
    let program = regions.iter().find(|region| region.range.contains(entry))?;
    let of_program = |region: &&Region| !region.is_anonymous() && region.file == program.file;
    let end = regions
        .iter()
        .filter(of_program)
        .map(|region| region.range.end)
        .max()?;
    let above = regions.iter().find(|region| region.range.start > end)?;
    let distance = AddrRange::new(end, above.range.start).size();
    let is_brk = above.is_private_anonymous_data() && above.name.is_empty();
    (is_brk && distance <= BRK_DISTANCE).then_some(above.range.start)
}
