//! What the frames of a piece of code look like: compiled once for each address, and kept.

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use crate::code::{Code, follows_call};
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
/// The key is written last and cleared first, so that a reader who sees it before and after reading
/// the rule has the rule that belongs to it.
#[derive(Debug)]
pub(crate) struct RuleSlot {
    key: AtomicU64,
    packed: AtomicU64,
}

/// The number of rules that are kept. Code of which more than this is active is compiled again.
pub(crate) const SLOTS: usize = 1 << SLOT_BITS;
const SLOT_BITS: u32 = 15;
const GENERATION_SHIFT: u32 = 48;

/// The rule for `code` in this generation of images. `None` for what cannot be an address of code
/// in a frame.
#[inline]
pub(crate) fn rule(log: &Log, code: Code, generation: u16) -> Option<Rule> {
    let key = code.place() | u64::from(generation) << GENERATION_SHIFT;
    let first = slot(key);
    for index in [first, first ^ 1] {
        let kept = &log.rules[index];
        if kept.key.load(Acquire) == key {
            let packed = kept.packed.load(Acquire);
            if kept.key.load(Relaxed) == key {
                return Some(Rule::unpack(packed));
            }
        }
    }
    compile(log, code, generation, key)
}

#[inline]
fn slot(key: u64) -> usize {
    (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - SLOT_BITS)) as usize
}

#[cold]
fn compile(log: &Log, code: Code, generation: u16, key: u64) -> Option<Rule> {
    let rule = match images::find(log, code.instruction()) {
        Some(image) => Rule {
            step: step_in_image(&image, code)?,
            image: image.number,
        },
        // Code that was made at run time. It is not kept: another piece may lie there next.
        None => {
            let step = step_without_image(code)?;
            return Some(Rule { step, image: 0 });
        }
    };
    if images::generation() == generation {
        keep(log, key, rule);
    }
    Some(rule)
}

fn step_in_image(image: &images::Loaded, code: Code) -> Option<Step> {
    let step = cfi::step(image, code.instruction());
    step.or_else(|| step_without_image(code))
}

fn step_without_image(code: Code) -> Option<Step> {
    if cfi::is_signal_return(code.address()) {
        return Some(Step::Signal);
    }
    (code.is_exact() || follows_call(code.address())).then_some(Step::FramePointer)
}

fn keep(log: &Log, key: u64, rule: Rule) {
    let Some(packed) = rule.pack() else { return };
    let first = slot(key);
    let is_free = |index: &usize| log.rules[*index].key.load(Relaxed) == 0;
    let index = [first, first ^ 1].into_iter().find(is_free);
    // Where both are taken, each in turn gives way: by a bit of the key that is not in the index.
    let kept = &log.rules[index.unwrap_or(first ^ (key as usize >> 3 & 1))];
    kept.key.store(0, Relaxed);
    core::sync::atomic::fence(Release);
    kept.packed.store(packed, Release);
    kept.key.store(key, Release);
}

impl RuleSlot {
    /// Forgets the rule.
    pub(crate) fn clear(&self) {
        self.key.store(0, Relaxed);
    }
}

const KIND_END: u64 = 1;
const KIND_STACK: u64 = 2;
const KIND_FRAME: u64 = 3;
const KIND_SAVED: u64 = 4;
const KIND_SIGNAL: u64 = 5;
const KIND_FRAME_POINTER: u64 = 6;
const KIND_MASK: u64 = 7;
const IS_SAVED: u64 = 8;
const SAVED_SHIFT: u32 = 4;
const SAVED_BITS: u32 = 20;
const CFA_SHIFT: u32 = SAVED_SHIFT + SAVED_BITS;
const CFA_BITS: u32 = 24;
const IMAGE_SHIFT: u32 = CFA_SHIFT + CFA_BITS;

impl Rule {
    /// The rule in one word. `None` for frames of more than eight megabytes.
    fn pack(self) -> Option<u64> {
        let (kind, offset, saved) = match self.step {
            Step::End => (KIND_END, 0, None),
            Step::Signal => (KIND_SIGNAL, 0, None),
            Step::FramePointer => (KIND_FRAME_POINTER, 0, None),
            Step::Call { cfa, frame_pointer } => match cfa {
                Cfa::Stack(offset) => (KIND_STACK, offset, frame_pointer),
                Cfa::Frame(offset) => (KIND_FRAME, offset, frame_pointer),
                Cfa::Saved(offset) => (KIND_SAVED, offset, frame_pointer),
            },
        };
        let offset = signed_bits(offset, CFA_BITS)? << CFA_SHIFT;
        let is_saved = if saved.is_some() { IS_SAVED } else { 0 };
        let saved = signed_bits(saved.unwrap_or(0), SAVED_BITS)? << SAVED_SHIFT;
        Some(kind | is_saved | saved | offset | u64::from(self.image) << IMAGE_SHIFT)
    }

    #[inline]
    fn unpack(packed: u64) -> Self {
        let offset = signed(packed, CFA_SHIFT, CFA_BITS);
        let frame_pointer =
            (packed & IS_SAVED != 0).then_some(signed(packed, SAVED_SHIFT, SAVED_BITS));
        let call = |cfa| Step::Call { cfa, frame_pointer };
        let step = match packed & KIND_MASK {
            KIND_STACK => call(Cfa::Stack(offset)),
            KIND_FRAME => call(Cfa::Frame(offset)),
            KIND_SAVED => call(Cfa::Saved(offset)),
            KIND_SIGNAL => Step::Signal,
            KIND_FRAME_POINTER => Step::FramePointer,
            _ => Step::End,
        };
        Self {
            step,
            image: (packed >> IMAGE_SHIFT) as u16,
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
fn signed(packed: u64, shift: u32, bits: u32) -> i32 {
    ((packed << (64 - shift - bits)) as i64 >> (64 - bits)) as i32
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
            call(Cfa::Stack(8), None),
            call(Cfa::Stack(8_388_600), Some(-16)),
            call(Cfa::Frame(16), Some(-524_288)),
            call(Cfa::Frame(-4096), Some(0)),
            call(Cfa::Saved(-8), Some(524_280)),
        ] {
            let rule = Rule {
                step,
                image: 0xffff,
            };
            assert_eq!(Rule::unpack(rule.pack().expect("fits")), rule);
        }
    }

    #[test]
    fn frames_that_are_too_large_for_a_word_are_not_kept() {
        let step = Step::Call {
            cfa: Cfa::Stack(1 << 23),
            frame_pointer: None,
        };
        assert_eq!(Rule { step, image: 1 }.pack(), None);
    }
}
