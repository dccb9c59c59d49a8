//! The allocator that comes after the recorder: whose functions it calls.

use core::ffi::CStr;

use crate::elf::for_each_image;

type Allocate = extern "C" fn(usize) -> usize;
type AllocateTwo = extern "C" fn(usize, usize) -> usize;
type AllocateThree = extern "C" fn(usize, usize, usize) -> usize;
type Release = extern "C" fn(usize);

/// The functions of the next allocator. One that it does not have is a null pointer.
#[derive(Debug)]
pub(crate) struct Next {
    pub(crate) malloc: Allocate,
    pub(crate) calloc: AllocateTwo,
    pub(crate) realloc: AllocateTwo,
    pub(crate) free: Release,
    pub(crate) memalign: Option<AllocateTwo>,
    pub(crate) aligned_alloc: Option<AllocateTwo>,
    pub(crate) posix_memalign: Option<AllocateThree>,
    pub(crate) valloc: Option<Allocate>,
    pub(crate) pvalloc: Option<Allocate>,
    pub(crate) usable_size: Option<Allocate>,
    /// Calls of the program do not come here: the executable or an earlier library has a `malloc`.
    pub(crate) is_bypassed: bool,
}

impl Next {
    /// Looks the functions up. `None` where no image has a malloc.
    pub(crate) fn find() -> Option<Self> {
        Some(Self {
            malloc: one(c"malloc")?,
            calloc: two(c"calloc")?,
            realloc: two(c"realloc")?,
            free: release(c"free")?,
            memalign: two(c"memalign"),
            aligned_alloc: two(c"aligned_alloc"),
            posix_memalign: three(c"posix_memalign"),
            valloc: one(c"valloc"),
            pvalloc: one(c"pvalloc"),
            usable_size: one(c"malloc_usable_size"),
            is_bypassed: is_bypassed(),
        })
    }
}

// Addresses and sizes are passed as the integers that they are.

fn one(name: &CStr) -> Option<Allocate> {
    let at = after_recorder(name)?;
    // SAFETY: the caller names a function of that type.
    Some(unsafe { core::mem::transmute::<usize, Allocate>(at) })
}

fn two(name: &CStr) -> Option<AllocateTwo> {
    let at = after_recorder(name)?;
    // SAFETY: the caller names a function of that type.
    Some(unsafe { core::mem::transmute::<usize, AllocateTwo>(at) })
}

fn three(name: &CStr) -> Option<AllocateThree> {
    let at = after_recorder(name)?;
    // SAFETY: the caller names a function of that type.
    Some(unsafe { core::mem::transmute::<usize, AllocateThree>(at) })
}

fn release(name: &CStr) -> Option<Release> {
    let at = after_recorder(name)?;
    // SAFETY: the caller names a function of that type.
    Some(unsafe { core::mem::transmute::<usize, Release>(at) })
}

/// An address in the recorder's own image.
pub(crate) fn own_address() -> usize {
    after_recorder as fn(&CStr) -> Option<usize> as usize
}

/// The symbol `name` of the first image after the recorder that exports it or, where none does, of
/// the first one before.
///
/// Libraries that were loaded for one other library alone are asked too: the C++ library of a
/// Python extension is such a one, and its calls come here all the same.
pub(crate) fn after_recorder(name: &CStr) -> Option<usize> {
    let mut is_after = false;
    let mut earlier = None;
    let mut found = None;
    for_each_image(|image| {
        if image.contains(own_address()) {
            is_after = true;
        } else if is_after {
            found = image.symbol(name);
        } else if earlier.is_none() {
            earlier = image.symbol(name);
        }
        found.is_none()
    });
    found.or(earlier)
}

/// The symbol `name` of any image.
pub(crate) fn anywhere(name: &CStr) -> Option<usize> {
    let mut found = None;
    for_each_image(|image| {
        found = image.symbol(name);
        found.is_none()
    });
    found
}

/// Says whether an image before the recorder exports malloc: the loader prefers that one.
fn is_bypassed() -> bool {
    let mut bypassed = false;
    for_each_image(|image| {
        if image.contains(own_address()) {
            return false;
        }
        bypassed = image.symbol(c"malloc").is_some();
        !bypassed
    });
    bypassed
}
