//! Core files of aarch64 programs, which run here by qemu's user emulation.
//!
//! Its core files have the memory and the registers of the program and lack what the kernel's have: which files
//! are mapped, their first pages, and the thread pointers. The program says these, and they are put in as
//! the kernel has them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{addresses, heap_by, leaks_with, parse_address, rleaks_command, text};

const SYSROOT: &str = "/usr/aarch64-linux-gnu";
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const NT_PRSTATUS: u32 = 1;
const NT_FILE: u32 = 0x4649_4c45;
const NT_ARM_TLS: u32 = 0x401;

/// What the program said of itself.
#[derive(Debug, Default)]
struct Said {
    leaks: BTreeMap<u64, u64>,
    /// The thread pointer of each thread.
    pointers: BTreeMap<u32, u64>,
    mapped: Vec<Mapped>,
}

#[derive(Debug)]
struct Mapped {
    start: u64,
    end: u64,
    offset: u64,
    path: String,
}

impl Said {
    fn parse(output: &str) -> Self {
        let mut said = Self::default();
        for line in output.lines() {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            match *fields.as_slice() {
                ["leak", at, size] => {
                    said.leaks.insert(parse_address(at), size.parse().unwrap());
                }
                ["pointer", tid, at] => {
                    said.pointers
                        .insert(tid.parse().unwrap(), parse_address(at));
                }
                ["map", range, _, offset, _, _, path] if path.starts_with('/') => {
                    let (start, end) = range.split_once('-').unwrap();
                    let number = |digits| u64::from_str_radix(digits, 16).unwrap();
                    said.mapped.push(Mapped {
                        start: number(start),
                        end: number(end),
                        offset: number(offset),
                        path: path.to_owned(),
                    });
                }
                ["map", ..] => {}
                _ => panic!("the program said {line:?}"),
            }
        }
        said
    }

    /// The list of mapped files.
    fn files(&self) -> Vec<u8> {
        let mut words = vec![self.mapped.len() as u64, 4096];
        for mapped in &self.mapped {
            words.extend([mapped.start, mapped.end, mapped.offset / 4096]);
        }
        let mut note: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        for mapped in &self.mapped {
            note.extend(mapped.path.bytes());
            note.push(0);
        }
        note
    }

    /// The first page of the image that is mapped at `start`.
    fn first_page(&self, start: u64) -> Option<Vec<u8>> {
        let mapped = self
            .mapped
            .iter()
            .find(|m| m.start == start && m.offset == 0)?;
        let mut page = fs::read(&mapped.path).ok()?;
        page.resize(4096, 0);
        page.starts_with(b"\x7fELF").then_some(page)
    }
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(*bytes[at..].first_chunk().unwrap())
}

fn half(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(*bytes[at..].first_chunk().unwrap())
}

fn index(number: u64) -> usize {
    usize::try_from(number).unwrap()
}

fn padded(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

fn note(owner: &str, kind: u32, content: &[u8]) -> Vec<u8> {
    let sizes = [owner.len() + 1, content.len()].map(|size| u32::try_from(size).unwrap());
    let head = [sizes[0], sizes[1], kind];
    let mut note: Vec<u8> = head
        .iter()
        .flat_map(|number| number.to_le_bytes())
        .collect();
    note.extend(owner.bytes());
    note.push(0);
    padded(&mut note);
    note.extend(content);
    padded(&mut note);
    note
}

/// The notes of an emulator's core file, with what the kernel's have beside them.
fn notes(emulated: &[u8], said: &Said) -> Vec<u8> {
    let mut notes = note("CORE", NT_FILE, &said.files());
    let mut threads = Vec::new();
    let mut at = 0;
    while at + 12 <= emulated.len() {
        let [name, size] = [0, 4].map(|field| half(emulated, at + field) as usize);
        let content = at + 12 + name.next_multiple_of(4);
        let next = content + size.next_multiple_of(4);
        if half(emulated, at + 8) == NT_PRSTATUS {
            let pointer = said.pointers[&half(emulated, content + 32)];
            threads.extend(&emulated[at..next]);
            threads.extend(note("LINUX", NT_ARM_TLS, &pointer.to_le_bytes()));
        } else {
            notes.extend(&emulated[at..next]);
        }
        at = next;
    }
    notes.extend(threads);
    notes
}

/// An emulator's core file as the kernel would have written it.
fn as_the_kernel_has_it(emulated: &[u8], said: &Said) -> Vec<u8> {
    let count = usize::from(u16::from_le_bytes([emulated[56], emulated[57]]));
    let table = index(word(emulated, 32));
    let headers: Vec<&[u8]> = (0..count)
        .map(|number| &emulated[table + 56 * number..table + 56 * (number + 1)])
        .collect();
    let bytes_of = |header: &[u8]| {
        let start = index(word(header, 8));
        &emulated[start..start + index(word(header, 32))]
    };
    let of_notes = headers
        .iter()
        .find(|header| half(header, 0) == PT_NOTE)
        .unwrap();
    let notes = notes(bytes_of(of_notes), said);
    let loads: Vec<&&[u8]> = headers
        .iter()
        .filter(|header| half(header, 0) == PT_LOAD)
        .collect();

    let mut offset = 64 + 56 * (loads.len() + 1);
    let mut file = emulated[..64].to_vec();
    file[32..40].copy_from_slice(&64_u64.to_le_bytes());
    file[56..58].copy_from_slice(&u16::try_from(loads.len() + 1).unwrap().to_le_bytes());
    let mut header = |file: &mut Vec<u8>, old: &[u8], size: usize| {
        let mut new = old.to_vec();
        new[8..16].copy_from_slice(&(offset as u64).to_le_bytes());
        new[32..40].copy_from_slice(&(size as u64).to_le_bytes());
        file.extend(new);
        offset += size;
    };
    header(&mut file, of_notes, notes.len());
    let mut body = notes;
    for load in loads {
        let saved = bytes_of(load);
        let first_page = said.first_page(word(load, 16)).filter(|_| saved.is_empty());
        let saved = first_page.as_deref().unwrap_or(saved);
        header(&mut file, load, saved.len());
        body.extend(saved);
    }
    file.extend(body);
    file
}

/// Runs the program and returns what it said, and its emulator's core file.
fn run(folder: &Path) -> (Said, PathBuf) {
    let program = folder.join("program");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/aarch64.c");
    let mut compiler = Command::new("clang");
    compiler.args([
        "--target=aarch64-linux-gnu",
        "-O1",
        "-g",
        "-pthread",
        "-Wall",
        "-Wextra",
        "-o",
    ]);
    let status = compiler.arg(&program).arg(source).status().unwrap();
    assert!(status.success(), "{compiler:?}");
    // The kernel's core file of the emulator itself is not wanted, but its limit is the emulator's, too.
    let output = Command::new("prlimit")
        .args(["--core=unlimited", "qemu-aarch64", "-L", SYSROOT])
        .arg(&program)
        .current_dir(folder)
        .output()
        .unwrap();
    let said = Said::parse(&text(&output.stdout));
    let mut files = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let core = files.find(|path| {
        path.extension()
            .is_some_and(|extension| extension == "core")
    });
    let core = core.unwrap_or_else(|| panic!("no core file: {}", text(&output.stderr)));
    (said, core)
}

#[test]
fn leaks_of_an_aarch64_program_are_exact() {
    let folder = tempfile::tempdir().unwrap();
    let (said, emulated) = run(folder.path());
    assert_eq!(said.leaks.len(), 17);
    assert_eq!(said.pointers.len(), 4);
    let core = folder.path().join("kernel");
    fs::write(
        &core,
        as_the_kernel_has_it(&fs::read(emulated).unwrap(), &said),
    )
    .unwrap();

    let path = core.to_str().unwrap();
    let report = leaks_with(path, &[]);
    assert_eq!(
        addresses(&report["leaks"]),
        said.leaks,
        "{}",
        report["warnings"]
    );
    let target = &report["target"];
    assert_eq!(target["arch"], "aarch64");
    assert_eq!(target["pointer_size"], 8);
    assert_eq!(target["kind"], "core");
    let allocator = report["zones"][0]["allocator"].as_str().unwrap();
    assert!(allocator.starts_with("glibc 2."), "{allocator}");
    assert_eq!(
        report["warnings"].as_array().unwrap().len(),
        0,
        "{}",
        report["warnings"]
    );

    let heap = heap_by(&mut rleaks_command(), path);
    let blocks = addresses(&heap["blocks"]);
    assert!(said.leaks.keys().all(|leak| blocks.contains_key(leak)));

    // Each class of roots alone holds what the program has there: nothing reaches it without.
    for (class, more) in [("tls", 4), ("globals", 64), ("stacks", 12)] {
        let without = leaks_with(path, &[&format!("--no-roots={class}")]);
        let leaks = addresses(&without["leaks"]);
        assert!(
            leaks.len() >= said.leaks.len() + more,
            "{class}: {}",
            leaks.len()
        );
    }
}
