//! What the frames of a piece of code look like: compiled once for each address, and kept.

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

use crate::code::{Code, Setup, follows_call};
use crate::log::Log;
use crate::{cfi, images};

/// How to get from a frame to the one that called it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// It was not called: the thread starts here.
    End,
    /// The caller's address lies below the canonical frame address (CFA). The frame pointer, if it
    /// was saved, is at the offset from there or, with [`Cfa::Saved`], from the frame pointer.
    Call {
        cfa: Cfa,
        frame_pointer: Option<i32>,
    },
    /// A signal handler returns here. The kernel has put the registers above the stack pointer.
    Signal,
    /// Nothing is known about the code: it may keep a frame pointer.
    FramePointer,
    /// This is no address of code in a frame.
    Lost,
}

/// Where the frame address of the caller is (the stack pointer before its call).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cfa {
    /// At this offset from the stack pointer.
    Stack(i32),
    /// At this offset from the frame pointer.
    Frame(i32),
    /// Saved in memory at this offset from the frame pointer: the function aligns its stack.
    Saved(i32),
}

/// A [`Step`], and the image of the code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) step: Step,
    /// One more than the index of the image, or 0.
    pub(crate) image: u16,
}

/// A rule with the place that it is for.
///
/// The first word is the place and the rule, one XOR the other: a reader who sees words of two
/// different rules finds neither place.
#[derive(Debug)]
pub(crate) struct RuleSlot {
    check: AtomicU64,
    packed: AtomicU64,
}

/// The number of rules that are kept. Code of which more than this is active is compiled again.
pub(crate) const SLOTS: usize = 1 << SLOT_BITS;
const SLOT_BITS: u32 = 15;
const GENERATION_SHIFT: u32 = 48;

/// The rules for one generation of images.
#[derive(Clone, Copy)]
pub(crate) struct Rules {
    log: &'static Log,
    generation: u16,
}

impl Rules {
    #[inline]
    pub(crate) fn new(log: &'static Log, generation: u16) -> Self {
        Self { log, generation }
    }

    /// The rule for `code`.
    #[inline]
    pub(crate) fn get(self, code: Code) -> Packed {
        let key = code.place() | u64::from(self.generation) << GENERATION_SHIFT;
        let kept = self.log.rules[slot(key)].get();
        if kept.0 ^ kept.1 == key {
            return Packed(kept.1);
        }
        self.other_slot_or_compile(code, key)
    }

    #[cold]
    fn other_slot_or_compile(self, code: Code, key: u64) -> Packed {
        let kept = self.log.rules[slot(key) ^ 1].get();
        if kept.0 ^ kept.1 == key {
            return Packed(kept.1);
        }
        let packed = compile(self.log, code).pack();
        if images::generation() == self.generation {
            keep(self.log, key, packed);
        }
        packed
    }
}

#[inline]
fn slot(key: u64) -> usize {
    (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - SLOT_BITS)) as usize
}

fn compile(log: &Log, code: Code) -> Rule {
    let image = images::find(log, code.instruction());
    let step = image.and_then(|image| cfi::step(&image, code.instruction()));
    Rule {
        step: step.unwrap_or_else(|| step_without_information(code, image.is_some())),
        image: image.map_or(0, |image| image.number),
    }
}

/// Code of which nothing is known may keep a frame pointer. It may also be made at run time, and
/// another piece may lie there later, of which that is true as well: what its instructions are is
/// only asked of code that stays as it is, that of an image.
fn step_without_information(code: Code, is_in_image: bool) -> Step {
    if cfi::is_signal_return(code.address()) {
        Step::Signal
    } else if code.is_exact() {
        let setup = is_in_image.then(|| Setup::at(code.address()));
        interrupted_step(setup.unwrap_or(Setup::Done))
    } else if follows_call(code.address()) {
        Step::FramePointer
    } else {
        Step::Lost
    }
}

/// Before the frame pointer is set up and after it is restored, it is still the caller's.
fn interrupted_step(setup: Setup) -> Step {
    match setup {
        Setup::Done => Step::FramePointer,
        Setup::None => Step::Call {
            cfa: Cfa::Stack(8),
            frame_pointer: None,
        },
        Setup::Pushed => Step::Call {
            cfa: Cfa::Stack(16),
            frame_pointer: Some(-16),
        },
    }
}

fn keep(log: &Log, key: u64, packed: Packed) {
    let first = slot(key);
    let is_free = |index: &usize| log.rules[*index].get() == (0, 0);
    let index = [first, first ^ 1].into_iter().find(is_free);
    // Where both are taken, each in turn gives way: by a bit of the key that is not in the index.
    let kept = &log.rules[index.unwrap_or(first ^ (key as usize >> 3 & 1))];
    kept.check.store(key ^ packed.0, Relaxed);
    kept.packed.store(packed.0, Relaxed);
}

impl RuleSlot {
    #[inline]
    fn get(&self) -> (u64, u64) {
        (self.check.load(Relaxed), self.packed.load(Relaxed))
    }

    /// Forgets the rule.
    pub(crate) fn clear(&self) {
        self.check.store(0, Relaxed);
        self.packed.store(0, Relaxed);
    }
}

/// A [`Rule`] in one word: from the highest bit on, three bits for the kind, one that says whether
/// the frame pointer was saved, 20 for where, 24 for the frame address, 16 for the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Packed(u64);

const KIND_STACK: u64 = 0;
const KIND_FRAME: u64 = 1;
const KIND_SAVED: u64 = 2;
const KIND_END: u64 = 3;
const KIND_SIGNAL: u64 = 4;
const KIND_FRAME_POINTER: u64 = 5;
const KIND_LOST: u64 = 6;
const KIND_SHIFT: u32 = 61;
const IS_SAVED: u64 = 1 << 60;
const SAVED_BITS: u32 = 20;
const SAVED_SHIFT: u32 = CFA_SHIFT + CFA_BITS;
const CFA_BITS: u32 = 24;
const CFA_SHIFT: u32 = 16;

impl Rule {
    /// The rule in one word. Frames of more than eight megabytes cannot be followed.
    fn pack(self) -> Packed {
        let (kind, offset, saved) = match self.step {
            Step::End => (KIND_END, 0, None),
            Step::Signal => (KIND_SIGNAL, 0, None),
            Step::FramePointer => (KIND_FRAME_POINTER, 0, None),
            Step::Lost => (KIND_LOST, 0, None),
            Step::Call { cfa, frame_pointer } => match cfa {
                Cfa::Stack(offset) => (KIND_STACK, offset, frame_pointer),
                Cfa::Frame(offset) => (KIND_FRAME, offset, frame_pointer),
                Cfa::Saved(offset) => (KIND_SAVED, offset, frame_pointer),
            },
        };
        let is_saved = if saved.is_some() { IS_SAVED } else { 0 };
        let offset = signed_bits(offset, CFA_BITS);
        let saved = signed_bits(saved.unwrap_or(0), SAVED_BITS);
        let image = u64::from(self.image);
        Packed(match (offset, saved) {
            (Some(offset), Some(saved)) => {
                kind << KIND_SHIFT | is_saved | saved << SAVED_SHIFT | offset << CFA_SHIFT | image
            }
            _ => KIND_LOST << KIND_SHIFT | image,
        })
    }
}

impl Packed {
    /// One more than the index of the image, or 0.
    #[inline]
    pub(crate) fn image(self) -> u16 {
        self.0 as u16
    }

    /// Says whether the frame address is at [`Self::cfa`] from the stack pointer or frame pointer.
    #[inline]
    pub(crate) fn is_plain(self) -> bool {
        self.0 >> KIND_SHIFT <= KIND_FRAME
    }

    /// Of a plain rule: from the frame pointer, not the stack pointer.
    #[inline]
    pub(crate) fn is_from_frame_pointer(self) -> bool {
        self.0 >> KIND_SHIFT & 1 != 0
    }

    #[inline]
    pub(crate) fn is_end(self) -> bool {
        self.0 >> KIND_SHIFT == KIND_END
    }

    /// The offset of the frame address.
    #[inline]
    pub(crate) fn cfa(self) -> isize {
        signed(self.0, CFA_SHIFT, CFA_BITS)
    }

    /// The offset of the saved frame pointer, if it was saved.
    #[inline]
    pub(crate) fn frame_pointer(self) -> Option<isize> {
        (self.0 & IS_SAVED != 0).then_some(signed(self.0, SAVED_SHIFT, SAVED_BITS))
    }

    pub(crate) fn step(self) -> Step {
        let offset = self.cfa() as i32;
        let frame_pointer = self.frame_pointer().map(|offset| offset as i32);
        let call = |cfa| Step::Call { cfa, frame_pointer };
        match self.0 >> KIND_SHIFT {
            KIND_STACK => call(Cfa::Stack(offset)),
            KIND_FRAME => call(Cfa::Frame(offset)),
            KIND_SAVED => call(Cfa::Saved(offset)),
            KIND_END => Step::End,
            KIND_SIGNAL => Step::Signal,
            KIND_FRAME_POINTER => Step::FramePointer,
            _ => Step::Lost,
        }
    }
}

/// `number` in its lowest `bits`, if it fits.
fn signed_bits(number: i32, bits: u32) -> Option<u64> {
    let limit = 1 << (bits - 1);
    let fits = (-limit..limit).contains(&number);
    fits.then_some(number as u32 as u64 & ((1 << bits) - 1))
}

#[inline]
fn signed(packed: u64, shift: u32, bits: u32) -> isize {
    ((packed << (64 - shift - bits)) as i64 >> (64 - bits)) as isize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_survive_packing() {
        let call = |cfa, frame_pointer| Step::Call { cfa, frame_pointer };
        for step in [
            Step::End,
            Step::Signal,
            Step::FramePointer,
            Step::Lost,
            call(Cfa::Stack(8), None),
            call(Cfa::Stack(8_388_600), Some(-16)),
            call(Cfa::Frame(16), Some(-524_288)),
            call(Cfa::Frame(-4096), Some(0)),
            call(Cfa::Saved(-8), Some(524_280)),
        ] {
            let packed = Rule {
                step,
                image: 0xffff,
            }
            .pack();
            assert_eq!((packed.step(), packed.image()), (step, 0xffff));
        }
    }

    #[test]
    fn frames_that_are_too_large_for_a_word_are_not_followed() {
        let step = Step::Call {
            cfa: Cfa::Stack(1 << 23),
            frame_pointer: None,
        };
        let packed = Rule { step, image: 1 }.pack();
        assert_eq!((packed.step(), packed.image()), (Step::Lost, 1));
    }
}
