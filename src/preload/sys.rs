//! The kernel's calls, made without the C library: they set no `errno`, and nothing can interpose
//! them.

use core::arch::asm;

const OPEN: usize = 2;
const CLOSE: usize = 3;
const MMAP: usize = 9;
#[cfg(test)]
const MUNMAP: usize = 11;
const RT_SIGPROCMASK: usize = 14;
const MADVISE: usize = 28;
const GETPID: usize = 39;
const KILL: usize = 62;
const FTRUNCATE: usize = 77;
const GETTID: usize = 186;
const FUTEX: usize = 202;
const CLOCK_GETTIME: usize = 228;
const FALLOCATE: usize = 285;

const EFAULT: isize = -14;
const ESRCH: isize = -3;

/// Makes the system call `number`.
///
/// # Safety
///
/// The arguments are what that call may be given: memory that it writes belongs to the caller.
unsafe fn call(number: usize, arguments: [usize; 6]) -> isize {
    let result;
    // SAFETY: the kernel changes rax, rcx and r11 and, as the caller promises, no memory that
    // anybody else uses.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number as isize => result,
            in("rdi") arguments[0], in("rsi") arguments[1], in("rdx") arguments[2],
            in("r10") arguments[3], in("r8") arguments[4], in("r9") arguments[5],
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
    result
}

/// The value of a call that returns an address or size, unless it is an error.
fn value(result: isize) -> Option<usize> {
    usize::try_from(result).ok()
}

/// Maps `size` bytes of zeros, of which only those count as memory that are touched.
pub(crate) fn map(size: usize) -> Option<usize> {
    const PROT_READ_WRITE: usize = 3;
    const MAP_PRIVATE_ANONYMOUS_NORESERVE: usize = 0x4022;
    let arguments = [
        0,
        size,
        PROT_READ_WRITE,
        MAP_PRIVATE_ANONYMOUS_NORESERVE,
        usize::MAX,
        0,
    ];
    // SAFETY: a new mapping where the kernel wants it changes no memory that is in use.
    let at = value(unsafe { call(MMAP, arguments) })?;
    const MADV_NOHUGEPAGE: usize = 15;
    // SAFETY: advice on the mapping just made. A table that is touched here and there must not
    // become huge pages.
    unsafe { call(MADVISE, [at, size, MADV_NOHUGEPAGE, 0, 0, 0]) };
    Some(at)
}

/// Maps the first `size` bytes of the open file `descriptor`, shared with it.
pub(crate) fn map_file(descriptor: usize, size: usize) -> Option<usize> {
    const PROT_READ_WRITE: usize = 3;
    const MAP_SHARED: usize = 1;
    let arguments = [0, size, PROT_READ_WRITE, MAP_SHARED, descriptor, 0];
    // SAFETY: a new mapping where the kernel wants it changes no memory that is in use.
    value(unsafe { call(MMAP, arguments) })
}

/// Takes back what [`map`] made.
///
/// # Safety
///
/// Nobody has a reference to that memory.
#[cfg(test)]
pub(crate) unsafe fn unmap(at: usize, size: usize) {
    // SAFETY: as the caller promises.
    unsafe { call(MUNMAP, [at, size, 0, 0, 0, 0]) };
}

/// Says whether the eight bytes at `at` can be read, without reading them here.
///
/// The kernel reads them as a signal set before it sees that it was asked for something that does
/// not exist, and changes nothing.
pub(crate) fn is_readable(at: usize) -> bool {
    const NO_SUCH_OPERATION: usize = usize::MAX;
    const SIGNAL_SET_SIZE: usize = 8;
    let arguments = [NO_SUCH_OPERATION, at, 0, SIGNAL_SET_SIZE, 0, 0];
    // SAFETY: the call reads eight bytes, if it can, and writes none.
    let result = unsafe { call(RT_SIGPROCMASK, arguments) };
    // To the kernel, a null pointer is no signal set, and no fault.
    at != 0 && result != EFAULT
}

/// The process id, in the namespace of the process.
pub(crate) fn process_id() -> u32 {
    // SAFETY: the call has no arguments.
    unsafe { call(GETPID, [0; 6]) as u32 }
}

/// The thread id, in the namespace of the process.
pub(crate) fn thread_id() -> u32 {
    // SAFETY: the call has no arguments.
    unsafe { call(GETTID, [0; 6]) as u32 }
}

/// Says whether there is a process `pid`.
pub(crate) fn process_exists(pid: u32) -> bool {
    // SAFETY: signal 0 is never sent.
    let result = unsafe { call(KILL, [pid as usize, 0, 0, 0, 0, 0]) };
    result != ESRCH
}

/// Nanoseconds since 1970, to some milliseconds.
pub(crate) fn wall_clock() -> u64 {
    const CLOCK_REALTIME_COARSE: usize = 5;
    clock(CLOCK_REALTIME_COARSE)
}

/// Nanoseconds since the system started, to some milliseconds.
pub(crate) fn steady_clock() -> u64 {
    const CLOCK_MONOTONIC_COARSE: usize = 6;
    clock(CLOCK_MONOTONIC_COARSE)
}

fn clock(id: usize) -> u64 {
    let mut time = [0_i64; 2];
    // SAFETY: `time` has the shape of a timespec, and is ours.
    unsafe { call(CLOCK_GETTIME, [id, (&raw mut time) as usize, 0, 0, 0, 0]) };
    let [seconds, nanoseconds] = time;
    (seconds as u64)
        .wrapping_mul(1_000_000_000)
        .wrapping_add(nanoseconds as u64)
}

/// Opens the file at `path`, which ends with a zero byte, for reading and writing.
pub(crate) fn open(path: &[u8], create: bool) -> Option<usize> {
    const O_RDWR: usize = 2;
    const O_CREAT: usize = 0o100;
    const O_CLOEXEC: usize = 0o2_000_000;
    const OWNER_ONLY: usize = 0o600;
    debug_assert_eq!(path.last(), Some(&0));
    let flags = O_RDWR | O_CLOEXEC | if create { O_CREAT } else { 0 };
    // SAFETY: the path ends with a zero byte, and the call writes no memory.
    value(unsafe { call(OPEN, [path.as_ptr() as usize, flags, OWNER_ONLY, 0, 0, 0]) })
}

/// Closes what [`open`] gave.
pub(crate) fn close(descriptor: usize) {
    // SAFETY: the caller got the descriptor from `open`, and nobody else knows it.
    unsafe { call(CLOSE, [descriptor, 0, 0, 0, 0, 0]) };
}

/// Makes the file exactly `size` bytes long, with blocks on its disk for all of them: a write to a
/// mapping of it never meets a full disk.
pub(crate) fn allocate_file(descriptor: usize, size: usize) -> bool {
    // SAFETY: neither call writes memory.
    let truncated = unsafe { call(FTRUNCATE, [descriptor, size, 0, 0, 0, 0]) };
    // SAFETY: as above.
    let allocated = unsafe { call(FALLOCATE, [descriptor, 0, 0, size, 0, 0]) };
    truncated == 0 && allocated == 0
}

/// Waits until `word` is woken, unless it is not `expected`, or until `milliseconds` have passed.
pub(crate) fn futex_wait(word: &core::sync::atomic::AtomicU32, expected: u32, milliseconds: i64) {
    const FUTEX_WAIT: usize = 0;
    let timeout = [milliseconds / 1000, milliseconds % 1000 * 1_000_000];
    let at = word.as_ptr() as usize;
    let timeout_at = (&raw const timeout) as usize;
    // SAFETY: the kernel reads the word and the timeout, and writes nothing.
    unsafe { call(FUTEX, [at, FUTEX_WAIT, expected as usize, timeout_at, 0, 0]) };
}

/// Wakes all that wait for `word`.
pub(crate) fn futex_wake(word: &core::sync::atomic::AtomicU32) {
    const FUTEX_WAKE: usize = 1;
    let everyone = i32::MAX as usize;
    // SAFETY: the kernel neither reads nor writes the word.
    unsafe {
        call(
            FUTEX,
            [word.as_ptr() as usize, FUTEX_WAKE, everyone, 0, 0, 0],
        )
    };
}

/// Ends the process as `abort` does.
#[cfg(rleaks_recorder)]
pub(crate) fn abort() -> ! {
    loop {
        // SAFETY: an instruction that is not defined; the kernel ends the process.
        unsafe { asm!("ud2") };
    }
}

/// Ends all threads of the process.
pub(crate) fn exit_group(status: i32) -> ! {
    const EXIT_GROUP: usize = 231;
    loop {
        // SAFETY: the call does not return.
        unsafe { call(EXIT_GROUP, [status as usize, 0, 0, 0, 0, 0]) };
    }
}
