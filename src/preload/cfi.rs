//! Call frame information: `.eh_frame`, found through `.eh_frame_hdr` (Linux Standard Base, Core,
//! chapter 10; DWARF 5, section 6.4), compiled to the one step that it describes for an address.
//!
//! Of all registers only the stack pointer and the frame pointer are followed. Compilers compute the
//! frame address from these two.

use crate::images::Loaded;
use crate::rules::{Cfa, Step};

mod expression;
mod program;
mod reader;

use program::{Register, Rows};
use reader::Reader;

/// What a common information entry says about its functions.
#[derive(Clone, Copy, Debug)]
struct Common {
    code_alignment: u64,
    data_alignment: i64,
    return_register: u64,
    address_encoding: u8,
    has_augmentation: bool,
    is_signal: bool,
    program: Reader,
}

/// The function that covers an address.
#[derive(Clone, Copy, Debug)]
struct Function {
    common: Common,
    start: usize,
    size: usize,
    program: Reader,
}

/// The step from a frame whose code is at `address`, an address within `image`. `None` where the
/// image says nothing about it, or something that compilers do not say.
pub(crate) fn step(image: &Loaded, address: usize) -> Option<Step> {
    let whole = Reader::new(image.start, image.end);
    let function = find(&whole, image.unwind_table, address)?;
    if address.wrapping_sub(function.start) >= function.size {
        return None;
    }
    if function.common.is_signal {
        return Some(Step::Signal);
    }
    let mut rows = Rows::new(&function.common, function.start);
    rows.run(function.common.program, usize::MAX)?;
    rows.begin_function();
    rows.run(function.program, address)?;
    step_of(&rows, address)
}

fn step_of(rows: &Rows, address: usize) -> Option<Step> {
    const WORD: i64 = size_of::<usize>() as i64;
    let row = rows.row();
    match row.return_address {
        Register::Undefined => return Some(Step::End),
        Register::Saved(offset) if offset == -WORD => {}
        _ => return None,
    }
    let cfa = row.cfa.resolve(address)?;
    let offset = match (row.frame_pointer, cfa) {
        (Register::Same | Register::Undefined, _) => None,
        (Register::Saved(offset), Cfa::Stack(_) | Cfa::Frame(_)) => Some(offset),
        (Register::SavedAtFrame(offset), Cfa::Saved(_)) => Some(offset),
        (Register::SavedAtFrame(offset), Cfa::Frame(cfa)) => Some(offset.checked_sub(cfa.into())?),
        _ => return None,
    };
    let frame_pointer = offset.map(i32::try_from).transpose().ok()?;
    Some(Step::Call { cfa, frame_pointer })
}

/// Looks `address` up in the table of `.eh_frame_hdr`: a version, three encodings, the address of
/// `.eh_frame`, the number of entries, and for each function its start and its entry, as 32-bit
/// distances from the header, in ascending order.
fn find(whole: &Reader, header: usize, address: usize) -> Option<Function> {
    const VERSION: u8 = 1;
    const SIGNED_4_FROM_HEADER: u8 = 0x3b;
    if header == 0 {
        return None;
    }
    let mut reader = whole.at(header)?;
    let [version, frame_encoding, count_encoding, table_encoding] =
        [reader.u8()?, reader.u8()?, reader.u8()?, reader.u8()?];
    if version != VERSION || table_encoding != SIGNED_4_FROM_HEADER {
        return None;
    }
    reader.encoded(frame_encoding)?;
    let count = reader.encoded(count_encoding)?;
    let table = reader.position();
    let entry = |index: usize| -> Option<(usize, usize)> {
        let mut reader = whole.at(table.checked_add(index.checked_mul(8)?)?)?;
        let distance =
            |reader: &mut Reader| Some(header.wrapping_add_signed(reader.i32()? as isize));
        Some((distance(&mut reader)?, distance(&mut reader)?))
    };
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = low + (high - low) / 2;
        if entry(middle)?.0 <= address {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    let (_, at) = entry(low.checked_sub(1)?)?;
    function(whole, at)
}

/// The frame description entry at `at`.
fn function(whole: &Reader, at: usize) -> Option<Function> {
    let mut reader = entry(whole, at)?;
    let here = reader.position();
    let back = reader.u32()? as usize;
    let common = common(whole, here.checked_sub(back)?)?;
    let start = reader.encoded(common.address_encoding)?;
    const SIZE_ONLY: u8 = 0x0f;
    let size = reader.encoded(common.address_encoding & SIZE_ONLY)?;
    if common.has_augmentation {
        let length = reader.uleb()?;
        reader.skip(length)?;
    }
    Some(Function {
        common,
        start,
        size,
        program: reader,
    })
}

/// What follows the length of the entry at `at`, up to its end.
fn entry(whole: &Reader, at: usize) -> Option<Reader> {
    const LENGTH_IS_64_BITS: u32 = u32::MAX;
    let mut reader = whole.at(at)?;
    match reader.u32()? {
        0 | LENGTH_IS_64_BITS => None,
        length => reader.first(length as usize),
    }
}

/// The common information entry at `at`.
fn common(whole: &Reader, at: usize) -> Option<Common> {
    let mut reader = entry(whole, at)?;
    let id = reader.u32()?;
    let version = reader.u8()?;
    if id != 0 || !matches!(version, 1 | 3) {
        return None;
    }
    let augmentation = reader.text()?;
    let mut letters = augmentation;
    let code_alignment = reader.uleb()? as u64;
    let data_alignment = reader.sleb()?;
    let return_register = if version == 1 {
        reader.u8()?.into()
    } else {
        reader.uleb()? as u64
    };
    let mut common = Common {
        code_alignment,
        data_alignment,
        return_register,
        address_encoding: 0,
        has_augmentation: false,
        is_signal: false,
        program: reader,
    };
    let mut program = reader;
    let mut data = reader;
    while let Some(letter) = letters.u8() {
        match letter {
            b'z' if !common.has_augmentation => {
                common.has_augmentation = true;
                let length = data.uleb()?;
                program = data;
                program.skip(length)?;
            }
            b'R' => common.address_encoding = data.u8()?,
            b'L' => _ = data.u8()?,
            b'P' => {
                let encoding = data.u8()?;
                data.skip_encoded(encoding)?;
            }
            b'S' => common.is_signal = true,
            _ => return None,
        }
    }
    common.program = program;
    Some(common)
}

/// Says whether the code at `address` is what a signal handler returns to: the system call
/// `rt_sigreturn`. Not each C library says so in its call frame information.
pub(crate) fn is_signal_return(address: usize) -> bool {
    const MOV_EAX_15: [u8; 5] = [0xb8, 15, 0, 0, 0];
    const MOV_RAX_15: [u8; 7] = [0x48, 0xc7, 0xc0, 15, 0, 0, 0];
    const SYSCALL: [u8; 2] = [0x0f, 0x05];
    let mut readable = crate::readable::Readable::default();
    let (Some(low), Some(high)) = (readable.word(address), readable.word(address + 8)) else {
        return false;
    };
    let mut code = [0; 16];
    code[..8].copy_from_slice(&low.to_le_bytes());
    code[8..].copy_from_slice(&high.to_le_bytes());
    let is = |mov: &[u8]| code.starts_with(mov) && code[mov.len()..].starts_with(&SYSCALL);
    is(&MOV_EAX_15) || is(&MOV_RAX_15)
}

#[cfg(test)]
mod tests;
