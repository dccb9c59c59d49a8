//! The segments and notes of a core file, as far as a snapshot of ours needs them.

use super::memory::Stored;
use super::open::CoreNote;
use crate::addr::{Addr, AddrRange};
use crate::memory::Width;
use crate::snapshot::core::FileBytes;

const PIECE: u64 = 1 << 20;

/// The stored segments and the notes.
#[must_use]
pub fn headers(file: &dyn FileBytes) -> Option<(Vec<Stored>, Vec<CoreNote>)> {
    let header = bytes(file, 0, 64)?;
    let width = match header.get(..5)? {
        b"\x7fELF\x01" => Width::Four,
        b"\x7fELF\x02" => Width::Eight,
        _ => return None,
    };
    let (at, sections, number, size) = match width {
        Width::Four => (word(width, &header, 28)?, word(width, &header, 32)?, 44, 32),
        Width::Eight => (word(width, &header, 32)?, word(width, &header, 40)?, 56, 56),
    };
    let mut count = u64::from(half(&header, number)?);
    if count == 0xffff {
        let section = bytes(file, sections, 64)?;
        let info = if width == Width::Four { 28 } else { 44 };
        count = word(Width::Four, &section, info)?;
    }
    let (mut stored, mut notes) = (Vec::new(), Vec::new());
    let table = bytes(file, at, count.checked_mul(size)?)?;
    for entry in table.chunks_exact(usize::try_from(size).ok()?) {
        let (offset, start, file_size) = match width {
            Width::Four => (4, 8, 16),
            Width::Eight => (8, 16, 32),
        };
        let [offset, start, file_size] =
            [offset, start, file_size].map(|at| word(width, entry, at).unwrap_or(0));
        match word(Width::Four, entry, 0)? {
            1 if file_size > 0 => stored.push(Stored {
                range: AddrRange::with_size(Addr(start), file_size),
                offset,
            }),
            4 => notes_in(file, offset, file_size, &mut notes)?,
            _ => {}
        }
    }
    Some((stored, notes))
}

fn notes_in(file: &dyn FileBytes, start: u64, size: u64, notes: &mut Vec<CoreNote>) -> Option<()> {
    let end = start.checked_add(size)?;
    let mut at = start;
    while at < end {
        let header = bytes(file, at, 12)?;
        let [name, content, kind] = [0, 4, 8].map(|at| word(Width::Four, &header, at).unwrap_or(0));
        let owner = bytes(file, at.checked_add(12)?, name.min(64))?;
        let offset = at.checked_add(12)?.checked_add(name.next_multiple_of(4))?;
        notes.push(CoreNote {
            owner: String::from_utf8_lossy(&owner)
                .trim_end_matches('\0')
                .to_owned(),
            kind: u32::try_from(kind).ok()?,
            offset,
            size: content,
        });
        at = offset.checked_add(content.next_multiple_of(4))?;
    }
    Some(())
}

fn bytes(file: &dyn FileBytes, at: u64, size: u64) -> Option<Vec<u8>> {
    let mut all = Vec::new();
    while (all.len() as u64) < size {
        let done = all.len() as u64;
        let mut piece = vec![0; usize::try_from((size.saturating_sub(done)).min(PIECE)).ok()?];
        if file.read_at(at.checked_add(done)?, &mut piece) < piece.len() {
            return None;
        }
        all.extend(piece);
    }
    Some(all)
}

fn word(width: Width, bytes: &[u8], at: usize) -> Option<u64> {
    width.word(bytes.get(at..)?)
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}
