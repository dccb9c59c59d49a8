//! Compressed files that are read from any place: zstd's seekable format.
//!
//! Independent frames, and behind them a skippable frame with a table of their sizes, as
//! `contrib/seekable_format` of zstd describes it. `zstd -d` makes a plain file of it.

use std::io;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use zstd::bulk::Decompressor;

use crate::snapshot::core::FileBytes;

/// The bytes of a frame that rleaks writes.
pub(super) const FRAME: u64 = 1 << 20;
/// The most that is decompressed at once. Other programs may write larger frames, up to 1 GiB.
const LARGEST_FRAME: u64 = 64 << 20;
/// Of the bytes of all frames, one in so many is kept decompressed, for whoever reads on; at least and at most so
/// many bytes.
const KEPT: u64 = 32;
const LEAST_KEPT: u64 = 8 << 20;
const MOST_KEPT: u64 = 64 << 20;

/// The magic of a skippable frame; one with 0xE is taken for tables.
const SKIPPABLE: u32 = 0x184d_2a5e;
/// The last four bytes of a file with a table.
const MAGIC: u32 = 0x8f92_eab1;
/// The number of frames, the descriptor, the magic.
const FOOTER: u64 = 9;
/// The magic of the skippable frame, and its size.
const HEADER: u64 = 8;
/// The flag of the descriptor that says that entries have checksums.
const HAS_CHECKSUMS: u8 = 0x80;

/// Why a compressed file cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ContainerError {
    /// The table does not fit the file.
    #[error("the table of compressed frames at offset {0:#x} is damaged: {1}")]
    Table(u64, &'static str),
    /// The frame does not decompress to what the table says.
    #[error("the compressed frame at offset {0:#x} is damaged: {1}")]
    Frame(u64, String),
}

/// The table of a container that is being written.
#[derive(Debug, Default)]
pub(super) struct SeekTable(Vec<(u32, u32)>);

impl SeekTable {
    pub(super) fn add(&mut self, compressed: u64, plain: u64) -> io::Result<()> {
        let size = |bytes| u32::try_from(bytes).map_err(io::Error::other);
        self.0.push((size(compressed)?, size(plain)?));
        Ok(())
    }

    pub(super) fn bytes(&self) -> io::Result<Vec<u8>> {
        let count = u32::try_from(self.0.len()).map_err(io::Error::other)?;
        let mut entries = Vec::new();
        for (compressed, plain) in &self.0 {
            entries.extend(compressed.to_le_bytes());
            entries.extend(plain.to_le_bytes());
        }
        let size = (entries.len() as u64).saturating_add(FOOTER);
        let mut bytes = SKIPPABLE.to_le_bytes().to_vec();
        bytes.extend(u32::try_from(size).map_err(io::Error::other)?.to_le_bytes());
        bytes.extend(entries);
        bytes.extend(count.to_le_bytes());
        bytes.push(0);
        bytes.extend(MAGIC.to_le_bytes());
        Ok(bytes)
    }
}

/// The first frame that could not be read, if there was one: whoever has read through a container
/// asks for it.
#[derive(Clone, Debug, Default)]
pub struct Damage(Arc<OnceLock<ContainerError>>);

impl Damage {
    /// What was wrong.
    #[must_use]
    pub fn error(&self) -> Option<&ContainerError> {
        self.0.get()
    }
}

/// A frame: where it is in the file, and in what it decompresses to.
#[derive(Clone, Copy, Debug)]
struct Frame {
    at: u64,
    compressed: u32,
    plain_at: u64,
    plain: u32,
}

/// What a container decompresses to.
pub struct SeekableFile {
    file: Box<dyn FileBytes>,
    frames: Vec<Frame>,
    size: u64,
    cache: Mutex<Cache>,
    damage: Damage,
}

/// The last frames that were read, the latest last.
#[derive(Default)]
struct Cache {
    frames: Vec<(usize, Arc<Vec<u8>>)>,
    bytes: u64,
}

impl SeekableFile {
    /// Opens `file`. It is handed back where it is no container with a table.
    ///
    /// # Errors
    /// The table is damaged.
    pub fn open(
        file: Box<dyn FileBytes>,
    ) -> Result<Result<Self, Box<dyn FileBytes>>, ContainerError> {
        let Some((count, has_checksums)) = footer(&*file) else {
            return Ok(Err(file));
        };
        let frames = table(&*file, count, has_checksums)?;
        let size = frames.last().map_or(0, |frame| {
            frame.plain_at.saturating_add(u64::from(frame.plain))
        });
        Ok(Ok(Self {
            file,
            frames,
            size,
            cache: Mutex::default(),
            damage: Damage::default(),
        }))
    }

    /// Tells of the first frame that cannot be read, when that is known.
    #[must_use]
    pub fn damage(&self) -> Damage {
        self.damage.clone()
    }

    /// The bytes of frame `index`. One that was read of late is at hand.
    fn frame(&self, index: usize) -> Option<Arc<Vec<u8>>> {
        // A panic of another thread leaves the list whole.
        let cache = || self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = cache().get(index) {
            return Some(known);
        }
        let frame = self.frames.get(index)?;
        match self.decompressed(frame) {
            Ok(bytes) => {
                let bytes = Arc::new(bytes);
                let most = (self.size / KEPT).clamp(LEAST_KEPT, MOST_KEPT);
                cache().put(index, &bytes, most);
                Some(bytes)
            }
            Err(why) => {
                let error = ContainerError::Frame(frame.at, why);
                let _ = self.damage.0.set(error);
                None
            }
        }
    }

    fn decompressed(&self, frame: &Frame) -> Result<Vec<u8>, String> {
        let mut compressed = vec![0; usize::try_from(frame.compressed).unwrap_or(0)];
        if self.file.read_at(frame.at, &mut compressed) < compressed.len() {
            return Err("the file has become shorter".to_owned());
        }
        let wanted = usize::try_from(frame.plain).unwrap_or(0);
        let mut bytes = vec![0; wanted];
        let mut decompressor = Decompressor::new().map_err(|error| error.to_string())?;
        let found = decompressor.decompress_to_buffer(&compressed, bytes.as_mut_slice());
        match found {
            Ok(found) if found == wanted => Ok(bytes),
            Ok(found) => Err(format!("it has {found} bytes, the table says {wanted}")),
            Err(error) => Err(error.to_string()),
        }
    }
}

impl FileBytes for SeekableFile {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> usize {
        let mut done = 0_usize;
        while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let at = offset.saturating_add(done as u64);
            let after = self.frames.partition_point(|frame| frame.plain_at <= at);
            let Some(index) = after.checked_sub(1).filter(|_| at < self.size) else {
                break;
            };
            let Some((frame, bytes)) = self.frames.get(index).zip(self.frame(index)) else {
                break;
            };
            let count = bytes
                .as_slice()
                .read_at(at.saturating_sub(frame.plain_at), rest);
            if count == 0 {
                break;
            }
            done = done.saturating_add(count);
        }
        done
    }
}

impl std::fmt::Debug for SeekableFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SeekableFile")
            .field("frames", &self.frames.len())
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

impl Cache {
    fn get(&mut self, index: usize) -> Option<Arc<Vec<u8>>> {
        let at = self.frames.iter().position(|(known, _)| *known == index)?;
        let found = self.frames.remove(at);
        let bytes = Arc::clone(&found.1);
        self.frames.push(found);
        Some(bytes)
    }

    /// Keeps a frame, and as many of the last ones as have `most` bytes together.
    fn put(&mut self, index: usize, bytes: &Arc<Vec<u8>>, most: u64) {
        if self.frames.iter().any(|(known, _)| *known == index) {
            return;
        }
        self.bytes = self.bytes.saturating_add(bytes.len() as u64);
        self.frames.push((index, Arc::clone(bytes)));
        while self.bytes > most && self.frames.len() > 1 {
            let (_, oldest) = self.frames.remove(0);
            self.bytes = self.bytes.saturating_sub(oldest.len() as u64);
        }
    }
}

/// The number of frames, and whether the table has checksums. `None` where the file does not end as
/// one with a table does.
fn footer(file: &dyn FileBytes) -> Option<(u32, bool)> {
    let mut footer = [0; 9];
    let at = file.size().checked_sub(FOOTER)?;
    if file.read_at(at, &mut footer) < footer.len() {
        return None;
    }
    let (count, rest) = footer.split_first_chunk()?;
    let (descriptor, magic) = rest.split_first()?;
    let is_table = u32::from_le_bytes(*magic.first_chunk()?) == MAGIC;
    is_table.then_some((u32::from_le_bytes(*count), descriptor & HAS_CHECKSUMS != 0))
}

/// Reads the table. The file is as large as it: no count is believed that the file has no room for.
fn table(
    file: &dyn FileBytes,
    count: u32,
    has_checksums: bool,
) -> Result<Vec<Frame>, ContainerError> {
    let entry = if has_checksums { 12 } else { 8 };
    let size = u64::from(count)
        .saturating_mul(entry)
        .saturating_add(HEADER)
        .saturating_add(FOOTER);
    let at = file.size().saturating_sub(size);
    let wrong = |what| ContainerError::Table(at, what);
    if size > file.size() {
        return Err(wrong("it is larger than the file"));
    }
    let mut bytes = vec![0; usize::try_from(size).map_err(|_| wrong("it is too large"))?];
    if file.read_at(at, &mut bytes) < bytes.len() {
        return Err(wrong("it cannot be read"));
    }
    let number = |at: usize| {
        let bytes = bytes.get(at..).and_then(<[u8]>::first_chunk);
        bytes.map_or(0, |bytes| u32::from_le_bytes(*bytes))
    };
    if number(0) != SKIPPABLE || u64::from(number(4)) != size.saturating_sub(HEADER) {
        return Err(wrong("its header is that of something else"));
    }
    let mut frames = Vec::with_capacity(usize::try_from(count).unwrap_or(0));
    let (mut offset, mut plain_at) = (0_u64, 0_u64);
    let entries = (8..).step_by(if has_checksums { 12 } else { 8 });
    for (_, entry) in (0..count).zip(entries) {
        let (compressed, plain) = (number(entry), number(entry.saturating_add(4)));
        if u64::from(plain) > LARGEST_FRAME || u64::from(compressed) > 2 * LARGEST_FRAME {
            return Err(wrong("a frame is larger than 64 MiB"));
        }
        frames.push(Frame {
            at: offset,
            compressed,
            plain_at,
            plain,
        });
        offset = offset.saturating_add(u64::from(compressed));
        plain_at = plain_at.saturating_add(u64::from(plain));
    }
    if offset != at {
        return Err(wrong("its frames are not what the file has"));
    }
    // Frames of nothing are in no place.
    frames.retain(|frame| frame.plain > 0);
    Ok(frames)
}
