//! `rleaks demo-target`: the small program that `rleaks demo` scans. It leaks on purpose.

use std::cell::RefCell;
use std::hint::black_box;
use std::io::{self, Read, Write};
use std::rc::Rc;
use std::sync::OnceLock;
use std::thread;

use anyhow::anyhow;

use super::ExitStatus;

/// The last line that the program prints: everything is leaked, and no register or live stack
/// holds a pointer to it.
pub(crate) const READY: &str = "ready";

const LETTERS: [&str; 3] = [
    "Dear Ada, this letter was never sent, and nobody knows where it is.",
    "Dear Grace, a copy of this one was kept. It is not this copy.",
    "Dear Barbara, who owned this string?",
];

/// Data that is in use: a global references it, so it is never reported.
static LIVE: OnceLock<Vec<String>> = OnceLock::new();

/// Memory that had other uses before: see [`take_used_memory`].
static USED: OnceLock<Vec<Vec<u8>>> = OnceLock::new();

struct Station {
    name: String,
    next: Option<Box<Self>>,
}

struct Friend {
    name: String,
    best_friend: RefCell<Option<Rc<Self>>>,
}

/// Leaks, says what, and waits until standard input is closed.
pub(crate) fn demo_target() -> anyhow::Result<ExitStatus> {
    LIVE.get_or_init(|| {
        LETTERS
            .map(|letter| format!("A copy of: {letter}"))
            .to_vec()
    });
    // The pointers must not stay in this thread's registers or stack, where they would be
    // references. The stack of a thread that has ended is none.
    let said = thread::spawn(leak)
        .join()
        .map_err(|_| anyhow!("the leaking thread panicked"))?;
    let mut out = io::stdout().lock();
    writeln!(out, "{said}{READY}")?;
    out.flush()?;
    io::stdin().lock().read_to_end(&mut Vec::new())?;
    Ok(ExitStatus::Done)
}

/// Leaks everything, and says what.
fn leak() -> String {
    USED.get_or_init(take_used_memory);
    let mut said = String::new();
    for letter in LETTERS {
        let bytes = leak_string(letter);
        said.push_str(&format!("a string of {bytes} bytes\n"));
    }
    let stations = leak_list(&["Northgate", "Central", "Harbour", "Airport"]);
    said.push_str(&format!(
        "a linked list of {stations} nodes with a name each\n"
    ));
    leak_cycle();
    said.push_str("2 objects that reference each other, with a name each\n");
    said
}

/// Takes the memory that this thread would be given first: some of it was used when the thread was
/// made, and pointers to it may still lie in dead variables of the thread that made it.
fn take_used_memory() -> Vec<Vec<u8>> {
    let sizes = (1..16).map(|words| 8 * words);
    sizes
        .flat_map(|size| std::iter::repeat_with(move || Vec::with_capacity(size)).take(16))
        .collect()
}

// The compiler may leave out an allocation that nobody looks at: black_box looks.

fn leak_string(text: &str) -> usize {
    let string = black_box(text.to_owned());
    let bytes = string.capacity();
    std::mem::forget(string);
    bytes
}

fn leak_list(names: &[&str]) -> usize {
    let mut first = None;
    for name in names.iter().rev() {
        let name = (*name).to_owned();
        first = Some(Box::new(Station { name, next: first }));
    }
    let list = black_box(first);
    let nodes = std::iter::successors(list.as_deref(), |station| station.next.as_deref());
    let nodes = nodes.filter(|station| !station.name.is_empty()).count();
    std::mem::forget(list);
    nodes
}

/// Each of two objects keeps the other one alive: dropping both frees neither.
fn leak_cycle() {
    let [anna, bert] = ["Anna", "Bert"].map(|name| {
        Rc::new(Friend {
            name: name.to_owned(),
            best_friend: RefCell::new(None),
        })
    });
    anna.best_friend.replace(Some(Rc::clone(&bert)));
    bert.best_friend.replace(Some(Rc::clone(&anna)));
    black_box((&anna.name, &bert.name));
}
