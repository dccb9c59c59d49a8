//! The segments and notes of a core file, as far as a snapshot of ours needs them.

use super::memory::Stored;
use super::open::CoreNote;
use crate::addr::{Addr, AddrRange};
use crate::memory::Width;
use crate::snapshot::core::FileBytes;

const PIECE: u64 = 1 << 20;
/// More segments and notes than the file of any process has: a file with holes, or a compressed one,
/// can claim any number.
const MAX_SEGMENTS: u64 = 1 << 20;
const MAX_NOTES: usize = 1 << 21;

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
    if count > MAX_SEGMENTS {
        return None;
    }
    let (mut stored, mut notes) = (Vec::new(), Vec::new());
    // All of them could be the same large part of the file.
    let mut notes_left = file.size();
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
            4 => {
                notes_left = notes_left.checked_sub(file_size)?;
                notes_in(file, offset, file_size, &mut notes)?;
            }
            _ => {}
        }
    }
    Some((stored, notes))
}

fn notes_in(file: &dyn FileBytes, start: u64, size: u64, notes: &mut Vec<CoreNote>) -> Option<()> {
    let end = start.checked_add(size)?;
    let mut at = start;
    while at < end {
        if notes.len() >= MAX_NOTES {
            return None;
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A core file with `count` segments of notes, each of which has all of its bytes behind the
    /// headers.
    fn core(count: u16) -> Vec<u8> {
        let mut file = vec![0; 64];
        file[..5].copy_from_slice(b"\x7fELF\x02");
        file[32] = 64;
        file[56..58].copy_from_slice(&count.to_le_bytes());
        let notes_at = 64 + 56 * u64::from(count);
        for _ in 0..count {
            let mut header = [0; 56];
            header[0] = 4;
            header[8..16].copy_from_slice(&notes_at.to_le_bytes());
            header[32..40].copy_from_slice(&1200_u64.to_le_bytes());
            file.extend(header);
        }
        file.resize(file.len() + 1200, 0);
        file
    }

    #[test]
    fn notes_that_all_lie_in_the_same_place_are_refused() {
        let (_, notes) = headers(&core(1)).expect("a core file");
        assert_eq!(notes.len(), 100);
        assert_eq!(headers(&core(100)), None);
    }

    #[test]
    fn more_segments_than_any_process_has_are_refused() {
        let mut file = core(0);
        file[56..58].fill(0xff);
        // The section header that has the count is the file's own header here.
        file[44..48].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(headers(&file), None);
    }
}
