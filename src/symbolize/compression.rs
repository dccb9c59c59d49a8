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

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compression, write::ZlibEncoder};
    use goblin::container::{Container, Endian};
    use std::io::Write;

    const CLASS: Ctx = Ctx {
        container: Container::Big,
        le: Endian::Little,
    };

    fn zlib(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes).expect("memory");
        encoder.finish().expect("memory")
    }

    /// A compressed section that says that it has `size` bytes.
    fn section(kind: u32, size: u64, packed: &[u8]) -> Vec<u8> {
        let header = [
            &kind.to_le_bytes()[..],
            &[0; 4],
            &size.to_le_bytes(),
            &[0; 8],
        ];
        [&header.concat(), packed].concat()
    }

    #[test]
    fn a_section_has_the_size_that_it_announces_or_is_none() {
        let contents = vec![7; 10_000];
        let packed = zlib(&contents);
        let read = |size, limit| {
            let section = section(ELFCOMPRESS_ZLIB, size, &packed);
            assert_eq!(announced_size(&section[..24], false, CLASS), Some(size));
            decompressed(&section, CLASS, limit)
        };
        assert_eq!(read(10_000, 10_000), Some(contents.clone()));
        for (size, limit) in [(9_999, 10_000), (10_001, 1 << 40), (10_000, 9_999)] {
            assert_eq!(read(size, limit), None, "{size} {limit}");
        }
        let gnu = |size: u64| [b"ZLIB", &size.to_be_bytes()[..], &packed].concat();
        assert_eq!(gnu_decompressed(&gnu(10_000), 10_000), Some(contents));
        assert_eq!(announced_size(&gnu(10_000), true, CLASS), Some(10_000));
        assert_eq!(gnu_decompressed(&gnu(10_001), 1 << 40), None);
        assert_eq!(gnu_decompressed(&gnu(10_000), 9_999), None);
    }

    #[test]
    fn what_is_no_stream_is_none() {
        for kind in [ELFCOMPRESS_ZLIB, ELFCOMPRESS_ZSTD, 99] {
            for packed in [
                &b""[..],
                b"nonsense",
                b"\x28\xb5\x2f\xfd\xff\xff\xff\xff\xff\xff\xff",
            ] {
                let section = section(kind, 100, packed);
                assert_eq!(decompressed(&section, CLASS, 1 << 30), None);
                assert_eq!(decompressed(&section[..20], CLASS, 1 << 30), None);
            }
        }
    }
}
