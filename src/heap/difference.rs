//! Where the walker and the malloc stack log differ: what that means, for people.

use super::recorded::{Examples, Recorded};
use crate::addr::{Addr, AddrRange};
use crate::memory::Width;
use crate::snapshot::{Snapshot, Thread};
use crate::stacklog::StackLog;
use crate::warning::{Bias, Warning};

/// The top of a stack that is searched for return addresses into the recorder, in words.
const SEARCHED_WORDS: usize = 256;

impl Recorded {
    /// Warns where the log and the heap of `snapshot` differ.
    ///
    /// A thread that was stopped in the recorder has a block more, or less, in the heap than in
    /// the log: that many differences are no news.
    #[must_use]
    pub fn differences(&self, snapshot: &Snapshot, log: &StackLog) -> Vec<Warning> {
        let under_way = threads_in_recorder(snapshot, log.header_at);
        let is_news = |examples: &Examples| examples.count > under_way;
        let mut warnings = Vec::new();
        if is_news(&self.only_in_log) {
            warnings.push(difference(
                "log_only_blocks",
                &self.only_in_log,
                "live in the malloc stack log and not in the heap: they were freed in a way that \
                 the recorder does not see",
            ));
        }
        if log.header.lack().is_none() && is_news(&self.only_in_heap) {
            warnings.push(difference(
                "unlogged_blocks",
                &self.only_in_heap,
                "live in the heap and not in the malloc stack log: they are older than the log, or \
                 were allocated in a way that the recorder does not see. They come without call \
                 stacks",
            ));
        }
        if self.too_large.count > 0 {
            warnings.push(difference(
                "requested_too_large",
                &self.too_large,
                "are smaller than what the malloc stack log says was asked for: the log's entries \
                 for them are those of other blocks",
            ));
        }
        warnings
    }
}

fn difference(code: &str, examples: &Examples, what: &str) -> Warning {
    let lowest: Vec<String> = examples.lowest.iter().map(Addr::to_string).collect();
    let more = if examples.count > examples.lowest.len() as u64 {
        ", …"
    } else {
        ""
    };
    let noun = if examples.count == 1 {
        "block"
    } else {
        "blocks"
    };
    let message = format!(
        "{} {noun} ({}{more}) {what}",
        examples.count,
        lowest.join(", ")
    );
    Warning::new(code, message, Bias::None)
}

/// How many threads may stand in the recorder: their next instruction, or a word at the top of
/// their stack, lies in its code.
fn threads_in_recorder(snapshot: &Snapshot, header: Addr) -> u64 {
    let Some(recorder) = snapshot.module_at(header) else {
        return 0;
    };
    let segments = recorder.segments.iter();
    let code: Vec<AddrRange> = segments
        .filter(|segment| segment.executable)
        .map(|segment| segment.range)
        .collect();
    let is_code = |addr: Addr| code.iter().any(|range| range.contains(addr));
    let is_inside = |thread: &&Thread| {
        is_code(thread.instruction_pointer)
            || top_of_stack(snapshot, thread).any(|word| is_code(Addr(word)))
    };
    snapshot.threads.iter().filter(is_inside).count() as u64
}

fn top_of_stack(snapshot: &Snapshot, thread: &Thread) -> impl Iterator<Item = u64> {
    let width = thread.width.unwrap_or(snapshot.width);
    let mut bytes = [0; SEARCHED_WORDS * Width::Eight.size()];
    let count = snapshot.memory.read(thread.stack_pointer, &mut bytes);
    let words = width.words(bytes.get(..count).unwrap_or_default());
    words.take(SEARCHED_WORDS).collect::<Vec<_>>().into_iter()
}
