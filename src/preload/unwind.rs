//! The stack of an allocation: what changed since the thread's last one is unwound, and the rest is
//! compared with memory.
//!
//! A frame is determined by the place of its address on the stack, that address and the frame
//! pointer: the rule of the code at that address leads to the next one. So where these three are
//! those of a frame of the last allocation, the frames outside of it are the same for as long as the
//! words that they were read from are.

use crate::code::Code;
use crate::log::Log;
use crate::readable::Readable;
use crate::rules::{Cfa, Rule, Step, rule};
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
    let mut walk = Walk {
        log,
        remembered: thread.len,
        fresh: 0,
        has_switched: false,
        depth: log.settings.depth,
        thread,
    };
    let end = walk.run(stack_pointer, frame_pointer);
    let has_switched = walk.has_switched;
    walk.settle(&end);
    let node = nodes::intern(log, &thread.frames[..thread.len], thread.is_cut);
    if has_switched {
        // Frames on two stacks: of one of them it is not known whether it can still be read.
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
}

impl Frame {
    /// A [`Self::frame_pointer_slot`] that says: other words than the frame's own led to it.
    const SEVERAL: usize = usize::MAX;

    /// Says whether the words that the frame was read from are what they were.
    #[inline]
    fn is_unchanged(&self, readable: &Readable) -> bool {
        let is = |slot: usize, value: usize| readable.known_word(slot) == Some(value);
        is(self.slot, self.code.address())
            && (self.frame_pointer_slot == 0 || is(self.frame_pointer_slot, self.frame_pointer))
    }
}

/// A walk from the innermost frame outwards.
struct Walk<'a> {
    log: &'a Log,
    thread: &'a mut Thread,
    /// The frames below this index of the last stack may still be there.
    remembered: usize,
    /// The number of frames that were found so far.
    fresh: usize,
    /// The frames are on more than one stack.
    has_switched: bool,
    depth: usize,
}

/// How a walk ended.
enum End {
    /// At frames that are still those of the last allocation, up to the start of the thread.
    Joined,
    /// At the start of the thread.
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
            if self.is_remembered(&at.frame) {
                match self.reuse() {
                    Reused::All => return End::Joined,
                    Reused::UpTo(outermost) => at = outermost,
                    Reused::Lost => return End::Cut,
                }
            }
            let Some(rule) = rule(self.log, at.frame.code, self.thread.generation) else {
                return End::Cut;
            };
            at.frame.code = at.frame.code.with_image(rule.image);
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

    /// Says whether `frame` is the innermost one of those remembered that can still be there.
    #[inline]
    fn is_remembered(&mut self, frame: &Frame) -> bool {
        while let Some(known) = self.thread.frames[..self.remembered].last() {
            if known.slot >= frame.slot {
                return known.slot == frame.slot
                    && known.code.place() == frame.code.place()
                    && known.frame_pointer == frame.frame_pointer;
            }
            self.remembered -= 1;
        }
        false
    }

    /// Goes through the remembered frames as far as memory says the same.
    #[inline]
    fn reuse(&mut self) -> Reused {
        let frames = &self.thread.frames[..self.remembered];
        let readable = &self.thread.readable;
        let outside = frames.iter().rev().skip(1);
        let unchanged = outside
            .take_while(|frame| frame.is_unchanged(readable))
            .count();
        if unchanged + 1 == self.remembered && !self.thread.is_cut {
            return Reused::All;
        }
        self.find_again(self.remembered - 1 - unchanged)
    }

    /// Takes the remembered frames inside of `outermost` as found. That one's caller is another one
    /// now, or was never found.
    #[inline]
    fn find_again(&mut self, outermost: usize) -> Reused {
        for index in (outermost + 1..self.remembered).rev() {
            if !self.push(self.thread.frames[index]) {
                return Reused::Lost;
            }
        }
        self.remembered = outermost;
        let frame = self.thread.frames[outermost];
        match frame.stack_pointer(&mut self.thread.readable) {
            Some(stack_pointer) => Reused::UpTo(Position {
                frame,
                stack_pointer,
            }),
            None => Reused::Lost,
        }
    }

    #[inline]
    fn next(&mut self, at: &Position, rule: Rule) -> Next {
        let readable = &mut self.thread.readable;
        let found = match rule.step {
            Step::End => return Next::End,
            Step::Call { cfa, frame_pointer } => caller(readable, at, cfa, frame_pointer),
            Step::FramePointer if at.frame.frame_pointer == 0 => return Next::End,
            Step::FramePointer => caller_by_frame_pointer(readable, at),
            Step::Signal => self.interrupted(at),
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
        let readable = &mut self.thread.readable;
        let frame_pointer = readable.word(at.stack_pointer + FRAME_POINTER)?;
        let stack_pointer = readable.word(at.stack_pointer + STACK_POINTER)?;
        let slot = at.stack_pointer + INSTRUCTION_POINTER;
        let address = readable.word(slot)?;
        // The handler may have had a stack of its own.
        if stack_pointer < slot || readable.word(stack_pointer).is_none() {
            readable.begin_at(stack_pointer);
            self.has_switched = true;
            self.remembered = 0;
        }
        let frame = Frame {
            slot,
            code: Code::interrupted(address),
            frame_pointer,
            frame_pointer_slot: Frame::SEVERAL,
            hash: 0,
        };
        Some(Position {
            frame,
            stack_pointer,
        })
    }

    /// Puts the frames that were found in the place of those that are gone.
    #[inline]
    fn settle(self, end: &End) {
        let thread = self.thread;
        let mut kept = match end {
            End::Joined => self.remembered,
            End::Complete | End::Cut => 0,
        };
        let excess = (kept + self.fresh).saturating_sub(self.depth);
        if excess > 0 {
            kept = thread.drop_outermost(kept, excess);
        } else if kept == 0 {
            thread.is_cut = matches!(end, End::Cut);
        }
        let mut hash = match thread.frames[..kept].last() {
            Some(frame) => frame.hash,
            None => nodes::hash_of_end(thread.is_cut),
        };
        let found = thread.fresh[..self.fresh].iter().rev();
        for (place, frame) in thread.frames[kept..].iter_mut().zip(found) {
            hash = nodes::hash(hash, frame.code);
            *place = Frame { hash, ..*frame };
        }
        thread.len = kept + self.fresh;
    }
}

/// What became of the remembered frames.
enum Reused {
    /// They are all still there.
    All,
    /// They are there up to this one.
    UpTo(Position),
    /// No more frames are kept.
    Lost,
}

impl Thread {
    /// Drops the `count` outermost ones of `kept` frames, and says how many are left.
    #[cold]
    fn drop_outermost(&mut self, kept: usize, count: usize) -> usize {
        let count = count.min(kept);
        self.frames.copy_within(count..kept, 0);
        self.is_cut = true;
        let mut hash = nodes::hash_of_end(true);
        for frame in &mut self.frames[..kept - count] {
            hash = nodes::hash(hash, frame.code);
            frame.hash = hash;
        }
        kept - count
    }
}

impl Frame {
    /// The stack pointer when the frame's code runs on: above the return address or, where a signal
    /// interrupted it, in the word below the address (`gregs` of `<sys/ucontext.h>`).
    fn stack_pointer(&self, readable: &mut Readable) -> Option<usize> {
        if self.code.is_exact() {
            readable.word(self.slot.checked_sub(WORD)?)
        } else {
            self.slot.checked_add(WORD)
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
        let frame = Frame {
            slot,
            code: Code::after_call(readable.word(slot)?),
            frame_pointer,
            frame_pointer_slot,
            hash: 0,
        };
        Some(Self {
            frame,
            stack_pointer: slot.wrapping_add(WORD),
        })
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
    let (address, saved_from) = match cfa {
        Cfa::Stack(offset) => {
            let address = at.stack_pointer.wrapping_add_signed(offset as isize);
            (address, address)
        }
        Cfa::Frame(offset) => {
            let address = frame_pointer.wrapping_add_signed(offset as isize);
            (address, address)
        }
        Cfa::Saved(offset) => (
            readable.word(frame_pointer.wrapping_add_signed(offset as isize))?,
            frame_pointer,
        ),
    };
    let slot = address.checked_sub(WORD)?;
    // Stacks grow downwards: what is not above would lead in a circle.
    if slot < at.stack_pointer {
        return None;
    }
    let Some(offset) = saved else {
        let slot_of_pointer = if matches!(cfa, Cfa::Saved(_)) {
            Frame::SEVERAL
        } else {
            0
        };
        return Position::called(readable, slot, frame_pointer, slot_of_pointer);
    };
    let saved_at = saved_from.wrapping_add_signed(offset as isize);
    let frame_pointer = readable.word(saved_at)?;
    let saved_at = if matches!(cfa, Cfa::Saved(_)) {
        Frame::SEVERAL
    } else {
        saved_at
    };
    Position::called(readable, slot, frame_pointer, saved_at)
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
