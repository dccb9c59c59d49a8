//! An address of code, as it stands in a frame.

use crate::format::IMAGE_SHIFT;
use crate::readable::Readable;

/// The address of a frame's code, with how it is meant and the image that it is in.
///
/// The lowest 47 bits are the address. Then comes a bit that says that a signal interrupted the
/// frame there; else the address is the one after a call. Above is one more than the index of the
/// image, or 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Code(pub(crate) u64);

const EXACT: u64 = 1 << (IMAGE_SHIFT - 1);
const ADDRESS: u64 = EXACT - 1;
const PLACE: u64 = ADDRESS | EXACT;

impl Code {
    /// The address after a call.
    #[inline]
    pub(crate) fn after_call(address: usize) -> Self {
        Self(address as u64 & ADDRESS)
    }

    /// The address at which a signal interrupted the thread.
    pub(crate) fn interrupted(address: usize) -> Self {
        Self(address as u64 & ADDRESS | EXACT)
    }

    #[inline]
    pub(crate) fn address(self) -> usize {
        (self.0 & ADDRESS) as usize
    }

    #[inline]
    pub(crate) fn is_exact(self) -> bool {
        self.0 & EXACT != 0
    }

    /// The address of a byte of the instruction that the frame is in.
    pub(crate) fn instruction(self) -> usize {
        self.address() - usize::from(!self.is_exact())
    }

    /// The address and how it is meant, without the image.
    #[inline]
    pub(crate) fn place(self) -> u64 {
        self.0 & PLACE
    }

    #[inline]
    pub(crate) fn with_image(self, image: u16) -> Self {
        Self(self.place() | u64::from(image) << IMAGE_SHIFT)
    }

    /// What a node keeps of it in one word.
    #[inline]
    pub(crate) fn address_and_image(self) -> u64 {
        self.0 & !EXACT
    }
}

/// Says whether the instruction before `address` may be a call: only then can it be a return
/// address.
pub(crate) fn follows_call(address: usize) -> bool {
    const LONGEST: usize = 7;
    let Some(start) = address.checked_sub(LONGEST + 1) else {
        return false;
    };
    let mut readable = Readable::default();
    let (Some(low), Some(high)) = (readable.word(start), readable.word(start + 1)) else {
        return false;
    };
    let mut before = [0; LONGEST + 2];
    before[..8].copy_from_slice(&low.to_le_bytes());
    before[8] = high.to_le_bytes()[7];
    is_call(&before[1..=LONGEST])
}

/// How far a function that keeps a frame pointer has come with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Setup {
    /// It has done nothing yet, or is about to return.
    None,
    /// The caller's frame pointer is on the stack, and still in its register.
    Pushed,
    /// The frame pointer is its own, as far as can be seen.
    Done,
}

impl Setup {
    /// What the instruction at `address`, which comes next, says.
    pub(crate) fn at(address: usize) -> Self {
        let word = address
            .checked_sub(1)
            .and_then(|start| Readable::default().word(start));
        word.map_or(Self::Done, |word| Self::of(word.to_le_bytes()))
    }

    /// The same, from the byte before the instruction and the seven from there.
    fn of(code: [u8; 8]) -> Self {
        const PUSH: u8 = 0x55;
        match code {
            // push rbp, also after endbr64; ret
            [_, PUSH | 0xc3 | 0xc2, ..] | [_, 0xf3, 0x0f, 0x1e, 0xfa, PUSH, ..] => Self::None,
            // mov rbp, rsp, in both encodings
            [PUSH, 0x48, 0x89, 0xe5, ..] | [PUSH, 0x48, 0x8b, 0xec, ..] => Self::Pushed,
            _ => Self::Done,
        }
    }
}

/// Says whether the last bytes of `code` are a call: relative, or through a register or memory.
fn is_call(code: &[u8]) -> bool {
    const RELATIVE: u8 = 0xe8;
    const INDIRECT: u8 = 0xff;
    let from_end = |distance: usize| code.len().checked_sub(distance).map(|at| code[at]);
    if from_end(5) == Some(RELATIVE) {
        return true;
    }
    (2..=7).any(|length| {
        from_end(length) == Some(INDIRECT)
            && from_end(length - 1).is_some_and(|operand| {
                let is_call = operand >> 3 & 7 == 2;
                let (mode, register) = (operand >> 6, operand & 7);
                is_call && length == indirect_length(mode, register)
            })
    })
}

/// The length of `call r/m64` with this mode and register, without prefixes.
fn indirect_length(mode: u8, register: u8) -> usize {
    let index = usize::from(register == 4 && mode != 3);
    let displacement = match mode {
        0 if register == 5 => 4,
        1 => 1,
        2 => 4,
        _ => 0,
    };
    2 + index + displacement
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_recognised_by_their_last_bytes() {
        for (code, expected) in [
            (&[0x90, 0x90, 0xe8, 1, 2, 3, 4][..], true),
            (&[0x90, 0x90, 0x90, 0x90, 0x90, 0xff, 0xd0], true), // call rax
            (&[0x90, 0x90, 0x90, 0x90, 0x41, 0xff, 0xd4], true), // call r12
            (&[0x90, 0xff, 0x15, 1, 2, 3, 4], true),             // call [rip + …]
            (&[0x90, 0x90, 0x90, 0x90, 0xff, 0x53, 0x18], true), // call [rbx + 0x18]
            (&[0xff, 0x94, 0x24, 1, 2, 3, 4], true),             // call [rsp + …]
            (&[0x90, 0x90, 0x90, 0x90, 0x90, 0xff, 0xe0], false), // jmp rax
            (&[0x90; 7], false),
            (&[], false),
        ] {
            assert_eq!(is_call(code), expected, "{code:x?}");
        }
    }

    #[test]
    fn frame_pointers_are_set_up_in_two_instructions() {
        for (code, expected) in [
            (
                [0x90, 0x55, 0x48, 0x89, 0xe5, 0x41, 0x57, 0x41],
                Setup::None,
            ), // push rbp
            (
                [0x90, 0xf3, 0x0f, 0x1e, 0xfa, 0x55, 0x48, 0x89],
                Setup::None,
            ), // endbr64
            (
                [0x55, 0x48, 0x89, 0xe5, 0x41, 0x57, 0x41, 0x56],
                Setup::Pushed,
            ), // mov rbp, rsp
            (
                [0x55, 0x48, 0x8b, 0xec, 0x41, 0x57, 0x41, 0x56],
                Setup::Pushed,
            ),
            (
                [0x5d, 0xc3, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90],
                Setup::None,
            ), // ret
            (
                [0xe5, 0x41, 0x55, 0x41, 0x54, 0x53, 0x48, 0x83],
                Setup::Done,
            ), // push r13
            (
                [0x41, 0x48, 0x89, 0xe5, 0x41, 0x57, 0x41, 0x56],
                Setup::Done,
            ), // nothing pushed
        ] {
            assert_eq!(Setup::of(code), expected, "{code:x?}");
        }
    }

    #[test]
    fn code_that_cannot_be_read_is_taken_as_set_up() {
        assert_eq!(Setup::at(0), Setup::Done);
        assert_eq!(Setup::at(0x10), Setup::Done);
    }

    #[test]
    fn places_and_images_do_not_mix() {
        let code = Code::after_call(0x7fff_ffff_ffff).with_image(7);
        assert_eq!(code.address(), 0x7fff_ffff_ffff);
        assert_eq!(code.instruction(), 0x7fff_ffff_fffe);
        assert!(!code.is_exact());
        assert_eq!(code.address_and_image(), 0x0007_7fff_ffff_ffff);
        let interrupted = Code::interrupted(0x1000).with_image(1);
        assert_eq!(interrupted.instruction(), 0x1000);
        assert_ne!(interrupted.place(), Code::after_call(0x1000).place());
        assert_eq!(interrupted.address_and_image(), 0x0001_0000_0000_1000);
    }
}
