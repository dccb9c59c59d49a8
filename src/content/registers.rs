//! What of threads and of the process is left.

use crate::memory::Width;
use crate::snapshot::{KernelValue, Process, Thread};

/// The parts of the processor's state that are no registers: control words, which extensions there
/// are, and the header of the extended state.
const STATE_HEADERS: [(usize, usize); 4] = [(0, 8), (24, 32), (464, 512), (512, 576)];

/// Takes from `thread` the registers whose values `is_kept` does not want, but for those that say
/// where it runs, where its stack is and where its control block.
pub fn without_content(thread: &mut Thread, width: Width, is_kept: impl Fn(u64) -> bool) {
    let known = [
        thread.instruction_pointer,
        thread.stack_pointer,
        thread.thread_pointer,
    ];
    let is_known = |value: u64| known.iter().any(|addr| addr.0 == value);
    for register in &mut thread.general {
        if !is_known(*register) && !is_kept(*register) {
            *register = 0;
        }
    }
    let size = width.size();
    for (index, word) in thread.vector.chunks_mut(size).enumerate() {
        let at = index.saturating_mul(size);
        let is_header = STATE_HEADERS
            .iter()
            .any(|(start, end)| (*start..*end).contains(&at));
        if !is_header && !width.word(word).is_some_and(&is_kept) {
            word.fill(0);
        }
    }
}

impl Process {
    /// The process without what it was started with.
    #[must_use]
    pub fn without_command_line(&self) -> Self {
        Self {
            command_line: Vec::new(),
            ..self.clone()
        }
    }
}

impl KernelValue {
    /// The value, or 0 where `is_kept` wants none of its words.
    #[must_use]
    pub fn without_content(&self, width: Width, is_kept: impl Fn(u64) -> bool) -> Self {
        let bytes = self.value.to_le_bytes();
        let is_reference = width.words(&bytes).any(is_kept);
        Self {
            value: if is_reference { self.value } else { 0 },
            holder: self.holder.clone(),
        }
    }
}
