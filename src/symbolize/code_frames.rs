//! From code addresses to functions, files and lines.

use std::fmt;
use std::sync::{Mutex, OnceLock, PoisonError};

use super::debug_file::{self, DebugFile};
use super::demangle::demangle;
use super::dwarf::{Call, DebugInfo, Located, SplitFiles};
use super::elf::ElfFile;
use super::image::{CodeAddress, CodeImage, SourceFrame};
use super::module_symbols::{build_id, debug_file, functions, image_file};
use super::perf_map;
use super::table::{Symbol, SymbolTable};
use crate::addr::{Addr, RangeSet};
use crate::platform::{Debuginfod, RegularFile, TargetFiles};
use crate::warning::{Bias, Warning};

/// How much is said of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// Functions, inlined calls, files and lines.
    Lines,
    /// The functions of the symbol tables. No debug information is read.
    Names,
}

/// Names code addresses.
///
/// A name is never a guess: an address in no function is in none. The symbol tables of an image
/// are read once; its debug information is read by each [`Self::resolve`] that needs it, and then
/// dropped.
pub struct CodeFrames<'a> {
    images: &'a [CodeImage],
    files: TargetFiles,
    detail: Detail,
    debuginfod: Option<Debuginfod>,
    functions: Vec<OnceLock<SymbolTable>>,
    warnings: Mutex<Vec<Warning>>,
}

impl<'a> CodeFrames<'a> {
    /// For code in `images`, whose symbols are in `files`. It reads nothing yet.
    #[must_use]
    pub fn new(images: &'a [CodeImage], files: TargetFiles, detail: Detail) -> Self {
        Self {
            images,
            files,
            detail,
            debuginfod: Debuginfod::from_environment(),
            functions: images.iter().map(|_| OnceLock::new()).collect(),
            warnings: Mutex::default(),
        }
    }

    /// The frames of each of `addresses`: the innermost inlined call first, the function last.
    /// There is always one, even if nothing is known.
    ///
    /// It is made for all addresses of a report at once: each part of an image's debug information
    /// is read once for all of them, by all processors. The debug information of one image is in
    /// memory at a time.
    #[must_use]
    pub fn resolve(&self, addresses: &[CodeAddress]) -> Vec<Vec<SourceFrame>> {
        let mut order: Vec<usize> = (0..addresses.len()).collect();
        order.sort_unstable_by_key(|index| (addresses[*index].image, addresses[*index].lookup()));
        let mut frames = vec![Vec::new(); addresses.len()];
        for group in order.chunk_by(|a, b| addresses[*a].image == addresses[*b].image) {
            let wanted: Vec<CodeAddress> = group.iter().map(|index| addresses[*index]).collect();
            let image = wanted.first().and_then(|address| address.image);
            let resolved = match image.and_then(|image| usize::try_from(image).ok()) {
                Some(image) if image < self.images.len() => self.in_image(image, &wanted),
                _ => self.outside_images(&wanted),
            };
            for (index, resolved) in group.iter().zip(resolved) {
                frames[*index] = resolved;
            }
        }
        frames
    }

    /// Gives the files back, for what else is looked up in them.
    #[must_use]
    pub fn into_files(self) -> TargetFiles {
        self.files
    }

    /// What could not be read so far.
    #[must_use]
    pub fn warnings(&self) -> Vec<Warning> {
        // A panic of another thread leaves the list whole.
        let warnings = self.warnings.lock();
        warnings.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The frames of `addresses`, in ascending order, which are in no image.
    fn outside_images(&self, addresses: &[CodeAddress]) -> Vec<Vec<SourceFrame>> {
        let lookups: Vec<Addr> = addresses.iter().map(CodeAddress::lookup).collect();
        let named = match self.files.perf_map() {
            Some(map) => perf_map::named(&map, &lookups),
            None => vec![None; lookups.len()],
        };
        let frames = addresses.iter().zip(named).map(|(address, code)| {
            let code = code?;
            Some(SourceFrame {
                function_offset: address.addr.0.checked_sub(code.start.0),
                function: Some(code.name),
                ..SourceFrame::default()
            })
        });
        frames
            .map(|frame| vec![frame.unwrap_or_default()])
            .collect()
    }

    /// The frames of `addresses`, in ascending order, which are in the image with this number.
    fn in_image(&self, number: usize, addresses: &[CodeAddress]) -> Vec<Vec<SourceFrame>> {
        let image = &self.images[number];
        let file = image_file(image.into(), &self.files);
        let debug = self.debug_file(image, file.as_ref());
        let functions =
            self.functions[number].get_or_init(|| functions(file.as_ref(), debug.as_ref()));
        let code = code_of(
            image,
            file.as_ref().or(debug.as_ref().map(|debug| &debug.elf)),
        );
        let is_code = |link: &u64| code.contains(Addr(*link));
        let links = addresses.iter().map(|a| image.link_address(a.lookup()));
        let mut wanted: Vec<u64> = links.filter(is_code).collect();
        wanted.sort_unstable();
        wanted.dedup();
        let located = match self.detail {
            Detail::Lines => self.locate(image, file, debug, &code, &wanted),
            Detail::Names => Vec::new(),
        };
        let frames = addresses.iter().map(|address| {
            let lookup = image.link_address(address.lookup());
            let Ok(index) = wanted.binary_search(&lookup) else {
                return vec![unknown(image, address)];
            };
            let located = located.get(index).and_then(Option::as_ref);
            frames(image, address, located, functions.find(lookup))
        });
        frames.collect()
    }

    /// The debug file of `image`, whose own file is `file`, where it is needed.
    fn debug_file(
        &self,
        image: &CodeImage,
        file: Option<&ElfFile<RegularFile>>,
    ) -> Option<DebugFile> {
        if file.is_some_and(ElfFile::has_debug_info) {
            return None;
        }
        debug_file(image.into(), &self.files, file).or_else(|| {
            let debuginfod = self.debuginfod.as_ref();
            let debuginfod = debuginfod.filter(|_| self.detail == Detail::Lines)?;
            let id = build_id(image.into(), file)?;
            debug_file::fetched(&self.files, debuginfod, &id)
        })
    }

    /// What the debug information says of the link addresses `wanted`.
    fn locate(
        &self,
        image: &CodeImage,
        file: Option<ElfFile<RegularFile>>,
        debug: Option<DebugFile>,
        code: &RangeSet,
        wanted: &[u64],
    ) -> Vec<Option<Located>> {
        let own = file.filter(ElfFile::has_debug_info).map(|elf| DebugFile {
            path: image.path.clone(),
            elf,
        });
        let with_info = debug.filter(|debug| debug.elf.has_debug_info());
        let Some(debug) = own.or(with_info).filter(|_| !wanted.is_empty()) else {
            return Vec::new();
        };
        let split = SplitFiles {
            files: &self.files,
            paths: vec![image.path.clone(), debug.path.clone()],
        };
        let supplement = debug_file::supplement(&self.files, &debug);
        let Some(info) = DebugInfo::read(&debug.elf, supplement.as_ref()) else {
            self.warn(&debug.path, "is too large, or cannot be read");
            return Vec::new();
        };
        info.locate(wanted, code, &split).unwrap_or_else(|_| {
            self.warn(&debug.path, "is damaged");
            Vec::new()
        })
    }

    fn warn(&self, path: &str, what: &str) {
        let message = format!(
            "the debug information in {path} {what}: its code is named by symbols, without lines"
        );
        let warning = Warning::new("debug_info_unreadable", message, Bias::None);
        let warnings = self.warnings.lock();
        let mut warnings = warnings.unwrap_or_else(PoisonError::into_inner);
        if !warnings.contains(&warning) {
            warnings.push(warning);
        }
    }
}

impl fmt::Debug for CodeFrames<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CodeFrames")
            .field("images", &self.images.len())
            .field("detail", &self.detail)
            .finish_non_exhaustive()
    }
}

/// The link addresses where `image` has code: of what is known to be loaded, what its file, or its
/// debug file, says is code.
fn code_of(image: &CodeImage, elf: Option<&ElfFile<RegularFile>>) -> RangeSet {
    let loaded: RangeSet = image.code.iter().copied().collect();
    let Some(code) = elf.map(ElfFile::code) else {
        return loaded;
    };
    let code = code.ranges().iter();
    code.flat_map(|range| loaded.within(*range)).collect()
}

/// A frame of which only the place is known.
fn unknown(image: &CodeImage, address: &CodeAddress) -> SourceFrame {
    SourceFrame {
        module: Some(image.path.clone()),
        module_offset: Some(image.link_address(address.addr)),
        ..SourceFrame::default()
    }
}

/// The frames of `address` by what the debug information and the symbol table say of it.
fn frames(
    image: &CodeImage,
    address: &CodeAddress,
    located: Option<&Located>,
    symbol: Option<Symbol<'_>>,
) -> Vec<SourceFrame> {
    let calls = located.map(|located| located.calls.as_slice());
    let Some((function, inlined)) = calls.and_then(<[Call]>::split_last) else {
        return vec![by_symbol(unknown(image, address), symbol)];
    };
    let frame = |call: &Call, inlined| SourceFrame {
        function: call.function.clone(),
        file: call.file.clone(),
        line: call.line,
        column: call.column,
        inlined,
        ..unknown(image, address)
    };
    let mut frames: Vec<_> = inlined.iter().map(|call| frame(call, true)).collect();
    let mut last = frame(function, false);
    match located {
        Some(located) if last.function.is_some() => {
            let link = image.link_address(address.addr);
            let start = located.function_start;
            last.function_offset = start.and_then(|start| link.checked_sub(start));
            let fuller = symbol.filter(|symbol| says_more(symbol, located));
            last.function = fuller.map(|s| demangle(s.name)).or(last.function);
        }
        // Lines without functions: code that was written in assembler.
        _ => last = by_symbol(last, symbol),
    }
    frames.push(last);
    frames
}

/// Says whether `symbol` is the function of `located` by its full name, where the debug information
/// has a plain one.
fn says_more(symbol: &Symbol<'_>, located: &Located) -> bool {
    let is_mangled = symbol.name.starts_with("_Z") || symbol.name.starts_with("_R");
    !located.has_linkage_name && is_mangled && Some(symbol.start) == located.function_start
}

fn by_symbol(frame: SourceFrame, symbol: Option<Symbol<'_>>) -> SourceFrame {
    let Some(symbol) = symbol else {
        return frame;
    };
    SourceFrame {
        function: Some(demangle(symbol.name)),
        function_offset: frame
            .module_offset
            .and_then(|link| link.checked_sub(symbol.start)),
        ..frame
    }
}
