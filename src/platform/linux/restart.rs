//! System calls that a stop would make fail.
//!
//! A stop wakes a thread that sleeps in a system call. Most calls go on by themselves when the
//! thread runs again; some end with `EINTR`, although no signal handler ran: signal(7) lists them
//! under "Interruption of system calls and library functions by stop signals". For these the
//! result is replaced by the code with which the kernel itself restarts a call, `ERESTARTNOHAND`:
//! unless a signal handler does run first, and then the call ends with `EINTR` as it would have.
//!
//! A call with a finite timeout begins to wait anew: its timeout starts afresh.

use crate::memory::Width;

/// `-EINTR`.
const INTERRUPTED: u64 = (-4_i64).cast_unsigned();
/// `-ERESTARTNOHAND`, `include/linux/errno.h` of the kernel.
const RESTART_UNLESS_HANDLED: u64 = (-514_i64).cast_unsigned();

/// The calls on x86-64 that may be repeated after `EINTR`: they have done nothing then.
const RESTARTED: [u64; 27] = [
    0,   // read: sockets with SO_RCVTIMEO, inotify
    1,   // write: sockets with SO_SNDTIMEO
    17,  // pread64
    18,  // pwrite64
    19,  // readv
    20,  // writev
    42,  // connect
    43,  // accept
    44,  // sendto
    45,  // recvfrom
    46,  // sendmsg
    47,  // recvmsg
    65,  // semop
    69,  // msgsnd
    70,  // msgrcv
    128, // rt_sigtimedwait
    208, // io_getevents
    220, // semtimedop
    232, // epoll_wait
    281, // epoll_pwait
    288, // accept4
    299, // recvmmsg
    307, // sendmmsg
    333, // io_pgetevents
    426, // io_uring_enter
    441, // epoll_pwait2
    449, // futex_waitv
];

/// The same calls on i386, where some are parts of `ipc` and `socketcall`.
const RESTARTED_32: [u64; 30] = [
    3,   // read
    4,   // write
    102, // socketcall
    117, // ipc
    145, // readv
    146, // writev
    177, // rt_sigtimedwait
    180, // pread64
    181, // pwrite64
    247, // io_getevents
    256, // epoll_wait
    319, // epoll_pwait
    337, // recvmmsg
    345, // sendmmsg
    362, // connect
    364, // accept4
    369, // sendto
    370, // sendmsg
    371, // recvfrom
    372, // recvmsg
    385, // io_pgetevents
    400, // msgsnd
    401, // msgrcv
    416, // io_pgetevents_time64
    417, // recvmmsg_time64
    420, // semtimedop_time64
    421, // rt_sigtimedwait_time64
    426, // io_uring_enter
    441, // epoll_pwait2
    449, // futex_waitv
];

/// The result that makes the kernel restart system call `number`, which ended with `result`
/// because its thread was stopped; `None` where nothing has to be done.
///
/// `number` is -1 for a thread that was not in a system call.
pub(super) fn restarting_result(width: Width, number: u64, result: u64) -> Option<u64> {
    let restarted: &[u64] = match width {
        Width::Four => &RESTARTED_32,
        Width::Eight => &RESTARTED,
    };
    (result == INTERRUPTED && restarted.contains(&number)).then_some(RESTART_UNLESS_HANDLED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_interrupted_calls_that_may_be_repeated_are_restarted() {
        assert_eq!(
            restarting_result(Width::Eight, 232, INTERRUPTED),
            Some(u64::MAX - 513)
        );
        let epoll_wait = restarting_result(Width::Four, 256, INTERRUPTED);
        assert_eq!(epoll_wait, Some(u64::MAX - 513));
        assert_eq!(restarting_result(Width::Eight, 232, 1), None);
        // close has closed its file descriptor.
        assert_eq!(restarting_result(Width::Eight, 3, INTERRUPTED), None);
        assert_eq!(restarting_result(Width::Eight, u64::MAX, INTERRUPTED), None);
    }

    #[test]
    fn the_table_is_in_order() {
        assert!(RESTARTED.is_sorted() && RESTARTED_32.is_sorted());
    }
}
