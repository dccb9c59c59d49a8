//! Code addresses, the images that they are in, and the frames that they stand for.

use crate::addr::{Addr, AddrRange};
use crate::memory::Width;
use crate::snapshot::Module;

/// A code address as it was recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CodeAddress {
    /// The address.
    pub addr: Addr,
    /// The image that it was in when it was recorded: an index into the images of the
    /// [`CodeFrames`](super::CodeFrames). None for code that is in no image, such as a JIT's.
    pub image: Option<u32>,
    /// It is where a call returns to: the call itself lies before it, perhaps in another line, and
    /// perhaps in another function. Otherwise it is the instruction that was being executed.
    pub is_return: bool,
}

impl CodeAddress {
    /// An address that is in the code that was running.
    pub(super) fn lookup(&self) -> Addr {
        match self.is_return {
            true => self.addr.saturating_sub(1),
            false => self.addr,
        }
    }
}

/// An image that code ran in: one that is loaded, or one that was unloaded since.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CodeImage {
    /// The path that the target's mount namespace has for it.
    pub path: String,
    /// The class of the ELF image.
    pub width: Width,
    /// Where its first byte is or was mapped.
    pub base: Addr,
    /// What has to be added to an address of the file to get one of the target. It wraps.
    pub bias: u64,
    /// Its executable segments in addresses of the file; all of it where they are not known. What
    /// its file does not say is code has no name anyway.
    pub code: Vec<AddrRange>,
    /// The device (major, minor) and the inode of its file; 0 where they are not known.
    pub file: (u32, u32, u64),
    /// The GNU build id.
    pub build_id: Option<Vec<u8>>,
}

impl CodeImage {
    /// The address in the file (what `addr2line` takes) of the target's `addr`.
    #[must_use]
    pub fn link_address(&self, addr: Addr) -> u64 {
        let address = addr.0.wrapping_sub(self.bias);
        match self.width {
            Width::Four => address & u64::from(u32::MAX),
            Width::Eight => address,
        }
    }
}

impl From<&Module> for CodeImage {
    fn from(module: &Module) -> Self {
        let executable = module.segments.iter().filter(|s| s.executable);
        let mut image = Self {
            path: module.path.clone(),
            width: module.width,
            base: module.base,
            bias: module.bias,
            code: Vec::new(),
            file: module.file,
            build_id: module.build_id.clone(),
        };
        image.code = executable
            .map(|segment| {
                let start = Addr(image.link_address(segment.range.start));
                AddrRange::with_size(start, segment.range.size())
            })
            .collect();
        image
    }
}

/// One call: of a function, or of one that was inlined. What is not known is none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceFrame {
    /// The readable name of the function.
    pub function: Option<String>,
    /// The distance in bytes from its start. Inlined functions have none.
    pub function_offset: Option<u64>,
    /// The source file, as the compiler named it.
    pub file: Option<String>,
    /// The line in it.
    pub line: Option<u32>,
    /// The column in the line.
    pub column: Option<u32>,
    /// The call was inlined into the function of the next frame.
    pub inlined: bool,
    /// The path of the image.
    pub module: Option<String>,
    /// The address in the image's file: what `addr2line` takes.
    pub module_offset: Option<u64>,
}
