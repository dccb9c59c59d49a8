//! Threads, as the notes of a core file have them: `struct elf_prstatus` in `<sys/procfs.h>`, with the
//! registers as the kernel's `user_regs_struct` of each machine.

use super::{CoreFile, CoreNote, Machine};
use crate::addr::{Addr, AddrRange};
use crate::memory::{Memory, Width};
use crate::snapshot::Thread;

const NT_PRSTATUS: u32 = 1;
const NT_PRFPREG: u32 = 2;
const NT_PRXFPREG: u32 = 0x46e6_2b7f;
const NT_386_TLS: u32 = 0x200;
const NT_X86_XSTATE: u32 = 0x202;
const NT_ARM_TLS: u32 = 0x401;

/// More than any structure of a thread has.
const LARGEST: u64 = 64 << 10;
/// What the kernel has in the result register as long as a system call has none, and while it is
/// interrupted: `-ENOSYS`, and `-EINTR` and the codes by which it restarts.
const UNFINISHED: [i64; 7] = [-38, -4, -512, -513, -514, -515, -516];

/// Where a machine's registers are in `elf_prstatus`, and which is which.
struct Layout {
    pid: usize,
    registers: usize,
    count: usize,
    instruction_pointer: usize,
    stack_pointer: usize,
    /// The number and the result of a system call.
    call: Option<(usize, usize)>,
    /// The base of `fs`.
    thread_pointer: Option<usize>,
}

impl Layout {
    fn of(machine: Machine) -> Self {
        match machine {
            Machine::I386 => Self {
                pid: 24,
                registers: 72,
                count: 17,
                instruction_pointer: 12,
                stack_pointer: 15,
                call: Some((11, 6)),
                thread_pointer: None,
            },
            Machine::X86_64 => Self {
                pid: 32,
                registers: 112,
                count: 27,
                instruction_pointer: 16,
                stack_pointer: 19,
                call: Some((15, 10)),
                thread_pointer: Some(21),
            },
            Machine::Aarch64 => Self {
                pid: 32,
                registers: 112,
                count: 34,
                instruction_pointer: 32,
                stack_pointer: 31,
                call: None,
                thread_pointer: None,
            },
        }
    }
}

/// The threads of `core`, that of the first note first: the kernel puts the one there that ended the
/// process, others the main thread.
pub(super) fn threads(core: &CoreFile) -> Vec<Thread> {
    let mut threads: Vec<Thread> = Vec::new();
    for note in &core.notes {
        if (note.owner, note.kind) == ("CORE", NT_PRSTATUS) {
            threads.extend(
                core.content(note, LARGEST)
                    .map(|status| thread(core.machine, &status)),
            );
        } else if let Some(thread) = threads.last_mut() {
            add(core, note, thread);
        }
    }
    threads
}

fn thread(machine: Machine, status: &[u8]) -> Thread {
    let layout = Layout::of(machine);
    let width = machine.width();
    let registers = status.get(layout.registers..).unwrap_or_default();
    let general: Vec<u64> = width.words(registers).take(layout.count).collect();
    let register = |index: usize| general.get(index).copied().unwrap_or(0);
    let tid = Width::Four.word(status.get(layout.pid..).unwrap_or_default());
    let tid = u32::try_from(tid.unwrap_or(0)).unwrap_or(0);
    let call = layout.call.and_then(|(number, result)| {
        let [number, result] = [number, result].map(|index| signed(width, register(index)));
        let is_unfinished = UNFINISHED.contains(&result);
        u64::try_from(number).ok().filter(|_| is_unfinished)
    });
    Thread {
        tid,
        inner_tid: tid,
        width: Some(width),
        instruction_pointer: Addr(register(layout.instruction_pointer)),
        stack_pointer: Addr(register(layout.stack_pointer)),
        thread_pointer: Addr(layout.thread_pointer.map_or(0, register)),
        system_call: call,
        general,
        vector: Vec::new(),
    }
}

fn signed(width: Width, value: u64) -> i64 {
    match u32::try_from(value) {
        Ok(value) if width == Width::Four => value.cast_signed().into(),
        _ => value.cast_signed(),
    }
}

/// Adds what `note`, which comes behind that of `thread`, says of it.
fn add(core: &CoreFile, note: &CoreNote, thread: &mut Thread) {
    let content = || core.content(note, LARGEST).unwrap_or_default();
    match (note.owner, note.kind) {
        ("LINUX", NT_X86_XSTATE) => thread.vector = content(),
        ("LINUX", NT_PRXFPREG) | ("CORE", NT_PRFPREG) if thread.vector.is_empty() => {
            thread.vector = content();
        }
        ("LINUX", NT_ARM_TLS) => {
            thread.thread_pointer = Addr(Width::Eight.word(&content()).unwrap_or(0));
        }
        ("LINUX", NT_386_TLS) => {
            if let Some(base) = segment_base(&content(), &thread.general) {
                thread.thread_pointer = Addr(base);
            }
        }
        _ => {}
    }
}

/// Finds the thread pointers of i386 threads in `memory`, of which `ranges` may have thread control blocks:
/// debuggers leave them out of core files. A control block has its own address twice, and its thread's
/// id (`struct pthread` of glibc).
pub(super) fn find_pointers(memory: &dyn Memory, ranges: &[AddrRange], threads: &mut [Thread]) {
    const PIECE: u64 = 1 << 16;
    const OWN_ADDRESS: u64 = 8;
    const TID: u64 = 0x68;
    const ALIGNMENT: u64 = 16;
    let mut buffer = vec![0; usize::try_from(PIECE).unwrap_or(0)];
    for range in ranges {
        let mut at = range.start;
        while at < range.end
            && threads
                .iter()
                .any(|thread| thread.thread_pointer == Addr(0))
        {
            let count = memory.read(at, &mut buffer);
            let words = Width::Four.words(buffer.get(..count).unwrap_or_default());
            let own = (at.0..)
                .step_by(4)
                .zip(words)
                .filter(|(addr, word)| addr == word);
            for (addr, _) in own.filter(|(addr, _)| addr.is_multiple_of(ALIGNMENT)) {
                let number = |offset| memory.word32(Addr(addr).saturating_add(offset));
                if number(OWN_ADDRESS).map(u64::from) != Some(addr) {
                    continue;
                }
                let mut lacking = threads
                    .iter_mut()
                    .filter(|thread| thread.thread_pointer == Addr(0));
                let thread = lacking.find(|thread| number(TID) == Some(thread.tid));
                if let Some(thread) = thread {
                    thread.thread_pointer = Addr(addr);
                }
            }
            at = at.saturating_add(PIECE);
        }
    }
}

/// The base of `gs` among the descriptors of a thread, `struct user_desc` in `<asm/ldt.h>`: the number
/// and the base of each come first.
fn segment_base(descriptors: &[u8], general: &[u64]) -> Option<u64> {
    const GS: usize = 10;
    let selected = general.get(GS)? >> 3;
    let descriptors = descriptors.chunks_exact(16);
    let fields = descriptors.map(|descriptor| {
        let mut fields = Width::Four.words(descriptor);
        Some((fields.next()?, fields.next()?))
    });
    fields
        .flatten()
        .find_map(|(number, base)| (number == selected).then_some(base))
}
