//! From the word that names the target to processes.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, bail};
use clap::CommandFactory;

use super::args::{Args, TargetArgs};
use super::error;
use crate::platform::{self, Choice, FindError, Obstacle, ProcessInfo, find_by_name, find_by_pid};
use crate::snapshot::packed::Packing;

/// What the word that names the target is.
#[derive(Debug, PartialEq, Eq)]
enum Word<'a> {
    Pid(&'a str),
    Name(&'a str),
    File(&'a str),
}

/// The processes that `args` name: one, or with `--all` each, in the order of their start.
///
/// # Errors
///
/// There is none, there are several and none was chosen, or the word is a file.
pub(crate) fn find(args: &TargetArgs) -> anyhow::Result<Vec<ProcessInfo>> {
    platform::check_proc()?;
    match word(args) {
        Word::Pid(digits) => {
            let pid = digits.parse().ok();
            let found = pid.and_then(platform::process);
            if let Some(pid) = pid.filter(|pid| found.is_none() && platform::is_hidden(*pid)) {
                return Err(Obstacle::Hidden(pid).into());
            }
            Ok(vec![find_by_pid(digits, found, platform::visible_pid())?])
        }
        Word::Name(name) => {
            let all = platform::processes().context("cannot list the processes in /proc")?;
            let found = find_by_name(&all, name, args.choice(), std::process::id());
            if matches!(found, Err(FindError::NoSuchName { .. })) && is_command(name) {
                bail!("no process is named {name}; the command {name} comes first: rleaks {name}");
            }
            Ok(found?)
        }
        Word::File(path) => bail!(
            "{} is a file; name a running process by its pid or its name",
            error::printable(path)
        ),
    }
}

/// The file that `args` name, if it is one.
///
/// # Errors
///
/// It is one, and `args` choose among processes.
pub(crate) fn file(args: &TargetArgs) -> anyhow::Result<Option<&str>> {
    let Word::File(path) = word(args) else {
        return Ok(None);
    };
    let option = match args.choice() {
        Choice::Only => return Ok(Some(path)),
        Choice::Newest => "--newest",
        Choice::Oldest => "--oldest",
        Choice::All => "--all",
    };
    bail!(
        "{option} chooses among processes of a name, and {} is a file: leave {option} out",
        error::printable(path)
    )
}

/// Says whether `name` is a command, as in `rleaks --list demo`, where it stands for a process.
fn is_command(name: &str) -> bool {
    Args::command().find_subcommand(name).is_some()
}

fn word(args: &TargetArgs) -> Word<'_> {
    match (&args.which.name, &args.which.target) {
        (Some(name), _) => Word::Name(name),
        (None, Some(word)) => classify(word, starts_as_core),
        (None, None) => unreachable!("clap asks for one of the two"),
    }
}

fn classify(word: &str, is_core: impl FnOnce(&Path) -> bool) -> Word<'_> {
    if !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit()) {
        Word::Pid(word)
    } else if word.contains('/') || is_core(Path::new(word)) {
        Word::File(word)
    } else {
        Word::Name(word)
    }
}

/// Says whether the file at `path` starts as an ELF core file does. One that cannot be read does
/// not.
pub(super) fn starts_as_core(path: &Path) -> bool {
    // Opening a named pipe would wait for a writer.
    if !path.is_file() {
        return false;
    }
    let mut header = [0; 18];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut header));
    let magic = header.first_chunk().copied().unwrap_or_default();
    read.is_ok() && (is_core_header(&header) || Packing::of_magic(magic).is_some())
}

/// Looks at the magic number, the byte order and the type of an ELF header.
fn is_core_header(header: &[u8; 18]) -> bool {
    const BIG_ENDIAN: u8 = 2;
    const CORE: u16 = 4;
    let kind = [header[16], header[17]];
    let kind = match header[5] {
        BIG_ENDIAN => u16::from_be_bytes(kind),
        _ => u16::from_le_bytes(kind),
    };
    header.starts_with(b"\x7fELF") && kind == CORE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_told_apart() {
        let table = [
            ("1234", Word::Pid("1234")),
            ("0", Word::Pid("0")),
            ("99999999999999999999", Word::Pid("99999999999999999999")),
            ("mono-sgen", Word::Name("mono-sgen")),
            ("7zip", Word::Name("7zip")),
            ("-1", Word::Name("-1")),
            ("", Word::Name("")),
            ("core", Word::File("core")),
            ("./app", Word::File("./app")),
            ("/proc/1", Word::File("/proc/1")),
        ];
        for (word, expected) in table {
            let is_core = |path: &Path| path == Path::new("core");
            assert_eq!(classify(word, is_core), expected);
        }
    }

    #[test]
    fn a_core_file_is_told_by_its_header() {
        let header = |order: u8, kind: [u8; 2]| {
            let mut header = *b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\0\0";
            header[5] = order;
            header[16..].copy_from_slice(&kind);
            header
        };
        assert!(is_core_header(&header(1, [4, 0])));
        assert!(is_core_header(&header(2, [0, 4])));
        assert!(!is_core_header(&header(1, [3, 0])));
        assert!(!is_core_header(&[4; 18]));
    }

    #[test]
    fn what_cannot_be_read_is_no_core_file() {
        assert!(!starts_as_core(Path::new("no such file")));
        assert!(!starts_as_core(Path::new("src")));
        assert!(!starts_as_core(Path::new("Cargo.toml")));
    }
}
