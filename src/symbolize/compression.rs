//! Compressed sections: `SHF_COMPRESSED` with zlib or zstd, and the older `.zdebug_…` of GNU.
//!
//! What a section decompresses to is limited by what its header announces, and that by the caller.

use std::io::Read;

use flate2::read::ZlibDecoder;
use goblin::container::Ctx;
use goblin::elf::compression_header::{CompressionHeader, ELFCOMPRESS_ZLIB, ELFCOMPRESS_ZSTD};
use ruzstd::decoding::StreamingDecoder;

/// The magic of a `.zdebug_…` section; the size follows in eight bytes, the highest first.
const GNU_MAGIC: &[u8] = b"ZLIB";

/// The first bytes of a compressed section, which tell its size.
pub(super) const ANNOUNCEMENT: u64 = 24;

/// The size that a compressed section announces in its first bytes.
pub(super) fn announced_size(start: &[u8], is_gnu: bool, class: Ctx) -> Option<u64> {
    if is_gnu {
        let (size, _) = start.strip_prefix(GNU_MAGIC)?.split_first_chunk()?;
        return Some(u64::from_be_bytes(*size));
    }
    Some(CompressionHeader::parse(start, 0, class).ok()?.ch_size)
}

/// The contents of a section with the flag `SHF_COMPRESSED`, if they are no more than `limit`
/// bytes.
pub(super) fn decompressed(raw: &[u8], class: Ctx, limit: u64) -> Option<Vec<u8>> {
    let header = CompressionHeader::parse(raw, 0, class).ok()?;
    let packed = raw.get(CompressionHeader::size(class)..)?;
    let size = (header.ch_size <= limit).then_some(header.ch_size)?;
    match header.ch_type {
        ELFCOMPRESS_ZLIB => exactly(ZlibDecoder::new(packed), size),
        // The decoder refuses a window of more than 128 MiB.
        ELFCOMPRESS_ZSTD => exactly(StreamingDecoder::new(packed).ok()?, size),
        _ => None,
    }
}

/// The contents of a section whose name begins with `.zdebug_`, if they are no more than `limit`
/// bytes.
pub(super) fn gnu_decompressed(raw: &[u8], limit: u64) -> Option<Vec<u8>> {
    let (size, packed) = raw.strip_prefix(GNU_MAGIC)?.split_first_chunk()?;
    let size = u64::from_be_bytes(*size);
    (size <= limit).then(|| exactly(ZlibDecoder::new(packed), size))?
}

/// All that `reader` gives, if that is `size` bytes.
fn exactly(reader: impl Read, size: u64) -> Option<Vec<u8>> {
    let bytes = read_limited(reader, size)?;
    (bytes.len() as u64 == size).then_some(bytes)
}

/// All that `reader` gives, unless that is an error or more than `limit` bytes.
pub(super) fn read_limited(reader: impl Read, limit: u64) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.take(limit + 1).read_to_end(&mut bytes).ok()?;
    (bytes.len() as u64 <= limit).then_some(bytes)
}
