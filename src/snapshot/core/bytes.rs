//! The bytes of a file, wherever they come from.

/// A file that is read piece by piece: one on disk, what a compressed container holds, a test's byte
/// array.
///
/// It may be cut short while it is read, so that it has less than its size said.
pub trait FileBytes: Send + Sync {
    /// The size in bytes, when it was opened.
    fn size(&self) -> u64;

    /// Copies bytes from `offset` into `buf` and returns how many were copied: fewer than asked for
    /// only at the end of the file, or where it cannot be read.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> usize;
}

impl FileBytes for [u8] {
    fn size(&self) -> u64 {
        self.len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> usize {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let available = self.get(start..).unwrap_or_default();
        let copied = buf.iter_mut().zip(available);
        copied.map(|(to, from)| *to = *from).count()
    }
}

impl FileBytes for Vec<u8> {
    fn size(&self) -> u64 {
        self.as_slice().size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> usize {
        self.as_slice().read_at(offset, buf)
    }
}
