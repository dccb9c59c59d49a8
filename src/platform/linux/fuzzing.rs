//! A fuzz target: texts and tables of `/proc`, and the files of programs.

use super::command::Executable;
use super::limits::meminfo_available;
use super::processes::{Stat, arguments, field};
use super::procfs::{
    Status, epoll_values, io_uring_values, parse_auxv, parse_system_call, timer_values,
};
use super::regions::{parse_maps, parse_smaps};
use crate::memory::Width;

/// Parses `input` as each of the files of `/proc` that are read, and as the file of a program.
pub fn maps(input: &[u8]) {
    let regions = parse_maps(input);
    for region in &regions {
        assert!(region.range.start < region.range.end);
    }
    // What is a line of one is a line of the other.
    let uses = parse_smaps(input);
    let ranges = regions.iter().map(|region| region.range);
    assert!(ranges.eq(uses.iter().map(|used| used.range)));
    texts(input);
    let _ = Executable::parse(&|offset, size| {
        let start = usize::try_from(offset).ok()?;
        let end = start.checked_add(usize::try_from(size).ok()?)?;
        input.get(start..end).map(<[u8]>::to_vec)
    });
}

fn texts(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let _ = (Status::parse(&text), parse_system_call(&text));
    let lines = text.lines().count();
    assert!(epoll_values(3, &text).len() <= lines);
    assert!(timer_values(&text).len() <= lines);
    let _ = (io_uring_values(3, &text), meminfo_available(&text));
    for width in [Width::Four, Width::Eight] {
        assert_eq!(
            parse_auxv(input, width).len(),
            input.len() / width.pair_size()
        );
    }
    let _ = (Stat::parse(input), field(input, "Uid:"));
    assert!(arguments(input).len() <= input.len());
}

#[cfg(test)]
#[test]
fn the_corpus_of_maps_is_harmless() {
    crate::fuzzing::run_corpus("maps", maps);
}
