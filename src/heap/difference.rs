//! Where the walker and the malloc stack log differ: what that means, for people.

use super::exports::{Exporter, is_inside_malloc};
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
    /// A thread that was stopped in the recorder or in malloc (one of `exporters`) has a block more,
    /// or less, in the heap than in the log: that many differences are no news.
    #[must_use]
    pub fn differences(
        &self,
        snapshot: &Snapshot,
        log: &StackLog,
        exporters: &[Exporter],
    ) -> Vec<Warning> {
        let under_way = threads_under_way(snapshot, log.header_at, exporters);
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

/// How many threads may stand in the recorder, or in malloc: their next instruction, or a word at
/// the top of their stack, lies in its code.
fn threads_under_way(snapshot: &Snapshot, header: Addr, exporters: &[Exporter]) -> u64 {
    let recorder = snapshot.module_at(header);
    let segments = recorder.map_or(&[][..], |module| &module.segments);
    let code: Vec<AddrRange> = segments
        .iter()
        .filter(|segment| segment.executable)
        .map(|segment| segment.range)
        .collect();
    let is_code = |addr: Addr| code.iter().any(|range| range.contains(addr));
    let memory = &*snapshot.memory;
    let is_under_way = |thread: &&Thread| {
        is_code(thread.instruction_pointer)
            || is_inside_malloc(thread, memory, exporters)
            || top_of_stack(snapshot, thread).any(|word| is_code(Addr(word)))
    };
    snapshot.threads.iter().filter(is_under_way).count() as u64
}

fn top_of_stack(snapshot: &Snapshot, thread: &Thread) -> impl Iterator<Item = u64> {
    let width = thread.width.unwrap_or(snapshot.width);
    let mut bytes = [0; SEARCHED_WORDS * Width::Eight.size()];
    let count = snapshot.memory.read(thread.stack_pointer, &mut bytes);
    let words = width.words(bytes.get(..count).unwrap_or_default());
    words.take(SEARCHED_WORDS).collect::<Vec<_>>().into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::{Module, Segment};
    use crate::stacklog::testing::{HEADER, LOG, LogWriter};

    const CODE: u64 = HEADER + 0x10000;
    const MALLOC: u64 = 0x6000_0000_0000;

    /// A log that a recorder with code at [`CODE`] writes, and threads with these next instructions.
    fn snapshot(instructions: &[u64]) -> (Snapshot, StackLog) {
        let mut snapshot = LogWriter::new().snapshot();
        let segment = |start, executable: bool| Segment {
            range: AddrRange::with_size(Addr(start), 0x1000),
            writable: !executable,
            executable,
        };
        snapshot.modules.push(Module {
            segments: vec![segment(HEADER, false), segment(CODE, true)],
            ..Module::default()
        });
        let thread = |at: &u64| Thread {
            instruction_pointer: Addr(*at),
            ..Thread::default()
        };
        snapshot.threads = instructions.iter().map(thread).collect();
        let log = StackLog::find(&snapshot, Addr(HEADER)).expect("a good log");
        (snapshot, log.expect("a log"))
    }

    fn codes(recorded: &Recorded, instructions: &[u64]) -> Vec<String> {
        let exporters = [Exporter {
            path: "libc.so.6".to_owned(),
            foreign: None,
            is_glibc: true,
            glibc_version: None,
            code: Some(AddrRange::with_size(Addr(MALLOC), 0x1000)),
            stack_log: None,
        }];
        let (snapshot, log) = snapshot(instructions);
        let warnings = recorded.differences(&snapshot, &log, &exporters);
        warnings.into_iter().map(|warning| warning.code).collect()
    }

    fn differing(only_in_log: u64, only_in_heap: u64, too_large: u64) -> Recorded {
        let examples = |count| Examples {
            count,
            lowest: vec![Addr(0x10); usize::try_from(count.min(5)).expect("few")],
        };
        let mut recorded = Recorded::default();
        recorded.only_in_log = examples(only_in_log);
        recorded.only_in_heap = examples(only_in_heap);
        recorded.too_large = examples(too_large);
        recorded
    }

    #[test]
    fn what_threads_are_about_to_record_is_no_difference() {
        let elsewhere = LOG + 0x10;
        assert_eq!(codes(&differing(0, 0, 0), &[elsewhere]), [""; 0]);
        assert_eq!(codes(&differing(1, 0, 0), &[CODE]), [""; 0]);
        assert_eq!(codes(&differing(0, 2, 0), &[CODE + 8, MALLOC]), [""; 0]);
        assert_eq!(
            codes(&differing(0, 2, 0), &[CODE + 8, elsewhere]),
            ["unlogged_blocks"]
        );
        assert_eq!(
            codes(&differing(1, 1, 1), &[elsewhere]),
            ["log_only_blocks", "unlogged_blocks", "requested_too_large"]
        );
    }

    #[test]
    fn difference_names_some_blocks_of_many() {
        let recorded = differing(7, 0, 0);
        let what = difference("code", &recorded.only_in_log, "differ").message;
        assert_eq!(what, "7 blocks (0x10, 0x10, 0x10, 0x10, 0x10, …) differ");
        let what = difference("code", &differing(1, 0, 0).only_in_log, "differs").message;
        assert_eq!(what, "1 block (0x10) differs");
    }
}
