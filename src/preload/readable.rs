//! Memory that can be read without a fault: the part of the stack that was seen to be there.

use crate::sys;

const PAGE: usize = 4096;
/// How far from known memory a word may lie to be asked for: the frames of a function that has so
/// much in local variables are rare.
const REACH: usize = 8 << 20;

/// Neighbouring pages that could be read when the kernel was asked about them.
///
/// They stay readable as long as they hold frames that have not returned.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Readable {
    start: usize,
    end: usize,
}

impl Readable {
    /// Says whether the word at `at` is known to be readable.
    #[inline]
    pub(crate) fn has(&self, at: usize) -> bool {
        at >= self.start && at.saturating_add(size_of::<usize>()) <= self.end
    }

    /// Prepares for a stack whose innermost word is at `at`, and says whether what was known before
    /// is of the same stack.
    #[inline]
    pub(crate) fn begin_at(&mut self, at: usize) -> bool {
        self.has(at) || self.extend_down(at)
    }

    /// A stack that has grown since: the pages in between are asked for. A different stack is
    /// learned from its beginning.
    #[cold]
    fn extend_down(&mut self, at: usize) -> bool {
        const NEAR: usize = 64 * PAGE;
        let page = at & !(PAGE - 1);
        let grows = at < self.start && self.start - page <= NEAR;
        if grows && (page..self.start).step_by(PAGE).all(sys::is_readable) {
            self.start = page;
            return true;
        }
        *self = Self {
            start: page,
            end: page,
        };
        false
    }

    /// The word at `at`; `None` where it cannot be read or is far from all that is known.
    #[inline]
    pub(crate) fn word(&mut self, at: usize) -> Option<usize> {
        if !self.has(at) && !self.extend_up(at) {
            return None;
        }
        // SAFETY: the kernel could read the page. If it is gone meanwhile, frames that have not
        // returned have lost their memory: the program would fail by itself.
        Some(unsafe { (at as *const usize).read_unaligned() })
    }

    #[cold]
    fn extend_up(&mut self, at: usize) -> bool {
        let Some(last) = at.checked_add(size_of::<usize>() - 1) else {
            return false;
        };
        if self.end == 0 {
            let page = at & !(PAGE - 1);
            *self = Self {
                start: page,
                end: page,
            };
        }
        if at < self.start || last - self.end.min(last) > REACH {
            return false;
        }
        while self.end <= last {
            if !sys::is_readable(self.end) {
                return false;
            }
            self.end += PAGE;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_up_to_where_it_ends() {
        let at = sys::map(4 * PAGE).expect("memory");
        // SAFETY: the mapping is ours; nothing has a reference to its last page.
        unsafe { sys::unmap(at + 3 * PAGE, PAGE) };
        let mut readable = Readable::default();
        assert_eq!(readable.word(at + 8), Some(0));
        assert_eq!(readable.word(at + 3 * PAGE - 8), Some(0));
        assert_eq!(readable.word(at + 3 * PAGE - 4), None);
        assert_eq!(readable.word(at + 3 * PAGE), None);
        assert_eq!(readable.word(at - 8), None);
        assert_eq!(readable.word(usize::MAX - 3), None);
        for low in [0, 2, 8, 4088, 4096] {
            assert_eq!(readable.word(low), None);
            assert_eq!(Readable::default().word(low), None);
        }
    }

    #[test]
    fn another_stack_is_told_from_one_that_grew() {
        let at = sys::map(8 * PAGE).expect("memory");
        let mut readable = Readable::default();
        assert!(!readable.begin_at(at + 6 * PAGE));
        assert_eq!(readable.word(at + 6 * PAGE), Some(0));
        assert!(readable.begin_at(at + 2 * PAGE));
        assert!(readable.has(at + 3 * PAGE));
        let other = sys::map(PAGE).expect("memory");
        assert!(!readable.begin_at(other));
        assert!(!readable.has(at + 3 * PAGE));
    }
}
