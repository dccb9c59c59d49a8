//! Which functions stand between a program and the memory that it asked for.

/// Says whether `function` is one of the allocator's, or a language's way to it: such a function
/// does not tell who allocated.
#[must_use]
pub fn is_allocator_wrapper(function: &str) -> bool {
    ALLOCATORS.contains(&function) || PREFIXES.iter().any(|p| function.starts_with(p))
}

const ALLOCATORS: [&str; 16] = [
    "malloc",
    "calloc",
    "realloc",
    "reallocarray",
    "memalign",
    "aligned_alloc",
    "posix_memalign",
    "valloc",
    "pvalloc",
    "__libc_malloc",
    "__libc_calloc",
    "__libc_realloc",
    "__libc_memalign",
    "_int_malloc",
    "_int_realloc",
    "_int_memalign",
];

/// C++ and Rust: what stands between the program and `malloc`.
const PREFIXES: [&str; 6] = [
    "operator new",
    "__rust_",
    "__rdl_",
    "__rg_",
    "alloc::alloc::",
    "<alloc::alloc::Global",
];
