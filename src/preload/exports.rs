//! The functions that the program finds instead of its allocator's.
//!
//! Each passes the place of its return address and its caller's frame pointer behind its own
//! arguments, and jumps: the frame of the hook is the frame of the call.
#![expect(non_snake_case, reason = "mangled names of C++")]

use core::arch::naked_asm;

use crate::hooks;

macro_rules! entry {
    ($name:ident, $hook:path, $stack_pointer:literal, $frame_pointer:literal) => {
        #[doc = concat!("See `man ", stringify!($name), "`.")]
        ///
        /// # Safety
        ///
        /// As the C library's function of that name.
        #[cfg_attr(rleaks_recorder, unsafe(no_mangle))]
        #[unsafe(naked)]
        pub unsafe extern "C" fn $name() {
            naked_asm!(
                ".cfi_startproc",
                concat!("mov ", $stack_pointer, ", rsp"),
                concat!("mov ", $frame_pointer, ", rbp"),
                "jmp {hook}",
                ".cfi_endproc",
                hook = sym $hook,
            )
        }
    };
}

entry!(malloc, hooks::malloc, "rsi", "rdx");
entry!(calloc, hooks::calloc, "rdx", "rcx");
entry!(free, hooks::free, "rsi", "rdx");
entry!(cfree, hooks::free, "rsi", "rdx");
entry!(realloc, hooks::realloc, "rdx", "rcx");
entry!(reallocarray, hooks::reallocarray, "rcx", "r8");
entry!(memalign, hooks::memalign, "rdx", "rcx");
entry!(aligned_alloc, hooks::aligned_alloc, "rdx", "rcx");
entry!(posix_memalign, hooks::posix_memalign, "rcx", "r8");
entry!(valloc, hooks::valloc, "rsi", "rdx");
entry!(pvalloc, hooks::pvalloc, "rsi", "rdx");

/// The C++ functions whose next ones are looked up by their index, with their names for that.
static OPERATORS: [&core::ffi::CStr; 20] = [
    c"_Znwm",
    c"_Znam",
    c"_ZnwmRKSt9nothrow_t",
    c"_ZnamRKSt9nothrow_t",
    c"_ZnwmSt11align_val_t",
    c"_ZnamSt11align_val_t",
    c"_ZnwmSt11align_val_tRKSt9nothrow_t",
    c"_ZnamSt11align_val_tRKSt9nothrow_t",
    c"_ZdlPv",
    c"_ZdaPv",
    c"_ZdlPvm",
    c"_ZdaPvm",
    c"_ZdlPvRKSt9nothrow_t",
    c"_ZdaPvRKSt9nothrow_t",
    c"_ZdlPvSt11align_val_t",
    c"_ZdaPvSt11align_val_t",
    c"_ZdlPvmSt11align_val_t",
    c"_ZdaPvmSt11align_val_t",
    c"_ZdlPvSt11align_val_tRKSt9nothrow_t",
    c"_ZdaPvSt11align_val_tRKSt9nothrow_t",
];

/// The address of the next function for the operator of that index. Whoever calls it knows that
/// there is one; where it cannot be found, the allocator's own functions stand in for it.
extern "C" fn next_operator(index: usize) -> usize {
    use core::sync::atomic::AtomicUsize;
    use core::sync::atomic::Ordering::Relaxed;
    static FOUND: [AtomicUsize; OPERATORS.len()] = [const { AtomicUsize::new(0) }; OPERATORS.len()];
    hooks::new_called();
    let found = FOUND[index].load(Relaxed);
    if found != 0 {
        return found;
    }
    match crate::next::after_recorder(OPERATORS[index]) {
        Some(found) => {
            FOUND[index].store(found, Relaxed);
            found
        }
        None => stand_in(index),
    }
}

/// What does the work of the operator of that index, but for throwing.
fn stand_in(index: usize) -> usize {
    type New = extern "C" fn(usize, usize) -> usize;
    type Delete = extern "C" fn(usize);
    const FIRST_ALIGNED: usize = 4;
    const FIRST_DELETE: usize = 8;
    match index {
        0..FIRST_ALIGNED => hooks::plain_new as New as usize,
        FIRST_ALIGNED..FIRST_DELETE => hooks::aligned_new as New as usize,
        _ => hooks::plain_delete as Delete as usize,
    }
}

/// An `operator new`: it calls the next one, which may throw through it, and tells what came of it.
macro_rules! operator_new {
    ($name:ident, $index:literal) => {
        /// A C++ `operator new`.
        ///
        /// # Safety
        ///
        /// As that one.
        #[cfg_attr(rleaks_recorder, unsafe(no_mangle))]
        #[unsafe(naked)]
        pub unsafe extern "C" fn $name() {
            naked_asm!(
                ".cfi_startproc",
                "sub rsp, 40",
                ".cfi_adjust_cfa_offset 40",
                "mov [rsp], rdi",
                "mov [rsp + 8], rsi",
                "mov [rsp + 16], rdx",
                concat!("mov edi, ", $index),
                "call {next}",
                "mov rdi, [rsp]",
                "mov rsi, [rsp + 8]",
                "mov rdx, [rsp + 16]",
                "call rax",
                "mov [rsp + 24], rax",
                "mov rdi, rax",
                "mov rsi, [rsp]",
                "lea rdx, [rsp + 40]",
                "mov rcx, rbp",
                "call {returned}",
                "mov rax, [rsp + 24]",
                "add rsp, 40",
                ".cfi_adjust_cfa_offset -40",
                "ret",
                ".cfi_endproc",
                next = sym next_operator,
                returned = sym hooks::new_returned,
            )
        }
    };
}

operator_new!(_Znwm, 0);
operator_new!(_Znam, 1);
operator_new!(_ZnwmRKSt9nothrow_t, 2);
operator_new!(_ZnamRKSt9nothrow_t, 3);
operator_new!(_ZnwmSt11align_val_t, 4);
operator_new!(_ZnamSt11align_val_t, 5);
operator_new!(_ZnwmSt11align_val_tRKSt9nothrow_t, 6);
operator_new!(_ZnamSt11align_val_tRKSt9nothrow_t, 7);

/// An `operator delete`: it tells that the block will be free, and jumps to the next one.
macro_rules! operator_delete {
    ($name:ident, $index:literal) => {
        /// A C++ `operator delete`.
        ///
        /// # Safety
        ///
        /// As that one.
        #[cfg_attr(rleaks_recorder, unsafe(no_mangle))]
        #[unsafe(naked)]
        pub unsafe extern "C" fn $name() {
            naked_asm!(
                ".cfi_startproc",
                "sub rsp, 40",
                ".cfi_adjust_cfa_offset 40",
                "mov [rsp], rdi",
                "mov [rsp + 8], rsi",
                "mov [rsp + 16], rdx",
                "lea rsi, [rsp + 40]",
                "mov rdx, rbp",
                "call {called}",
                concat!("mov edi, ", $index),
                "call {next}",
                "mov rdi, [rsp]",
                "mov rsi, [rsp + 8]",
                "mov rdx, [rsp + 16]",
                "add rsp, 40",
                ".cfi_adjust_cfa_offset -40",
                "jmp rax",
                ".cfi_endproc",
                next = sym next_operator,
                called = sym hooks::delete_called,
            )
        }
    };
}

operator_delete!(_ZdlPv, 8);
operator_delete!(_ZdaPv, 9);
operator_delete!(_ZdlPvm, 10);
operator_delete!(_ZdaPvm, 11);
operator_delete!(_ZdlPvRKSt9nothrow_t, 12);
operator_delete!(_ZdaPvRKSt9nothrow_t, 13);
operator_delete!(_ZdlPvSt11align_val_t, 14);
operator_delete!(_ZdaPvSt11align_val_t, 15);
operator_delete!(_ZdlPvmSt11align_val_t, 16);
operator_delete!(_ZdaPvmSt11align_val_t, 17);
operator_delete!(_ZdlPvSt11align_val_tRKSt9nothrow_t, 18);
operator_delete!(_ZdaPvSt11align_val_tRKSt9nothrow_t, 19);

/// A way out of the process that runs no destructor: it tells who waits for that, and goes on.
macro_rules! way_out {
    ($name:ident, $number:literal) => {
        #[doc = concat!("See `man ", stringify!($name), "`.")]
        ///
        /// # Safety
        ///
        /// As the C library's function of that name.
        #[cfg_attr(rleaks_recorder, unsafe(no_mangle))]
        pub unsafe extern "C" fn $name(status: i32) {
            crate::exit::leave($number, status);
        }
    };
}

way_out!(_exit, 0);
way_out!(_Exit, 1);
way_out!(quick_exit, 2);

/// Started by the dynamic loader before the program's own initialisers.
#[cfg_attr(rleaks_recorder, used, unsafe(link_section = ".init_array"))]
pub static BEGIN: extern "C" fn() = begin;

/// Called by the dynamic loader after the program's own destructors.
#[cfg_attr(rleaks_recorder, used, unsafe(link_section = ".fini_array"))]
pub static END: extern "C" fn() = end;

extern "C" fn begin() {
    crate::log::get();
}

extern "C" fn end() {
    crate::exit::before_exit();
}
