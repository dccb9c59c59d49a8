//! Frames of files that compilers built, compared with what other readers say of them.

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

#[test]
fn explore() {
    let path = PathBuf::from(std::env::var("EXPLORE").expect("EXPLORE"));
    let step: usize = std::env::var("STEP").map_or(1, |s| s.parse().expect("a number"));
    let detail = if std::env::var("NAMES").is_ok() {
        Detail::Names
    } else {
        Detail::Lines
    };
    let image = image(&path);
    let links: Vec<u64> = image
        .code
        .iter()
        .flat_map(|range| (range.start.0..range.end.0).step_by(step))
        .collect();
    let start = std::time::Instant::now();
    let ours = frames_of(&path, &links, detail);
    eprintln!("{} addresses, ours {:?}", links.len(), start.elapsed());
    let named = ours.iter().filter(|f| f[0].function.is_some()).count();
    let with_line = ours.iter().filter(|f| f[0].line.is_some()).count();
    let inlined = ours.iter().filter(|f| f.len() > 1).count();
    eprintln!("named {named} with line {with_line} inlined {inlined}");
    let debug = std::env::var("DEBUG_FILE").map_or(path, PathBuf::from);
    let start = std::time::Instant::now();
    let theirs = by_addr2line(&debug, &links);
    eprintln!("theirs {:?}", start.elapsed());
    let mut differences = 0;
    for ((link, ours), theirs) in links.iter().zip(&ours).zip(&theirs) {
        let ours = lines(ours);
        let mut same = ours == *theirs;
        // Without debug information there are symbols.
        if theirs.is_empty() && ours.len() == 1 && ours[0].1.is_none() {
            same = true;
        }
        if let ([.., ours], [.., theirs]) = (&ours[..], &theirs[..]) {
            if theirs.0.is_none() && ours.1 == theirs.1 && ours.2 == theirs.2 {
                same = true;
            }
        }
        if !same {
            differences += 1;
            if differences <= 10 {
                eprintln!("{link:#x}\n  {ours:?}\n  {theirs:?}");
            }
        }
    }
    eprintln!("differences {differences}");
}
