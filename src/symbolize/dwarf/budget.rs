//! How much work debug information is worth.

use std::sync::atomic::{AtomicI64, Ordering::Relaxed};

/// A limit to the steps that are taken for one image.
///
/// Honest debug information is walked once: its size tells how much work it is. In hostile debug
/// information a thousand units can share one list of a million ranges, or one line table.
///
/// The sum of the steps does not depend on the order in which threads take them, so what is found
/// does not either.
#[derive(Debug)]
pub(super) struct Budget(AtomicI64);

impl Budget {
    /// A budget of `steps`.
    pub(super) fn new(steps: u64) -> Self {
        Self(AtomicI64::new(clamped(steps)))
    }

    /// Takes `steps`; `None` when there were not so many left.
    pub(super) fn spend(&self, steps: usize) -> Option<()> {
        let steps = clamped(steps as u64);
        let left = self.0.fetch_sub(steps, Relaxed);
        if left < steps {
            // It must not wrap, however many steps are still asked for.
            self.0.store(i64::MIN / 2, Relaxed);
        }
        (left >= steps).then_some(())
    }

    /// Says whether more steps were asked for than there were.
    pub(super) fn is_spent(&self) -> bool {
        self.0.load(Relaxed) < 0
    }
}

/// No number of steps makes the counter wrap, however often it is taken.
fn clamped(steps: u64) -> i64 {
    i64::try_from(steps).unwrap_or(i64::MAX).min(1 << 40)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spent_budget_stays_spent() {
        let budget = Budget::new(10);
        assert_eq!(budget.spend(10), Some(()));
        assert!(!budget.is_spent());
        assert_eq!(budget.spend(1), None);
        assert_eq!(budget.spend(usize::MAX), None);
        assert!(budget.is_spent());
    }
}
