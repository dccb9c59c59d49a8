//! Loaded images, as the dynamic loader lists them, and the functions that they export.
//!
//! `dl_iterate_phdr` takes the loader's lock and allocates nothing; `dlsym` may allocate, and sets
//! the program's `dlerror`.

use core::ffi::{CStr, c_void};
use core::sync::atomic::AtomicUsize;
use core::sync::atomic::Ordering::Relaxed;

use crate::fork::{self, WayToImages};

/// `struct dl_phdr_info` of `<link.h>`.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct LoadedImage {
    /// What has to be added to an address of the file.
    pub(crate) bias: usize,
    name: *const u8,
    headers: *const ProgramHeader,
    header_count: u16,
    /// How many images were loaded so far.
    pub(crate) loads: u64,
    /// How many of those are gone.
    pub(crate) unloads: u64,
}

/// `Elf64_Phdr` of `<elf.h>`.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct ProgramHeader {
    pub(crate) kind: u32,
    pub(crate) flags: u32,
    offset: u64,
    address: u64,
    physical_address: u64,
    file_size: u64,
    pub(crate) memory_size: u64,
    alignment: u64,
}

pub(crate) const PT_LOAD: u32 = 1;
pub(crate) const PT_DYNAMIC: u32 = 2;
pub(crate) const PT_NOTE: u32 = 4;
pub(crate) const PT_GNU_EH_FRAME: u32 = 0x6474_e550;

unsafe extern "C" {
    fn dl_iterate_phdr(
        callback: unsafe extern "C" fn(*const LoadedImage, usize, *mut c_void) -> i32,
        data: *mut c_void,
    ) -> i32;
}

/// Calls `visit` with each loaded image in the order of loading, until it says `false`.
///
/// In the child of a program with threads the loader's lock may be held by a thread that is not
/// there: see [`crate::fork`].
pub(crate) fn for_each_image(mut visit: impl FnMut(&LoadedImage) -> bool) {
    match fork::way_to_images() {
        WayToImages::Loader => ask_loader(&mut visit),
        WayToImages::List => walk_list(&mut visit),
        WayToImages::None => {}
    }
}

fn ask_loader(mut visit: &mut dyn FnMut(&LoadedImage) -> bool) {
    // SAFETY: `call_visitor` gets the address of the reference, which outlives the call.
    unsafe { dl_iterate_phdr(call_visitor, (&raw mut visit).cast()) };
}

unsafe extern "C" fn call_visitor(
    image: *const LoadedImage,
    _size: usize,
    visit: *mut c_void,
) -> i32 {
    // SAFETY: `ask_loader` passes the address of such a reference, and waits for us.
    let visit = unsafe { &mut *visit.cast::<&mut dyn FnMut(&LoadedImage) -> bool>() };
    // SAFETY: the loader passes an image that stays loaded during the call.
    let image = unsafe { &*image };
    i32::from(!visit(image))
}

/// `struct r_debug` of `<link.h>`: what the loader keeps for debuggers.
#[repr(C)]
struct LoaderState {
    version: i32,
    first: *const ListedImage,
}

/// `struct link_map` of `<link.h>`.
#[repr(C)]
struct ListedImage {
    bias: usize,
    name: *const u8,
    dynamic: usize,
    next: *const Self,
}

/// `Elf64_Ehdr` of `<elf.h>`, up to what is used.
#[repr(C)]
struct FileHeader {
    magic: [u8; 4],
    rest: [u8; 28],
    headers_offset: u64,
    sections_offset: u64,
    flags: u32,
    size: u16,
    header_size: u16,
    header_count: u16,
}

/// The loader's list of images, as the executable's dynamic section names it; found while the
/// loader can still be asked.
static LIST: AtomicUsize = AtomicUsize::new(0);

/// Takes note of where the loader's list is.
pub(crate) fn find_list() {
    const DT_DEBUG: u64 = 21;
    for_each_image(|executable| {
        let header = executable.header(PT_DYNAMIC);
        let address = header.and_then(|header| executable.dynamic_value(header, DT_DEBUG));
        LIST.store(address.unwrap_or(0), Relaxed);
        false
    });
}

/// Goes through the list without the loader's lock, while there is no other thread. The numbers of
/// loads and unloads are not known: 0.
fn walk_list(visit: &mut dyn FnMut(&LoadedImage) -> bool) {
    let state = LIST.load(Relaxed) as *const LoaderState;
    // SAFETY: it is null or the address that the loader wrote, of what it never moves.
    let Some(state) = (unsafe { state.as_ref() }) else {
        return;
    };
    let mut at = state.first;
    // SAFETY: the elements of the list are valid, and nobody else is there to change them.
    while let Some(listed) = unsafe { at.as_ref() } {
        if let Some(image) = listed.image()
            && !visit(&image)
        {
            return;
        }
        at = listed.next;
    }
}

impl ListedImage {
    /// The image, whose file header lies at its beginning: a library's, linked at address 0. The
    /// executable has been seen before.
    fn image(&self) -> Option<LoadedImage> {
        let mut readable = crate::readable::Readable::default();
        readable.word(self.bias)?;
        readable.word(self.bias.checked_add(size_of::<FileHeader>())?)?;
        // SAFETY: so many bytes can be read there.
        let header = unsafe { &*(self.bias as *const FileHeader) };
        (header.magic == *b"\x7fELF").then(|| LoadedImage {
            bias: self.bias,
            name: self.name,
            headers: self.bias.wrapping_add(header.headers_offset as usize) as *const ProgramHeader,
            header_count: header.header_count,
            loads: 0,
            unloads: 0,
        })
    }
}

impl LoadedImage {
    /// The image's program headers.
    pub(crate) fn headers(&self) -> &[ProgramHeader] {
        if self.headers.is_null() {
            return &[];
        }
        // SAFETY: the loader says that there are so many, and keeps them while the image is loaded.
        unsafe { core::slice::from_raw_parts(self.headers, self.header_count.into()) }
    }

    /// The path by which the image was loaded; empty for the executable.
    pub(crate) fn path(&self) -> &[u8] {
        if self.name.is_null() {
            return &[];
        }
        // SAFETY: the loader keeps a string here while the image is loaded.
        unsafe { CStr::from_ptr(self.name.cast()) }.to_bytes()
    }

    /// The address of what `header` describes.
    pub(crate) fn address(&self, header: &ProgramHeader) -> usize {
        self.bias.wrapping_add(header.address as usize)
    }

    /// The addresses from the first byte of its segments to the one after the last.
    pub(crate) fn range(&self) -> (usize, usize) {
        let loads = self
            .headers()
            .iter()
            .filter(|header| header.kind == PT_LOAD);
        loads.fold((usize::MAX, 0), |(start, end), header| {
            let first = self.address(header);
            let after = first.saturating_add(header.memory_size as usize);
            (start.min(first), end.max(after))
        })
    }

    /// Says whether `address` is in one of its segments.
    pub(crate) fn contains(&self, address: usize) -> bool {
        self.headers().iter().any(|header| {
            let offset = address.wrapping_sub(self.address(header));
            header.kind == PT_LOAD && offset < header.memory_size as usize
        })
    }

    /// The value of the first entry with `tag` of the dynamic section that `header` describes.
    fn dynamic_value(&self, header: &ProgramHeader, tag: u64) -> Option<usize> {
        let entries = self.address(header) as *const [u64; 2];
        let count = header.memory_size as usize / size_of::<[u64; 2]>();
        // The entries are within the image's dynamic section.
        let mut all = (0..count).map(|index| element(entries, index));
        all.find(|[found, _]| *found == tag)
            .map(|[_, value]| value as usize)
    }

    /// The first header of `kind`.
    pub(crate) fn header(&self, kind: u32) -> Option<&ProgramHeader> {
        self.headers().iter().find(|header| header.kind == kind)
    }

    /// The address of the function or variable that the image exports as `name`.
    pub(crate) fn symbol(&self, name: &CStr) -> Option<usize> {
        Symbols::of(self)?.find(name)
    }
}

/// The dynamic symbols of an image.
struct Symbols {
    bias: usize,
    table: *const Symbol,
    strings: *const u8,
    strings_size: usize,
    versions: *const u16,
    gnu_hash: *const u32,
    hash: *const u32,
}

/// `Elf64_Sym` of `<elf.h>`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Symbol {
    name: u32,
    info: u8,
    other: u8,
    section: u16,
    value: u64,
    size: u64,
}

impl Symbols {
    fn of(image: &LoadedImage) -> Option<Self> {
        const DT_NULL: u64 = 0;
        const DT_HASH: u64 = 4;
        const DT_STRTAB: u64 = 5;
        const DT_SYMTAB: u64 = 6;
        const DT_STRSZ: u64 = 10;
        const DT_GNU_HASH: u64 = 0x6fff_fef5;
        const DT_VERSYM: u64 = 0x6fff_fff0;
        let header = image.header(PT_DYNAMIC)?;
        let mut found = [0_usize; 6];
        let entries = image.address(header) as *const [u64; 2];
        for index in 0..header.memory_size as usize / size_of::<[u64; 2]>() {
            // The entry is within the image's dynamic section.
            let [tag, value] = element(entries, index);
            let kinds = [
                DT_SYMTAB,
                DT_STRTAB,
                DT_STRSZ,
                DT_VERSYM,
                DT_GNU_HASH,
                DT_HASH,
            ];
            match kinds.iter().position(|&kind| kind == tag) {
                Some(kind) => found[kind] = value as usize,
                None if tag == DT_NULL => break,
                None => {}
            }
        }
        let [table, strings, strings_size, versions, gnu_hash, hash] = found;
        if table == 0 || strings == 0 {
            return None;
        }
        // Glibc replaces the file's addresses by those in memory; musl, and the vdso, do not.
        let (start, _) = image.range();
        let at = |address: usize| match address {
            0 => 0,
            _ if address < start => image.bias.wrapping_add(address),
            _ => address,
        };
        Some(Self {
            bias: image.bias,
            table: at(table) as *const Symbol,
            strings: at(strings) as *const u8,
            strings_size,
            versions: at(versions) as *const u16,
            gnu_hash: at(gnu_hash) as *const u32,
            hash: at(hash) as *const u32,
        })
    }

    fn find(&self, name: &CStr) -> Option<usize> {
        if self.gnu_hash.is_null() {
            self.find_by_hash(name)
        } else {
            self.find_by_gnu_hash(name)
        }
    }

    /// A look-up in `DT_GNU_HASH`: a Bloom filter, buckets, and chains of hashes whose lowest bit
    /// is set at the end.
    fn find_by_gnu_hash(&self, name: &CStr) -> Option<usize> {
        let [buckets, first, filter_words] = [0, 1, 2].map(|index| element(self.gnu_hash, index));
        let hash = gnu_hash(name.to_bytes());
        let filter_size = filter_words as usize * 2;
        let bucket = 4 + filter_size + (hash.checked_rem(buckets)?) as usize;
        let chains = 4 + filter_size + buckets as usize;
        let mut index = element(self.gnu_hash, bucket);
        if index < first {
            return None;
        }
        loop {
            let found = element(self.gnu_hash, chains + (index - first) as usize);
            if found | 1 == hash | 1
                && let Some(address) = self.named(index, name)
            {
                return Some(address);
            }
            if found & 1 != 0 {
                return None;
            }
            index += 1;
        }
    }

    /// A look-up in `DT_HASH`, by its chains from end to end: their number is that of the symbols.
    fn find_by_hash(&self, name: &CStr) -> Option<usize> {
        if self.hash.is_null() {
            return None;
        }
        let count = element(self.hash, 1);
        (1..count).find_map(|index| self.named(index, name))
    }

    /// The address of symbol `index`, if that is the default version of a definition of `name`.
    fn named(&self, index: u32, name: &CStr) -> Option<usize> {
        const HIDDEN: u16 = 0x8000;
        const STT_GNU_IFUNC: u8 = 10;
        // The hash table names symbols of the table only.
        let symbol = element(self.table, index as usize);
        let is_named = || {
            let start = symbol.name as usize;
            let bytes = name.to_bytes_with_nul();
            let fits = start
                .checked_add(bytes.len())
                .is_some_and(|end| end <= self.strings_size);
            let at = self.strings.wrapping_add(start);
            // SAFETY: that many bytes of the string table lie there.
            fits && unsafe { core::slice::from_raw_parts(at, bytes.len()) } == bytes
        };
        let is_hidden = || {
            // There is a version for each symbol.
            !self.versions.is_null() && element(self.versions, index as usize) & HIDDEN != 0
        };
        if symbol.section == 0 || !is_named() || is_hidden() {
            return None;
        }
        let address = self.bias.wrapping_add(symbol.value as usize);
        if symbol.info & 0xf != STT_GNU_IFUNC {
            return Some(address);
        }
        // SAFETY: the symbol says that it is a function which returns the address to use.
        let resolve: extern "C" fn() -> usize = unsafe { core::mem::transmute(address) };
        Some(resolve())
    }
}

/// An element of one of the loader's tables, which are mapped while their image is loaded. `index`
/// is one that the table has.
fn element<T: Copy>(table: *const T, index: usize) -> T {
    let at = table.wrapping_add(index);
    // SAFETY: as the caller promises.
    unsafe { at.read() }
}

/// The hash of `DT_GNU_HASH`.
fn gnu_hash(name: &[u8]) -> u32 {
    name.iter().fold(5381, |hash: u32, &byte| {
        hash.wrapping_mul(33).wrapping_add(byte.into())
    })
}

/// The bytes of `note`'s GNU build id, if it has one.
pub(crate) fn build_id(notes: &[u8]) -> Option<&[u8]> {
    const NT_GNU_BUILD_ID: u32 = 3;
    let mut rest = notes;
    while let Some((head, body)) = rest.split_at_checked(12) {
        let [name_size, size, kind] = [0, 4, 8].map(|at| {
            let bytes = [head[at], head[at + 1], head[at + 2], head[at + 3]];
            u32::from_le_bytes(bytes)
        });
        let (name, body) = body.split_at_checked((name_size as usize).next_multiple_of(4))?;
        let description = body.get(..size as usize)?;
        if kind == NT_GNU_BUILD_ID && name == b"GNU\0" {
            return Some(description);
        }
        rest = body.get((size as usize).next_multiple_of(4)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_of_loaded_images_are_found() {
        unsafe extern "C" {
            fn strlen(text: *const i8) -> usize;
        }
        let mut found = std::vec::Vec::new();
        for_each_image(|image| {
            found.extend(image.symbol(c"malloc"));
            assert_eq!(image.symbol(c"no_such_function_anywhere"), None);
            true
        });
        assert!(!found.is_empty());
        let mut resolved = None;
        for_each_image(|image| {
            resolved = image.symbol(c"strlen");
            resolved.is_none()
        });
        // An indirect function: what the resolver returns, as the loader did.
        let text = c"seven!!";
        // SAFETY: it is a function of that type.
        let found: unsafe extern "C" fn(*const i8) -> usize =
            unsafe { core::mem::transmute(resolved.expect("strlen")) };
        // SAFETY: a string that ends with a zero.
        assert_eq!(unsafe { found(text.as_ptr()) }, unsafe {
            strlen(text.as_ptr())
        });
    }

    #[test]
    fn a_build_id_is_found_among_notes() {
        let other = [
            4, 0, 0, 0, 4, 0, 0, 0, 1, 0, 0, 0, b'G', b'N', b'U', 0, 9, 9, 9, 9,
        ];
        let id = [
            4, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, b'G', b'N', b'U', 0, 7, 8, 0, 0,
        ];
        let both = [other.as_slice(), id.as_slice()].concat();
        assert_eq!(build_id(&both), Some([7, 8].as_slice()));
        assert_eq!(build_id(&other), None);
        assert_eq!(build_id(&both[..30]), None);
        let huge = [255; 16];
        assert_eq!(build_id(&huge), None);
    }
}
