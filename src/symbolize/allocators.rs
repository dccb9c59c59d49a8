//! Which functions allocate for others: a leak is named after the first frame outside of them.
//!
//! `leaks` of macOS writes `<malloc in main>` where main called `operator new`, and
//! `<malloc in g_vasprintf>` where `g_vasprintf` let the C library allocate.

/// The allocation functions of C libraries and what they are made of, without underscores and
/// `GI_` before them.
const C_LIBRARY: &[&str] = &[
    "malloc",
    "calloc",
    "realloc",
    "reallocarray",
    "memalign",
    "aligned_alloc",
    "posix_memalign",
    "valloc",
    "pvalloc",
    // glibc's own names.
    "libc_malloc",
    "libc_calloc",
    "libc_realloc",
    "libc_reallocarray",
    "libc_memalign",
    "libc_valloc",
    "libc_pvalloc",
    "libc_alloc_buffer_allocate",
    "int_malloc",
    "int_realloc",
    "int_memalign",
    "mid_memalign",
    "sysmalloc",
    "sysmalloc_mmap",
    "tcache_init",
    "malloc_hook_ini",
    "malloc_check",
    "realloc_check",
    "memalign_check",
    "malloc_mcheck",
    // Copies of strings, and strings that are printed into new memory.
    "strdup",
    "strndup",
    "wcsdup",
    "asprintf",
    "asprintf_chk",
    "vasprintf",
    "vasprintf_chk",
    "vasprintf_internal",
];

/// Functions of programs and their libraries that allocate or end the program, or that add a
/// counter to malloc. Those that do more, such as `g_vasprintf`, are not among them.
const WRAPPERS: &[&str] = &[
    // gnulib and libiberty; git, bash, gdb, …
    "xmalloc",
    "xcalloc",
    "xzalloc",
    "xrealloc",
    "xreallocarray",
    "xnmalloc",
    "xnrealloc",
    "xcharalloc",
    "x2realloc",
    "x2nrealloc",
    "xpalloc",
    "xmemdup",
    "xmemdupz",
    "xstrdup",
    "xstrndup",
    "sh_xmalloc",
    "sh_xrealloc",
    "ximalloc",
    "xicalloc",
    "xirealloc",
    // GLib, and its copy in Mono.
    "g_malloc",
    "g_malloc0",
    "g_malloc_n",
    "g_malloc0_n",
    "g_calloc",
    "g_realloc",
    "g_realloc_n",
    "g_try_malloc",
    "g_try_malloc0",
    "g_try_malloc_n",
    "g_try_malloc0_n",
    "g_try_realloc",
    "g_try_realloc_n",
    "g_aligned_alloc",
    "g_aligned_alloc0",
    "g_slice_alloc",
    "g_slice_alloc0",
    "g_slice_copy",
    "g_memdup",
    "g_memdup2",
    "g_strdup",
    "g_strndup",
    "monoeg_malloc",
    "monoeg_malloc0",
    "monoeg_realloc",
    "monoeg_try_malloc",
    "monoeg_try_realloc",
    "monoeg_g_calloc",
    "monoeg_g_memdup",
    "monoeg_g_strndup",
    // CPython.
    "PyMem_Malloc",
    "PyMem_Calloc",
    "PyMem_Realloc",
    "PyMem_RawMalloc",
    "PyMem_RawCalloc",
    "PyMem_RawRealloc",
    "PyMem_DebugMalloc",
    "PyMem_DebugCalloc",
    "PyMem_DebugRealloc",
    "PyMem_DebugRawMalloc",
    "PyMem_DebugRawCalloc",
    "PyMem_DebugRawRealloc",
    "PyMem_DebugRawAlloc",
    "PyMem_Strdup",
    "PyMem_RawStrdup",
    "PyObject_Malloc",
    "PyObject_Calloc",
    "PyObject_Realloc",
    // Redis, nginx, OpenSSL, Perl, SQLite.
    "zmalloc",
    "zcalloc",
    "zrealloc",
    "zmalloc_usable",
    "zcalloc_usable",
    "zrealloc_usable",
    "ztrymalloc_usable",
    "ztrymalloc_usable_internal",
    "zstrdup",
    "ngx_alloc",
    "ngx_calloc",
    "ngx_memalign",
    "CRYPTO_malloc",
    "CRYPTO_zalloc",
    "CRYPTO_realloc",
    "CRYPTO_strdup",
    "CRYPTO_strndup",
    "CRYPTO_memdup",
    "Perl_safesysmalloc",
    "Perl_safesyscalloc",
    "Perl_safesysrealloc",
    "sqlite3MemMalloc",
    "sqlite3MemRealloc",
    "sqlite3Malloc",
    "sqlite3MallocZero",
    "sqlite3Realloc",
    "sqlite3_malloc",
    "sqlite3_malloc64",
    "sqlite3_realloc",
    "sqlite3_realloc64",
];

/// The allocators of C++'s containers: the class, of whatever types, and its function.
const CPP_ALLOCATORS: &[(&str, &[&str])] = &[
    ("new_allocator", &["allocate"]),
    ("__new_allocator", &["allocate"]),
    ("malloc_allocator", &["allocate"]),
    ("allocator", &["allocate"]),
    ("allocator_traits", &["allocate", "allocate_at_least"]),
    ("__alloc_traits", &["allocate"]),
    ("_Vector_base", &["_M_allocate", "_M_create_storage"]),
    ("vector", &["_M_allocate_and_copy"]),
    (
        "_Deque_base",
        &["_M_allocate_node", "_M_allocate_map", "_M_create_nodes"],
    ),
    ("_Rb_tree", &["_M_get_node"]),
    ("_List_base", &["_M_get_node"]),
    ("_Fwd_list_base", &["_M_get_node"]),
    (
        "_Hashtable_alloc",
        &[
            "_M_allocate_node",
            "_M_allocate_node_ptr",
            "_M_allocate_buckets",
        ],
    ),
    ("basic_string", &["_M_create", "_S_allocate"]),
    ("_Rep", &["_S_create"]),
    ("std", &["__allocate_guarded"]),
    // libc++.
    (
        "__1",
        &[
            "__libcpp_allocate",
            "__libcpp_operator_new",
            "__allocate_at_least",
        ],
    ),
];

/// The modules of Rust's standard library whose functions do nothing but allocate.
const RUST_MODULES: &[&str] = &[
    "alloc::alloc::",
    "<alloc::alloc::Global as ",
    "alloc::raw_vec::",
    "std::alloc::",
    "<std::alloc::System as ",
    "std::sys::alloc::",
    "std::sys::pal::unix::alloc::",
];

/// Rust's allocation functions, in whatever crate the compiler puts them.
const RUST_SYMBOLS: &[&str] = &[
    "rust_alloc",
    "rust_alloc_zeroed",
    "rust_realloc",
    "rdl_alloc",
    "rdl_alloc_zeroed",
    "rdl_realloc",
    "rg_alloc",
    "rg_alloc_zeroed",
    "rg_realloc",
];

/// Rust's functions that make one object, as `operator new` does.
const RUST_CONSTRUCTORS: &[(&str, &[&str])] = &[
    ("Box", &["new", "new_in", "new_uninit", "new_uninit_in"]),
    ("Vec", &["with_capacity", "with_capacity_in"]),
    ("String", &["with_capacity"]),
];

/// Libraries in which everything serves allocation, by the beginning of their file names.
const LIBRARIES: &[&str] = &[
    "librleaks",
    "libjemalloc.",
    "libtcmalloc",
    "libmimalloc",
    "libasan.",
    "libtsan.",
];

/// Says whether the function with this readable name, in the image with this path, allocates for
/// its caller: so a leak is the caller's, or its caller's.
///
/// The functions of the recorder itself are such ones, whether they have names or not.
#[must_use]
pub fn is_allocator_wrapper(function: Option<&str>, module: Option<&str>) -> bool {
    module.is_some_and(is_allocation_library) || function.is_some_and(allocates)
}

fn is_allocation_library(path: &str) -> bool {
    let (directory, file) = path.rsplit_once('/').unwrap_or(("", path));
    let folder = directory.rsplit('/').next().unwrap_or(directory);
    // The recorder is `rleaks/VERSION-HASH.so` or `rleaks-USER/VERSION-HASH.so`.
    let is_in_own_folder = folder == "rleaks" || folder.starts_with("rleaks-");
    let is_recorder = is_in_own_folder && file.ends_with(".so");
    is_recorder || LIBRARIES.iter().any(|known| file.starts_with(known))
}

fn allocates(function: &str) -> bool {
    let unwrapped = of_inherent_type(function);
    let function = unwrapped.as_deref().unwrap_or(function);
    if RUST_MODULES.iter().any(|known| function.starts_with(known)) {
        return true;
    }
    if function.starts_with("operator new(") || function.starts_with("operator new[](") {
        return true;
    }
    let plain = without_types(function);
    let (scope, name) = match plain.rsplit_once("::") {
        Some((scope, name)) => (scope.rsplit("::").next(), name),
        None => (None, plain.as_str()),
    };
    match scope {
        None => is_c_function(name) || is_reserved_cpp_function(name),
        Some("__rustc") => is_rust_symbol(name),
        Some(scope) => {
            let is_std = plain.starts_with("std::") || plain.starts_with("__gnu_cxx::");
            let is_rust = plain.starts_with("alloc::");
            (is_std && has(CPP_ALLOCATORS, scope, name))
                || (is_rust && has(RUST_CONSTRUCTORS, scope, name))
        }
    }
}

/// `<alloc::boxed::Box<T>>::new`, as Rust's newer names have it, without the outer brackets.
fn of_inherent_type(function: &str) -> Option<String> {
    let inner = function.strip_prefix('<')?;
    let mut depth = 1u32;
    let mut before = ' ';
    let end = inner.find(|c: char| {
        match c {
            '<' => depth += 1,
            // Not the arrow of a function's type.
            '>' if before != '-' => depth -= 1,
            _ => {}
        }
        before = c;
        depth == 0
    })?;
    let (implementor, rest) = inner.split_at(end);
    let is_trait = implementor.contains(" as ");
    (!is_trait).then(|| format!("{implementor}{}", &rest[1..]))
}

fn has(table: &[(&str, &[&str])], class: &str, function: &str) -> bool {
    let mut entries = table.iter();
    entries.any(|(known, functions)| *known == class && functions.contains(&function))
}

/// Debug information names some inlined functions without their class. Names that C++ reserves for its
/// library tell enough.
fn is_reserved_cpp_function(name: &str) -> bool {
    let mut functions = CPP_ALLOCATORS.iter().flat_map(|(_, functions)| *functions);
    name.starts_with('_') && functions.any(|known| *known == name)
}

/// The clones that compilers make of a function have its name and a suffix: `malloc.part.0`.
fn is_c_function(name: &str) -> bool {
    let name = name.split('.').next().unwrap_or(name);
    let inner = name.trim_start_matches('_');
    let inner = inner.strip_prefix("GI_").unwrap_or(inner);
    let inner = inner.trim_start_matches('_');
    WRAPPERS.contains(&name)
        || WRAPPERS.contains(&inner) && inner.starts_with("Py")
        || C_LIBRARY.contains(&inner)
        || is_rust_symbol(name)
}

fn is_rust_symbol(name: &str) -> bool {
    let inner = name.strip_prefix("__");
    inner.is_some_and(|inner| RUST_SYMBOLS.contains(&inner))
}

/// A C++ or Rust name without template arguments, parameters and the type that is returned.
fn without_types(function: &str) -> String {
    let mut plain = String::new();
    let mut depth = 0u32;
    for (at, c) in function.char_indices() {
        match c {
            '<' => depth += 1,
            // Not the arrow of `operator->` or of a function's type.
            '>' if !function[..at].ends_with('-') => depth = depth.saturating_sub(1),
            '(' if depth == 0 && !function[at..].starts_with("(anonymous") => break,
            _ if depth == 0 => plain.push(c),
            _ => {}
        }
    }
    let name = plain.trim_end().rsplit(' ').next().unwrap_or_default();
    // Rust writes `Vec::<T>::new` in its newer names.
    name.replace("::::", "::")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_that_allocate_for_others_are_known() {
        for function in [
            "malloc",
            "__libc_malloc",
            "__GI___libc_malloc",
            "_int_malloc",
            "calloc",
            "realloc",
            "posix_memalign",
            "__posix_memalign",
            "strdup",
            "__GI___strdup",
            "__strndup",
            "vasprintf",
            "__vasprintf_internal",
            "___asprintf",
            "__vasprintf_chk",
            "xmalloc",
            "xmalloc.part.0",
            "g_malloc",
            "g_malloc0",
            "g_try_malloc",
            "g_strdup",
            "monoeg_malloc0",
            "PyObject_Malloc",
            "_PyObject_Malloc",
            "_PyMem_RawMalloc",
            "CRYPTO_zalloc",
            "operator new(unsigned long)",
            "operator new(unsigned int)",
            "operator new[](unsigned long, std::nothrow_t const&)",
            "__gnu_cxx::new_allocator<char>::allocate(unsigned long, void const*)",
            "std::__new_allocator<std::pair<int const, char> >::allocate(unsigned long, void const*)",
            "std::allocator<char>::allocate(unsigned long)",
            "std::allocator_traits<std::allocator<char> >::allocate(std::allocator<char>&, unsigned long)",
            "std::_Vector_base<int, std::allocator<int> >::_M_allocate(unsigned long)",
            "std::_Deque_base<int, std::allocator<int> >::_M_allocate_map(unsigned long)",
            "std::_Rb_tree<int, int (*)(int), std::less<int> >::_M_get_node()",
            "std::__detail::_Hash_node<int, false>* std::__detail::_Hashtable_alloc<std::allocator\
             <std::__detail::_Hash_node<int, false> > >::_M_allocate_node<int const&>(int const&)",
            "std::__cxx11::basic_string<char, std::char_traits<char>, std::allocator<char> >::\
             _M_create(unsigned long&, unsigned long)",
            "std::string::_Rep::_S_create(unsigned long, unsigned long, std::allocator<char> const&)",
            "_M_allocate",
            "__allocate_guarded<std::allocator<Local> >",
            "alloc::alloc::alloc",
            "alloc::alloc::Global::alloc_impl",
            "alloc::alloc::exchange_malloc",
            "<alloc::alloc::Global as core::alloc::Allocator>::allocate",
            "alloc::raw_vec::RawVecInner<A>::try_allocate_in",
            "alloc::raw_vec::finish_grow",
            "alloc::boxed::Box<T>::new",
            "<alloc::boxed::Box<T>>::new",
            "<alloc::raw_vec::RawVec<u8>>::grow_one",
            "<alloc::boxed::Box<dyn core::ops::Fn() -> u8>>::new",
            "alloc::vec::Vec<T,A>::with_capacity_in",
            "__rust_alloc",
            "__rustc::__rust_alloc",
            "__rdl_alloc_zeroed",
            "std::sys::alloc::unix::<impl core::alloc::global::GlobalAlloc for std::alloc::System>::alloc",
        ] {
            assert!(
                is_allocator_wrapper(Some(function), Some("/bin/x")),
                "{function}"
            );
        }
    }

    #[test]
    fn functions_that_use_memory_are_no_wrappers() {
        for function in [
            "main",
            "g_vasprintf",
            "g_strdup_printf",
            "g_strdup_vprintf",
            "monoeg_g_strdup_printf",
            "load_aot_module",
            "my_malloc_test",
            "mallocate",
            "allocate",
            "getline",
            "Arena::malloc(unsigned long)",
            "game::allocator<int>::allocate(unsigned long)",
            "std::vector<int, std::allocator<int> >::push_back(int const&)",
            "std::allocator<char>::deallocate(char*, unsigned long)",
            "void std::allocator_traits<std::allocator<int> >::construct<int>(int*)",
            "use(std::allocator_traits<std::allocator<char> >::allocate)",
            "operator newt(int)",
            "alloc::vec::Vec<T>::push",
            "alloc::string::String::from",
            "core::alloc::layout::Layout::new",
            "demo::Box<T>::new",
            "<demo::T as core::clone::Clone>::clone",
            "__rust_dealloc",
            "a->b",
            "><(>",
            "",
        ] {
            assert!(
                !is_allocator_wrapper(Some(function), Some("/bin/x")),
                "{function}"
            );
        }
        assert!(!is_allocator_wrapper(None, None));
    }

    #[test]
    fn everything_in_the_recorder_and_in_allocators_is_a_wrapper() {
        for (module, is_one) in [
            ("/run/user/1000/rleaks/0.1.0-00ff.so", true),
            ("/tmp/rleaks-1000/0.1.0-00ff.so", true),
            ("/opt/lib/librleaks_preload.so", true),
            ("librleaks.so", true),
            ("/usr/lib/x86_64-linux-gnu/libjemalloc.so.2", true),
            ("/usr/lib/libtcmalloc_minimal.so.4", true),
            ("/usr/bin/rleaks", false),
            ("/home/me/rleaks/target/debug/rleaks", false),
            ("/usr/lib/x86_64-linux-gnu/libc.so.6", false),
            ("", false),
        ] {
            for function in [None, Some("record")] {
                let found = is_allocator_wrapper(function, Some(module));
                assert_eq!(found, is_one, "{module}");
            }
        }
    }
}
