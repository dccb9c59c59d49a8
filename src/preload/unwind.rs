//! The stack of an allocation: what changed since the thread's last one is found by the rules of the
//! code, and the rest is compared with memory.
//!
//! A frame is determined by the place of its address on the stack, that address and the frame
//! pointer: the rule of the code at that address leads to the next one. So the outer frames of the
//! last allocation are those of this one as well, where the words that they were read from are the
//! same, and a frame inside of them leads to the same place and frame pointer.

use crate::code::Code;
use crate::log::Log;
use crate::readable::Readable;
use crate::rules::{Cfa, Packed, Step, rule};
use crate::thread::{Frame, Thread};
use crate::{images, nodes};

const WORD: usize = size_of::<usize>();

/// The node of the stack of the function that was called with the stack pointer at `stack_pointer`,
/// where its return address lies, and with `frame_pointer`.
#[inline]
pub(crate) fn stack(
    log: &Log,
    thread: &mut Thread,
    stack_pointer: usize,
    frame_pointer: usize,
) -> u32 {
    images::refresh(log);
    thread.begin(stack_pointer);
    let unchanged = thread.unchanged();
    let mut walk = Walk {
        log,
        unchanged: unchanged.count,
        needs_frame_pointer: unchanged.needs_frame_pointer,
        remembered: thread.len,
        fresh: 0,
        is_interrupted: false,
        thread,
    };
    let end = walk.run(stack_pointer, frame_pointer);
    let is_interrupted = walk.is_interrupted;
    let is_cut = walk.settle(end);
    let node = nodes::intern(log, thread.hash, &thread.frames[..thread.len], is_cut);
    if is_cut || is_interrupted {
        thread.len = 0;
    }
    node
}

impl Thread {
    /// Forgets the last stack where it is of no use: another stack, or other images.
    #[inline]
    fn begin(&mut self, stack_pointer: usize) {
        let generation = images::generation();
        let is_same_stack = self.readable.begin_at(stack_pointer);
        if !is_same_stack || self.generation != generation {
            self.len = 0;
            self.generation = generation;
        }
    }

    /// The outer frames of the last stack that memory still says.
    #[inline]
    fn unchanged(&self) -> Unchanged {
        let mut unchanged = Unchanged {
            count: 0,
            needs_frame_pointer: false,
        };
        for frame in &self.frames[..self.len] {
            if !frame.is_unchanged() {
                break;
            }
            unchanged.count += 1;
            unchanged.needs_frame_pointer = frame
                .use_of_pointer
                .is_needed(unchanged.needs_frame_pointer);
        }
        unchanged
    }
}

/// The outer frames of the last stack that memory still says.
struct Unchanged {
    count: usize,
    /// The innermost one of them leads to the next only with the same frame pointer. Else that one
    /// is saved again before it is used.
    needs_frame_pointer: bool,
}

/// What a frame does with the frame pointer on the way to its caller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum UseOfPointer {
    /// Its caller gets the one that it saved, or none: it does not matter what it was.
    #[default]
    Replaced = 0,
    /// Its caller has the same.
    PassedOn = 1,
    /// It leads to the caller.
    Needed = 2,
}

impl UseOfPointer {
    #[inline]
    fn of(rule: Packed) -> Self {
        if rule.is_plain() && !rule.is_from_frame_pointer() {
            if rule.frame_pointer().is_some() {
                Self::Replaced
            } else {
                Self::PassedOn
            }
        } else if rule.is_end() {
            Self::Replaced
        } else {
            Self::Needed
        }
    }

    /// Whether the frame pointer is needed, if the frames outside need it as `outside` says.
    #[inline]
    fn is_needed(self, outside: bool) -> bool {
        let number = self as u8;
        number & (outside as u8) != 0 || number >= Self::Needed as u8
    }
}

impl Frame {
    /// Says whether the words that the frame was read from are what they were.
    #[inline]
    fn is_unchanged(&self) -> bool {
        remembered_word(self.slot) == self.code.address()
            && (self.frame_pointer_slot == 0
                || remembered_word(self.frame_pointer_slot) == self.frame_pointer)
            && (self.anchor == 0 || remembered_word(self.anchor) == self.slot + WORD)
    }
}

/// The word at `at`, which is a slot of a frame of the last stack: of a stack that was known to be
/// readable, and is the one of this allocation, whose stack pointer is in the same pages.
#[inline]
fn remembered_word(at: usize) -> usize {
    // SAFETY: [`Thread::begin`] has seen that. Pages of a stack that is in use stay.
    unsafe { (at as *const usize).read_unaligned() }
}

/// A walk from the innermost frame outwards.
struct Walk<'a> {
    log: &'a Log,
    thread: &'a mut Thread,
    /// The number of outer frames of the last stack that memory still says.
    unchanged: usize,
    /// See [`Unchanged`]. Further outside it may be the other way round.
    needs_frame_pointer: bool,
    /// The frames of the last stack below this index are outside of the present position.
    remembered: usize,
    /// The number of frames that were found inside of those, so far.
    fresh: usize,
    /// There is a frame that a signal interrupted.
    is_interrupted: bool,
}

/// How a walk ended.
#[derive(Clone, Copy)]
enum End {
    /// The remembered frames are the outer ones of this stack.
    InPlace,
    /// At the start of the thread, with all frames found elsewhere.
    Complete,
    /// Elsewhere.
    Cut,
}

/// A frame whose caller is to be found, and the stack pointer when its code runs on.
struct Position {
    frame: Frame,
    stack_pointer: usize,
}

/// Where a walk goes next.
enum Next {
    Frame(Position),
    /// The thread starts here.
    End,
    /// The caller cannot be found.
    Lost,
}

impl Walk<'_> {
    #[inline]
    fn run(&mut self, stack_pointer: usize, frame_pointer: usize) -> End {
        let readable = &mut self.thread.readable;
        let Some(mut at) = Position::called(readable, stack_pointer, frame_pointer, 0) else {
            return End::Cut;
        };
        loop {
            let rule = if self.is_in_place(&at.frame) {
                match self.find_in_place(&at.frame) {
                    None => return End::InPlace,
                    Some((index, rule)) => {
                        if !self.take_out(index) {
                            return End::Cut;
                        }
                        at = Position::of(self.thread.frames[index]);
                        rule
                    }
                }
            } else {
                rule(self.log, at.frame.code, self.thread.generation)
            };
            if rule.step() == Step::Lost {
                return End::Cut;
            }
            at.frame.code = at.frame.code.with_image(rule.image());
            at.frame.use_of_pointer = UseOfPointer::of(rule);
            if !self.push(at.frame) {
                return End::Cut;
            }
            match self.next(&at, rule) {
                Next::Frame(caller) => at = caller,
                Next::End => return End::Complete,
                Next::Lost => return End::Cut,
            }
        }
    }

    /// Adds a frame, if there is room.
    #[inline]
    fn push(&mut self, frame: Frame) -> bool {
        let has_room = self.fresh < self.log.settings.depth;
        if let (true, Some(place)) = (has_room, self.thread.fresh.get_mut(self.fresh)) {
            *place = frame;
            self.fresh += 1;
        }
        has_room
    }

    /// Says whether the last stack had a frame at the place of `frame`: it is then the last one of
    /// those that are remembered.
    #[inline]
    fn is_in_place(&mut self, frame: &Frame) -> bool {
        while let Some(known) = self.thread.frames[..self.remembered].last() {
            if known.slot >= frame.slot {
                return known.slot == frame.slot && !frame.code.is_exact();
            }
            self.thread.hash = self.thread.hash.wrapping_sub(known.term);
            self.remembered -= 1;
        }
        false
    }

    /// Finds frames where the last stack had some, from the last remembered one outwards.
    ///
    /// Most functions have a frame of one size: whoever called them now, the next frame is where it
    /// was. Its place is known before the rule says so, and the processor looks up the rules of
    /// several frames at the same time.
    ///
    /// It gives the index of a frame that leads to another one than it did, with its rule; `None`
    /// when it came to unchanged frames or to the start of the thread.
    #[inline]
    fn find_in_place(&mut self, innermost: &Frame) -> Option<(usize, Packed)> {
        let generation = self.thread.generation;
        let mut frame_pointer = innermost.frame_pointer;
        let mut frame_pointer_slot = innermost.frame_pointer_slot;
        let mut left_at = None;
        let mut hash = self.thread.hash;
        let mut rest = &mut self.thread.frames[..self.remembered];
        // Only the first one can have been found by a word that a function keeps for itself.
        if let Some(first) = rest.last_mut() {
            first.anchor = innermost.anchor;
        }
        while let Some((frame, outside)) = rest.split_last_mut() {
            frame.frame_pointer_slot = frame_pointer_slot;
            if outside.len() < self.unchanged
                && (frame.frame_pointer == frame_pointer
                    || !self.needs_frame_pointer && outside.len() + 1 == self.unchanged)
            {
                break;
            }
            let slot = frame.slot;
            let code = Code::after_call(remembered_word(slot));
            let rule = rule(self.log, code, generation);
            frame.code = code.with_image(rule.image());
            frame.frame_pointer = frame_pointer;
            frame.use_of_pointer = UseOfPointer::of(rule);
            let term = nodes::term(outside.len(), frame.code);
            hash = hash.wrapping_sub(frame.term).wrapping_add(term);
            frame.term = term;
            let Some(outer) = outside.last_mut() else {
                left_at = (!rule.is_end()).then_some((0, rule));
                break;
            };
            let stack_pointer = slot + WORD;
            let base = if rule.is_from_frame_pointer() {
                frame_pointer
            } else {
                stack_pointer
            };
            let cfa = base.wrapping_add_signed(rule.cfa());
            let outer_slot = crate::arch::opaque(outer.slot);
            if !rule.is_plain() || cfa.wrapping_sub(WORD) != outer_slot {
                left_at = Some((outside.len(), rule));
                break;
            }
            frame_pointer_slot = 0;
            if let Some(offset) = rule.frame_pointer() {
                frame_pointer_slot = cfa.wrapping_add_signed(offset);
                if frame_pointer_slot.wrapping_sub(stack_pointer) >= outer_slot - stack_pointer {
                    left_at = Some((outside.len(), rule));
                    break;
                }
                frame_pointer = remembered_word(frame_pointer_slot);
            }
            outer.anchor = 0;
            rest = outside;
        }
        self.thread.hash = hash;
        left_at
    }

    /// Takes the remembered frames inside of `outermost` as found elsewhere.
    #[inline]
    fn take_out(&mut self, outermost: usize) -> bool {
        for index in (outermost..self.remembered).rev() {
            let frame = self.thread.frames[index];
            self.thread.hash = self.thread.hash.wrapping_sub(frame.term);
            if index > outermost && !self.push(frame) {
                return false;
            }
        }
        self.remembered = outermost;
        self.unchanged = self.unchanged.min(outermost);
        true
    }

    #[inline]
    fn next(&mut self, at: &Position, rule: Packed) -> Next {
        let readable = &mut self.thread.readable;
        let found = match rule.step() {
            Step::End => return Next::End,
            Step::Call { cfa, frame_pointer } => caller(readable, at, cfa, frame_pointer),
            Step::FramePointer if at.frame.frame_pointer == 0 => return Next::End,
            Step::FramePointer => caller_by_frame_pointer(readable, at),
            Step::Signal => self.interrupted(at),
            Step::Lost => None,
        };
        match found {
            None => Next::Lost,
            // The ABI lets a program mark its first frame with a return address of zero.
            Some(caller) if caller.frame.code.address() == 0 => Next::End,
            Some(caller) => Next::Frame(caller),
        }
    }

    /// The frame that a signal interrupted: the kernel has put its registers (`ucontext_t`) where the
    /// handler returns to.
    #[cold]
    fn interrupted(&mut self, at: &Position) -> Option<Position> {
        const FRAME_POINTER: usize = 120;
        const STACK_POINTER: usize = 160;
        const INSTRUCTION_POINTER: usize = 168;
        self.is_interrupted = true;
        let readable = &mut self.thread.readable;
        let frame_pointer = readable.word(at.stack_pointer.checked_add(FRAME_POINTER)?)?;
        let stack_pointer = readable.word(at.stack_pointer.checked_add(STACK_POINTER)?)?;
        let slot = at.stack_pointer.checked_add(INSTRUCTION_POINTER)?;
        let address = readable.word(slot)?;
        // The handler may have had a stack of its own.
        if stack_pointer < slot || readable.word(stack_pointer).is_none() {
            readable.begin_at(stack_pointer);
            self.remembered = 0;
            self.unchanged = 0;
        }
        let frame = Frame {
            slot,
            code: Code::interrupted(address),
            frame_pointer,
            ..Frame::default()
        };
        Some(Position {
            frame,
            stack_pointer,
        })
    }

    /// Puts the frames that were found behind those that are in place, and says whether the stack
    /// is cut.
    #[inline]
    fn settle(self, end: End) -> bool {
        let thread = self.thread;
        let in_place = match end {
            End::InPlace => self.remembered,
            End::Complete | End::Cut => 0,
        };
        let is_cut = matches!(end, End::Cut) || in_place + self.fresh > self.log.settings.depth;
        if in_place == 0 {
            thread.hash = nodes::hash_of_end(is_cut);
        }
        let found = thread.fresh[..self.fresh].iter().rev();
        for (index, (place, frame)) in
            (in_place..).zip(thread.frames[in_place..].iter_mut().zip(found))
        {
            let term = nodes::term(index, frame.code);
            thread.hash = thread.hash.wrapping_add(term);
            *place = Frame { term, ..*frame };
        }
        thread.len = in_place + self.fresh;
        if is_cut {
            thread.keep_innermost(self.log.settings.depth);
        }
        is_cut
    }
}

impl Thread {
    /// Drops the outermost frames, if there are more than `depth`.
    #[cold]
    fn keep_innermost(&mut self, depth: usize) {
        let excess = self.len.saturating_sub(depth);
        self.frames.copy_within(excess..self.len, 0);
        self.len -= excess;
        self.hash = nodes::hash_of_end(true);
        for (index, frame) in self.frames[..self.len].iter().enumerate() {
            self.hash = self.hash.wrapping_add(nodes::term(index, frame.code));
        }
    }
}

impl Position {
    /// The frame whose return address is at `slot`.
    #[inline]
    fn called(
        readable: &mut Readable,
        slot: usize,
        frame_pointer: usize,
        frame_pointer_slot: usize,
    ) -> Option<Self> {
        let code = Code::after_call(readable.word(slot)?);
        Some(Self::of(Frame {
            slot,
            code,
            frame_pointer,
            frame_pointer_slot,
            ..Frame::default()
        }))
    }

    /// A frame whose code runs on after a call: the call has left the stack pointer above the return
    /// address.
    #[inline]
    fn of(frame: Frame) -> Self {
        Self {
            stack_pointer: frame.slot + WORD,
            frame,
        }
    }
}

/// The caller, as the rule says.
#[inline]
fn caller(
    readable: &mut Readable,
    at: &Position,
    cfa: Cfa,
    saved: Option<i32>,
) -> Option<Position> {
    let frame_pointer = at.frame.frame_pointer;
    let beyond = |base: usize, offset: i32| base.wrapping_add_signed(offset as isize);
    let mut anchor = 0;
    let mut saved_from = frame_pointer;
    let address = match cfa {
        Cfa::Stack(offset) => beyond(at.stack_pointer, offset),
        Cfa::Frame(offset) => beyond(frame_pointer, offset),
        Cfa::Saved(offset) => {
            anchor = beyond(frame_pointer, offset);
            readable.word(anchor)?
        }
    };
    if anchor == 0 {
        saved_from = address;
    }
    let slot = address.checked_sub(WORD)?;
    // Stacks grow downwards: what is not above would lead in a circle.
    if slot < at.stack_pointer {
        return None;
    }
    let mut caller = match saved {
        None => Position::called(readable, slot, frame_pointer, 0)?,
        Some(offset) => {
            let saved_at = beyond(saved_from, offset);
            let frame_pointer = readable.word(saved_at)?;
            Position::called(readable, slot, frame_pointer, saved_at)?
        }
    };
    caller.frame.anchor = anchor;
    Some(caller)
}

/// The caller, if the frame pointer leads to it.
#[cold]
fn caller_by_frame_pointer(readable: &mut Readable, at: &Position) -> Option<Position> {
    let saved_at = at.frame.frame_pointer;
    if !saved_at.is_multiple_of(WORD) || saved_at < at.stack_pointer {
        return None;
    }
    let frame_pointer = readable.word(saved_at)?;
    Position::called(
        readable,
        saved_at.checked_add(WORD)?,
        frame_pointer,
        saved_at,
    )
}
