//! Why a thread is at its end: because its process is, or for itself.

use nix::libc;

use crate::memory::Width;

/// Why a thread ends, as far as its own state tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// The whole process ends: `exit_group`, or a signal.
    Process,
    /// It called `exit`: the process ends only if it is the last thread.
    Thread,
    /// Another thread ends the process, or executes another program.
    Other,
}

/// The cause for a thread that was in system call `number` (-1: in none) and ends with `status`, which
/// has the form that `wait` gives.
pub(super) fn cause(width: Width, number: u64, status: i32) -> Cause {
    let (exit, exit_group) = match width {
        Width::Four => (1, 252),
        Width::Eight => (60, 231),
    };
    match number {
        _ if libc::WTERMSIG(status) != 0 => Cause::Process,
        number if number == exit_group => Cause::Process,
        number if number == exit => Cause::Thread,
        _ => Cause::Other,
    }
}

/// Says whether `text`, the `syscall` file of a thread, is about a call that executes a program.
pub(super) fn executes(width: Width, text: &str) -> bool {
    let number = text.split_ascii_whitespace().next();
    // execve and execveat.
    match width {
        Width::Four => matches!(number, Some("11" | "358")),
        Width::Eight => matches!(number, Some("59" | "322")),
    }
}

/// The exit status that a shell gives to a process that ended with `status`.
pub(super) fn shell_status(status: i32) -> u8 {
    let code = if libc::WIFSIGNALED(status) {
        128 + libc::WTERMSIG(status)
    } else {
        libc::WEXITSTATUS(status)
    };
    u8::try_from(code).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_process_is_told_from_that_of_a_thread() {
        for (width, number, status, expected) in [
            (Width::Eight, 231, 7 << 8, Cause::Process),
            (Width::Four, 252, 0, Cause::Process),
            (Width::Eight, 60, 0, Cause::Thread),
            (Width::Four, 1, 0, Cause::Thread),
            (Width::Eight, 1, 0, Cause::Other),
            (Width::Eight, u64::MAX, 0, Cause::Other),
            (Width::Eight, 202, 7 << 8, Cause::Other),
            (Width::Eight, 202, libc::SIGKILL, Cause::Process),
            (Width::Eight, 60, libc::SIGSEGV | 0x80, Cause::Process),
        ] {
            assert_eq!(
                cause(width, number, status),
                expected,
                "{number} {status:#x}"
            );
        }
    }

    #[test]
    fn only_a_call_that_executes_a_program_executes_one() {
        let text = "59 0x55 0x7f 0x7f 0x0 0x0 0x0 0x7ffd 0x7f12";
        assert!(executes(Width::Eight, text));
        assert!(!executes(Width::Four, text));
        assert!(executes(Width::Four, "11 0x55"));
        assert!(!executes(Width::Eight, "231 0x0 0x3c"));
        assert!(!executes(Width::Eight, "running"));
        assert!(!executes(Width::Eight, ""));
    }

    #[test]
    fn a_status_is_what_a_shell_shows() {
        assert_eq!(shell_status(7 << 8), 7);
        assert_eq!(shell_status(libc::SIGSEGV | 0x80), 139);
        assert_eq!(shell_status(libc::SIGKILL), 137);
    }
}
