//! What rleaks and its guardian say to each other.

use std::io::{self, Read, Write};
use std::time::Duration;

use nix::libc;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::warning::{Bias, Warning};

/// No message is longer: registers are a few KiB.
const LONGEST: u32 = 1 << 20;

/// What rleaks asks of the guardian, one after the other. The end of the stream means: undo everything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Request {
    /// Become the tracer of thread `tid` of process `pid`, which runs on. If the guardian does not
    /// let go of it within `limit` of its stop, the kernel ends the guardian.
    Seize { pid: u32, tid: u32, limit: Duration },
    /// Stop the thread.
    Stop,
    /// Make a child of the process, and keep it for `lifetime` at the longest.
    Clone { lifetime: Duration },
    /// Let the thread go on. There is an answer when it does.
    Release,
    /// End the child, and make the process forget it.
    End,
    /// Make process `pid` forget a child that has ended with another guardian.
    Forget { pid: u32, child: NewProcess },
}

/// What the guardian answers to each request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Reply {
    Done,
    /// The thread stands still, with these registers.
    Stopped {
        #[serde(with = "hexadecimal")]
        general: Vec<u8>,
        #[serde(with = "hexadecimal")]
        vector: Vec<u8>,
    },
    Child(NewProcess),
    Ended(Outcome),
    Failed(Failure),
}

/// A process that a thread of the target started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::platform::linux) struct NewProcess {
    /// Its id for rleaks and the guardian.
    pub(in crate::platform::linux) pid: u32,
    /// Its id for the target.
    pub(in crate::platform::linux) inner_pid: u32,
}

/// What has become of the child.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::platform::linux) struct Outcome {
    /// It was there until the guardian ended it.
    pub(in crate::platform::linux) was_whole: bool,
    /// How long the process stood still for it to be forgotten.
    pub(in crate::platform::linux) pause: Option<Duration>,
    /// The process has it still, as a zombie.
    pub(super) is_left: bool,
}

impl Outcome {
    /// Says so where the target has a zombie now.
    pub(in crate::platform::linux) fn warning(&self) -> Option<Warning> {
        self.is_left.then(|| {
            Warning::new(
                "zombie_left",
                "the process could not be made to forget the child that kept its memory, which has ended: it \
                 shows as a zombie until the process itself ends",
                Bias::None,
            )
        })
    }
}

/// Why the guardian could not do something. The target runs on, as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Failure {
    /// The thread has ended.
    Ended,
    /// The thread does not stop.
    DoesNotStop,
    /// Job control has stopped the process.
    JobControl,
    /// A signal came in between.
    Disturbed,
    /// The process has no code in which it could make a system call.
    Vdso,
    /// The thread is not in a system call.
    NotInSystemCall,
    /// A seccomp filter is on the thread, and may not be suspended.
    Seccomp,
    /// The program handles its system calls itself.
    Dispatch,
    /// The kernel refused to make a child.
    Clone(i32),
    /// A request failed: the error number.
    System(i32),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::ESRCH) => Self::Ended,
            other => Self::System(other.unwrap_or(libc::EIO)),
        }
    }
}

pub(super) fn send(message: &impl Serialize, to: &mut impl Write) -> io::Result<()> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, message)?;
    let length = u32::try_from(bytes.len() - 4).map_err(io::Error::other)?;
    bytes[..4].copy_from_slice(&length.to_le_bytes());
    to.write_all(&bytes)
}

/// The next message; an error of the kind `UnexpectedEof` where the other side is gone.
pub(super) fn receive<T: DeserializeOwned>(from: &mut impl Read) -> io::Result<T> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length);
    if length > LONGEST {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
    from.read_exact(&mut bytes)?;
    Ok(serde_json::from_slice(&bytes)?)
}

/// Registers, as text: an array of numbers would be twice as long, and the target stands still while it is
/// written and read.
mod hexadecimal {
    use serde::de::{Deserialize, Deserializer, Error};
    use serde::ser::Serializer;

    const DIGITS: &[u8; 16] = b"0123456789abcdef";

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        let digit = |byte: u8| char::from(DIGITS[usize::from(byte)]);
        let text: String = bytes
            .iter()
            .flat_map(|byte| [digit(byte >> 4), digit(byte & 0xf)])
            .collect();
        to.serialize_str(&text)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        let text = <&str>::deserialize(from)?;
        let value = |digit: u8| {
            char::from(digit)
                .to_digit(16)
                .and_then(|v| u8::try_from(v).ok())
        };
        let (pairs, rest) = text.as_bytes().as_chunks();
        let bytes = pairs
            .iter()
            .map(|[high, low]| Some(value(*high)? << 4 | value(*low)?));
        let bytes = bytes
            .collect::<Option<Vec<u8>>>()
            .filter(|_| rest.is_empty());
        bytes.ok_or_else(|| D::Error::custom("no hexadecimal digits"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_is_received() {
        let registers = Reply::Stopped {
            general: vec![1, 2, 255],
            vector: vec![0; 3000],
        };
        let mut stream = Vec::new();
        send(&registers, &mut stream).expect("room");
        send(&Request::End, &mut stream).expect("room");
        let mut from = stream.as_slice();
        assert_eq!(receive::<Reply>(&mut from).expect("a reply"), registers);
        assert_eq!(
            receive::<Request>(&mut from).expect("a request"),
            Request::End
        );
        let end = receive::<Request>(&mut from).expect_err("the end");
        assert_eq!(end.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn nonsense_is_an_error() {
        assert!(receive::<Reply>(&mut [255; 8].as_slice()).is_err());
        assert!(receive::<Reply>(&mut [1, 0, 0, 0, b'x'].as_slice()).is_err());
        for digits in ["0", "0g", "\u{e9}"] {
            let message = format!("{{\"Stopped\":{{\"general\":\"{digits}\",\"vector\":\"\"}}}}");
            assert!(serde_json::from_str::<Reply>(&message).is_err(), "{digits}");
        }
    }
}
