//! Frames of files that compilers built, compared with what other readers say of them.

use std::io::{Seek, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use goblin::elf::Elf;
use goblin::elf::program_header::{PF_X, PT_LOAD};
use tempfile::TempDir;

use super::elf::ElfFile;
use super::{CodeAddress, CodeFrames, CodeImage, Detail, SourceFrame, demangle};
use crate::addr::{Addr, AddrRange};
use crate::memory::Width;
use crate::platform::TargetFiles;

const BIAS: u64 = 0x7f00_0000_0000;

/// The image of the file at `path` that is loaded at [`BIAS`].
fn image(path: &Path) -> CodeImage {
    let bytes = std::fs::read(path).expect("a file");
    let elf = Elf::parse(&bytes).expect("an ELF file");
    let segments = elf.program_headers.iter();
    let code = segments.filter(|header| header.p_type == PT_LOAD && header.p_flags & PF_X != 0);
    let bias = if elf.is_64 { BIAS } else { 0x5600_0000 };
    CodeImage {
        path: path.to_str().expect("a path in UTF-8").to_owned(),
        width: if elf.is_64 { Width::Eight } else { Width::Four },
        base: Addr(bias),
        bias,
        code: code
            .map(|header| AddrRange::with_size(Addr(header.p_vaddr), header.p_memsz))
            .collect(),
        build_id: ElfFile::parse(bytes.clone())
            .expect("an ELF file")
            .build_id(),
        ..CodeImage::default()
    }
}

/// The frames of the link addresses `links` of the file at `path`.
fn frames_of(path: &Path, links: &[u64], detail: Detail) -> Vec<Vec<SourceFrame>> {
    let images = [image(path)];
    let addresses: Vec<CodeAddress> = links
        .iter()
        .map(|link| CodeAddress {
            addr: Addr(images[0].bias + link),
            image: Some(0),
            is_return: false,
        })
        .collect();
    let frames = CodeFrames::new(&images, TargetFiles::under(Path::new("/")), detail);
    let resolved = frames.resolve(&addresses);
    assert_eq!(frames.warnings(), []);
    resolved
}

/// The start and the end of each function in the symbol table of the file at `path`.
fn functions(path: &Path) -> Vec<(String, u64, u64)> {
    let bytes = std::fs::read(path).expect("a file");
    let elf = Elf::parse(&bytes).expect("an ELF file");
    let functions = elf.syms.iter().filter(goblin::elf::Sym::is_function);
    let functions = functions.filter(|symbol| symbol.st_value != 0);
    functions
        .map(|symbol| {
            let name = elf.strtab.get_at(symbol.st_name).expect("a name");
            let end = symbol.st_value + symbol.st_size;
            (name.to_owned(), symbol.st_value, end)
        })
        .collect()
}

/// What is compared of a call: the function, the file and the line.
type Line = (Option<String>, Option<String>, Option<u32>);

fn lines(frames: &[SourceFrame]) -> Vec<Line> {
    let line = |f: &SourceFrame| (f.function.clone(), f.file.clone(), f.line);
    frames.iter().map(line).collect()
}

/// What the crate addr2line says of `links`, by the debug information in the file at `path`.
fn by_addr2line(path: &Path, links: &[u64]) -> Vec<Vec<Line>> {
    let bytes = std::fs::read(path).expect("a file");
    let elf = ElfFile::parse(bytes).expect("an ELF file");
    let load = |id: gimli::SectionId| {
        Ok::<_, gimli::Error>(elf.debug_section(id.name()).unwrap_or_default())
    };
    let sections = gimli::DwarfSections::load(load).expect("sections");
    let dwarf = sections.borrow(|section| gimli::EndianSlice::new(section, gimli::LittleEndian));
    let context = addr2line::Context::from_dwarf(dwarf).expect("debug information");
    let calls = |link: &u64| {
        let frames = context.find_frames(*link).skip_all_loads();
        let mut frames = frames.expect("frames");
        let mut lines = Vec::new();
        while let Some(frame) = frames.next().expect("a frame") {
            let name = frame.function.map(|name| {
                let name = name.raw_name().expect("a name");
                demangle(&name)
            });
            let location = frame.location;
            let file = location.as_ref().and_then(|l| l.file.map(str::to_owned));
            lines.push((name, file, location.and_then(|l| l.line)));
        }
        lines
    };
    links.iter().map(calls).collect()
}

/// What binutils' addr2line says of `links`. Names that are not known are none.
fn by_binutils(path: &Path, links: &[u64]) -> Vec<Vec<Line>> {
    let addresses: String = links.iter().map(|link| format!("{link:#x}\n")).collect();
    let output = with_input(
        "addr2line",
        &["-a", "-f", "-i", "-C", "-e", text(path)],
        &addresses,
    );
    let mut answers = Vec::new();
    let mut output = output.lines();
    while let Some(line) = output.next() {
        if line.starts_with("0x") {
            answers.push(Vec::new());
            continue;
        }
        let place = output.next().expect("a place");
        let place = place.split(" (discriminator").next().unwrap_or(place);
        let (file, line_number) = place.rsplit_once(':').expect("a line");
        let known = |text: &str| (text != "??").then(|| text.to_owned());
        let call = (
            known(line),
            known(file),
            line_number.parse().ok().filter(|line| *line != 0),
        );
        answers.last_mut().expect("an address").push(call);
    }
    answers
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

fn with_input(program: &str, arguments: &[&str], input: &str) -> String {
    let mut file = tempfile::tempfile().expect("a temporary file");
    file.write_all(input.as_bytes()).expect("the input");
    file.rewind().expect("its start");
    let output = Command::new(program).args(arguments).stdin(file).output();
    let output = output.expect(program);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {errors}");
    String::from_utf8(output.stdout).expect("output in UTF-8")
}

fn run(directory: &Path, program: &str, arguments: &[&str]) {
    let mut command = Command::new(program);
    let output = command.args(arguments).current_dir(directory).output();
    let output = output.expect(program);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {errors}");
}

const SOURCE: &str = r#"
#include <cstdlib>
#include <cstring>
#define NOINLINE __attribute__((noinline))
#define INLINE inline __attribute__((always_inline))
namespace depot {
template <class T> struct Shelf {
    T *items;
    NOINLINE Shelf(unsigned n) : items(static_cast<T *>(malloc(n * sizeof(T)))) {}
    INLINE T *at(unsigned i) {
        return items + i;
    }
    NOINLINE void put(unsigned i, T item);
};
template <class T> void Shelf<T>::put(unsigned i, T item) {
    *at(i) = item;
}
}
namespace {
INLINE char *copy(const char *text) {
    char *copied = static_cast<char *>(malloc(strlen(text) + 1));
    return strcpy(copied, text);
}
NOINLINE char *label(const char *text, int times) {
    char *last = nullptr;
    for (int i = 0; i < times; i++)
        last = copy(text);
    return last;
}
}
static NOINLINE int counted(int n) { return n > 1 ? counted(n - 1) + n : n; }
extern "C" NOINLINE char *fill(int n) {
    depot::Shelf<char *> shelf(n);
    auto put = [&](int i) __attribute__((always_inline)) { shelf.put(i, label("item", counted(i))); };
    for (int i = 0; i < n; i++)
        put(i);
    return *shelf.at(0);
}
int main(int argc, char **) { return fill(argc) == nullptr; }
"#;

/// Programs that differ only in their debug information.
struct Build {
    directory: TempDir,
}

impl Build {
    fn new() -> Self {
        let build = Self {
            directory: tempfile::tempdir().expect("a temporary directory"),
        };
        std::fs::write(build.path("depot.cc"), SOURCE).expect("the source");
        build
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn run(&self, program: &str, arguments: &[&str]) {
        run(self.directory.path(), program, arguments);
    }

    /// The program that `flags` give, as the file `name`.
    fn program(&self, name: &str, flags: &[&str]) -> PathBuf {
        let common = ["-O2", "-Wl,--build-id=0x1234", "depot.cc", "-o", name];
        self.run("g++", &[&common, flags].concat());
        self.path(name)
    }
}

/// The addresses of the code of the file at `path`.
fn all_links(path: &Path) -> Vec<u64> {
    let ranges = image(path).code;
    let links = ranges.iter().map(|range| range.start.0..range.end.0);
    links.flatten().collect()
}

/// Compares what is found by debug information with what two other readers find.
///
/// binutils gives some inlined calls the name of the function that they are in, and code without
/// debug information the name of a symbol.
fn assert_equal_to_others(path: &Path, links: &[u64], least: usize) {
    let ours = frames_of(path, links, Detail::Lines);
    let ours: Vec<Vec<Line>> = ours.iter().map(|frames| lines(frames)).collect();
    let places = |lines: &[Line]| -> Vec<_> {
        let places = lines.iter().map(|(_, file, line)| (file.clone(), *line));
        places.collect()
    };
    let inlined = |lines: &[Line]| -> Vec<_> {
        let inlined = lines.split_last().map(|(_, inlined)| inlined);
        inlined.unwrap_or_default().to_vec()
    };
    let mut compared = 0;
    let others = by_addr2line(path, links)
        .into_iter()
        .zip(by_binutils(path, links));
    for ((link, ours), (other, binutils)) in links.iter().zip(&ours).zip(others) {
        let in_function = other.last().is_some_and(|(name, _, _)| name.is_some());
        if in_function {
            assert_eq!(places(ours), places(&other), "{link:#x}");
            assert_eq!(inlined(ours), inlined(&other), "{link:#x}");
        }
        if binutils[0].2.is_some() {
            assert_eq!(places(ours), places(&binutils), "{link:#x}");
            compared += 1;
        }
        // In the gaps between functions binutils names the one before.
        if binutils[0].2.is_some() && in_function {
            let function = |lines: &[Line]| lines.last().and_then(|line| line.0.clone());
            assert_eq!(function(ours), function(&binutils), "{link:#x}");
        }
    }
    assert!(compared >= least, "{compared} compared");
}

#[test]
fn frames_are_those_of_other_readers() {
    let build = Build::new();
    for version in ["-gdwarf-4", "-gdwarf-5"] {
        for optimized in ["-O0", "-O2"] {
            let path = build.program("plain", &[version, optimized]);
            assert_equal_to_others(&path, &all_links(&path), 200);
        }
    }
}

/// The frames of a program, for comparison with builds that differ only in their debug
/// information.
struct Expected {
    links: Vec<u64>,
    frames: Vec<Vec<SourceFrame>>,
}

impl Expected {
    fn new(plain: &Path) -> Self {
        let links = all_links(plain);
        let frames = frames_of(plain, &links, Detail::Lines);
        let inlined = frames.iter().filter(|frames| frames.len() > 1).count();
        assert!(inlined > 20, "{inlined}");
        Self { links, frames }
    }

    fn found_in(&self, path: &Path) -> bool {
        let frames = frames_of(path, &self.links, Detail::Lines);
        let mut expected = self.frames.clone();
        for frame in expected.iter_mut().flatten() {
            frame.module = Some(text(path).to_owned());
        }
        frames == expected
    }
}

#[test]
fn debug_information_may_be_compressed() {
    let build = Build::new();
    for version in ["-gdwarf-4", "-gdwarf-5"] {
        let expected = Expected::new(&build.program("plain", &[version]));
        let zlib = build.program("zlib", &[version, "-gz=zlib"]);
        assert!(expected.found_in(&zlib), "{version}");
        let gnu = build.program("gnu", &[version, "-gz=zlib-gnu"]);
        assert!(expected.found_in(&gnu), "{version}");
        build.run(
            "objcopy",
            &["--compress-debug-sections=zstd", "plain", "zstd"],
        );
        assert!(expected.found_in(&build.path("zstd")), "{version}");
    }
}

#[test]
fn debug_information_may_be_split() {
    let build = Build::new();
    for version in ["-gdwarf-4", "-gdwarf-5"] {
        let plain = build.program("plain", &[version]);
        let expected = Expected::new(&plain);
        let split = build.program("split", &["-gsplit-dwarf", version]);
        assert!(expected.found_in(&split), "{version}");
        let dwo = build.path("split-depot.dwo");
        let elsewhere = build.path("elsewhere");
        std::fs::create_dir_all(&elsewhere).expect("a directory");
        for name in ["split", "split-depot.dwo"] {
            std::fs::copy(build.path(name), elsewhere.join(name)).expect("a file");
        }
        build.run("llvm-dwp", &["-e", "split", "-o", "split.dwp"]);
        std::fs::remove_file(&dwo).expect("the .dwo file");
        assert!(expected.found_in(&split), "{version} dwp");
        assert!(
            expected.found_in(&elsewhere.join("split")),
            "{version} moved"
        );
        // Lines are in the program, so they stay.
        std::fs::remove_file(build.path("split.dwp")).expect("the package");
        let frames = frames_of(&split, &expected.links, Detail::Lines);
        let with = |frames: &[Vec<SourceFrame>]| {
            let lines = frames.iter().filter(|frames| frames[0].line.is_some());
            lines.count()
        };
        assert_eq!(with(&frames), with(&expected.frames), "{version}");
        // A .dwo file of another build is none.
        let other = build.program("other", &["-gsplit-dwarf", version, "-DOTHER", "-O1"]);
        assert!(other.exists());
        std::fs::rename(build.path("other-depot.dwo"), &dwo).expect("the other .dwo file");
        assert_eq!(frames_of(&split, &expected.links, Detail::Lines), frames);
    }
}

#[test]
fn debug_information_may_be_in_another_file() {
    let build = Build::new();
    for version in ["-gdwarf-4", "-gdwarf-5"] {
        let plain = build.program("plain", &[version]);
        let expected = Expected::new(&plain);
        build.run("objcopy", &["--only-keep-debug", "plain", "linked.debug"]);
        build.run("objcopy", &["-S", "plain", "linked"]);
        let linked = build.path("linked");
        assert!(!expected.found_in(&linked), "{version}");
        build.run("objcopy", &["--add-gnu-debuglink=linked.debug", "linked"]);
        assert!(expected.found_in(&linked), "{version}");
    }
}

#[test]
fn debug_information_may_be_shared_by_dwz() {
    let build = Build::new();
    for (version, flags) in [("-gdwarf-4", &[][..]), ("-gdwarf-5", &["--dwarf-5"][..])] {
        let expected = Expected::new(&build.program("plain", &[version]));
        for name in ["alone", "first", "second"] {
            build.run("cp", &["plain", name]);
        }
        build.run("dwz", &[flags, &["alone"]].concat());
        assert!(expected.found_in(&build.path("alone")), "{version}");
        build.run(
            "dwz",
            &[flags, &["-m", "common", "first", "second"]].concat(),
        );
        assert!(expected.found_in(&build.path("second")), "{version}");
        std::fs::remove_file(build.path("common")).expect("the common file");
        assert!(!expected.found_in(&build.path("second")), "{version}");
    }
}

#[test]
fn names_without_debug_information_are_those_of_symbols() {
    let build = Build::new();
    let plain = build.program("plain", &["-g"]);
    let links = all_links(&plain);
    let names = |path: &Path, detail| -> Vec<Option<String>> {
        let frames = frames_of(path, &links, detail);
        assert!(frames.iter().all(|frames| frames.len() == 1));
        assert!(frames.iter().all(|frames| frames[0].line.is_none()));
        let names = frames.into_iter().flatten().map(|frame| frame.function);
        names.collect()
    };
    let expected = names(&plain, Detail::Names);
    let known = expected.iter().flatten();
    for name in ["fill", "main", "_start", "counted(int)"] {
        assert!(known.clone().any(|known| known == name), "{name}");
    }
    build.run("objcopy", &["-S", "plain", "stripped"]);
    let stripped = names(&build.path("stripped"), Detail::Lines);
    assert!(stripped.iter().all(Option::is_none));
    build.run("objcopy", &["--strip-debug", "plain", "symbols"]);
    build.run("xz", &["symbols"]);
    build.run(
        "objcopy",
        &[
            "-S",
            "--add-section",
            ".gnu_debugdata=symbols.xz",
            "plain",
            "mini",
        ],
    );
    assert_eq!(names(&build.path("mini"), Detail::Lines), expected);
}

#[test]
fn frames_of_32_bit_programs_are_those_of_other_readers() {
    let build = Build::new();
    for version in ["-gdwarf-4", "-gdwarf-5"] {
        let path = build.program("plain", &["-m32", version]);
        assert_equal_to_others(&path, &all_links(&path), 200);
    }
}

/// Compares everything with what the crate addr2line finds. It does not know the full names of
/// functions that only the symbol table has.
fn assert_equal_to_addr2line(path: &Path, links: &[u64]) {
    let ours = frames_of(path, links, Detail::Lines);
    let theirs = by_addr2line(path, links);
    for (link, (ours, theirs)) in links.iter().zip(ours.iter().zip(theirs)) {
        let (Some(their), Some(our)) = (theirs.last(), lines(ours).pop()) else {
            continue;
        };
        let (Some(their), Some(our)) = (&their.0, our.0) else {
            continue;
        };
        let mut ours = lines(ours);
        if our.contains(&format!("{their}(")) {
            ours.last_mut().expect("a frame").0 = Some(their.clone());
        }
        assert_eq!(ours, theirs, "{link:#x}");
    }
}

/// Functions refer to those of other units. (binutils says that all of it is in `<artificial>`.)
#[test]
fn frames_after_link_time_optimization_are_those_of_another_reader() {
    let build = Build::new();
    let path = build.program("plain", &["-flto", "-g"]);
    let links = all_links(&path);
    assert_equal_to_addr2line(&path, &links);
    let frames = frames_of(&path, &links, Detail::Lines);
    assert!(frames.iter().any(|frames| frames.len() > 1));
}

/// The addresses of those functions of the file at `path` whose names start with `prefix`.
fn links_of(path: &Path, prefix: &str) -> Vec<u64> {
    let links = all_links(path);
    let names = frames_of(path, &links, Detail::Names);
    let has_prefix = |frames: &[SourceFrame]| {
        let name = frames[0].function.as_deref();
        name.is_some_and(|name| name.starts_with(prefix))
    };
    let links = links.into_iter().zip(&names);
    let links = links.filter(|(_, frames)| has_prefix(frames));
    links.map(|(link, _)| link).collect()
}

#[test]
fn frames_of_rust_programs_are_those_of_another_reader() {
    let build = Build::new();
    let source = "fn main() { let n: usize = std::env::args().map(|a| a.len()).sum();\n\
                  let words: Vec<String> = (0..n).map(|i| format!(\"{i}\")).collect();\n\
                  println!(\"{}\", words.join(\", \")); }\n";
    std::fs::write(build.path("words.rs"), source).expect("the source");
    let common = ["-g", "-O", "--edition=2021", "words.rs"];
    for (version, split) in [
        ("-Cdwarf-version=4", "-Csplit-debuginfo=unpacked"),
        ("-Cdwarf-version=5", "-Csplit-debuginfo=packed"),
    ] {
        build.run("rustc", &[&common[..], &[version]].concat());
        let path = build.path("words");
        let some: Vec<u64> = all_links(&path).into_iter().step_by(101).collect();
        assert_equal_to_addr2line(&path, &some);
        let links = links_of(&path, "words::");
        assert_equal_to_addr2line(&path, &links);
        let whole = frames_of(&path, &links, Detail::Lines);
        let has = |frames: &[Vec<SourceFrame>], name: &str| {
            let mut frames = frames.iter().flatten();
            frames.any(|f| f.function.as_deref() == Some(name) && f.line.is_some())
        };
        for name in [
            "words::main",
            "words::main::{{closure}}",
            "alloc::alloc::alloc",
        ] {
            assert!(has(&whole, name), "{version} {name}");
        }
        build.run("rustc", &[&common[..], &[version, split]].concat());
        let links = links_of(&path, "words::");
        let frames = frames_of(&path, &links, Detail::Lines);
        assert_eq!(frames.len(), whole.len());
        for (frames, whole) in frames.iter().zip(&whole) {
            assert_eq!(lines(frames), lines(whole), "{version} {split}");
        }
    }
}

#[test]
fn the_line_of_a_return_address_is_that_of_the_call() {
    let build = Build::new();
    let source = "void stop(void) __attribute__((noreturn));\n\
                  __attribute__((noinline)) void last(int *n) {\n\
                  if (*n)\n\
                  stop();\n\
                  *n = 1;\n\
                  stop(); }\n\
                  __attribute__((noinline)) void next(int *n) { *n = 2; }\n\
                  void stop(void) { for (;;); }\n\
                  int main(int c, char **v) { next(&c); last(&c); return (long)v; }\n";
    std::fs::write(build.path("calls.c"), source).expect("the source");
    let flags = [
        "-g",
        "-O1",
        "-fno-reorder-functions",
        "-fno-align-functions",
    ];
    build.run("gcc", &[&flags[..], &["calls.c", "-o", "calls"]].concat());
    let path = build.path("calls");
    let functions = functions(&path);
    let function = |name: &str| functions.iter().find(|known| known.0 == name).expect(name);
    let (_, start, end) = function("last");
    assert_eq!(function("next").1, *end, "nothing between the two");
    let images = [image(&path)];
    let frames = CodeFrames::new(&images, TargetFiles::under(Path::new("/")), Detail::Lines);
    let resolved = |is_return| {
        let addr = Addr(images[0].bias + end);
        let address = CodeAddress {
            addr,
            image: Some(0),
            is_return,
        };
        frames.resolve(&[address]).remove(0).remove(0)
    };
    let call = resolved(true);
    assert_eq!(
        (call.function.as_deref(), call.line),
        (Some("last"), Some(6))
    );
    assert_eq!(call.function_offset, Some(end - start));
    assert_eq!(call.module_offset, Some(*end));
    let running = resolved(false);
    assert_eq!(
        (running.function.as_deref(), running.line),
        (Some("next"), Some(7))
    );
    assert_eq!(
        (running.function_offset, running.module_offset),
        (Some(0), Some(*end))
    );
}

const ASSEMBLER: &str = ".text\n\
    .globl sized, unsized, bare, main\n\
    .type sized, @function\nsized: nop\nlabel: nop\nret\n.size sized, .-sized\n\
    .skip 64, 0x90\n\
    .type unsized, @function\nunsized: nop\nret\n\
    bare: nop\nret\n\
    .type local, @function\nlocal: ret\n.size local, .-local\n\
    .skip 64, 0x90\n\
    main: ret\n.size main, .-main\n\
    .section .note.GNU-stack,\"\",@progbits\n";

#[test]
fn a_function_without_a_size_has_no_more_than_is_certainly_its_own() {
    let build = Build::new();
    std::fs::write(build.path("code.s"), ASSEMBLER).expect("the source");
    build.run("gcc", &["-no-pie", "code.s", "-o", "code"]);
    let name_at = |file: &str, name: &str, offset: u64| {
        let path = build.path("code");
        let start = nm_address(&path, name);
        let frames = frames_of(&build.path(file), &[start + offset], Detail::Lines);
        frames[0][0].function.clone()
    };
    for (symbol, offset, name) in [
        ("sized", 0, Some("sized")),
        ("label", 0, Some("sized")),
        ("sized", 2, Some("sized")),
        ("sized", 3, None),
        ("sized", 66, None),
        ("unsized", 0, Some("unsized")),
        ("unsized", 1, Some("unsized")),
        ("bare", 0, Some("bare")),
        ("local", 0, Some("local")),
        ("local", 1, None),
        ("main", 0, Some("main")),
    ] {
        let found = name_at("code", symbol, offset);
        assert_eq!(found.as_deref(), name, "{symbol} + {offset}");
    }
    // Without the local symbols nobody knows what follows.
    build.run("strip", &["-x", "code", "-o", "global"]);
    assert_eq!(name_at("global", "sized", 1).as_deref(), Some("sized"));
    assert_eq!(name_at("global", "unsized", 1), None);
    assert_eq!(name_at("global", "local", 0), None);
}

fn nm_address(path: &Path, name: &str) -> u64 {
    let symbols = with_input("nm", &[text(path)], "");
    let line = symbols
        .lines()
        .find(|line| line.ends_with(&format!(" {name}")));
    let address = line.and_then(|line| line.split(' ').next()).expect(name);
    u64::from_str_radix(address, 16).expect("an address")
}

#[test]
fn assembler_code_has_the_lines_of_its_debug_information() {
    let build = Build::new();
    std::fs::write(build.path("code.s"), ASSEMBLER).expect("the source");
    for version in ["-Wa,--gdwarf-4", "-Wa,--gdwarf-5"] {
        build.run("gcc", &["-no-pie", version, "code.s", "-o", "code"]);
        let path = build.path("code");
        let start = nm_address(&path, "unsized");
        let frame = frames_of(&path, &[start + 1], Detail::Lines)
            .remove(0)
            .remove(0);
        assert_eq!(frame.function.as_deref(), Some("unsized"), "{version}");
        assert_eq!(frame.line, Some(11), "{version}");
        assert_eq!(frame.file.as_deref(), Some(text(&build.path("code.s"))));
    }
}

#[test]
fn an_address_is_named_by_the_file_that_was_loaded_alone() {
    let build = Build::new();
    let path = build.program("plain", &["-g"]);
    let (_, start, _) = functions(&path)
        .into_iter()
        .find(|f| f.0 == "fill")
        .expect("fill");
    let named = |image: CodeImage, link: u64| {
        let address = CodeAddress {
            addr: Addr(image.bias + link),
            image: Some(0),
            is_return: false,
        };
        let images = [image];
        let files = TargetFiles::under(Path::new("/"));
        let frames = CodeFrames::new(&images, files, Detail::Lines).resolve(&[address]);
        assert_eq!(frames[0].last().expect("a frame").module_offset, Some(link));
        frames[0].last().expect("a frame").function.clone()
    };
    let loaded = image(&path);
    assert_eq!(named(loaded.clone(), start).as_deref(), Some("fill"));
    // A log knows no more than where an image began and ended.
    let end = loaded
        .code
        .iter()
        .map(|range| range.end)
        .max()
        .expect("code");
    let whole = AddrRange::new(Addr(0), end);
    let logged = CodeImage {
        code: vec![whole],
        ..loaded.clone()
    };
    assert_eq!(named(logged.clone(), start).as_deref(), Some("fill"));
    assert_eq!(named(logged, 0x20), None);
    let replaced = CodeImage {
        build_id: Some(vec![1; 20]),
        ..loaded.clone()
    };
    assert_eq!(named(replaced, start), None);
    let gone = CodeImage {
        path: "/gone".to_owned(),
        ..loaded
    };
    assert_eq!(named(gone, start), None);
}

#[test]
fn code_of_a_jit_compiler_is_named_by_the_targets_map() {
    let mut target = Command::new("cat")
        .stdin(std::process::Stdio::piped())
        .spawn()
        .expect("a process");
    let map = PathBuf::from(format!("/tmp/perf-{}.map", target.id()));
    std::fs::write(&map, "41fdffd0 75 J:Main ()\n41fe01b0 7c J:Sum (int)\n").expect("the map");
    let files = TargetFiles::of_process(target.id());
    let frames = CodeFrames::new(&[], files, Detail::Lines);
    let at = |addr, is_return, image| {
        let address = CodeAddress {
            addr: Addr(addr),
            image,
            is_return,
        };
        let frame = frames.resolve(&[address]).remove(0).remove(0);
        (frame.function, frame.function_offset)
    };
    let resolved = [
        at(0x41fd_ffd8, false, None),
        at(0x41fe_022c, true, None),
        at(0x41fe_022c, false, None),
        at(0x41fd_ffd8, false, Some(7)),
    ];
    std::fs::remove_file(&map).expect("the map");
    drop(target.stdin.take());
    target.wait().expect("the process ends");
    let main = (Some("J:Main ()".to_owned()), Some(8));
    let sum = (Some("J:Sum (int)".to_owned()), Some(0x7c));
    assert_eq!(resolved, [main.clone(), sum, (None, None), main]);
}

#[test]
fn debug_information_that_is_out_of_proportion_is_a_warning() {
    let build = Build::new();
    let path = build.program("plain", &["-g"]);
    let links = all_links(&path);
    let (_, start, _) = functions(&path)
        .into_iter()
        .find(|f| f.0 == "fill")
        .expect("fill");
    // Each unit shares one long list of ranges.
    let entry = [1u64.to_le_bytes(), 2u64.to_le_bytes()].concat();
    std::fs::write(build.path("ranges"), entry.repeat(200_000)).expect("the ranges");
    let unit = [13, 0, 0, 0, 4, 0, 0, 0, 0, 0, 8, 1, 0, 0, 0, 0, 0];
    std::fs::write(build.path("info"), unit.repeat(10_000)).expect("the units");
    let abbreviations = [1, 0x11, 0, 0x55, 0x17, 0, 0, 0];
    std::fs::write(build.path("abbrev"), abbreviations).expect("the abbreviations");
    build.run(
        "objcopy",
        &[
            "--strip-debug",
            "--add-section=.debug_info=info",
            "--add-section=.debug_abbrev=abbrev",
            "--add-section=.debug_ranges=ranges",
            "plain",
            "hostile",
        ],
    );
    let images = [image(&build.path("hostile"))];
    let frames = CodeFrames::new(&images, TargetFiles::under(Path::new("/")), Detail::Lines);
    let address = |link: &u64| CodeAddress {
        addr: Addr(BIAS + link),
        image: Some(0),
        is_return: false,
    };
    let addresses: Vec<CodeAddress> = links.iter().map(address).collect();
    let named = frames.resolve(&addresses);
    let at = links.iter().position(|link| *link == start).expect("fill");
    assert_eq!(named[at][0].function.as_deref(), Some("fill"));
    let warnings = frames.warnings();
    assert_eq!(warnings.len(), 1);
    assert_eq!(warnings[0].code, "debug_info_unreadable");
}

/// All functions that the C library exports, by its debug file, which is compressed and comes
/// from dwz.
#[test]
fn the_functions_of_the_c_library_are_those_of_another_reader() {
    let path = Path::new("/usr/lib/x86_64-linux-gnu/libc.so.6");
    let Some(id) = path
        .exists()
        .then(|| image(path).build_id.expect("a build id"))
    else {
        return; // Another C library.
    };
    let digits: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
    let (first, rest) = digits.split_at(2);
    let debug = PathBuf::from(format!("/usr/lib/debug/.build-id/{first}/{rest}.debug"));
    let bytes = std::fs::read(path).expect("the library");
    let elf = Elf::parse(&bytes).expect("an ELF file");
    let exported = elf.dynsyms.iter().filter(goblin::elf::Sym::is_function);
    let exported = exported.filter(|symbol| symbol.st_size > 4 && symbol.st_value != 0);
    let middle = |symbol: goblin::elf::Sym| symbol.st_value + symbol.st_size / 2;
    let mut links: Vec<u64> = exported.map(middle).collect();
    links.sort_unstable();
    links.dedup();
    assert!(links.len() > 1500, "{}", links.len());
    let ours = frames_of(path, &links, Detail::Lines);
    for (link, (ours, theirs)) in links
        .iter()
        .zip(ours.iter().zip(by_addr2line(&debug, &links)))
    {
        let places = |lines: &[Line]| -> Vec<_> {
            let places = lines.iter().map(|line| (line.1.clone(), line.2));
            places.collect()
        };
        assert_eq!(places(&lines(ours)), places(&theirs), "{link:#x}");
        // Assembler code can have several names, and some functions only a symbol.
        let is_c = theirs.iter().all(|(name, file, _)| {
            name.is_some() && file.as_ref().is_some_and(|file| file.ends_with(".c"))
        });
        if is_c {
            assert_eq!(lines(ours), theirs, "{link:#x}");
        }
    }
}
