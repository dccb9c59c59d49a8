//! The programs of call frame information, run up to the row of one address.

use super::Common;
use super::expression::CfaRule;
use super::reader::Reader;

/// The number of the frame pointer (System V ABI, AMD64 supplement, figure 3.36).
const FRAME_POINTER: u64 = 6;

/// Where the caller's value of a register is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Register {
    /// In the register itself.
    Same,
    /// In memory, at this offset from the frame address.
    Saved(i64),
    /// In memory, at this offset from the frame pointer.
    SavedAtFrame(i64),
    /// Nowhere.
    Undefined,
    /// Elsewhere.
    Other,
}

/// What is true between two addresses.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    pub(super) cfa: CfaRule,
    pub(super) frame_pointer: Register,
    pub(super) return_address: Register,
}

/// A program that runs.
#[derive(Debug)]
pub(super) struct Rows {
    code_alignment: u64,
    data_alignment: i64,
    return_register: u64,
    encoding: u8,
    location: usize,
    row: Row,
    initial: Row,
    kept: [Row; Self::KEPT],
    kept_len: usize,
}

impl Rows {
    /// The most rows that a program may remember: compilers nest them once or twice.
    const KEPT: usize = 8;

    /// Begins at the first row of a function that starts at `start`.
    pub(super) fn new(common: &Common, start: usize) -> Self {
        let row = Row {
            cfa: CfaRule::None,
            frame_pointer: Register::Same,
            return_address: Register::Same,
        };
        Self {
            code_alignment: common.code_alignment,
            data_alignment: common.data_alignment,
            return_register: common.return_register,
            encoding: common.address_encoding,
            location: start,
            row,
            initial: row,
            kept: [row; Self::KEPT],
            kept_len: 0,
        }
    }

    pub(super) fn row(&self) -> &Row {
        &self.row
    }

    /// Takes the present row as the one that functions begin with.
    pub(super) fn begin_function(&mut self) {
        self.initial = self.row;
    }

    /// Runs `program` up to the row that `address` is in. `None` where it cannot be understood.
    pub(super) fn run(&mut self, mut program: Reader, address: usize) -> Option<()> {
        while let Some(opcode) = program.u8() {
            let operand = u64::from(opcode & 0x3f);
            match opcode >> 6 {
                1 => self.advance(operand)?,
                2 => {
                    let offset = program.uleb()?;
                    self.set_saved(operand, offset as i64)?;
                }
                3 => self.reset(operand),
                _ => self.extended(opcode, &mut program)?,
            }
            if self.location > address {
                return Some(());
            }
        }
        Some(())
    }

    fn advance(&mut self, delta: u64) -> Option<()> {
        let bytes = delta.checked_mul(self.code_alignment)?;
        self.location = self.location.checked_add(bytes as usize)?;
        Some(())
    }

    fn register(&mut self, number: u64) -> Option<&mut Register> {
        match number {
            FRAME_POINTER => Some(&mut self.row.frame_pointer),
            number if number == self.return_register => Some(&mut self.row.return_address),
            _ => None,
        }
    }

    fn set(&mut self, number: u64, value: Register) {
        if let Some(register) = self.register(number) {
            *register = value;
        }
    }

    fn set_saved(&mut self, number: u64, factored: i64) -> Option<()> {
        let offset = factored.checked_mul(self.data_alignment)?;
        self.set(number, Register::Saved(offset));
        Some(())
    }

    fn reset(&mut self, number: u64) {
        let initial = match number {
            FRAME_POINTER => self.initial.frame_pointer,
            _ => self.initial.return_address,
        };
        self.set(number, initial);
    }

    /// The instructions whose code is a whole byte: `DW_CFA_…`, and those of GNU.
    fn extended(&mut self, opcode: u8, program: &mut Reader) -> Option<()> {
        match opcode {
            0x00 => {}
            0x01 => self.location = program.encoded(self.encoding)?,
            0x02 => self.advance(program.u8()?.into())?,
            0x03 => self.advance(program.u16()?.into())?,
            0x04 => self.advance(program.u32()?.into())?,
            0x0a => self.keep()?,
            0x0b => self.take_back()?,
            0x0c..=0x0f | 0x12 | 0x13 => self.define_cfa(opcode, program)?,
            // The size of the arguments on the stack, which the frame address counts already.
            0x2e => _ = program.uleb()?,
            _ => self.define_register(opcode, program)?,
        }
        Some(())
    }

    fn keep(&mut self) -> Option<()> {
        *self.kept.get_mut(self.kept_len)? = self.row;
        self.kept_len += 1;
        Some(())
    }

    fn take_back(&mut self) -> Option<()> {
        self.kept_len = self.kept_len.checked_sub(1)?;
        self.row = self.kept[self.kept_len];
        Some(())
    }

    fn define_cfa(&mut self, opcode: u8, program: &mut Reader) -> Option<()> {
        if opcode == 0x0f {
            let length = program.uleb()?;
            self.row.cfa = CfaRule::Expression(program.first(length)?);
            return program.skip(length);
        }
        let (mut register, mut offset) = match self.row.cfa {
            CfaRule::Register(register, offset) => (register, offset),
            _ => (0, 0),
        };
        if matches!(opcode, 0x0c | 0x0d | 0x12) {
            register = program.uleb()? as u64;
        }
        match opcode {
            0x0c | 0x0e => offset = program.uleb()? as i64,
            0x12 | 0x13 => offset = program.sleb()?.checked_mul(self.data_alignment)?,
            _ => {}
        }
        self.row.cfa = CfaRule::Register(register, offset);
        Some(())
    }

    fn define_register(&mut self, opcode: u8, program: &mut Reader) -> Option<()> {
        let register = program.uleb()? as u64;
        match opcode {
            0x05 => {
                let offset = program.uleb()? as i64;
                self.set_saved(register, offset)?;
            }
            0x06 => self.reset(register),
            0x07 => self.set(register, Register::Undefined),
            0x08 => self.set(register, Register::Same),
            0x10 => {
                let length = program.uleb()?;
                let place = program.first(length)?.saved_at_frame();
                self.set(
                    register,
                    place.map_or(Register::Other, Register::SavedAtFrame),
                );
                program.skip(length)?;
            }
            0x11 => {
                let offset = program.sleb()?;
                self.set_saved(register, offset)?;
            }
            0x2f => {
                let offset = (program.uleb()? as i64).checked_neg()?;
                self.set_saved(register, offset)?;
            }
            0x09 | 0x14 => {
                program.uleb()?;
                self.set(register, Register::Other);
            }
            0x15 => {
                program.sleb()?;
                self.set(register, Register::Other);
            }
            0x16 => {
                let length = program.uleb()?;
                program.skip(length)?;
                self.set(register, Register::Other);
            }
            _ => return None,
        }
        Some(())
    }
}
