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
use crate::rules::{Cfa, Packed, Rules, Step};
use crate::thread::{Frame, Thread};
use crate::{images, nodes};

const WORD: usize = size_of::<usize>();

/// The node of the stack of the function that was called with the stack pointer at `stack_pointer`,
/// where its return address lies, and with `frame_pointer`.
#[inline]
pub(crate) fn stack(
    log: &'static Log,
    thread: &mut Thread,
    stack_pointer: usize,
    frame_pointer: usize,
) -> u32 {
    images::refresh(log);
    thread.begin(stack_pointer);
    let mut walk = Walk {
        rules: Rules::new(log, thread.generation),
        depth: log.settings.depth,
        unchanged: thread.unchanged(),
        remembered: thread.len,
        fresh: 0,
        is_interrupted: false,
        thread,
    };
    let end = walk.run(stack_pointer, frame_pointer);
    let is_interrupted = walk.is_interrupted;
    let (hash, is_cut) = walk.settle(end);
    let node = nodes::intern(log, hash, &thread.frames[..thread.len], is_cut);
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

    /// The number of outer frames of the last stack that memory still says.
    #[inline]
    fn unchanged(&self) -> usize {
        let frames = &self.frames[..self.len];
        let changed = frames.iter().position(|frame| frame.differs());
        changed.unwrap_or(frames.len())
    }
}

impl Frame {
    /// Says whether one of the words that the frame was found by is another one now.
    #[inline]
    fn differs(&self) -> bool {
        let address = remembered_word(self.slot) ^ self.address;
        let saved = remembered_word(self.saved_at) ^ self.saved;
        address | saved != 0
    }

    /// The frame whose return address is at `slot`, reached with this frame pointer.
    #[inline]
    fn called(slot: usize, address: usize, frame_pointer: FramePointer) -> Self {
        let mut frame = Self {
            slot,
            address,
            code: Code::after_call(address),
            ..Self::default()
        };
        frame.reach(frame_pointer);
        frame
    }

    /// Takes note of the frame pointer with which the frame was reached.
    #[inline]
    fn reach(&mut self, frame_pointer: FramePointer) {
        self.frame_pointer = frame_pointer.value;
        (self.saved_at, self.saved) = match frame_pointer.from {
            Source::Register => (self.slot, self.address),
            Source::Saved(at) => (at, frame_pointer.value),
            // A word that is never what it should be.
            Source::Several => (self.slot, !self.address),
        };
    }
}

/// A frame pointer, and what it was found by.
#[derive(Clone, Copy)]
struct FramePointer {
    value: usize,
    from: Source,
}

/// What a frame pointer was found by.
#[derive(Clone, Copy)]
enum Source {
    /// The frame inside has the same.
    Register,
    /// The word at this address.
    Saved(usize),
    /// More than the words that a [`Frame`] has: it is always found anew.
    Several,
}

/// The word at `at`, which is a slot of a frame of the last stack: of a stack that was known to be
/// readable, and is the one of this allocation, whose stack pointer is in the same pages.
#[inline]
fn remembered_word(at: usize) -> usize {
    // SAFETY: [`Thread::begin`] has seen that. Pages of a stack that is in use stay.
    unsafe { (at as *const usize).read_unaligned() }
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
}

/// A walk from the innermost frame outwards.
struct Walk<'a> {
    rules: Rules,
    depth: usize,
    thread: &'a mut Thread,
    /// The number of outer frames of the last stack that memory still says.
    unchanged: usize,
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
    /// The remembered frames are the outer ones of this stack, and below this index those of the
    /// last one.
    InPlace(usize),
    /// At the start of the thread, with all frames found elsewhere.
    Complete,
    /// Elsewhere.
    Cut,
}

/// How far frames could be found in place.
enum InPlace {
    /// To the start of the thread. Below this index they are unchanged.
    Ended(usize),
    /// The frame at this index leads to another one than it did.
    LeftAt(usize, Packed),
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
        let pointer = FramePointer {
            value: frame_pointer,
            from: Source::Register,
        };
        let Some(mut at) = Position::called(readable, stack_pointer, pointer) else {
            return End::Cut;
        };
        loop {
            let rule = if self.is_in_place(&at.frame) {
                match self.find_in_place(&at.frame) {
                    InPlace::Ended(unchanged) => return End::InPlace(unchanged),
                    InPlace::LeftAt(index, rule) => {
                        if !self.take_out(index) {
                            return End::Cut;
                        }
                        at = Position::of(self.thread.frames[index]);
                        rule
                    }
                }
            } else {
                self.rules.get(at.frame.code)
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
        let has_room = self.fresh < self.depth;
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
            self.remembered -= 1;
        }
        false
    }

    /// Finds frames where the last stack had some, from the last remembered one outwards.
    ///
    /// Most functions have a frame of one size: whoever called them now, the next frame is where it
    /// was. Its place is known before the rule says so, and the processor looks up the rules of
    /// several frames at the same time.
    #[inline]
    fn find_in_place(&mut self, innermost: &Frame) -> InPlace {
        let rules = self.rules;
        let unchanged = self.unchanged;
        let mut frame_pointer = innermost.frame_pointer;
        let mut rest = &mut self.thread.frames[..self.remembered];
        if let Some(frame) = rest.last_mut() {
            (frame.saved_at, frame.saved) = (innermost.saved_at, innermost.saved);
        }
        while let Some((frame, outside)) = rest.split_last_mut() {
            let is_joined = outside.len() < unchanged
                && (frame.frame_pointer == frame_pointer || !frame.needs_frame_pointer);
            frame.frame_pointer = frame_pointer;
            if is_joined {
                return InPlace::Ended(outside.len());
            }
            let slot = frame.slot;
            frame.address = remembered_word(slot);
            let code = Code::after_call(frame.address);
            let rule = rules.get(code);
            frame.code = code.with_image(rule.image());
            frame.use_of_pointer = UseOfPointer::of(rule);
            let Some(outer) = outside.last_mut() else {
                return if rule.is_end() {
                    InPlace::Ended(0)
                } else {
                    InPlace::LeftAt(0, rule)
                };
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
                return InPlace::LeftAt(outside.len(), rule);
            }
            if let Some(offset) = rule.frame_pointer() {
                let saved_at = cfa.wrapping_add_signed(offset);
                if saved_at.wrapping_sub(stack_pointer) >= outer_slot - stack_pointer {
                    return InPlace::LeftAt(outside.len(), rule);
                }
                frame_pointer = remembered_word(saved_at);
                (outer.saved_at, outer.saved) = (saved_at, frame_pointer);
            } else {
                (outer.saved_at, outer.saved) = (outer_slot, remembered_word(outer_slot));
            }
            rest = outside;
        }
        InPlace::Ended(0)
    }

    /// Takes the remembered frames inside of `outermost` as found elsewhere.
    #[inline]
    fn take_out(&mut self, outermost: usize) -> bool {
        for index in (outermost + 1..self.remembered).rev() {
            if !self.push(self.thread.frames[index]) {
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
            Some(caller) if caller.frame.address == 0 => Next::End,
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
            address,
            code: Code::interrupted(address),
            frame_pointer,
            ..Frame::default()
        };
        Some(Position {
            frame,
            stack_pointer,
        })
    }

    /// Puts the frames that were found behind those that are in place, and gives the stack's hash
    /// and whether it is cut.
    #[inline]
    fn settle(self, end: End) -> (u64, bool) {
        let thread = self.thread;
        let (in_place, unchanged) = match end {
            End::InPlace(unchanged) => (self.remembered, unchanged),
            End::Complete | End::Cut => (0, 0),
        };
        let found = thread.fresh[..self.fresh].iter().rev();
        for (place, frame) in thread.frames[in_place..].iter_mut().zip(found) {
            *place = *frame;
        }
        thread.len = in_place + self.fresh;
        if matches!(end, End::Cut) || thread.len > self.depth {
            return (thread.keep_innermost(self.depth), true);
        }
        (thread.finish(unchanged, nodes::hash_of_end(false)), false)
    }
}

impl Thread {
    /// Completes the frames from `first` on, from what is true of the one outside of each, and gives
    /// the hash of all. `end` is that of no frames.
    #[inline]
    fn finish(&mut self, first: usize, end: u64) -> u64 {
        let (outer, changed) = self.frames[..self.len].split_at_mut(first);
        let (mut hash, mut needs_frame_pointer) = match outer.last() {
            Some(frame) => (frame.hash, frame.needs_frame_pointer),
            None => (end, false),
        };
        for (index, frame) in (first..).zip(changed) {
            hash = nodes::hash(hash, index, frame.code);
            frame.hash = hash;
            needs_frame_pointer = match frame.use_of_pointer {
                UseOfPointer::Needed => true,
                UseOfPointer::PassedOn => needs_frame_pointer,
                UseOfPointer::Replaced => false,
            };
            frame.needs_frame_pointer = needs_frame_pointer;
        }
        hash
    }

    /// Drops the outermost frames, if there are more than `depth`, and gives the hash of what is
    /// left, a stack that is cut.
    #[cold]
    fn keep_innermost(&mut self, depth: usize) -> u64 {
        let excess = self.len.saturating_sub(depth);
        self.frames.copy_within(excess..self.len, 0);
        self.len -= excess;
        self.finish(0, nodes::hash_of_end(true))
    }
}

impl Position {
    /// The frame whose return address is at `slot`, reached with this frame pointer.
    #[inline]
    fn called(readable: &mut Readable, slot: usize, frame_pointer: FramePointer) -> Option<Self> {
        let address = readable.word(slot)?;
        Some(Self::of(Frame::called(slot, address, frame_pointer)))
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
    let (address, saved_from) = match cfa {
        Cfa::Stack(offset) => (beyond(at.stack_pointer, offset), None),
        Cfa::Frame(offset) => (beyond(frame_pointer, offset), None),
        Cfa::Saved(offset) => (
            readable.word(beyond(frame_pointer, offset))?,
            Some(frame_pointer),
        ),
    };
    let slot = address.checked_sub(WORD)?;
    // Stacks grow downwards: what is not above would lead in a circle.
    if slot < at.stack_pointer {
        return None;
    }
    let mut pointer = FramePointer {
        value: frame_pointer,
        from: Source::Register,
    };
    if let Some(offset) = saved {
        let saved_at = beyond(saved_from.unwrap_or(address), offset);
        pointer = FramePointer {
            value: readable.word(saved_at)?,
            from: Source::Saved(saved_at),
        };
    }
    if saved_from.is_some() {
        pointer.from = Source::Several;
    }
    Position::called(readable, slot, pointer)
}

/// The caller, if the frame pointer leads to it.
#[cold]
fn caller_by_frame_pointer(readable: &mut Readable, at: &Position) -> Option<Position> {
    let saved_at = at.frame.frame_pointer;
    if !saved_at.is_multiple_of(WORD) || saved_at < at.stack_pointer {
        return None;
    }
    let pointer = FramePointer {
        value: readable.word(saved_at)?,
        from: Source::Saved(saved_at),
    };
    Position::called(readable, saved_at.checked_add(WORD)?, pointer)
}
