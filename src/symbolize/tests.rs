//! Symbols of files that compilers built, and of files that nobody would build.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use goblin::elf::Elf;
use goblin::elf::program_header::{PF_W, PF_X, PT_DYNAMIC, PT_LOAD};
use goblin::elf::section_header::{SHT_DYNSYM, SHT_SYMTAB};
use proptest::prelude::*;
use tempfile::TempDir;

use super::elf::{Bytes, ElfFile};
use super::table::TableBuilder;
use super::{Describer, Description, Shown, Source, Starts, Symbolizer};
use crate::addr::{Addr, AddrRange};
use crate::heap::{Block, Heap};
use crate::memory::{FakeMemory, Memory};
use crate::platform::TargetFiles;
use crate::snapshot::{Module, Segment, dynamic_string, dynamic_symbols, needed_libraries};

const SOURCE: &str = r#"
namespace shop {
struct Item { virtual ~Item(); virtual int price(); };
Item::~Item() {}
int Item::price() { return 1; }
struct Labeled { virtual int label(); };
int Labeled::label() { return 2; }
template <class T> struct Box : Item, Labeled { T t; int price() override; int label() override; };
template <class T> int Box<T>::price() { return 3; }
template <class T> int Box<T>::label() { return 4; }
template struct Box<long>;
}
extern "C" int visible_table[64] = {1};
static int hidden_table[16] = {2};
thread_local int per_thread = 3;
extern "C" int *tables(int i) { return i ? hidden_table : visible_table; }
"#;
const BIAS: u64 = 0x7f00_0000_0000;
const VISIBLE: &str = "visible_table";
const HIDDEN: &str = "_ZL12hidden_table";

/// A root directory of a target whose library is `/lib/libshop.so`.
struct Root {
    directory: TempDir,
    /// The library as it was linked, outside of the target's root.
    linked: PathBuf,
}

impl Root {
    fn new(flags: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        for name in ["root/lib/.debug", "root/usr/lib/debug/lib"] {
            std::fs::create_dir_all(directory.path().join(name)).expect("a directory");
        }
        let linked = directory.path().join("linked.so");
        let source = directory.path().join("shop.cc");
        std::fs::write(&source, SOURCE).expect("the source");
        let common = ["-shared", "-fPIC", "-g", "-Wl,-soname,libshop.so.1", "-o"];
        run(
            "g++",
            &[&common[..], &[text(&linked), text(&source)], flags].concat(),
        );
        let root = Self { directory, linked };
        root.install(&root.linked);
        root
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn install(&self, file: &Path) {
        std::fs::copy(file, self.library()).expect("the library");
    }

    fn library(&self) -> PathBuf {
        self.path("root/lib/libshop.so")
    }

    /// Installs the library without its symbol table; `flags` are for objcopy.
    fn strip(&self, flags: &[&str]) {
        let files = ["-S", text(&self.linked)];
        run(
            "objcopy",
            &[flags, &files, &[text(&self.library())]].concat(),
        );
    }

    /// The library's debug information, as a file `name` outside of the target's root.
    fn debug_file(&self, name: &str) -> PathBuf {
        let debug = self.path(name);
        run(
            "objcopy",
            &["--only-keep-debug", text(&self.linked), text(&debug)],
        );
        debug
    }

    fn address(&self, name: &str) -> u64 {
        nm_address(&self.linked, &[], name).expect(name)
    }

    fn module(&self) -> Module {
        module(
            "/lib/libshop.so",
            &std::fs::read(&self.linked).expect("the library"),
        )
    }

    /// The name of what is 4 bytes into the library's symbol `name`.
    fn found(&self, module: &Module, name: &str) -> Option<String> {
        let memory = FakeMemory::zeroed(0, 0);
        let modules = std::slice::from_ref(module);
        let files = TargetFiles::under(&self.path("root"));
        let symbolizer = Symbolizer::new(modules, &memory, files);
        let found = symbolizer.data_symbol(Addr(BIAS + self.address(name) + 4))?;
        assert_eq!(found.offset, 4);
        Some(found.name)
    }

    fn has_hidden(&self) -> bool {
        assert_eq!(
            self.found(&self.module(), VISIBLE).as_deref(),
            Some(VISIBLE)
        );
        let hidden = self.found(&self.module(), HIDDEN);
        assert!(
            matches!(hidden.as_deref(), None | Some("hidden_table")),
            "{hidden:?}"
        );
        hidden.is_some()
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .expect(program);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {errors}");
    String::from_utf8(output.stdout).expect("output in UTF-8")
}

fn nm_address(file: &Path, flags: &[&str], name: &str) -> Option<u64> {
    let symbols = run("nm", &[flags, &[text(file)]].concat());
    let line = symbols.lines().find(|line| {
        let symbol = line.rsplit(' ').next().unwrap_or_default();
        symbol.split('@').next() == Some(name)
    })?;
    u64::from_str_radix(line.split(' ').next()?, 16).ok()
}

/// The module that the file `bytes` makes when it is loaded [`BIAS`] above its link address.
fn module(path: &str, bytes: &[u8]) -> Module {
    let elf = Elf::parse(bytes).expect("an ELF file");
    let headers = || elf.program_headers.iter();
    let range = |start: u64, size| AddrRange::with_size(Addr(BIAS + start), size);
    let segments = headers().filter(|header| header.p_type == PT_LOAD);
    let dynamic = headers().find(|header| header.p_type == PT_DYNAMIC);
    Module {
        path: path.to_owned(),
        base: Addr(BIAS),
        bias: BIAS,
        segments: segments
            .map(|header| Segment {
                range: range(header.p_vaddr, header.p_memsz),
                writable: header.p_flags & PF_W != 0,
                executable: header.p_flags & PF_X != 0,
            })
            .collect(),
        dynamic: dynamic.map(|header| range(header.p_vaddr, header.p_memsz)),
        build_id: ElfFile::parse(bytes.to_vec())
            .expect("an ELF file")
            .build_id(),
        ..Module::default()
    }
}

/// The memory of the file `bytes` when it is loaded at [`BIAS`], before any relocation.
fn loaded(bytes: &[u8]) -> FakeMemory {
    let elf = Elf::parse(bytes).expect("an ELF file");
    let loads = || elf.program_headers.iter().filter(|h| h.p_type == PT_LOAD);
    let end = loads().map(|header| header.p_vaddr + header.p_memsz).max();
    let size = usize::try_from(end.expect("a segment")).expect("a small library");
    let mut memory = FakeMemory::zeroed(BIAS, size);
    for header in loads() {
        let start = usize::try_from(header.p_vaddr).expect("a small address");
        let part = &bytes[header.file_range()];
        memory.bytes[start..start + part.len()].copy_from_slice(part);
    }
    memory
}

/// Looks at everything that a file can have.
fn exercise(bytes: impl Bytes) {
    let Some(elf) = ElfFile::parse(bytes) else {
        return;
    };
    let mut table = TableBuilder::default();
    elf.add_data_symbols(SHT_SYMTAB, &mut table);
    elf.add_data_symbols(SHT_DYNSYM, &mut table);
    elf.add_functions(SHT_SYMTAB, &mut table);
    elf.add_functions(SHT_DYNSYM, &mut table);
    let _ = (elf.build_id(), elf.debug_link(), elf.section(".debug_str"));
    let _ = (elf.supplement_link(), elf.supplement_id(), elf.code());
    for name in [".debug_info", ".debug_line"] {
        let _ = (elf.debug_section_size(name), elf.debug_section(name));
    }
    if let Some(inner) = elf.mini_debug_info() {
        inner.add_data_symbols(SHT_SYMTAB, &mut table);
    }
    let _ = table.finish().find(0x4000);
}

#[test]
fn the_symbol_table_names_hidden_objects_and_the_dynamic_one_the_others() {
    let root = Root::new(&[]);
    assert!(root.has_hidden());
    root.strip(&[]);
    assert!(!root.has_hidden());
}

#[test]
fn thread_local_variables_are_not_found() {
    let root = Root::new(&[]);
    let address = root.address("per_thread");
    let bytes = std::fs::read(&root.linked).expect("the library");
    let mut table = TableBuilder::default();
    let elf = ElfFile::parse(bytes).expect("an ELF file");
    elf.add_data_symbols(SHT_SYMTAB, &mut table);
    assert_eq!(table.finish().find(address), None);
}

#[test]
fn a_stripped_file_may_carry_its_symbols_compressed() {
    let root = Root::new(&[]);
    let mini = root.debug_file("mini");
    run("objcopy", &["--strip-debug", text(&mini)]);
    run("xz", &[text(&mini)]);
    let packed = root.path("mini.xz");
    root.strip(&[
        "--add-section",
        &format!(".gnu_debugdata={}", text(&packed)),
    ]);
    assert!(root.has_hidden());
    std::fs::write(&packed, b"\xfd7zXZ\0 no more").expect("a damaged file");
    root.strip(&[
        "--add-section",
        &format!(".gnu_debugdata={}", text(&packed)),
    ]);
    assert!(!root.has_hidden());
}

#[test]
fn a_debug_file_is_found_by_build_id() {
    let root = Root::new(&["-Wl,--build-id"]);
    root.strip(&[]);
    let id = root.module().build_id.expect("a build id");
    let digits: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
    let directory = root.path(&format!("root/usr/lib/debug/.build-id/{}", &digits[..2]));
    std::fs::create_dir_all(&directory).expect("a directory");
    let path = directory.join(format!("{}.debug", &digits[2..]));
    std::fs::copy(root.debug_file("debug"), &path).expect("the debug file");
    assert!(root.has_hidden());
    // The file of the module itself is not needed for that.
    std::fs::remove_file(root.library()).expect("the library");
    let hidden = root.found(&root.module(), HIDDEN);
    assert_eq!(hidden.as_deref(), Some("hidden_table"));

    let other = Root::new(&["-Wl,--build-id", "-DOTHER", "-O2"]);
    std::fs::copy(other.debug_file("debug"), &path).expect("another debug file");
    root.strip(&[]);
    assert!(!root.has_hidden());
}

#[test]
fn a_debug_file_is_found_by_its_name_if_its_checksum_is_right() {
    let root = Root::new(&["-Wl,--build-id=none"]);
    let debug = root.debug_file("shop.debug");
    root.strip(&["--add-gnu-debuglink", text(&debug)]);
    assert!(!root.has_hidden());
    for name in ["lib", "lib/.debug", "usr/lib/debug/lib"] {
        let place = root.path("root").join(name).join("shop.debug");
        std::fs::copy(&debug, &place).expect("the debug file");
        assert!(root.has_hidden(), "{name}");
        let mut bytes = std::fs::read(&debug).expect("the debug file");
        bytes.push(0);
        std::fs::write(&place, bytes).expect("a changed debug file");
        assert!(!root.has_hidden(), "{name}");
        std::fs::remove_file(&place).expect("the debug file");
    }
}

#[test]
fn a_debug_file_may_have_the_name_of_its_library() {
    let root = Root::new(&["-Wl,--build-id"]);
    let debug = root.debug_file("libshop.so");
    root.strip(&["--add-gnu-debuglink", text(&debug)]);
    assert!(!root.has_hidden());
    let place = root.path("root/usr/lib/debug/lib/libshop.so");
    std::fs::copy(&debug, place).expect("the debug file");
    assert!(root.has_hidden());
}

#[test]
fn a_file_that_was_replaced_is_not_used() {
    let root = Root::new(&["-Wl,--build-id"]);
    let mut module = root.module();
    module.build_id = Some(vec![1; 20]);
    assert_eq!(root.found(&module, VISIBLE), None);
    module.build_id = None;
    module.file.2 = u64::MAX;
    assert_eq!(root.found(&module, VISIBLE), None);
    module.file.2 = 0;
    assert_eq!(root.found(&module, VISIBLE).as_deref(), Some(VISIBLE));
}

#[test]
fn compressed_sections_read_like_plain_ones() {
    let root = Root::new(&["-Wl,--compress-debug-sections=zlib"]);
    let plain = root.path("plain.so");
    run(
        "objcopy",
        &[
            "--decompress-debug-sections",
            text(&root.linked),
            text(&plain),
        ],
    );
    let section = |path: &Path, name: &str| {
        let bytes = std::fs::read(path).expect("a library");
        ElfFile::parse(bytes).expect("an ELF file").section(name)
    };
    for name in [".debug_info", ".debug_str", ".debug_line"] {
        let contents = section(&plain, name).expect(name);
        assert_eq!(section(&root.linked, name).expect(name), contents);
    }
    assert_eq!(section(&plain, ".debug"), None);
}

#[test]
fn the_dynamic_section_is_read_from_memory() {
    for style in ["sysv", "gnu", "both"] {
        let root = Root::new(&[&format!("-Wl,--hash-style={style}")]);
        let bytes = std::fs::read(&root.linked).expect("the library");
        let (module, memory) = (module("libshop.so", &bytes), loaded(&bytes));
        check_dynamic(&root, &memory, &module);
        check_dynamic(&root, &relocated(memory, &module), &module);
    }
}

fn check_dynamic(root: &Root, memory: &FakeMemory, module: &Module) {
    let symbols = dynamic_symbols(memory, module);
    let symbol = |name| symbols.iter().find(|s| s.name == name).expect(name);
    let table = symbol(VISIBLE);
    assert_eq!(
        (table.value, table.size),
        (Addr(BIAS + root.address(VISIBLE)), 256)
    );
    assert!(table.is_data && table.is_defined && !table.is_function);
    assert!(symbol("tables").is_function);
    assert!(!symbol("__cxa_finalize").is_defined);
    let soname = dynamic_string(memory, module, goblin::elf::dynamic::DT_SONAME);
    assert_eq!(soname.as_deref(), Some("libshop.so.1"));
    let needed = needed_libraries(memory, module);
    assert!(
        needed.iter().any(|name| name == "libstdc++.so.6"),
        "{needed:?}"
    );
    let listed = run("nm", &["-D", text(&root.linked)]).lines().count();
    assert_eq!(symbols.len(), listed);
}

/// Replaces the pointers of the dynamic section by addresses in memory, as glibc's loader does.
fn relocated(mut memory: FakeMemory, module: &Module) -> FakeMemory {
    let dynamic = module.dynamic.expect("a dynamic section");
    for entry in (dynamic.start.0..dynamic.end.0).step_by(16) {
        let tag = memory.word(Addr(entry)).expect("a tag");
        let value = memory.word(Addr(entry + 8)).expect("a value");
        // DT_HASH, DT_STRTAB, DT_SYMTAB, DT_GNU_HASH.
        if [4, 5, 6, 0x6fff_fef5].contains(&tag) {
            memory.set_word(entry + 8, value + BIAS);
        }
    }
    memory
}

#[test]
fn symbols_come_from_memory_where_there_is_no_file() {
    let root = Root::new(&[]);
    let bytes = std::fs::read(&root.linked).expect("the library");
    let modules = [module("/gone/libshop.so", &bytes)];
    let memory = loaded(&bytes);
    let files = TargetFiles::under(&root.path("root"));
    let symbolizer = Symbolizer::new(&modules, &memory, files);
    let found = symbolizer.data_symbol(Addr(BIAS + root.address(VISIBLE)));
    assert_eq!(found.expect("the symbol").name, VISIBLE);
    let hidden = symbolizer.data_symbol(Addr(BIAS + root.address(HIDDEN)));
    assert_eq!(hidden, None);
}

#[test]
fn a_block_is_described_by_its_first_word_or_its_string() {
    let root = Root::new(&[]);
    let modules = [root.module()];
    let vtable = BIAS + root.address("_ZTVN4shop3BoxIlEE");
    let visible = BIAS + root.address(VISIBLE);
    let (base, string) = (0x10000, b"it's \"text\"\n\0\0\0\0");
    let mut memory = FakeMemory::zeroed(base, 0x2000);
    memory.bytes[0x1000..0x1010].copy_from_slice(string);
    memory.bytes[0x1ff0..].copy_from_slice(b"cut off by a hol");
    let files = TargetFiles::under(&root.path("root"));
    let symbolizer = Symbolizer::new(&modules, &memory, files);
    let owned = AddrRange::with_size(Addr(visible), 16);
    let heap = Heap {
        owned: [owned].into_iter().collect(),
        ..Heap::default()
    };
    let words = [
        (vtable + 16, Some("shop::Box<long>")),
        // The table of the second base class.
        (vtable + 56, Some("shop::Box<long>")),
        (vtable, None),
        (vtable + 17, None),
        (visible, None),
        (visible + 8, None),
        (visible + 16, Some(VISIBLE)),
        (BIAS, None),
        (0, None),
    ];
    let mut memory = memory.clone();
    for (index, (word, _)) in words.iter().enumerate() {
        memory.set_word(base + 16 * index as u64, *word);
    }
    let describer = Describer::new(&memory, crate::memory::Width::Eight, &symbolizer, &heap);
    let block = |offset: u64, size| Block {
        start: Addr(base + offset),
        size,
    };
    for round in 0..2 {
        for (index, (word, name)) in words.iter().enumerate() {
            let block = block(16 * index as u64, 16);
            assert_eq!(
                describer.type_name(&block).as_deref(),
                *name,
                "{word:#x} {round}"
            );
        }
    }
    let typed = |name: &Option<&'static str>| Description {
        type_name: *name,
        ..Description::default()
    };
    let content = |length, text| Description {
        type_name: None,
        content: Some(text),
        content_length: Some(length),
    };
    let mut expected: Vec<(Block, Description<'_>)> = (0..)
        .zip(&words)
        .map(|(index, (_, name))| (block(16 * index, 16), typed(name)))
        .collect();
    expected[0].0.size = 4;
    expected[0].1 = Description::default();
    expected.extend([
        (block(0x1000, 16), content(12, r#""it's \"text\"\n""#)),
        (block(0x1ff0, 16), content(16, r#""cut off by a hol""#)),
        (block(0x3000, 16), Description::default()),
    ]);
    let source = Source {
        memory: &memory,
        width: crate::memory::Width::Eight,
        modules: &modules,
        heap: &heap,
        shown: Shown::Contents,
    };
    check_described(&source, &describer, &expected);
    for size in [32, 8192] {
        let unreadable = [(block(0x1ff0, size), Description::default())];
        check_described(&source, &describer, &unreadable);
    }
}

/// Checks what blocks are taken for: all of them together, and each by itself.
fn check_described(
    source: &Source<'_>,
    describer: &Describer<'_>,
    expected: &[(Block, Description<'_>)],
) {
    let all = (0..expected.len()).map(|index| index..index + 1);
    for range in all.chain(std::iter::once(0..expected.len())) {
        let expected = &expected[range];
        for shown in [Shown::Contents, Shown::Types] {
            let block = |index: usize| Some(expected[index].0);
            let source = Source { shown, ..*source };
            let starts = Starts::read(&source, expected.len(), block);
            let described = starts.described(describer);
            for ((block, expected), number) in expected.iter().zip(&described.numbers) {
                let mut expected = *expected;
                if shown == Shown::Types {
                    (expected.content, expected.content_length) = (None, None);
                }
                assert_eq!(described.descriptions.get(*number), expected, "{block:?}");
            }
        }
    }
}

#[test]
fn long_strings_are_measured_up_to_a_limit() {
    let mut memory = FakeMemory {
        base: 0x1000,
        bytes: vec![b'x'; 0x10000],
    };
    memory.bytes[1000] = 0;
    memory.bytes[0xffff] = 1;
    let symbolizer = Symbolizer::new(&[], &memory, TargetFiles::under(Path::new("/")));
    let heap = Heap::default();
    let describer = Describer::new(&memory, crate::memory::Width::Eight, &symbolizer, &heap);
    let source = Source {
        memory: &memory,
        width: crate::memory::Width::Eight,
        modules: &[],
        heap: &heap,
        shown: Shown::Contents,
    };
    let text = format!("\"{}\"...", "x".repeat(80));
    for (start, size, length) in [
        (0x1000, 0x8000, Some(1000)),
        (0x1000, 500, Some(500)),
        (0x2000, 0x8000, Some(4096)),
        (0x10f00, 0x100, None),
        (0x10f80, 0x80, None),
        (0x10f00, 0x1000, None),
    ] {
        let block = Block {
            start: Addr(start),
            size,
        };
        let expected = Description {
            type_name: None,
            content: length.map(|_| &*text),
            content_length: length,
        };
        check_described(&source, &describer, &[(block, expected)]);
    }
}

/// The memory of this process, read through the kernel.
struct OwnMemory(std::fs::File);

impl Memory for OwnMemory {
    fn read(&self, addr: Addr, buf: &mut [u8]) -> usize {
        self.0.read_at(buf, addr.0).unwrap_or(0)
    }
}

fn own_memory() -> OwnMemory {
    OwnMemory(std::fs::File::open("/proc/self/mem").expect("this process"))
}

/// The range and the path of this process's first mapping of a file that ends with `name`.
fn own_mapping(name: &str) -> Option<(AddrRange, String)> {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("the mappings");
    let line = maps.lines().find(|line| line.ends_with(name))?;
    let (start, rest) = line.split_once('-')?;
    let (end, rest) = rest.split_once(' ')?;
    let address = |digits| Some(Addr(u64::from_str_radix(digits, 16).ok()?));
    let path = rest.rsplit(' ').next()?;
    Some((
        AddrRange::new(address(start)?, address(end)?),
        path.to_owned(),
    ))
}

/// `module`, which lies at [`BIAS`], moved to `base`.
fn moved(module: Module, base: Addr) -> Module {
    let move_range = |r: AddrRange| AddrRange::with_size(Addr(r.start.0 - BIAS + base.0), r.size());
    let segments = module.segments.iter();
    let segments = segments.map(|s| Segment {
        range: move_range(s.range),
        ..*s
    });
    Module {
        base,
        bias: base.0,
        segments: segments.collect(),
        dynamic: module.dynamic.map(move_range),
        ..module
    }
}

#[test]
fn the_dynamic_symbols_of_a_live_c_library_are_complete() {
    let Some((range, path)) = own_mapping("/libc.so.6") else {
        return; // Another C library.
    };
    let path = Path::new(&path);
    let file = std::fs::read(path).expect("the library");
    let live = moved(module(text(path), &file), range.start);
    let symbols = dynamic_symbols(&own_memory(), &live);
    assert_eq!(
        symbols.len(),
        run("nm", &["-D", text(path)]).lines().count()
    );
    let malloc = symbols
        .iter()
        .find(|symbol| symbol.name == "malloc")
        .expect("malloc");
    assert!(malloc.is_function && malloc.is_defined && malloc.size > 0);
    let offset = malloc.value.0 - range.start.0;
    assert_eq!(Some(offset), library_symbol(path, "malloc"));
}

#[test]
fn the_dynamic_symbols_of_the_vdso_are_found() {
    let Some((range, name)) = own_mapping("[vdso]") else {
        return; // Switched off.
    };
    let size = usize::try_from(range.size()).expect("a small library");
    let mut bytes = vec![0; size];
    assert_eq!(own_memory().read(range.start, &mut bytes), size);
    let vdso = moved(module(&name, &bytes), range.start);
    let symbols = dynamic_symbols(&own_memory(), &vdso);
    let clock = symbols
        .iter()
        .find(|symbol| symbol.name == "__vdso_clock_gettime");
    assert!(
        clock.is_some_and(|s| s.is_function && range.contains(s.value)),
        "{symbols:?}"
    );
}

#[test]
fn the_systems_libraries_have_the_symbols_that_matter() {
    let libraries = Path::new("/usr/lib/x86_64-linux-gnu");
    let find = |file: &str, address: u64| {
        let path = libraries.join(file);
        let modules = [module(text(&path), &std::fs::read(&path).expect(file))];
        let memory = FakeMemory::zeroed(0, 0);
        let files = TargetFiles::under(Path::new("/"));
        let symbolizer = Symbolizer::new(&modules, &memory, files);
        symbolizer.data_symbol(Addr(BIAS + address + 16))
    };
    if let Some(address) = library_symbol(&libraries.join("libstdc++.so.6"), "_ZTVSt9exception") {
        let found = find("libstdc++.so.6", address).expect("the vtable");
        assert_eq!(found.class.as_deref(), Some("std::exception"));
    }
    if let Some(address) = debug_symbol(&libraries.join("libc.so.6"), "main_arena") {
        let found = find("libc.so.6", address).expect("the arena");
        assert_eq!((found.name.as_str(), found.offset), ("main_arena", 16));
    }
}

fn library_symbol(file: &Path, name: &str) -> Option<u64> {
    file.exists().then(|| nm_address(file, &["-D"], name))?
}

/// The address of a symbol of `file`, if its separate debug file is installed.
fn debug_symbol(file: &Path, name: &str) -> Option<u64> {
    let id = ElfFile::parse(std::fs::read(file).ok()?)?.build_id()?;
    let digits: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
    let (first, rest) = digits.split_at(2);
    let debug = PathBuf::from(format!("/usr/lib/debug/.build-id/{first}/{rest}.debug"));
    debug.exists().then(|| nm_address(&debug, &[], name))?
}

#[test]
fn a_truncated_file_never_panics() {
    let root = Root::new(&["-Wl,--compress-debug-sections=zlib"]);
    let bytes = std::fs::read(&root.linked).expect("the library");
    let memory = loaded(&bytes);
    let module = root.module();
    for length in (0..bytes.len()).step_by(64) {
        exercise(bytes[..length].to_vec());
    }
    for length in (0..memory.bytes.len()).step_by(64) {
        let bytes = memory.bytes[..length].to_vec();
        let _ = dynamic_symbols(&FakeMemory { base: BIAS, bytes }, &module);
    }
}

/// A file that claims to be endless and repeats its first 64 bytes.
struct Endless(Vec<u8>);

impl Bytes for Endless {
    fn size(&self) -> u64 {
        u64::MAX
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> bool {
        let start = usize::try_from(offset % 64).expect("a small number");
        for (i, byte) in buf.iter_mut().enumerate() {
            *byte = self.0[(start + i) % 64];
        }
        true
    }
}

#[test]
fn a_section_of_a_petabyte_is_not_read() {
    let mut header = vec![0; 64];
    header[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    // As a file's header: four section headers of 64 bytes at 64. As a section's: its size.
    header[32..40].copy_from_slice(&(1u64 << 50).to_le_bytes());
    header[40..48].copy_from_slice(&64u64.to_le_bytes());
    header[58..64].copy_from_slice(&[64, 0, 4, 0, 1, 0]);
    let elf = ElfFile::parse(Endless(header)).expect("an ELF file");
    // Its section of names is that large, so no section has a name.
    assert_eq!(elf.section(""), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_damaged_file_never_panics(damage: Vec<(proptest::sample::Index, u8)>, seed: [u8; 32]) {
        let mut bytes = small_library();
        bytes[64..96].copy_from_slice(&seed);
        let headers = bytes.len() - 64 * 30;
        for (at, value) in damage {
            let anywhere = at.index(bytes.len());
            bytes[anywhere] = value;
            let in_section_headers = headers + at.index(64 * 30);
            bytes[in_section_headers] = value;
        }
        exercise(bytes);
    }

    #[test]
    fn random_bytes_are_no_elf_file(mut bytes: Vec<u8>) {
        exercise(bytes.clone());
        let magic = b"\x7fELF\x02\x01\x01";
        bytes.splice(..bytes.len().min(magic.len()), *magic);
        exercise(bytes);
    }

    #[test]
    fn a_garbled_dynamic_section_never_panics(
        entries in proptest::collection::vec(
            (prop_oneof![4u64..7, Just(10), Just(14), Just(1), Just(0x6fff_fef5)],
             prop_oneof![0u64..0x1000, BIAS..BIAS + 0x1000, any::<u64>()]),
            0..12),
        tables in proptest::collection::vec(prop_oneof![0u8..4, any::<u8>()], 0..0x800),
    ) {
        let mut memory = FakeMemory::zeroed(BIAS, 0x1000);
        for (index, (tag, value)) in entries.iter().enumerate() {
            memory.set_word(BIAS + 16 * index as u64, *tag);
            memory.set_word(BIAS + 16 * index as u64 + 8, *value);
        }
        memory.bytes[0x100..0x100 + tables.len()].copy_from_slice(&tables);
        let range = AddrRange::with_size(Addr(BIAS), u64::MAX);
        let segment = Segment { range, writable: true, executable: false };
        let module = Module {
            base: Addr(BIAS),
            bias: BIAS,
            segments: vec![segment],
            dynamic: Some(range),
            ..Module::default()
        };
        let _ = dynamic_symbols(&memory, &module);
        let _ = needed_libraries(&memory, &module);
        let _ = dynamic_string(&memory, &module, 14);
    }
}

/// The bytes of a stripped library, built once.
fn small_library() -> Vec<u8> {
    static LIBRARY: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    let build = || {
        let root = Root::new(&["-Wl,--build-id"]);
        std::fs::read(&root.linked).expect("the library")
    };
    LIBRARY.get_or_init(build).clone()
}
