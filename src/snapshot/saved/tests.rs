//! Files are made of snapshots in memory, and read back.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::addr::{Addr, AddrRange};
use crate::memory::{Excerpt, FakeMemory, Width};
use crate::snapshot::core::{CoreFile, FileBytes};
use crate::snapshot::{ContentLevel, KernelValue, Region, Snapshot, Thread};

const BASE: u64 = 0x7f00_0000_0000;
const SIZE: usize = 0x30_0000;

/// A file in memory.
#[derive(Default)]
struct Written(Mutex<Vec<u8>>);

impl NewBytes for Written {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let start = usize::try_from(offset).expect("a small file");
        let mut file = self.0.lock().expect("no panic");
        let end = (start + bytes.len()).max(file.len());
        file.resize(end, 0);
        file[start..start + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn set_size(&self, size: u64) -> io::Result<()> {
        let size = usize::try_from(size).expect("a small file");
        self.0.lock().expect("no panic").resize(size, 0);
        Ok(())
    }
}

/// A region of 3 MiB with numbers in it, 1 MiB of which is zeros.
fn snapshot(width: Width) -> Snapshot {
    let base = match width {
        Width::Four => 0x5000_0000,
        Width::Eight => BASE,
    };
    let mut memory = FakeMemory::zeroed(base, SIZE);
    for (index, byte) in memory.bytes.iter_mut().enumerate() {
        if !(0x10_0000..0x20_0000).contains(&index) {
            *byte = u8::try_from(index * 7 % 251).expect("small");
        }
    }
    let mut snapshot = Snapshot::of_memory(Box::new(memory));
    snapshot.width = width;
    snapshot.process.pid = 42;
    snapshot.process.command_line = vec!["app".to_owned(), "\u{fffd} x".to_owned()];
    snapshot.capture.content = ContentLevel::Readonly;
    snapshot.regions = vec![Region {
        range: AddrRange::with_size(Addr(base), SIZE as u64),
        readable: true,
        name: "/a b".to_owned(),
        ..Region::default()
    }];
    let registers = if width == Width::Four { 17 } else { 27 };
    let thread = |tid: u32, vector: usize| Thread {
        tid,
        width: Some(width),
        general: (0..registers).map(|n| n + u64::from(tid)).collect(),
        vector: (0..vector)
            .map(|n| u8::try_from(n % 256).expect("small"))
            .collect(),
        ..Thread::default()
    };
    snapshot.threads = vec![thread(42, 2696), thread(43, 512), thread(44, 0)];
    snapshot.threads[2].width = None;
    snapshot.threads[2].general = vec![1, 2, 3];
    snapshot.kernel_values = vec![KernelValue {
        value: u64::MAX,
        holder: "epoll fd 5".to_owned(),
    }];
    snapshot.auxv = vec![(6, 4096), (0, 0)];
    snapshot
}

fn facts() -> HeapFacts {
    HeapFacts {
        embedded: Some("jemalloc".to_owned()),
        inside_malloc: true,
        stack_log: Some(Addr(7)),
    }
}

fn written(snapshot: &Snapshot, compress: bool) -> Vec<u8> {
    let nothing = Excerpt::default();
    let image = CoreImage::new(snapshot, &*snapshot.memory, (&nothing, &[]), (facts(), 0));
    let image = image.expect("a small file");
    let out = Written::default();
    let mut capture = snapshot.capture.clone();
    capture.pause = Duration::from_nanos(1_234_567_891);
    if compress {
        let mut container = Compressed::new(&out);
        container.append(&image, &|| false).expect("written");
        container
            .append(&image.tail(&capture), &|| false)
            .expect("written");
        container.finish().expect("written");
    } else {
        write_plain(&image, &out, &|| false).expect("written");
        image
            .write_tail(&image.tail(&capture), &out)
            .expect("written");
    }
    out.0.into_inner().expect("no panic")
}

fn opened(bytes: Vec<u8>) -> Result<Saved, String> {
    let file: Arc<dyn FileBytes> = match SeekableFile::open(Box::new(bytes)) {
        Ok(Ok(container)) => Arc::new(container),
        Ok(Err(plain)) => Arc::from(plain),
        Err(error) => return Err(error.to_string()),
    };
    let core = CoreFile::parse(file).map_err(|error| error.to_string())?;
    open(&core).map_err(|error| error.to_string())
}

fn container(bytes: Vec<u8>) -> SeekableFile {
    match SeekableFile::open(Box::new(bytes)) {
        Ok(Ok(container)) => container,
        _ => panic!("it is a container"),
    }
}

#[test]
fn a_snapshot_is_read_back_as_it_was() {
    for (width, compress) in [
        (Width::Eight, false),
        (Width::Eight, true),
        (Width::Four, false),
    ] {
        let snapshot = snapshot(width);
        let saved = opened(written(&snapshot, compress)).expect("a good file");
        let (found, range) = (&saved.snapshot, snapshot.regions[0].range);
        assert_eq!(found.process, snapshot.process);
        assert_eq!(found.threads, snapshot.threads);
        assert_eq!(found.regions, snapshot.regions);
        assert_eq!(found.kernel_values, snapshot.kernel_values);
        assert_eq!(found.auxv, snapshot.auxv);
        assert_eq!(found.capture.pause, Duration::from_nanos(1_234_567_891));
        assert_eq!(found.capture.content, ContentLevel::Readonly);
        assert_eq!(saved.heap, facts());
        let mut bytes = vec![[0; 2]; 0];
        for memory in [&found.memory, &snapshot.memory] {
            let mut part = vec![0; SIZE + 8];
            assert_eq!(memory.read(range.start, &mut part), SIZE);
            bytes.resize(part.len(), [0; 2]);
            bytes.iter_mut().zip(part).for_each(|(pair, byte)| {
                *pair = [pair[1], byte];
            });
        }
        assert!(bytes.iter().all(|[a, b]| a == b));
        assert_eq!(found.memory.word(range.end), None);
    }
}

#[test]
fn memory_that_cannot_be_read_when_it_is_saved_is_counted() {
    let mut snapshot = snapshot(Width::Eight);
    let end = snapshot.regions[0].range.end;
    snapshot.regions[0].range.end = end.saturating_add(0x2000);
    let saved = opened(written(&snapshot, false)).expect("a good file");
    let [warning] = saved.snapshot.warnings.as_slice() else {
        panic!("{:?}", saved.snapshot.warnings);
    };
    assert_eq!(warning.code, "memory_unreadable");
    assert!(
        warning.message.starts_with("8192 bytes"),
        "{}",
        warning.message
    );
}

#[test]
fn a_file_that_was_cut_short_is_told() {
    let bytes = written(&snapshot(Width::Eight), false);
    for size in [0, 10, 64, 500, 0x1000, bytes.len() - 300, bytes.len() - 1] {
        assert!(opened(bytes[..size].to_vec()).is_err(), "{size}");
    }
}

#[test]
fn a_later_format_is_refused_with_its_version() {
    let mut bytes = written(&snapshot(Width::Eight), false);
    let field = memchr::memmem::find(&bytes, b"{\"format\":1,").expect("a note");
    bytes[field + 10] = b'2';
    let error = opened(bytes).expect_err("refused");
    assert!(error.contains("format 2"), "{error}");
    assert!(error.contains(env!("CARGO_PKG_VERSION")), "{error}");
}

#[test]
fn overlapping_regions_are_refused() {
    let mut snapshot = snapshot(Width::Eight);
    let region = snapshot.regions[0].clone();
    snapshot.regions.push(region);
    let error = opened(written(&snapshot, false)).expect_err("refused");
    assert!(error.contains("overlap"), "{error}");
}

#[test]
fn tables_of_frames_that_lie_are_refused() {
    let good = written(&snapshot(Width::Eight), true);
    let frames = u32::from_le_bytes(*good[good.len() - 9..].first_chunk().expect("a footer"));
    let table = good.len() - 9 - 8 * usize::try_from(frames).expect("few");
    let mut lies: BTreeMap<&str, Vec<u8>> = BTreeMap::new();
    let mut lie = |name, at: usize, value: u32| {
        let mut bytes = good.clone();
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        lies.insert(name, bytes);
    };
    lie("number of frames", good.len() - 9, u32::MAX);
    lie("fewer frames", good.len() - 9, frames - 1);
    lie("compressed size", table, 5);
    lie("plain size", table + 4, u32::MAX);
    for (name, bytes) in lies {
        let error = opened(bytes).expect_err(name);
        assert!(
            error.contains("table of compressed frames"),
            "{name}: {error}"
        );
    }
    // One whose sizes are possible, and not true.
    let mut bytes = good;
    bytes[table + 4] ^= 1;
    let container = container(bytes);
    let mut start = [0; 64];
    assert_eq!(container.read_at(0, &mut start), 0);
    let damage = container.damage();
    let error = damage.error().expect("damage").to_string();
    assert!(
        error.starts_with("the compressed frame at offset 0x0 is damaged"),
        "{error}"
    );
}

#[test]
fn what_has_no_table_is_no_container() {
    for bytes in [
        Vec::new(),
        vec![0; 9],
        b"\x28\xb5\x2f\xfd and more".to_vec(),
    ] {
        let size = bytes.len() as u64;
        let Ok(Err(back)) = SeekableFile::open(Box::new(bytes)) else {
            panic!("it is no container");
        };
        assert_eq!(back.size(), size);
    }
}

proptest! {
    #[test]
    fn containers_are_read_from_any_place(
        sizes in prop::collection::vec(0_usize..3 << 20, 1..3),
        reads in prop::collection::vec((0_u64..7 << 20, 1_usize..3 << 20), 1..4),
    ) {
        let out = Written::default();
        let mut writer = Compressed::new(&out);
        let mut plain = Vec::new();
        for size in sizes {
            let bytes: Vec<u8> = (0..size).map(|n| u8::try_from(n * n % 253).expect("small")).collect();
            writer.append(&bytes, &|| false).expect("written");
            plain.extend(bytes);
        }
        writer.finish().expect("written");
        let bytes = out.0.into_inner().expect("no panic");
        let container = container(bytes);
        prop_assert_eq!(container.size(), plain.len() as u64);
        for (offset, size) in reads {
            let (mut found, mut expected) = (vec![1; size], vec![1; size]);
            let count = container.read_at(offset, &mut found);
            prop_assert_eq!(count, plain.read_at(offset, &mut expected));
            prop_assert!(found == expected);
        }
    }

    /// Whatever is damaged: an answer or an error, and never more memory than the file justifies.
    #[test]
    fn damaged_files_do_no_harm(
        compress in any::<bool>(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        near_start in any::<bool>(),
    ) {
        let mut bytes = written(&snapshot(Width::Eight), compress);
        for (index, value) in damage {
            let range = if near_start { 3000.min(bytes.len()) } else { bytes.len() };
            let at = index.index(range);
            bytes[at] = value;
        }
        if let Ok(saved) = opened(bytes) {
            let mut part = [0; 4096];
            for region in &saved.snapshot.regions {
                saved.snapshot.memory.read(region.range.start, &mut part);
            }
        }
    }
}
