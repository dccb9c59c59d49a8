//! Fuzz targets: snapshots in files, and what is made of them.

use std::sync::Arc;
use std::time::SystemTime;

use super::fuzzing::walk_and_scan;
use crate::addr::AddrRange;
use crate::fuzzing::Input;
use crate::heap;
use crate::memory::{Excerpt, Memory};
use crate::snapshot::core::{CoreFile, FileBytes, ImageFiles, Opened};
use crate::snapshot::saved::{self, SeekableFile};

/// A file that rleaks has saved, plain or compressed: opens it and looks for leaks in it.
pub fn snapshot(input: &[u8]) {
    let Ok(opened) = SeekableFile::open(Box::new(input.to_vec())) else {
        return;
    };
    let file: Arc<dyn FileBytes> = match opened {
        Ok(container) => {
            read_through(&container);
            Arc::new(container)
        }
        Err(plain) => Arc::from(plain),
    };
    let Ok(core) = CoreFile::parse(file) else {
        return;
    };
    if !saved::is_saved(&core) {
        return;
    }
    let Ok(saved) = saved::open(&core) else {
        return;
    };
    let snapshot = &saved.snapshot;
    for region in &snapshot.regions {
        check_memory(&*snapshot.memory, region.range);
    }
    let exporters = heap::exporters(&saved.images, &snapshot.modules);
    let _ = Excerpt::copy(&saved.images, saved.parts.iter().copied());
    walk_and_scan(snapshot, &exporters);
}

/// A core file of the kernel's or of a debugger's, for which there is no other file.
pub fn core(input: &[u8]) {
    let Ok(core) = CoreFile::parse(Arc::new(input.to_vec())) else {
        return;
    };
    open(&core, &Images(None));
}

/// Notes of a core file, and memory in the segments that `input` says: that memory is also what all
/// files have that the notes name.
pub fn notes(input: &[u8]) {
    let mut input = Input::new(input);
    let machine = input.byte();
    let segments = (0..input.byte() % 8).map(|_| {
        let (page, pages) = (input.number(1), 1 + input.number(1) % 8);
        (page, pages, input.byte())
    });
    let segments: Vec<_> = segments.collect();
    let size = input.index(2);
    let notes = input.take(size);
    let file = assembled(machine, &segments, notes, input.rest());
    let core = CoreFile::parse(Arc::new(file));
    if let Ok(core) = core {
        open(&core, &Images(Some(Arc::new(input.rest().to_vec()))));
    }
}

/// The one file that is behind each path, if there is one.
struct Images(Option<Arc<dyn FileBytes>>);

impl ImageFiles for Images {
    fn open(&self, _: &str, _: bool) -> Option<Arc<dyn FileBytes>> {
        self.0.clone()
    }
}

fn open(core: &CoreFile, files: &Images) {
    check_core(core);
    let opened = Opened::new(core, SystemTime::UNIX_EPOCH, files);
    let snapshot = &opened.snapshot;
    assert!(
        snapshot
            .regions
            .is_sorted_by(|a, b| a.range.end <= b.range.start)
    );
    for region in &snapshot.regions {
        assert!(!region.range.is_empty());
        check_memory(&*snapshot.memory, region.range);
    }
    let exporters = heap::exporters(&opened.images, &snapshot.modules);
    walk_and_scan(snapshot, &exporters);
}

/// All parts are in the file and apart from each other.
fn check_core(core: &CoreFile) {
    let size = core.bytes.size();
    let segments = &core.segments;
    assert!(segments.is_sorted_by(|a, b| a.range.end <= b.range.start));
    let saved = segments.iter().map(|segment| segment.saved);
    assert!(saved.sum::<u64>() <= size);
    for segment in segments {
        assert!(segment.range.covers(&segment.saved_range()));
        assert!(segment.saved == 0 || segment.offset + segment.saved <= size);
    }
    for note in &core.notes {
        assert!(note.offset + note.size <= size);
        let content = core.content(note, size);
        assert!(content.is_some_and(|content| content.len() as u64 == note.size));
    }
}

/// A core file with `notes`, and with `segments` (first page, pages, protection) of `memory`.
fn assembled(machine: u8, segments: &[(u64, u64, u8)], notes: &[u8], memory: &[u8]) -> Vec<u8> {
    const BASE: u64 = 0x5555_0000_0000;
    let machine: u16 = if machine & 1 == 0 { 62 } else { 183 };
    let count = u16::try_from(segments.len() + 1).expect("few");
    let notes_at = 64 + 56 * u64::from(count);
    let memory_at = notes_at + notes.len() as u64;
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x04\0".to_vec();
    file.extend(machine.to_le_bytes());
    file.resize(64, 0);
    file[32] = 64;
    file[54] = 56;
    file[56..58].copy_from_slice(&count.to_le_bytes());
    let mut header = |kind: u32, flags: u32, words: [u64; 6]| {
        file.extend([kind.to_le_bytes(), flags.to_le_bytes()].concat());
        words
            .iter()
            .for_each(|word| file.extend(word.to_le_bytes()));
    };
    header(4, 0, [notes_at, 0, 0, notes.len() as u64, 0, 0]);
    let mut at = 0;
    for (page, pages, flags) in segments {
        let size = pages * 4096;
        let left = (memory.len() as u64).saturating_sub(at);
        let saved = if flags & 0x80 == 0 { size.min(left) } else { 0 };
        let flags = u32::from(flags & 7);
        header(
            1,
            flags,
            [memory_at + at, BASE + page * 4096, 0, saved, size, 4096],
        );
        at += saved;
    }
    file.extend(notes);
    file.extend(memory);
    file
}

/// Reads a container in windows that lie across its frames, as far as that takes no time.
fn read_through(container: &SeekableFile) {
    let mut window = vec![0; 10_000];
    let windows = (0..container.size()).step_by(window.len()).take(100);
    for offset in windows {
        let count = container.read_at(offset, &mut window);
        let left = usize::try_from(container.size() - offset).expect("64 bits");
        assert!(count == window.len().min(left) || container.damage().error().is_some());
    }
}

/// What is resident can be read, and lies in order within what was asked for.
fn check_memory(memory: &dyn Memory, range: AddrRange) {
    let readable = memory.readable(range);
    assert!(readable.is_sorted_by(|a, b| a.end <= b.start));
    assert!(readable.iter().all(|part| range.covers(part)));
    let resident = memory.resident(range);
    assert!(resident.is_sorted_by(|a, b| a.end <= b.start));
    assert!(resident.iter().all(|part| range.covers(part)));
    let mut buffer = [0; 64];
    for part in readable.iter().chain(&resident) {
        let count = memory.read(part.start, &mut buffer);
        assert!(count <= buffer.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::Addr;
    use crate::heap::glibc::fuzzing::heap;
    use crate::snapshot::Snapshot;
    use crate::snapshot::saved::{Compressed, CoreImage, HeapFacts, NewBytes};
    use crate::stacklog::testing::Pages;
    use std::sync::Mutex;

    #[derive(Default)]
    struct Out(Mutex<Vec<u8>>);

    impl NewBytes for Out {
        fn write_at(&self, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
            let start = usize::try_from(offset).expect("small");
            let mut file = self.0.lock().expect("no panic");
            let size = file.len().max(start + bytes.len());
            file.resize(size, 0);
            file[start..start + bytes.len()].copy_from_slice(bytes);
            Ok(())
        }

        fn set_size(&self, size: u64) -> std::io::Result<()> {
            self.0
                .lock()
                .expect("no panic")
                .resize(usize::try_from(size).expect("small"), 0);
            Ok(())
        }
    }

    /// A process with a heap, whose pages of zeros are known to be that.
    fn process() -> Snapshot {
        let (built, _) = heap(&mut Input::new(&[5, 3, 0, 1, 1, 2, 2, 3, 2, 0, 1, 0, 4, 0]));
        let mut memory = Pages::default();
        for part in &built.memory.0 {
            let whole = AddrRange::with_size(Addr(part.base), part.bytes.len() as u64);
            memory.mapped.push(whole);
            for (page, bytes) in (part.base..).step_by(4096).zip(part.bytes.chunks(4096)) {
                if bytes.iter().any(|byte| *byte != 0) {
                    memory.write(page, bytes);
                }
            }
        }
        Snapshot {
            memory: Box::new(memory),
            ..built.snapshot()
        }
    }

    fn plain(snapshot: &Snapshot) -> Vec<u8> {
        let memory = &*snapshot.memory;
        let image = CoreImage::new(snapshot, memory, (memory, &[]), (HeapFacts::default(), 0));
        let image = image.expect("a small file");
        let mut file = vec![0; usize::try_from(image.size()).expect("small")];
        assert_eq!(image.read_at(0, &mut file), file.len());
        file.extend(image.tail(&snapshot.capture));
        file
    }

    fn compressed(plain: &dyn FileBytes) -> Vec<u8> {
        let out = Out::default();
        let mut file = Compressed::new(&out);
        file.append(plain, &|| false).expect("memory");
        file.finish().expect("memory");
        out.0.into_inner().expect("no panic")
    }

    /// With `RLEAKS_WRITE_CORPUS` set, this writes the files anew: after a change of the format.
    #[test]
    fn the_corpus_of_snapshot_is_of_this_format_and_harmless() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/snapshot/");
        if std::env::var_os("RLEAKS_WRITE_CORPUS").is_some() {
            let plain = plain(&process());
            std::fs::write(format!("{folder}compressed"), compressed(&plain)).expect("a file");
            std::fs::write(format!("{folder}plain"), plain).expect("a file");
        }
        for name in ["plain", "compressed"] {
            let file = std::fs::read(format!("{folder}{name}")).expect("a file");
            let opened = SeekableFile::open(Box::new(file)).expect("no damage");
            let file: Arc<dyn FileBytes> = match opened {
                Ok(container) => Arc::new(container),
                Err(plain) => Arc::from(plain),
            };
            let core = CoreFile::parse(file).expect("a core file");
            assert!(saved::is_saved(&core));
            let saved = saved::open(&core).expect("a snapshot");
            let walk = heap::walk(&saved.snapshot, &[], None, None).expect("a heap");
            assert!(walk.is_clean() && !walk.heap.blocks.is_empty(), "{name}");
        }
        crate::fuzzing::run_corpus("snapshot", snapshot);
    }

    #[test]
    fn the_corpora_of_core_and_notes_are_harmless() {
        crate::fuzzing::run_corpus("core", core);
        crate::fuzzing::run_corpus("notes", notes);
    }
}
