//! What is known about a process without touching it.

use std::time::SystemTime;

use nix::unistd::{Uid, User};

/// A process that runs now, or did a moment ago.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessInfo {
    /// The process id.
    pub pid: u32,
    /// The parent's process id; 0 if it has none in this pid namespace.
    pub parent_pid: u32,
    /// The effective user id.
    pub uid: u32,
    /// The name that the kernel keeps: the first 15 bytes of the executable's or script's name,
    /// or what the program chose to call itself.
    pub name: String,
    /// The path of the executable, where it could be read. A file that has been removed since is
    /// named as it was.
    pub executable: Option<String>,
    /// The arguments. Bytes that are not UTF-8 become U+FFFD. Empty for kernel threads and
    /// zombies.
    pub command_line: Vec<String>,
    /// When it was started.
    pub started: SystemTime,
    /// Whether it has memory that could be scanned.
    pub state: ProcessState,
}

/// Whether a process has memory that could be scanned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProcessState {
    /// It has: it runs, sleeps, or is stopped.
    Alive,
    /// It has ended, and its parent has not collected it yet. Its memory is gone.
    Zombie,
    /// It is a part of the kernel, without memory of its own.
    KernelThread,
}

impl ProcessInfo {
    /// The command line, or the kernel's name for it in brackets, as `ps` shows it.
    #[must_use]
    pub fn command(&self) -> String {
        if self.command_line.is_empty() {
            format!("[{}]", self.name)
        } else {
            self.command_line.join(" ")
        }
    }
}

/// The name of the user with id `uid`, or the number where it has none.
///
/// It asks the name service, which may be another process: never call it while a target is
/// stopped.
#[must_use]
pub fn user_name(uid: u32) -> String {
    match User::from_uid(Uid::from_raw(uid)) {
        Ok(Some(user)) => user.name,
        Ok(None) | Err(_) => uid.to_string(),
    }
}

/// The name of a signal such as `SIGKILL`; of one without a name, its number.
#[must_use]
pub fn signal_name(number: i32) -> String {
    let signal = nix::sys::signal::Signal::try_from(number);
    signal.map_or_else(
        |_| format!("signal {number}"),
        |signal| signal.as_str().to_owned(),
    )
}
