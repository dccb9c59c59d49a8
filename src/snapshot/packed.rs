//! Compressed core files, as systemd-coredump and others leave them: streams that are decompressed as a
//! whole, for they can be read from their beginning only.

use std::io::{self, BufReader, ErrorKind, Read, Seek, SeekFrom, Write};

use super::core::FileBytes;

/// Zeros are left out of the file in pieces of this size.
const HOLE: usize = 64 << 10;
const READ: usize = 1 << 20;
/// What decompression may take: xz -9 needs 65 MiB.
const MEMORY: u64 = 256 << 20;

/// How a file is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// zstd, RFC 8878.
    Zstd,
    /// Frames of LZ4.
    Lz4,
    /// xz.
    Xz,
    /// gzip, RFC 1952.
    Gzip,
}

impl Packing {
    /// How `file` is compressed, as its first bytes tell.
    #[must_use]
    pub fn of(file: &dyn FileBytes) -> Option<Self> {
        let mut magic = [0; 6];
        file.read_at(0, &mut magic);
        Self::of_magic(magic)
    }

    /// How a file that begins with `magic` is compressed.
    #[must_use]
    pub fn of_magic(magic: [u8; 6]) -> Option<Self> {
        match magic {
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Self::Zstd),
            [0x04, 0x22, 0x4d, 0x18, ..] => Some(Self::Lz4),
            [0xfd, b'7', b'z', b'X', b'Z', 0] => Some(Self::Xz),
            [0x1f, 0x8b, 8, ..] => Some(Self::Gzip),
            _ => None,
        }
    }

    fn decoder<'a>(self, packed: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
        let packed = BufReader::with_capacity(READ, packed);
        Ok(match self {
            Self::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(packed)?),
            Self::Lz4 => Box::new(lz4_flex::frame::FrameDecoder::new(packed)),
            Self::Xz => {
                let stream = liblzma::stream::Stream::new_stream_decoder(
                    MEMORY,
                    liblzma::stream::CONCATENATED,
                )?;
                Box::new(liblzma::bufread::XzDecoder::new_stream(packed, stream))
            }
            Self::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(packed)),
        })
    }
}

/// Decompresses `file` to `out`, which is empty. Pieces of zeros become holes.
///
/// # Errors
/// The file is damaged, or `out` cannot be written.
pub fn unpack(
    file: &dyn FileBytes,
    packing: Packing,
    mut out: impl Write + Seek,
) -> io::Result<()> {
    let mut decoder = packing.decoder(Sequence { file, at: 0 })?;
    let mut piece = vec![0; HOLE];
    let mut ends_in_hole = false;
    loop {
        let count = filled(&mut *decoder, &mut piece)?;
        let bytes = piece.get(..count).unwrap_or_default();
        if count == 0 {
            break;
        }
        ends_in_hole = bytes.iter().all(|byte| *byte == 0);
        if ends_in_hole {
            out.seek(SeekFrom::Current(i64::try_from(count).unwrap_or(0)))?;
        } else {
            out.write_all(bytes)?;
        }
    }
    if ends_in_hole {
        out.seek(SeekFrom::Current(-1))?;
        out.write_all(&[0])?;
    }
    out.flush()
}

/// Fills `buf` as far as there is something.
fn filled(reader: &mut dyn Read, buf: &mut [u8]) -> io::Result<usize> {
    let mut done = 0_usize;
    while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match reader.read(rest) {
            Ok(0) => break,
            Ok(count) => done = done.saturating_add(count),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// A file from its beginning to its end.
struct Sequence<'a> {
    file: &'a dyn FileBytes,
    at: u64,
}

impl Read for Sequence<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(self.at, buf);
        self.at = self.at.saturating_add(count as u64);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(packing: Packing, bytes: &[u8]) -> Vec<u8> {
        match packing {
            Packing::Zstd => zstd::encode_all(bytes, 1).expect("zstd"),
            Packing::Lz4 => {
                let mut encoder = lz4_flex::frame::FrameEncoder::new(Vec::new());
                encoder.write_all(bytes).expect("lz4");
                encoder.finish().expect("lz4")
            }
            Packing::Xz => {
                let mut out = Vec::new();
                let mut encoder = liblzma::read::XzEncoder::new(bytes, 1);
                encoder.read_to_end(&mut out).expect("xz");
                out
            }
            Packing::Gzip => {
                let level = flate2::Compression::fast();
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), level);
                encoder.write_all(bytes).expect("gzip");
                encoder.finish().expect("gzip")
            }
        }
    }

    const ALL: [Packing; 4] = [Packing::Zstd, Packing::Lz4, Packing::Xz, Packing::Gzip];

    #[test]
    fn each_packing_is_told_and_unpacked() {
        let mut bytes = vec![0; 3 * HOLE + 5];
        bytes[HOLE + 3] = 7;
        for packing in ALL {
            let file = packed(packing, &bytes);
            assert_eq!(Packing::of(&file), Some(packing));
            let mut out = io::Cursor::new(Vec::new());
            unpack(&file, packing, &mut out).expect("a good file");
            assert_eq!(out.into_inner(), bytes, "{packing:?}");
        }
        assert_eq!(Packing::of(&b"\x7fELF\x02\x01".to_vec()), None);
    }

    #[test]
    fn a_file_that_is_cut_or_damaged_is_an_error() {
        let bytes: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
        for packing in ALL {
            let mut file = packed(packing, &bytes);
            file.truncate(file.len() / 2);
            let mut out = io::Cursor::new(Vec::new());
            assert!(unpack(&file, packing, &mut out).is_err(), "{packing:?}");
        }
    }
}
