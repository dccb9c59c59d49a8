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

#[test]
fn frames_of_rust_programs_are_those_of_other_readers() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let source = "fn main() { let n: usize = std::env::args().map(|a| a.len()).sum();\n\
                  let words: Vec<String> = (0..n).map(|i| format!(\"{i}\")).collect();\n\
                  println!(\"{}\", words.join(\", \")); }\n";
    std::fs::write(directory.path().join("words.rs"), source).expect("the source");
    run(
        directory.path(),
        "rustc",
        &["-g", "-O", "--edition=2021", "words.rs"],
    );
    let path = directory.path().join("words");
    let links: Vec<u64> = all_links(&path).into_iter().step_by(101).collect();
    assert_equal_to_addr2line(&path, &links);
    // The functions of the program itself.
    let links = all_links(&path);
    let names = frames_of(&path, &links, Detail::Names);
    let is_own = |frames: &[SourceFrame]| {
        let name = frames[0].function.as_deref();
        name.is_some_and(|name| name.starts_with("words::"))
    };
    let links = links.into_iter().zip(&names);
    let links = links.filter(|(_, frames)| is_own(frames));
    let links: Vec<u64> = links.map(|(link, _)| link).collect();
    let ours = frames_of(&path, &links, Detail::Lines);
    let function = |name: &str| {
        let mut named = ours
            .iter()
            .flatten()
            .filter(|f| f.function.as_deref() == Some(name));
        named.any(|frame| frame.line.is_some())
    };
    assert!(function("words::main") && function("words::main::{{closure}}"));
    assert!(function("alloc::alloc::alloc"));
}
