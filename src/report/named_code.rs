//! The names of code addresses, from the images that the stack log has seen.

use rustc_hash::FxHashMap;

use super::call_stacks::FrameSource;
use super::hex::Offset;
use super::model::{self, Frame};
use crate::addr::{Addr, AddrRange};
use crate::platform::TargetFiles;
use crate::snapshot::{Module, Snapshot};
use crate::stacklog::{Allocations, CodeFrame, Image};
use crate::symbolize::{CodeAddress, CodeFrames, CodeImage, Detail, SourceFrame};
use crate::warning::Warning;

/// The images that stacks lead through, as symbols are looked up in them.
#[derive(Clone, Debug, Default)]
pub struct CodeImages {
    images: Vec<CodeImage>,
    /// The index of an image by its number in the log.
    indices: FxHashMap<u32, u32>,
}

impl CodeImages {
    /// The images of `allocations` in the target that `snapshot` is of.
    #[must_use]
    pub fn new(allocations: &Allocations, snapshot: &Snapshot) -> Self {
        let mut numbered: Vec<(u32, &Image)> = allocations.images().collect();
        numbered.sort_unstable_by_key(|(number, _)| *number);
        let images = numbered.iter();
        let indices = (0..).zip(numbered.iter().map(|(number, _)| *number));
        Self {
            images: images
                .map(|(_, image)| code_image(image, snapshot))
                .collect(),
            indices: indices.map(|(index, number)| (number, index)).collect(),
        }
    }
}

impl CodeImages {
    /// The images as a report has them, in no particular order.
    pub fn modules(&self) -> impl Iterator<Item = model::Module> + '_ {
        self.images.iter().map(|image| model::Module {
            path: image.path.clone(),
            build_id: image.build_id.as_deref().map(hex_digits),
        })
    }
}

fn hex_digits(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// An image that is still loaded is a module, of which more is known.
fn code_image(image: &Image, snapshot: &Snapshot) -> CodeImage {
    let same = |module: &&Module| {
        module.bias == image.bias
            && image.range.contains(module.base)
            && (image.build_id.is_none() || module.build_id == image.build_id)
    };
    let modules = snapshot.modules.iter();
    if let Some(module) = modules.filter(|_| !image.is_unloaded).find(same) {
        return module.into();
    }
    let executable = &snapshot.process.executable;
    let path = image.path.as_ref().unwrap_or(executable);
    let mut unloaded = CodeImage {
        path: path.clone(),
        width: snapshot.width,
        base: image.range.start,
        bias: image.bias,
        build_id: image.build_id.clone(),
        ..CodeImage::default()
    };
    let start = Addr(unloaded.link_address(image.range.start));
    unloaded.code = vec![AddrRange::with_size(start, image.range.size())];
    unloaded
}

/// Names code by the symbols and the debug information of its images.
#[derive(Debug)]
pub struct NamedCode<'a> {
    code: CodeFrames<'a>,
    images: &'a CodeImages,
}

impl<'a> NamedCode<'a> {
    /// For code in `images`, whose symbols are in `files`.
    #[must_use]
    pub fn new(images: &'a CodeImages, files: TargetFiles, detail: Detail) -> Self {
        Self {
            code: CodeFrames::new(&images.images, files, detail),
            images,
        }
    }

    /// Gives the files back.
    #[must_use]
    pub fn into_files(self) -> TargetFiles {
        self.code.into_files()
    }

    /// What could not be read so far.
    #[must_use]
    pub fn warnings(&self) -> Vec<Warning> {
        self.code.warnings()
    }
}

impl FrameSource for NamedCode<'_> {
    fn frames(&self, code: &[CodeFrame]) -> Vec<Vec<Frame>> {
        let addresses = code.iter().map(|frame| CodeAddress {
            addr: frame.addr,
            image: frame
                .image
                .and_then(|n| self.images.indices.get(&n).copied()),
            is_return: !frame.is_exact,
        });
        let addresses: Vec<CodeAddress> = addresses.collect();
        let resolved = self.code.resolve(&addresses).into_iter().zip(code);
        resolved
            .map(|(frames, code)| frames.into_iter().map(|f| frame(f, code.addr)).collect())
            .collect()
    }
}

fn frame(source: SourceFrame, address: Addr) -> Frame {
    Frame {
        address,
        module: source.module,
        offset: source.module_offset.map(Offset),
        function: source.function,
        function_offset: source.function_offset,
        file: source.file,
        line: source.line,
        inlined: source.inlined,
    }
}
