//! Numbers in an image, one after the other, and never beyond its end.

/// A place in loaded memory, and where to stop.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader {
    at: usize,
    end: usize,
}

impl Reader {
    /// Reads from `start` to before `end`: addresses of an image that is loaded. Nothing else may
    /// be given, and nothing may be read once it is unloaded.
    pub(super) fn new(start: usize, end: usize) -> Self {
        Self { at: start, end }
    }

    /// The same memory from `at`, which must be in it.
    pub(super) fn at(&self, at: usize) -> Option<Self> {
        (self.at..self.end)
            .contains(&at)
            .then_some(Self { at, end: self.end })
    }

    /// The next `length` bytes alone.
    pub(super) fn first(&self, length: usize) -> Option<Self> {
        let end = self.at.checked_add(length)?;
        (end <= self.end).then_some(Self { at: self.at, end })
    }

    pub(super) fn position(&self) -> usize {
        self.at
    }

    pub(super) fn skip(&mut self, length: usize) -> Option<()> {
        self.at = self.first(length)?.end;
        Some(())
    }

    fn bytes<const N: usize>(&mut self) -> Option<[u8; N]> {
        let next = self.first(N)?;
        // SAFETY: the bytes are within the image, whose headers and unwind information the loader
        // has mapped to be read.
        let bytes = unsafe { (self.at as *const [u8; N]).read() };
        self.at = next.end;
        Some(bytes)
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        self.bytes().map(u8::from_le_bytes)
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.bytes().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.bytes().map(u32::from_le_bytes)
    }

    pub(super) fn i32(&mut self) -> Option<i32> {
        self.bytes().map(i32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.bytes().map(u64::from_le_bytes)
    }

    /// The bytes up to the next zero, which is skipped.
    pub(super) fn text(&mut self) -> Option<Self> {
        let start = self.at;
        while self.u8()? != 0 {}
        Some(Self {
            at: start,
            end: self.at - 1,
        })
    }

    /// An unsigned LEB128 number of at most 64 bits.
    pub(super) fn uleb(&mut self) -> Option<usize> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            number |= usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    /// A signed LEB128 number of at most 64 bits.
    pub(super) fn sleb(&mut self) -> Option<i64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            number |= i64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                let unused = 64_u32.saturating_sub(shift + 7);
                return Some(number << unused >> unused);
            }
        }
        None
    }

    /// An address in one of the encodings of `DW_EH_PE_…`: absolute or relative to where it stands.
    pub(super) fn encoded(&mut self, encoding: u8) -> Option<usize> {
        const RELATIVE: u8 = 0x10;
        let here = self.at;
        let number = self.number(encoding)?;
        match encoding & 0xf0 {
            0 => Some(number),
            RELATIVE => Some(here.wrapping_add(number)),
            _ => None,
        }
    }

    /// Skips an address in any encoding.
    pub(super) fn skip_encoded(&mut self, encoding: u8) -> Option<()> {
        const ALIGNED: u8 = 0x50;
        if encoding == ALIGNED {
            self.at = self.at.checked_next_multiple_of(size_of::<usize>())?;
            return self.skip(size_of::<usize>());
        }
        self.number(encoding).map(|_| ())
    }

    fn number(&mut self, encoding: u8) -> Option<usize> {
        match encoding & 0x0f {
            0 | 4 | 12 => self.u64().map(|number| number as usize),
            1 => self.uleb(),
            2 => self.u16().map(usize::from),
            3 => self.u32().map(|number| number as usize),
            9 => self.sleb().map(|number| number as usize),
            10 => self.u16().map(|number| number as i16 as usize),
            11 => self.i32().map(|number| number as usize),
            _ => None,
        }
    }
}
