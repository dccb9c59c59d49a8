//! Fuzz targets: snapshots in files, and what is made of them.

use std::sync::Arc;

use super::fuzzing::walk_and_scan;
use crate::addr::AddrRange;
use crate::heap;
use crate::memory::{Excerpt, Memory};
use crate::snapshot::core::FileBytes;
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
    let Some((stored, notes)) = saved::headers(&*file) else {
        return;
    };
    let _ = saved::is_saved(&notes);
    let Ok(saved) = saved::open(&file, &stored, &notes) else {
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
    use crate::fuzzing::Input;
    use crate::heap::glibc::fuzzing::heap;
    use crate::snapshot::Snapshot;
    use crate::snapshot::saved::{Compressed, CoreImage, HeapFacts, NOTE_OWNER, NewBytes};
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

    fn compressed(plain: &Vec<u8>) -> Vec<u8> {
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
            let (stored, notes) = saved::headers(&*file).expect("a core file");
            assert!(notes.iter().any(|note| note.owner == NOTE_OWNER));
            let saved = saved::open(&file, &stored, &notes).expect("a snapshot");
            let walk = heap::walk(&saved.snapshot, &[], None, None).expect("a heap");
            assert!(walk.is_clean() && !walk.heap.blocks.is_empty(), "{name}");
        }
        crate::fuzzing::run_corpus("snapshot", snapshot);
    }
}
