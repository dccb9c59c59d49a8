//! Call stacks as text.

use std::fmt;
use std::io::{self, Write};

use super::escape::Escaped;
use super::label::{Place, last_part, module_name};
use crate::report::{Frame, Stack};

/// Writes one numbered line for each frame. The outermost comes first and has the highest number,
/// as in `leaks`.
pub(super) fn write_frames(stack: &Stack, out: &mut dyn Write) -> io::Result<()> {
    if stack.cut {
        writeln!(out, "... (outer frames were not found)")?;
    }
    for (number, frame) in stack.frames.iter().enumerate().rev() {
        let module = Escaped(module_name(frame).unwrap_or("???")).to_string();
        let address = frame.address.to_string();
        write!(
            out,
            "{number:<3} {module:<34} {address:>14} {}",
            Code(frame)
        )?;
        writeln!(out, "{}", Inlined(frame))?;
    }
    Ok(())
}

/// Writes all frames on one line, outermost first: `| main main.c:339 | read_config | malloc`.
pub(super) fn write_frames_inline(stack: &Stack, out: &mut dyn Write) -> io::Result<()> {
    if stack.cut {
        write!(out, " | ...")?;
    }
    for frame in stack.frames.iter().rev() {
        write!(out, " | {}", Place(frame))?;
        if let Some(source) = Source::of(frame) {
            write!(out, " {source}")?;
        }
    }
    Ok(())
}

/// `function + offset  file:line`, as far as it is known.
struct Code<'a>(&'a Frame);

impl fmt::Display for Code<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.0.function, &self.0.module) {
            // The place would be the address, which stands before it.
            (None, None) => f.write_str("???")?,
            _ => write!(f, "{}", Place(self.0))?,
        }
        if let (Some(_), Some(offset)) = (&self.0.function, self.0.function_offset) {
            write!(f, " + {offset}")?;
        }
        Source::of(self.0).map_or(Ok(()), |source| write!(f, "  {source}"))
    }
}

struct Inlined<'a>(&'a Frame);

impl fmt::Display for Inlined<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.inlined { "  [inlined]" } else { "" })
    }
}

/// `file:line`, without the folders of the file.
struct Source<'a> {
    file: &'a str,
    line: Option<u32>,
}

impl<'a> Source<'a> {
    fn of(frame: &'a Frame) -> Option<Self> {
        let file = last_part(frame.file.as_deref()?);
        let line = frame.line;
        Some(Self { file, line })
    }
}

impl fmt::Display for Source<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", Escaped(self.file))?;
        self.line.map_or(Ok(()), |line| write!(f, ":{line}"))
    }
}
