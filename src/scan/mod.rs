//! From blocks and roots to leaks: the reference graph, marking, and what leaks hold.

mod leak;
mod root;

pub use leak::{Leak, LeakKind};
pub use root::{Root, RootKind, RootSource};
