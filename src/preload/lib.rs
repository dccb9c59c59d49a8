//! The recorder of the malloc stack log: a library that is preloaded into a program and writes
//! down who allocated each block.
//!
//! It needs no library but the program's own C library, and of that no symbol with a version: it is
//! built without std, speaks to the kernel by itself, and looks up the allocator that comes after it
//! in the loaded images. It never allocates from the heap that it watches, takes no lock, and does
//! nothing that could fail the program: what there is no memory for is counted.
//!
//! The build script compiles it (`--cfg rleaks_recorder`). The package in `preload/` is the same
//! sources as a plain library, without the exported functions, for lints and unit tests.
//!
//! The way of an allocation: `hooks` calls the next allocator, `unwind` finds the frames by the
//! `rules` of their code (`cfi`), of which most are those of the thread's last allocation
//! (`thread`), `nodes` gives the stack a number, and `blocks` keeps it with the address.
#![no_std]

#[cfg(test)]
extern crate std;

#[path = "../stacklog/format.rs"]
pub mod format;

mod arch;
mod blocks;
mod cfi;
mod code;
mod elf;
mod exit;
mod fork;
mod history;
mod hooks;
mod images;
mod log;
mod next;
mod nodes;
mod readable;
mod rules;
mod sampling;
mod settings;
mod sys;
mod thread;
mod unwind;

pub mod exports;

/// There is nothing that may panic, and nobody to tell: the process ends as `abort` ends it.
#[cfg(rleaks_recorder)]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    sys::abort()
}

// The core library was compiled to unwind, and names the function that would: it is never called.
#[cfg(rleaks_recorder)]
core::arch::global_asm!(
    ".hidden rust_eh_personality",
    ".globl rust_eh_personality",
    "rust_eh_personality: ud2"
);
