//! Heaps in unusual states, with the C library of this machine; `tests/versions.sh` has others.

use std::collections::BTreeMap;

use crate::support::{Build, Fixture, WIDTHS, addresses, heap};

const MALLOC: &str = "GLIBC_TUNABLES";

/// Checks that the blocks that rleaks finds are those of the fixture, and libc's that it knows.
fn check(modes: &str, environment: &[(&str, &str)]) {
    for seed in ["1", "2"] {
        let arguments = [modes, seed, "3", "3000"];
        let fixture = Fixture::start_in("heap_modes.c", &arguments, environment);
        assert_blocks_are_exact(&fixture, &format!("{modes} {seed} {environment:?}"));
    }
}

fn assert_blocks_are_exact(fixture: &Fixture, name: &str) {
    let mut found = fixture.without_loader(addresses(&heap(&fixture.pid())["blocks"]));
    let vectors = fixture.libc.keys().filter(|at| found.remove(at).is_some());
    assert_eq!(vectors.count(), fixture.libc.len(), "{name}");
    let surplus = found
        .iter()
        .filter(|(at, size)| fixture.live.get(at) != Some(size));
    let missing = fixture
        .live
        .iter()
        .filter(|(at, size)| found.get(at) != Some(size));
    let difference: BTreeMap<_, _> = surplus.chain(missing).collect();
    assert!(difference.is_empty(), "{name} {difference:x?}");
}

#[test]
fn blocks_are_exact_with_fewer_arenas_than_threads() {
    check("plain", &[("MALLOC_ARENA_MAX", "1")]);
    check("exited+trim", &[("MALLOC_ARENA_MAX", "2")]);
}

#[test]
fn blocks_are_exact_with_other_caches() {
    check("plain", &[(MALLOC, "glibc.malloc.tcache_count=0")]);
    check("plain", &[(MALLOC, "glibc.malloc.tcache_count=50")]);
    check("plain", &[(MALLOC, "glibc.malloc.mxfast=160")]);
}

#[test]
fn blocks_are_exact_with_hundreds_of_mmapped_chunks() {
    check("plain", &[(MALLOC, "glibc.malloc.mmap_threshold=4096")]);
    check("imitations", &[]);
}

#[test]
fn blocks_are_exact_where_no_chunk_may_be_mmapped() {
    check("plain", &[(MALLOC, "glibc.malloc.mmap_max=0")]);
}

#[test]
fn blocks_are_exact_with_huge_pages() {
    check("plain", &[(MALLOC, "glibc.malloc.hugetlb=1")]);
    check("plain", &[(MALLOC, "glibc.malloc.hugetlb=2")]);
}

#[test]
fn blocks_are_exact_where_free_memory_is_filled() {
    check("trim", &[("MALLOC_PERTURB_", "165")]);
}

#[test]
fn blocks_are_exact_where_the_program_moves_the_break() {
    check("sbrk", &[]);
}

#[test]
fn blocks_are_exact_where_the_break_is_blocked() {
    check("blocked", &[]);
    check("sbrk+blocked", &[]);
}

#[test]
fn blocks_are_exact_where_threads_ended() {
    check("exited", &[]);
    check("killed", &[]);
}

#[test]
fn blocks_are_exact_in_the_child_of_a_process_with_threads() {
    check("fork", &[]);
    check("fork+blocked", &[]);
}

#[test]
fn zero_blocks_of_the_size_of_a_thread_cache_are_blocks() {
    check("zeros", &[]);
    check("zeros+fork", &[(MALLOC, "glibc.malloc.tcache_count=0")]);
}

#[test]
fn blocks_are_exact_in_i386_and_static_programs() {
    for build in WIDTHS {
        for modes in [
            "plain",
            "trim",
            "sbrk",
            "blocked",
            "sbrk+blocked",
            "imitations",
            "exited",
            "killed",
            "fork+blocked",
            "zeros",
        ] {
            let fixture = Fixture::start_built("heap_modes.c", build, &[modes, "4", "3", "3000"]);
            assert_blocks_are_exact(&fixture, &format!("{build:?} {modes}"));
        }
    }
}

/// It is another libc of the same width: only programs that load something can have it.
#[test]
fn blocks_of_a_second_libc_are_exact_on_i386() {
    for seed in ["1", "4"] {
        let arguments = ["namespace", seed, "3", "3000"];
        let fixture = Fixture::start_built("heap_modes.c", Build::I386, &arguments);
        let found = addresses(&heap(&fixture.pid())["blocks"]);
        for (at, size) in &fixture.live {
            assert_eq!(found.get(at), Some(size), "{at:#x} {seed}");
        }
    }
}
