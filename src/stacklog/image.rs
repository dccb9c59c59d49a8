//! The images that code of a stack was in: also those that have been unloaded since.

use std::mem::{offset_of, size_of};

use super::format::{IMAGES, ImageRecord};
use super::header::{u32_at, u64_at};
use super::log::{StackLog, read};
use crate::addr::{Addr, AddrRange};
use crate::memory::Memory;

const IMAGE: usize = size_of::<ImageRecord>();
/// The longest path that the kernel takes.
const MAX_PATH: usize = 4096;

/// An executable, a library or the vdso that was loaded when a block was allocated.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    /// Its path, as the loader knows it; `None` for the executable.
    pub path: Option<String>,
    /// Its GNU build id, if it has one.
    pub build_id: Option<Vec<u8>>,
    /// What has to be added to an address of its symbol table. It wraps.
    pub bias: u64,
    /// The addresses of its segments, with the gaps between them.
    pub range: AddrRange,
    /// It was gone when the snapshot was taken.
    pub is_unloaded: bool,
}

impl StackLog {
    /// The image with this number; `None` where there is none.
    #[must_use]
    pub fn image(&self, memory: &dyn Memory, number: u32) -> Option<Image> {
        let tables = &self.header.tables;
        let index = usize::try_from(number).ok()?;
        if u64::from(number) >= tables.images_len || index >= IMAGES {
            return None;
        }
        let at = tables
            .images
            .checked_add(index.checked_mul(IMAGE)? as u64)?;
        let bytes = read(memory, at, IMAGE);
        if bytes.len() < IMAGE {
            return None;
        }
        let word = |offset| u64_at(&bytes, offset);
        Some(Image {
            path: self.path(memory, &bytes),
            build_id: build_id(&bytes),
            bias: word(offset_of!(ImageRecord, bias)),
            range: AddrRange::new(
                Addr(word(offset_of!(ImageRecord, start))),
                Addr(word(offset_of!(ImageRecord, end))),
            ),
            is_unloaded: u32_at(&bytes, offset_of!(ImageRecord, unloaded)) != 0,
        })
    }

    fn path(&self, memory: &dyn Memory, record: &[u8]) -> Option<String> {
        let at = u64_at(record, offset_of!(ImageRecord, path));
        let length = u32_at(record, offset_of!(ImageRecord, path_len));
        let length = usize::try_from(length).unwrap_or(MAX_PATH).min(MAX_PATH);
        let bytes = (at != 0).then(|| read(memory, Addr(at), length))?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }
}

fn build_id(record: &[u8]) -> Option<Vec<u8>> {
    let length = u32_at(record, offset_of!(ImageRecord, build_id_len));
    let length = usize::try_from(length).ok().filter(|length| *length > 0)?;
    let bytes = record.get(offset_of!(ImageRecord, build_id)..)?;
    bytes.get(..length).map(<[u8]>::to_vec)
}
