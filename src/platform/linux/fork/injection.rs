//! One system call in a thread of the target.
//!
//! The thread sits in a system call and is stopped by ptrace. Only its registers are changed, never its
//! memory: the instruction that makes the call is one that the kernel itself has mapped into each
//! process (the vdso). No signal but those that an instruction causes can interrupt it, since all others
//! are blocked meanwhile. Afterwards the thread is brought to a stop like the first one, where it is given
//! back what it had: then the kernel restarts the call that the first stop has interrupted, as it would have.
//! The thread executes one instruction.

use std::io;

use nix::libc;

use super::protocol::{Failure, NewProcess};
use super::requests::{self, Stop};
use crate::memory::Width;
use crate::platform::linux::priority::Served;
use crate::platform::linux::ptrace;
use crate::platform::linux::registers::{General, INDICES_64};

/// Indices of the arguments of a system call in `struct user_regs_struct`.
const ARGUMENTS: [usize; 4] = [14, 13, 12, 7];
const CODE_SEGMENT: usize = 17;
/// The code segment of 64-bit code.
const CODE_64: u64 = 0x33;
/// The length of the instruction `syscall`.
const LENGTH: u64 = 2;
/// No system call: the kernel restarts nothing.
const NO_CALL: u64 = u64::MAX;
/// `-ERESTARTSYS`, `-ERESTARTNOINTR`, `-ERESTARTNOHAND` and `-ERESTART_RESTARTBLOCK`: what the kernel has in the
/// register for the result while it is going to restart a call.
const RESTARTED: [i64; 4] = [-512, -513, -514, -516];
/// Errors are the last page of results.
const LARGEST_ERROR: i64 = 4095;

const CLONE: u64 = 56;
const WAIT4: u64 = 61;

/// What is changed of a thread and given back.
struct Saved {
    general: General,
    mask: u64,
}

/// A system call to be made.
#[derive(Clone, Copy, Debug)]
struct Call {
    number: u64,
    arguments: [u64; 4],
    /// It starts a process.
    is_start: bool,
}

/// What came of a system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Made {
    result: i64,
    /// The process that it started, as the tracer knows it.
    child: Option<u32>,
}

/// Says whether the thread with these registers sits in a system call that the kernel is going to
/// restart: no restartable sequence of it is under way then (rseq).
pub(super) fn is_in_system_call(general: &General) -> bool {
    let (number, result) = general.call_and_result();
    is_64(general) && i64::try_from(number).is_ok() && RESTARTED.contains(&result.cast_signed())
}

pub(super) fn is_64(general: &General) -> bool {
    general.width == Width::Eight && general.register(CODE_SEGMENT) == CODE_64
}

/// Makes the stopped thread `tid` start a process that shares nothing with it but its open files, and
/// sends nobody a signal when it ends. It is traced by the calling thread from its first moment on, and
/// is killed if that one ends.
///
/// The signal in the second value is on its way to the thread.
pub(super) fn clone(tid: u32, instruction: u64) -> (Result<NewProcess, Failure>, i32) {
    // With CLONE_UNTRACED the process would run. CLONE_FILES: no second reference to an open file, so that
    // closing one means what it always does.
    let call = Call {
        number: CLONE,
        arguments: [u64::try_from(libc::CLONE_FILES).unwrap_or(0), 0, 0, 0],
        is_start: true,
    };
    let (made, signal) = inject(tid, instruction, call);
    let process = made.and_then(|made| match made.child {
        Some(pid) => Ok(NewProcess {
            pid,
            inner_pid: u32::try_from(made.result).unwrap_or(pid),
        }),
        None => Err(Failure::Clone(error_of(made.result))),
    });
    (process, signal)
}

/// Makes the stopped thread `tid` forget the child `inner_pid`, which has ended. `Ok(false)`: it has no
/// such child any more.
pub(super) fn wait_for(tid: u32, instruction: u64, inner_pid: u32) -> (Result<bool, Failure>, i32) {
    let flags = libc::__WALL | libc::WNOHANG;
    let call = Call {
        number: WAIT4,
        arguments: [u64::from(inner_pid), 0, u64::from(flags.cast_unsigned()), 0],
        is_start: false,
    };
    let (made, signal) = inject(tid, instruction, call);
    let is_found = made.and_then(|made| match error_of(made.result) {
        libc::ECHILD => Ok(false),
        0 if made.result == 0 => Err(Failure::Disturbed),
        0 => Ok(true),
        error => Err(Failure::Clone(error)),
    });
    (is_found, signal)
}

/// The error number in a result, or 0.
fn error_of(result: i64) -> i32 {
    if (-LARGEST_ERROR..0).contains(&result) {
        i32::try_from(-result).unwrap_or(0)
    } else {
        0
    }
}

/// Makes the stopped thread `tid` do `call`, and gives it back its registers and its mask of signals,
/// whatever comes of it.
fn inject(tid: u32, instruction: u64, call: Call) -> (Result<Made, Failure>, i32) {
    let saved = match save(tid) {
        Ok(saved) => saved,
        Err(error) => return (Err(error.into()), 0),
    };
    // The whole target waits for it.
    let _served = Served::new(tid);
    let child = begin(tid, &saved, instruction, call).and_then(|()| make(tid, instruction, call));
    match give_back(tid, &saved) {
        Ok((result, signal)) => (child.map(|child| Made { result, child }), signal),
        Err(error) => (Err(error.into()), 0),
    }
}

fn save(tid: u32) -> io::Result<Saved> {
    Ok(Saved {
        general: General::read(tid)?,
        mask: requests::signal_mask(tid)?,
    })
}

/// Signals that an instruction causes. The kernel ends a program that blocks one of these when it is
/// caused, so they are not blocked: one that a system call causes, where the program handles its own system
/// calls, is seen and taken back.
const CAUSED: [i32; 6] = [
    libc::SIGILL,
    libc::SIGTRAP,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGSEGV,
    libc::SIGSYS,
];

fn begin(tid: u32, saved: &Saved, instruction: u64, call: Call) -> Result<(), Failure> {
    if requests::dispatches_system_calls(tid) {
        return Err(Failure::Dispatch);
    }
    set_options(tid, call)?;
    let unblocked = CAUSED
        .iter()
        .fold(0_u64, |set, signal| set | 1 << (signal - 1));
    requests::set_signal_mask(tid, !unblocked)?;
    let mut general = saved.general.clone();
    general.set(INDICES_64.number, NO_CALL);
    general.set(INDICES_64.result, call.number);
    general.set(INDICES_64.instruction_pointer, instruction);
    for (index, value) in ARGUMENTS.into_iter().zip(call.arguments) {
        general.set(index, value);
    }
    general.write(tid)?;
    requests::go_on_to_system_call(tid)?;
    Ok(())
}

/// A seccomp filter might end the target for the call: it is suspended, where that is allowed, and where
/// it is not, nothing is called.
fn set_options(tid: u32, call: Call) -> Result<(), Failure> {
    // A thread whose registers are not its own must not go on.
    let mut options = libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_EXITKILL;
    if call.is_start {
        options |= libc::PTRACE_O_TRACECLONE | libc::PTRACE_O_TRACEFORK;
    }
    // First, and whether there is a filter or not: to find that out takes longer.
    let suspended = requests::set_options(tid, options | libc::PTRACE_O_SUSPEND_SECCOMP);
    match suspended {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Err(Failure::Ended),
        Err(_) if is_filtered(tid) => Err(Failure::Seccomp),
        Err(_) => Ok(requests::set_options(tid, options)?),
        Ok(()) => Ok(()),
    }
}

fn is_filtered(tid: u32) -> bool {
    let status = std::fs::read(format!("/proc/{tid}/status")).unwrap_or_default();
    // What cannot be read may be filtered.
    crate::platform::linux::processes::field(&status, "Seccomp:").is_none_or(|mode| mode != "0")
}

/// Follows the thread into the call. It stands still then where nothing but the end of the call is left to
/// come. Gives the process that it has started.
fn make(tid: u32, instruction: u64, call: Call) -> Result<Option<u32>, Failure> {
    match next_stop(tid)? {
        Stop::SystemCall => stay_on_course(tid, instruction, call.number)?,
        _ => return Err(Failure::Disturbed),
    }
    if !call.is_start {
        // It is made on the way to the stop at which the thread is given back what it had: a call that does not
        // sleep takes no notice of being stopped.
        return Ok(None);
    }
    // But no process is started by a thread that is to stop.
    requests::go_on_to_system_call(tid)?;
    match next_stop(tid)? {
        Stop::Clone => Ok(u32::try_from(ptrace::event_message(tid)?).ok()),
        // It was refused.
        Stop::SystemCall => Ok(None),
        _ => Err(Failure::Disturbed),
    }
}

fn next_stop(tid: u32) -> Result<Stop, Failure> {
    match requests::wait(tid, true)? {
        None | Some(Stop::Ended) => Err(Failure::Ended),
        Some(stop) => Ok(stop),
    }
}

/// Makes sure that the call which begins is the one that was asked for: any other is left out.
fn stay_on_course(tid: u32, instruction: u64, number: u64) -> Result<(), Failure> {
    let mut general = General::read(tid)?;
    let at = general.register(INDICES_64.instruction_pointer);
    if general.register(INDICES_64.number) == number && at == instruction + LENGTH {
        return Ok(());
    }
    general.set(INDICES_64.number, NO_CALL);
    general.write(tid)?;
    Err(Failure::Disturbed)
}

/// Brings the thread, which stands still somewhere on its way, to a stop like the first one, and gives back
/// what it had. Returns the result of the call, if one was made, and the signal that is on its way to the
/// thread, or 0.
///
/// What a thread that was killed had need not be given back.
fn give_back(tid: u32, saved: &Saved) -> io::Result<(i64, i32)> {
    loop {
        let stop = requests::wait(tid, true)?.unwrap_or(Stop::Ended);
        if stop == Stop::Ended {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        if stop.is_before_restart() {
            let result = General::read(tid)?.register(INDICES_64.result);
            saved.general.write(tid)?;
            requests::set_signal_mask(tid, saved.mask)?;
            requests::set_options(tid, 0)?;
            let signal = match stop {
                Stop::Signal(signal) if !is_caused_by_the_call(tid, signal) => signal,
                _ => 0,
            };
            return Ok((result.cast_signed(), signal));
        }
        ptrace::interrupt(tid)?;
        ptrace::go_on(tid, 0)?;
    }
}

/// Says whether the injected call caused the signal that is on its way: nobody has sent it.
fn is_caused_by_the_call(tid: u32, signal: i32) -> bool {
    CAUSED.contains(&signal) && requests::signal_code(tid).is_ok_and(|code| code > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_the_last_page_are_errors() {
        assert_eq!(error_of(-11), libc::EAGAIN);
        assert_eq!(error_of(4711), 0);
        assert_eq!(error_of(-4096), 0);
    }

    #[test]
    fn only_a_call_that_will_be_restarted_is_a_place_for_another() {
        let mut general = General {
            width: Width::Eight,
            bytes: vec![0; 27 * 8],
        };
        general.set(CODE_SEGMENT, CODE_64);
        for (number, result, expected) in [
            (35, -516_i64, true),
            (232, -514, true),
            (0, -512, true),
            (0, 5, false),
            (3, -4, false),
            (u64::MAX, -516, false),
        ] {
            general.set(INDICES_64.number, number);
            general.set(INDICES_64.result, result.cast_unsigned());
            assert_eq!(is_in_system_call(&general), expected, "{number} {result}");
        }
        general.set(INDICES_64.number, 35);
        general.set(CODE_SEGMENT, 0x23);
        assert!(!is_in_system_call(&general));
    }
}
