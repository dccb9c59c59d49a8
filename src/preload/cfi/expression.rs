//! DWARF expressions (DWARF 5, section 2.5), as far as frame addresses are made of them: a register
//! and a distance, or the word in memory there.

use super::reader::Reader;
use crate::rules::Cfa;

const FRAME_POINTER: u64 = 6;
const STACK_POINTER: u64 = 7;
const RETURN_ADDRESS: u64 = 16;

/// How the frame address is computed.
#[derive(Clone, Copy, Debug)]
pub(super) enum CfaRule {
    None,
    /// A register and an offset.
    Register(u64, i64),
    /// An expression.
    Expression(Reader),
}

/// A value that is known but for the registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Value {
    Number(i64),
    Stack(i64),
    Frame(i64),
    /// The word in memory at this offset from the frame pointer.
    Saved(i64),
}

impl CfaRule {
    /// The rule for code at `address`.
    pub(super) fn resolve(&self, address: usize) -> Option<Cfa> {
        let value = match *self {
            Self::None => return None,
            Self::Register(STACK_POINTER, offset) => Value::Stack(offset),
            Self::Register(FRAME_POINTER, offset) => Value::Frame(offset),
            Self::Register(..) => return None,
            Self::Expression(program) => evaluate(program, address)?,
        };
        Some(match value {
            Value::Stack(offset) => Cfa::Stack(i32::try_from(offset).ok()?),
            Value::Frame(offset) => Cfa::Frame(i32::try_from(offset).ok()?),
            Value::Saved(offset) => Cfa::Saved(i32::try_from(offset).ok()?),
            Value::Number(_) => return None,
        })
    }
}

impl Reader {
    /// The offset from the frame pointer, if the expression is such a place.
    pub(super) fn saved_at_frame(self) -> Option<i64> {
        match evaluate(self, 0)? {
            Value::Frame(offset) => Some(offset),
            _ => None,
        }
    }
}

/// The values that an expression works on.
#[derive(Debug)]
struct Stack {
    values: [Value; Self::SIZE],
    len: usize,
}

impl Stack {
    const SIZE: usize = 8;

    fn push(&mut self, value: Value) -> Option<()> {
        *self.values.get_mut(self.len)? = value;
        self.len += 1;
        Some(())
    }

    fn pop(&mut self) -> Option<Value> {
        self.len = self.len.checked_sub(1)?;
        Some(self.values[self.len])
    }

    /// Replaces the two topmost numbers.
    fn combine(&mut self, result: impl FnOnce(i64, i64) -> Option<i64>) -> Option<()> {
        let (Value::Number(second), Value::Number(first)) = (self.pop()?, self.pop()?) else {
            return None;
        };
        self.push(Value::Number(result(first, second)?))
    }
}

fn evaluate(mut program: Reader, address: usize) -> Option<Value> {
    let mut stack = Stack {
        values: [Value::Number(0); Stack::SIZE],
        len: 0,
    };
    while let Some(opcode) = program.u8() {
        match opcode {
            0x06 => match stack.pop()? {
                Value::Frame(offset) => stack.push(Value::Saved(offset))?,
                _ => return None,
            },
            0x08 => stack.push(Value::Number(program.u8()?.into()))?,
            0x09 => stack.push(Value::Number((program.u8()? as i8).into()))?,
            0x1a => stack.combine(|a, b| Some(a & b))?,
            0x22 => add(&mut stack)?,
            0x23 => {
                let number = program.uleb()? as i64;
                stack.push(Value::Number(number))?;
                add(&mut stack)?;
            }
            0x24 => stack.combine(|a, b| a.checked_shl(u32::try_from(b).ok()?))?,
            0x2a => stack.combine(|a, b| Some(i64::from(a >= b)))?,
            0x30..=0x4f => stack.push(Value::Number(i64::from(opcode - 0x30)))?,
            0x70..=0x8f => {
                let offset = program.sleb()?;
                stack.push(register(u64::from(opcode - 0x70), offset, address)?)?;
            }
            _ => return None,
        }
    }
    stack.pop()
}

fn register(number: u64, offset: i64, address: usize) -> Option<Value> {
    match number {
        FRAME_POINTER => Some(Value::Frame(offset)),
        STACK_POINTER => Some(Value::Stack(offset)),
        RETURN_ADDRESS => Some(Value::Number((address as i64).checked_add(offset)?)),
        _ => None,
    }
}

/// Replaces the two topmost values, of which one is a number, by their sum.
fn add(stack: &mut Stack) -> Option<()> {
    let (second, first) = (stack.pop()?, stack.pop()?);
    let (value, number) = match (first, second) {
        (value, Value::Number(number)) | (Value::Number(number), value) => (value, number),
        _ => return None,
    };
    stack.push(match value {
        Value::Number(other) => Value::Number(other.checked_add(number)?),
        Value::Stack(offset) => Value::Stack(offset.checked_add(number)?),
        Value::Frame(offset) => Value::Frame(offset.checked_add(number)?),
        Value::Saved(_) if number == 0 => value,
        Value::Saved(_) => return None,
    })
}
