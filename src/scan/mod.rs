//! From blocks and roots to leaks: the reference graph, marking, and what leaks hold.

mod bounded;
mod components;
mod extract;
mod filter;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
#[cfg(any(test, fuzzing))]
pub mod fuzzing_files;
mod graph;
mod leak;
mod leaked;
mod leaks;
mod mark;
mod reread;
mod room;
mod root;
mod roots;
#[cfg(any(test, fuzzing))]
#[cfg_attr(not(test), expect(dead_code, reason = "fuzzing needs a part of it"))]
mod testing;
mod threads;
mod window;

pub use bounded::{ReachError, reach_within};
pub use extract::Source;
pub use filter::Filter;
pub use graph::{Alignment, Graph, Interrupted};
pub use leak::{Leak, LeakKind, Link};
pub use leaks::{LeakSummary, leaks, summarize};
pub use mark::{Marks, mark};
pub use root::{Root, RootKind, RootSource};
pub use roots::roots;
pub use threads::{ThreadWords, thread_words};
