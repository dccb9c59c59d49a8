//! How long it takes to name 10,000 code addresses: of this program itself, or of the executable in
//! `RLEAKS_BENCH_FILE`, which may have more debug information.

use std::hint::black_box;
use std::path::{Path, PathBuf};

use criterion::{Criterion, criterion_group, criterion_main};
use goblin::elf::Elf;
use goblin::elf::program_header::{PF_X, PT_LOAD};
use rleaks::addr::{Addr, AddrRange};
use rleaks::platform::TargetFiles;
use rleaks::symbolize::{CodeAddress, CodeFrames, CodeImage, Detail};

const ADDRESSES: usize = 10_000;

fn executable() -> PathBuf {
    let named = std::env::var_os("RLEAKS_BENCH_FILE").map(PathBuf::from);
    named.unwrap_or_else(|| std::env::current_exe().expect("this program"))
}

/// The file as an image that is loaded where it was linked to be.
fn image(path: &Path) -> CodeImage {
    let bytes = std::fs::read(path).expect("the file");
    let elf = Elf::parse(&bytes).expect("an ELF file");
    let segments = elf.program_headers.iter();
    let code = segments.filter(|header| header.p_type == PT_LOAD && header.p_flags & PF_X != 0);
    CodeImage {
        path: path.to_str().expect("a path in UTF-8").to_owned(),
        code: code
            .map(|header| AddrRange::with_size(Addr(header.p_vaddr), header.p_memsz))
            .collect(),
        ..CodeImage::default()
    }
}

/// Addresses that are spread evenly over the code.
fn addresses(image: &CodeImage) -> Vec<CodeAddress> {
    let size: u64 = image.code.iter().map(AddrRange::size).sum();
    let step = usize::try_from(size).expect("a size") / ADDRESSES;
    let all = image
        .code
        .iter()
        .flat_map(|range| range.start.0..range.end.0);
    let address = |addr| CodeAddress {
        addr: Addr(addr),
        image: Some(0),
        is_return: true,
    };
    all.step_by(step.max(1)).map(address).collect()
}

fn symbolize(criterion: &mut Criterion) {
    let images = [image(&executable())];
    let addresses = addresses(&images[0]);
    let mut group = criterion.benchmark_group("symbolize");
    group.sample_size(10);
    for (name, detail) in [("lines", Detail::Lines), ("names", Detail::Names)] {
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let files = TargetFiles::under(Path::new("/"));
                let frames = CodeFrames::new(&images, files, detail);
                black_box(frames.resolve(&addresses))
            });
        });
    }
    let files = TargetFiles::under(Path::new("/"));
    let frames = CodeFrames::new(&images, files, Detail::Lines).resolve(&addresses);
    let with_lines = frames.iter().filter(|frames| frames[0].line.is_some());
    let calls: usize = frames.iter().map(Vec::len).sum();
    eprintln!(
        "{} addresses, {} with lines, {calls} calls",
        addresses.len(),
        with_lines.count()
    );
}

criterion_group!(benches, symbolize);
criterion_main!(benches);
