//! Which module's `malloc` the program calls, and where the code of that malloc lies.

use std::collections::BTreeMap;

use rustc_hash::FxHashMap;

use crate::addr::{Addr, AddrRange};
use crate::memory::{Memory, Width};
use crate::snapshot::{DynamicSymbol, Module, Thread, dynamic_symbols};
use crate::stacklog::format::HEADER_SYMBOL;

/// Functions that glibc defines in one file, `malloc/malloc.c`, so that its code lies between
/// them.
const FAMILY: [&str; 20] = [
    "__libc_memalign",
    "aligned_alloc",
    "calloc",
    "free",
    "mallinfo",
    "mallinfo2",
    "malloc",
    "malloc_info",
    "malloc_stats",
    "malloc_trim",
    "malloc_usable_size",
    "mallopt",
    "memalign",
    "posix_memalign",
    "pvalloc",
    "realloc",
    "valloc",
    "cfree",
    "malloc_get_state",
    "malloc_set_state",
];
/// More code than any malloc has: above it the functions lie apart, and the range means nothing.
const MAX_CODE: u64 = 256 << 10;
/// More modules than define malloc in any program: each stop compares stacks with all of them.
const MAX_EXPORTERS: usize = 64;
/// Links of the dynamic loader's list that have no module of ours: the vdso, at most.
const MAX_UNKNOWN_LINKS: usize = 64;
/// The top of a stack that is searched for return addresses into malloc, in words.
const SEARCHED_WORDS: usize = 64;
/// System calls that malloc itself makes: mmap, mprotect, munmap, brk, mremap, madvise, futex.
const SYSTEM_CALLS_OF_MALLOC: [u64; 7] = [9, 10, 11, 12, 25, 28, 202];
/// The same on i386, where there are two of futex.
const SYSTEM_CALLS_OF_MALLOC_32: [u64; 8] = [192, 125, 91, 45, 163, 219, 240, 422];

/// The calls that wait for a lock: futex, on i386 also `futex_time64`.
const FUTEX: [u64; 1] = [202];
const FUTEX_32: [u64; 2] = [240, 422];

/// A module that defines `malloc` for others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exporter {
    /// Its path.
    pub path: String,
    /// The name of the allocator, if it is one that rleaks knows by name and cannot walk.
    pub foreign: Option<&'static str>,
    /// The module is glibc, or belongs to it.
    pub is_glibc: bool,
    /// The release of glibc, such as `2.36`, if the module is it and says so.
    pub glibc_version: Option<String>,
    /// Where the code of its malloc lies, as far as it is known.
    pub code: Option<AddrRange>,
    /// It is the recorder of the malloc stack log, which passes each call on to the next allocator;
    /// the header of its log is at this address.
    pub stack_log: Option<Addr>,
}

/// The modules of `exporters` that have an allocator of their own: all but the recorder of the stack
/// log.
pub fn allocators(exporters: &[Exporter]) -> impl Iterator<Item = &Exporter> {
    exporters
        .iter()
        .filter(|exporter| exporter.stack_log.is_none())
}

/// The address of the header of the malloc stack log, if a recorder is loaded.
#[must_use]
pub fn stack_log(exporters: &[Exporter]) -> Option<Addr> {
    exporters.iter().find_map(|exporter| exporter.stack_log)
}

/// The modules that define `malloc`, the one that the program calls first.
///
/// `memory` must hold the modules' dynamic symbol tables, which are in read-only pages of their
/// files.
#[must_use]
pub fn exporters(memory: &dyn Memory, modules: &[Module]) -> Vec<Exporter> {
    link_order(memory, modules)
        .into_iter()
        .filter_map(|module| exporter(memory, module))
        .take(MAX_EXPORTERS)
        .collect()
}

fn exporter(memory: &dyn Memory, module: &Module) -> Option<Exporter> {
    let symbols = dynamic_symbols(memory, module);
    let defines = |name: &str| {
        symbols
            .iter()
            .any(|symbol| symbol.is_defined && symbol.name == name)
    };
    // The dynamic loader's own malloc serves the loader alone.
    if !defines("malloc") || defines("_rtld_global") {
        return None;
    }
    Some(Exporter {
        path: module.path.clone(),
        foreign: foreign_allocator(module.file_name(), &defines),
        is_glibc: defines("gnu_get_libc_version")
            || module.file_name().starts_with("libc_malloc_debug.so"),
        glibc_version: glibc_version(memory, &symbols),
        code: code(&symbols),
        stack_log: symbols
            .iter()
            .find(|symbol| symbol.is_defined && symbol.name == HEADER_SYMBOL)
            .map(|symbol| symbol.value),
    })
}

/// The string that `gnu_get_libc_version` returns. All that the function does is to load its
/// address, with or without a landing pad before that.
fn glibc_version(memory: &dyn Memory, symbols: &[DynamicSymbol]) -> Option<String> {
    const LANDING_PADS: [[u8; 4]; 3] = [
        [0xf3, 0x0f, 0x1e, 0xfa],
        [0xf3, 0x0f, 0x1e, 0xfb],
        [0x5f, 0x24, 0x03, 0xd5],
    ];
    let function = symbols
        .iter()
        .find(|symbol| symbol.is_defined && symbol.name == "gnu_get_libc_version")?;
    let mut code = [0; 24];
    let count = memory.read(function.value, &mut code);
    let mut code = code.get(..count)?;
    let mut start = function.value;
    if LANDING_PADS.iter().any(|pad| code.starts_with(pad)) {
        code = code.get(4..)?;
        start = start.checked_add(4)?;
    }
    let string = loaded_address(start, code)
        .or_else(|| loaded_address_32(start, code))
        .or_else(|| loaded_address_aarch64(start, code))?;
    let mut text = [0; 16];
    let count = memory.read(string, &mut text);
    let text = text.get(..count)?.split(|byte| *byte == 0).next()?;
    let is_version =
        text.first() == Some(&b'2') && text.iter().all(|b| b.is_ascii_digit() || *b == b'.');
    is_version.then(|| String::from_utf8_lossy(text).into_owned())
}

/// What `lea rax, [rip + offset]` loads: the offset counts from the next instruction.
fn loaded_address(start: Addr, code: &[u8]) -> Option<Addr> {
    let offset = code.strip_prefix(&[0x48, 0x8d, 0x05])?.first_chunk()?;
    let next = start.checked_add(7)?.0;
    Some(Addr(
        next.wrapping_add_signed(i32::from_le_bytes(*offset).into()),
    ))
}

/// What i386 code loads: `call` of a function that returns where it was called from,
/// `add eax, table`, `lea eax, [eax + offset]`.
fn loaded_address_32(start: Addr, code: &[u8]) -> Option<Addr> {
    let (_, code) = code.strip_prefix(&[0xe8])?.split_first_chunk::<4>()?;
    let (table, code) = code.strip_prefix(&[0x05])?.split_first_chunk()?;
    let offset = code.strip_prefix(&[0x8d, 0x80])?.first_chunk()?;
    let here = u32::try_from(start.checked_add(5)?.0).ok()?;
    let table = here.wrapping_add(u32::from_le_bytes(*table));
    let string = table.wrapping_add(u32::from_le_bytes(*offset));
    Some(Addr(string.into()))
}

/// What aarch64 code loads: `adrp x0, page`, `add x0, x0, #offset`. The page counts from that of the
/// instruction.
fn loaded_address_aarch64(start: Addr, code: &[u8]) -> Option<Addr> {
    let (words, _) = code.as_chunks();
    let [adrp, add, ..] = words else { return None };
    let [adrp, add] = [adrp, add].map(|word| u32::from_le_bytes(*word));
    if adrp & 0x9f00_001f != 0x9000_0000 || add & 0xffc0_03ff != 0x9100_0000 {
        return None;
    }
    let pages = (adrp >> 5 & 0x7_ffff) << 2 | adrp >> 29 & 3;
    // The number has 21 bits, the highest of which is its sign.
    let pages = i64::from((pages << 11).cast_signed() >> 11);
    let page = (start.0 & !0xfff).wrapping_add_signed(pages << 12);
    Some(Addr(page.wrapping_add(u64::from(add >> 10 & 0xfff))))
}

/// Allocators by the functions that only they export, and by the names of their files.
fn foreign_allocator(file_name: &str, defines: &dyn Fn(&str) -> bool) -> Option<&'static str> {
    let by_symbol = [
        ("AddressSanitizer", "__asan_init"),
        ("LeakSanitizer", "__lsan_do_leak_check"),
        ("jemalloc", "mallctl"),
        ("jemalloc", "je_mallctl"),
        ("mimalloc", "mi_malloc"),
        ("tcmalloc", "tc_malloc"),
        ("tcmalloc", "TCMalloc_Internal_GetStats"),
        ("rpmalloc", "rpmalloc"),
        ("snmalloc", "sn_malloc"),
        ("scudo", "__scudo_print_stats"),
        ("musl malloc", "__dls3"),
    ];
    let by_file = [
        ("musl malloc", "ld-musl-"),
        ("musl malloc", "libc.musl-"),
        ("jemalloc", "libjemalloc"),
        ("mimalloc", "libmimalloc"),
        ("tcmalloc", "libtcmalloc"),
        ("snmalloc", "libsnmalloc"),
        ("Hoard", "libhoard"),
        ("scudo", "libscudo"),
        ("Valgrind", "vgpreload_"),
    ];
    let symbol = by_symbol.iter().find(|(_, symbol)| defines(symbol));
    let file = by_file
        .iter()
        .find(|(_, start)| file_name.starts_with(start));
    symbol.or(file).map(|(name, _)| *name)
}

/// From the exported function before the lowest of the family to the one after the highest.
fn code(symbols: &[DynamicSymbol]) -> Option<AddrRange> {
    let mut functions: Vec<&DynamicSymbol> = symbols
        .iter()
        .filter(|symbol| symbol.is_defined && symbol.is_function)
        .collect();
    functions.sort_unstable_by_key(|symbol| symbol.value);
    let is_family = |symbol: &&DynamicSymbol| FAMILY.contains(&symbol.name.as_str());
    let lowest = functions.iter().position(is_family)?;
    let highest = functions.iter().rposition(is_family)?;
    let end_of = |symbol: &DynamicSymbol| symbol.value.saturating_add(symbol.size);
    let (before, from_lowest) = functions.split_at_checked(lowest)?;
    let start = from_lowest.first()?.value;
    let start = before
        .iter()
        .rev()
        .map(|symbol| end_of(symbol))
        .find(|end| *end <= start)
        .unwrap_or(start);
    let from_highest = functions.get(highest..)?;
    let last = from_highest.first()?;
    let end = from_highest
        .iter()
        .map(|symbol| symbol.value)
        .find(|value| *value > last.value)
        .unwrap_or_else(|| end_of(last));
    let range = AddrRange::new(start, end);
    (range.size() <= MAX_CODE).then_some(range)
}

/// The modules in the order in which the dynamic loader looks for symbols: that of its list,
/// `r_debug` in `<link.h>`. Modules that are not on it come last.
fn link_order<'a>(memory: &dyn Memory, modules: &'a [Module]) -> Vec<&'a Module> {
    let mut left: BTreeMap<usize, &Module> = modules.iter().enumerate().collect();
    let by_dynamic: FxHashMap<Addr, usize> = modules
        .iter()
        .enumerate()
        .filter_map(|(index, module)| Some((module.dynamic?.start, index)))
        .collect();
    let mut ordered = Vec::new();
    let mut unknown = 0..MAX_UNKNOWN_LINKS;
    let width = modules.first().map_or(Width::Eight, |module| module.width);
    let mut link = first_link(memory, modules);
    while let Some(at) = link.filter(|at| at.0 != 0) {
        let field = |index: u64| {
            let addr = at.checked_add(index.checked_mul(width.bytes())?)?;
            memory.pointer(addr, width).map(Addr)
        };
        let dynamic = field(2);
        match dynamic.and_then(|dynamic| by_dynamic.get(&dynamic)) {
            Some(index) => match left.remove(index) {
                Some(module) => ordered.push(module),
                // The list leads back to a module that was on it.
                None => break,
            },
            // A library without a module of ours, such as a vdso that the kernel does not show.
            None if unknown.next().is_some() => {}
            None => break,
        }
        link = field(3);
    }
    ordered.extend(left.into_values());
    ordered
}

/// The executable's `DT_DEBUG` leads to `r_debug`, whose second word is the first link.
fn first_link(memory: &dyn Memory, modules: &[Module]) -> Option<Addr> {
    const DT_DEBUG: u64 = 21;
    modules.iter().find_map(|module| {
        let dynamic = module.dynamic?;
        let word = |addr| memory.pointer(addr, module.width);
        let size = module.width.bytes();
        let entries = (dynamic.start.0..dynamic.end.0).step_by(module.width.pair_size());
        let debug = entries
            .take(1024)
            .map(Addr)
            .find(|entry| word(*entry) == Some(DT_DEBUG))?;
        let debug = word(debug.saturating_add(size)).filter(|at| *at != 0)?;
        word(Addr(debug).checked_add(size)?).map(Addr)
    })
}

/// Says whether a thread may stand inside malloc: its next instruction, or a word at the top of
/// its stack, lies in the code of malloc.
///
/// A word may be left over from a call that has returned, so `true` is no proof. A thread that
/// sleeps in a system call that malloc never makes is not inside it. One in the recorder of the
/// stack log, before or after it calls malloc, is not: the heap is whole then.
#[must_use]
pub fn is_inside_malloc(thread: &Thread, memory: &dyn Memory, exporters: &[Exporter]) -> bool {
    let is_code = |addr: Addr| {
        let mut code = allocators(exporters).filter_map(|exporter| exporter.code);
        code.any(|code| code.contains(addr))
    };
    // On aarch64 what was called last may have kept its return address in a register alone.
    let link = thread.link_register();
    if is_code(thread.instruction_pointer)
        || link.is_some_and(|link| is_code(without_signature(link)))
    {
        return true;
    }
    let width = thread.width.unwrap_or_default();
    let calls: &[u64] = match width {
        Width::Four => &SYSTEM_CALLS_OF_MALLOC_32,
        Width::Eight => &SYSTEM_CALLS_OF_MALLOC,
    };
    if thread
        .system_call
        .is_some_and(|call| !calls.contains(&call))
    {
        return false;
    }
    let mut stack = [0; SEARCHED_WORDS * 8];
    let count = memory.read(thread.stack_pointer, &mut stack);
    let words = width.words(stack.get(..count).unwrap_or_default());
    words.take(SEARCHED_WORDS).any(|word| {
        let word = Addr(word);
        is_code(if link.is_some() {
            without_signature(word)
        } else {
            word
        })
    })
}

/// A return address of aarch64 code, which may carry a signature (`paciasp`) in the bits that no address
/// of a program has.
fn without_signature(addr: Addr) -> Addr {
    Addr(addr.0 & 0xffff_ffff_ffff)
}

/// Says whether the thread is in a system call on a futex, as one is that waits for a lock. malloc's
/// other system calls it makes while it changes the heap.
#[must_use]
pub fn waits_for_a_lock(thread: &Thread) -> bool {
    let calls: &[u64] = match thread.width.unwrap_or_default() {
        Width::Four => &FUTEX_32,
        Width::Eight => &FUTEX,
    };
    thread.system_call.is_some_and(|call| calls.contains(&call))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::FakeMemory;

    fn function(name: &str, value: u64, size: u64) -> DynamicSymbol {
        DynamicSymbol {
            name: name.to_owned(),
            value: Addr(value),
            size,
            is_function: true,
            is_data: false,
            is_defined: true,
        }
    }

    #[test]
    fn the_code_of_malloc_reaches_from_the_function_before_to_the_one_after() {
        let symbols = [
            function("malloc", 0x2000, 0x100),
            function("strlen", 0x9000, 0x10),
            function("thrd_sleep", 0x1000, 0x40),
            function("mallopt", 0x4000, 0x100),
            function("free", 0x2200, 0x100),
            function("mcheck", 0x5000, 0x10),
        ];
        let expected = AddrRange::new(Addr(0x1040), Addr(0x5000));
        assert_eq!(code(&symbols), Some(expected));
        assert_eq!(code(&symbols[1..3]), None);
    }

    #[test]
    fn a_list_of_libraries_that_never_ends_is_given_up() {
        let mut memory = FakeMemory::zeroed(0x1000, 0x1000);
        // DT_DEBUG, then r_debug, then a link without a module that leads to itself.
        for (at, word) in [
            (0x1000, 21),
            (0x1008, 0x1100),
            (0x1108, 0x1200),
            (0x1218, 0x1200),
        ] {
            memory.set_word(at, word);
        }
        let module = |path: &str, dynamic| Module {
            path: path.to_owned(),
            dynamic: Some(AddrRange::with_size(Addr(dynamic), 0x20)),
            ..Module::default()
        };
        let modules = [module("program", 0x1000), module("libc.so.6", 0x1800)];
        let paths = |memory: &FakeMemory| -> Vec<&str> {
            let ordered = link_order(memory, &modules).into_iter();
            ordered.map(|module| module.path.as_str()).collect()
        };
        assert_eq!(paths(&memory), ["program", "libc.so.6"]);
        // The same with a link that has one.
        memory.set_word(0x1210, 0x1800);
        assert_eq!(paths(&memory), ["libc.so.6", "program"]);
    }

    #[test]
    fn the_version_is_the_string_that_the_function_returns() {
        for landing_pad in [&[][..], &[0xf3, 0x0f, 0x1e, 0xfa]] {
            let mut memory = FakeMemory::zeroed(0x1000, 0x200);
            let code = [landing_pad, &[0x48, 0x8d, 0x05]].concat();
            memory.bytes[..code.len()].copy_from_slice(&code);
            let offset = 0x100 - code.len() - 4;
            memory.bytes[code.len()] = u8::try_from(offset).expect("a byte");
            memory.bytes[0x100..0x105].copy_from_slice(b"2.36\0");
            let symbols = [function("gnu_get_libc_version", 0x1000, 8)];
            assert_eq!(glibc_version(&memory, &symbols).as_deref(), Some("2.36"));
            memory.bytes[0x100] = b'x';
            assert_eq!(glibc_version(&memory, &symbols), None);
        }
    }

    #[test]
    fn the_version_of_an_i386_library_is_told() {
        let mut memory = FakeMemory::zeroed(0x1000, 0x200);
        // call; add eax, 0x2000; lea eax, [eax - 0x1f05]; ret: from 0x1005 to 0x1100.
        let code = [
            0xe8, 1, 2, 3, 4, 0x05, 0, 0x20, 0, 0, 0x8d, 0x80, 0xfb, 0xe0, 0xff, 0xff, 0xc3,
        ];
        memory.bytes[..code.len()].copy_from_slice(&code);
        memory.bytes[0x100..0x105].copy_from_slice(b"2.31\0");
        let symbols = [function("gnu_get_libc_version", 0x1000, 17)];
        assert_eq!(glibc_version(&memory, &symbols).as_deref(), Some("2.31"));
    }

    #[test]
    fn the_version_of_an_aarch64_library_is_told() {
        // adrp x0, 0x126 pages on, or 1 page back; add x0, x0, #0x300; ret: with and without bti c.
        for (adrp, page) in [(0xd000_0920_u32, 0x14d_000), (0xf0ff_ffe0, 0x26_000)] {
            for landing_pad in [&[][..], &[0x5f, 0x24, 0x03, 0xd5]] {
                let code = [
                    landing_pad,
                    &adrp.to_le_bytes(),
                    &0x910c_0000_u32.to_le_bytes(),
                ]
                .concat();
                let mut memory = FakeMemory::zeroed(0x26_000, 0x12_8000);
                let at = |addr: usize| addr - 0x26_000;
                memory.bytes[at(0x27_960)..at(0x27_960) + code.len()].copy_from_slice(&code);
                let string = at(page + 0x300);
                memory.bytes[string..string + 5].copy_from_slice(b"2.36\0");
                let symbols = [function("gnu_get_libc_version", 0x27_960, 12)];
                assert_eq!(glibc_version(&memory, &symbols).as_deref(), Some("2.36"));
            }
        }
    }

    #[test]
    fn signed_return_address_in_the_link_register_of_aarch64_is_inside_malloc() {
        let exporters = [Exporter {
            path: String::new(),
            foreign: None,
            is_glibc: true,
            glibc_version: None,
            code: Some(AddrRange::new(Addr(0x1000), Addr(0x2000))),
            stack_log: None,
        }];
        let memory = FakeMemory::zeroed(0x7000, 0x1000);
        let mut thread = Thread {
            general: vec![0; 34],
            stack_pointer: Addr(0x7000),
            ..Thread::default()
        };
        assert!(!is_inside_malloc(&thread, &memory, &exporters));
        thread.general[30] = 0x0034_0000_0000_1234;
        assert!(is_inside_malloc(&thread, &memory, &exporters));
        // That is another register on other machines.
        thread.general.truncate(31);
        assert!(!is_inside_malloc(&thread, &memory, &exporters));
    }

    #[test]
    fn functions_far_apart_give_no_range() {
        let symbols = [
            function("malloc", 0x1000, 16),
            function("free", 0x1000_0000, 16),
        ];
        assert_eq!(code(&symbols), None);
    }

    #[test]
    fn a_return_address_near_the_top_of_the_stack_is_inside_malloc_unless_the_thread_sleeps() {
        let exporters = [Exporter {
            path: String::new(),
            foreign: None,
            is_glibc: true,
            glibc_version: None,
            code: Some(AddrRange::new(Addr(0x1000), Addr(0x2000))),
            stack_log: None,
        }];
        let mut memory = FakeMemory::zeroed(0x7000, 0x1000);
        memory.set_word(0x7108, 0x1234);
        let mut thread = Thread {
            instruction_pointer: Addr(0x5000),
            stack_pointer: Addr(0x7000),
            ..Thread::default()
        };
        assert!(is_inside_malloc(&thread, &memory, &exporters));
        assert!(!waits_for_a_lock(&thread));
        thread.system_call = Some(202);
        assert!(is_inside_malloc(&thread, &memory, &exporters));
        assert!(waits_for_a_lock(&thread));
        thread.system_call = Some(0);
        assert!(!is_inside_malloc(&thread, &memory, &exporters));
        thread.instruction_pointer = Addr(0x1fff);
        assert!(is_inside_malloc(&thread, &memory, &exporters));
        thread = Thread {
            stack_pointer: Addr(0x7400),
            ..Thread::default()
        };
        assert!(!is_inside_malloc(&thread, &memory, &exporters));
    }

    #[test]
    fn allocators_are_known_by_what_they_export_or_by_their_files() {
        let named =
            |file: &str, symbol: &str| foreign_allocator(file, &|name: &str| name == symbol);
        assert_eq!(named("redis-server", "mallctl"), Some("jemalloc"));
        assert_eq!(named("libtcmalloc_minimal.so.4", ""), Some("tcmalloc"));
        assert_eq!(named("ld-musl-x86_64.so.1", ""), Some("musl malloc"));
        assert_eq!(named("libc.so.6", "malloc"), None);
    }
}
