//! Writing a file: plain, with holes, or as a container of compressed frames.

use std::io;

use rayon::prelude::*;
use zstd::bulk::Compressor;
use zstd::zstd_safe::CParameter;

use super::container::{FRAME, SeekTable};
use crate::snapshot::core::FileBytes;

/// Bytes that one task of a plain file reads and writes.
const PIECE: u64 = 4 << 20;
/// What is all zeros and as large as this is left out of a plain file.
const PAGE: usize = 4096;
/// Frames that are compressed before any of them is written.
const BATCH: u64 = 32;
/// The fastest of zstd's usual levels: memory compresses well, and time matters.
const LEVEL: i32 = 1;

/// Why a file could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The file system says no.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Whoever waits for the file does not want it any more.
    #[error("interrupted")]
    Interrupted,
}

/// A file that is being written, at any place and from several threads.
pub trait NewBytes: Sync {
    /// Writes all of `bytes` at `offset`.
    ///
    /// # Errors
    /// It cannot be written.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Makes the file as long as `size`: what was not written is zeros.
    ///
    /// # Errors
    /// It cannot be as long.
    fn set_size(&self, size: u64) -> io::Result<()>;
}

/// Writes `image`. Pages of zeros become holes. `is_over` is asked for every
/// piece, from any thread.
///
/// # Errors
/// The file cannot be written, or `is_over` said yes.
pub fn write_plain(
    image: &dyn FileBytes,
    out: &dyn NewBytes,
    is_over: &(dyn Fn() -> bool + Sync),
) -> Result<(), WriteError> {
    out.set_size(image.size())?;
    let pieces = image.size().div_ceil(PIECE);
    (0..pieces)
        .into_par_iter()
        .try_for_each_init(Vec::new, |buffer, piece| {
            if is_over() {
                return Err(WriteError::Interrupted);
            }
            let offset = piece.saturating_mul(PIECE);
            read(image, offset, PIECE, buffer)?;
            write_without_zeros(out, offset, buffer)
        })
}

/// Fills `buffer` with up to `size` bytes at `offset`.
fn read(image: &dyn FileBytes, offset: u64, size: u64, buffer: &mut Vec<u8>) -> io::Result<()> {
    let size = image.size().saturating_sub(offset).min(size);
    let size = usize::try_from(size).map_err(io::Error::other)?;
    buffer.resize(size, 0);
    if image.read_at(offset, buffer) < size {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}

fn write_without_zeros(out: &dyn NewBytes, offset: u64, bytes: &[u8]) -> Result<(), WriteError> {
    let mut at = offset;
    let pages: Vec<&[u8]> = bytes.chunks(PAGE).collect();
    for same in pages.chunk_by(|a, b| is_zero(a) == is_zero(b)) {
        let size: usize = same.iter().map(|page| page.len()).sum();
        if !same.first().is_some_and(|page| is_zero(page)) {
            let start = usize::try_from(at.saturating_sub(offset)).unwrap_or(usize::MAX);
            let run = bytes.get(start..).and_then(|rest| rest.get(..size));
            out.write_at(at, run.unwrap_or_default())?;
        }
        at = at.saturating_add(size as u64);
    }
    Ok(())
}

fn is_zero(page: &[u8]) -> bool {
    page.iter().fold(0, |all, byte| all | byte) == 0
}

/// A container of compressed frames that is being written: what `zstd -d` makes a plain file of,
/// and what can be read from any place of it.
pub struct Compressed<'a> {
    out: &'a dyn NewBytes,
    size: u64,
    table: SeekTable,
}

impl<'a> Compressed<'a> {
    /// An empty container in `out`.
    #[must_use]
    pub fn new(out: &'a dyn NewBytes) -> Self {
        Self {
            out,
            size: 0,
            table: SeekTable::default(),
        }
    }

    /// Appends all of `bytes`, in frames that are compressed in parallel. `is_over` is asked for
    /// each of them.
    ///
    /// # Errors
    /// The file cannot be written, or `is_over` said yes.
    pub fn append(
        &mut self,
        bytes: &dyn FileBytes,
        is_over: &(dyn Fn() -> bool + Sync),
    ) -> Result<(), WriteError> {
        let frames = bytes.size().div_ceil(FRAME);
        let mut first = 0;
        while first < frames {
            let batch = first..frames.min(first.saturating_add(BATCH));
            first = batch.end;
            let compressed: Vec<(u64, Vec<u8>)> = batch
                .into_par_iter()
                .map_init(Work::default, |work, frame| {
                    if is_over() {
                        return Err(WriteError::Interrupted);
                    }
                    work.compress(bytes, frame)
                })
                .collect::<Result<_, _>>()?;
            for (plain, frame) in compressed {
                self.write(&frame)?;
                self.table.add(frame.len() as u64, plain)?;
            }
        }
        Ok(())
    }

    /// Writes the table of frames, and returns the size of the file.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn finish(mut self) -> io::Result<u64> {
        let table = self.table.bytes()?;
        self.write(&table)?;
        self.out.set_size(self.size)?;
        Ok(self.size)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_at(self.size, bytes)?;
        self.size = self.size.saturating_add(bytes.len() as u64);
        Ok(())
    }
}

impl std::fmt::Debug for Compressed<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Compressed")
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

/// What a thread compresses with.
#[derive(Default)]
struct Work {
    buffer: Vec<u8>,
    compressor: Option<Compressor<'static>>,
}

impl Work {
    /// The size of the frame with this number and its compressed bytes.
    fn compress(
        &mut self,
        bytes: &dyn FileBytes,
        frame: u64,
    ) -> Result<(u64, Vec<u8>), WriteError> {
        read(bytes, frame.saturating_mul(FRAME), FRAME, &mut self.buffer)?;
        let compressor = match &mut self.compressor {
            Some(compressor) => compressor,
            none => {
                let mut compressor = Compressor::new(LEVEL)?;
                compressor.set_parameter(CParameter::ChecksumFlag(true))?;
                none.insert(compressor)
            }
        };
        let compressed = compressor.compress(&self.buffer)?;
        Ok((self.buffer.len() as u64, compressed))
    }
}
