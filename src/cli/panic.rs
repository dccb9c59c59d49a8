//! Bugs in rleaks: a panic is kept quiet until it has unwound.
//!
//! A panic may strike while the target is stopped. Nothing may be written then: standard error
//! can be a full pipe whose reader is the target itself, and both would wait for ever. Unwinding
//! lets the target go on; only then is the message printed.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind, set_hook};
use std::sync::{Mutex, PoisonError};

/// The first panic of this process, on whichever thread; later ones follow from it.
static FIRST: Mutex<Option<Bug>> = Mutex::new(None);

/// What a panic said.
#[derive(Debug)]
pub(crate) struct Bug {
    /// The message and where it comes from.
    pub(crate) message: String,
    /// The stack, if `RUST_BACKTRACE` asks for it. Its symbols are looked up when it is printed:
    /// that opens files.
    pub(crate) backtrace: Option<Backtrace>,
}

/// Runs `work`; a panic in it becomes an `Err`, and nothing is printed.
pub(crate) fn catch<T>(work: impl FnOnce() -> T) -> Result<T, Bug> {
    set_hook(Box::new(keep));
    // Nothing of what `work` touched is used after a panic: rleaks prints the message and ends.
    catch_unwind(AssertUnwindSafe(work)).map_err(|_| {
        let mut first = FIRST.lock().unwrap_or_else(PoisonError::into_inner);
        first.take().unwrap_or_else(|| Bug {
            message: "a panic without a message".to_owned(),
            backtrace: None,
        })
    })
}

fn keep(info: &PanicHookInfo<'_>) {
    let mut first = FIRST.lock().unwrap_or_else(PoisonError::into_inner);
    first.get_or_insert_with(|| {
        let backtrace = Backtrace::capture();
        let captured = backtrace.status() == BacktraceStatus::Captured;
        Bug {
            message: message(info),
            backtrace: captured.then_some(backtrace),
        }
    });
}

fn message(info: &PanicHookInfo<'_>) -> String {
    let text = info.payload_as_str().unwrap_or("a panic without a text");
    match info.location() {
        Some(place) => format!("{text} at {}:{}", place.file(), place.line()),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::panic::take_hook;
    use std::thread;

    use super::*;

    #[test]
    fn the_first_panic_is_kept_on_whichever_thread_it_strikes() {
        let usual = take_hook();
        let result = catch(|| {
            let failed = thread::spawn(|| panic!("the {} one", "first")).join();
            assert!(failed.is_ok(), "the second one");
        });
        assert_eq!(catch(|| 7).ok(), Some(7));
        set_hook(usual);
        let message = result.expect_err("a panic").message;
        let expected = format!("the first one at {}:", file!());
        assert!(message.starts_with(&expected), "{message}");
    }
}
