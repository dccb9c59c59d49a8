//! Which way the memory of a surveyed target is kept.

use std::time::Duration;

use super::capture_error::CaptureError;
use super::checks::{MEASURED, copy_speed};
use super::copy::CopyBuffer;
use super::cost::{Costs, MUCH, Work};
use super::fork::{self, ForkRefusal, Guardian, Parts};
use super::own_memory::anonymous_memory;
use super::survey::{Survey, Target, copy_limit, copy_size};
use crate::snapshot::{Method, Region};
use crate::warning::{Bias, Warning};

/// Bytes that are copied in a second where that could not be measured.
const USUAL_SPEED: u64 = 2 << 30;
/// What the analysis of a target takes, beside a copy of it: a share of the target's memory, and some.
const ANALYSIS_PERCENT: u64 = 30;
const ANALYSIS: u64 = 8 << 20;

impl Survey {
    /// Decides how the memory of `target` is kept, and takes what that needs.
    pub(super) fn prepare(
        &mut self,
        target: &Target,
        regions: &[Region],
    ) -> Result<(), CaptureError> {
        let is_long = self.method == Method::Copy && self.bytes >= MUCH;
        if self.method == Method::Fork || is_long || target.max_pause.is_some() {
            let apart = self.plan(&Parts::of(regions, &self.uses).apart)?.bytes();
            let can_fork = self.can_fork(target, regions, apart);
            self.choose(target, apart, can_fork.is_ok())?;
            match (self.method, can_fork) {
                (Method::Fork, Ok(())) if !is_within(target.memory_limit, copy_size(apart), 0) => {
                    self.method = Method::Copy;
                }
                (Method::Fork, Ok(())) => self.prepare_fork(apart)?,
                (Method::Fork, Err(refusal)) => self.copy_instead(&refusal),
                _ => {}
            }
        }
        if self.method == Method::Copy {
            self.prepare_copy(target.memory_limit)?;
        }
        Ok(())
    }

    fn can_fork(&self, target: &Target, regions: &[Region], apart: u64) -> Result<(), ForkRefusal> {
        target.may_fork()?;
        fork::check(&fork::Facts {
            pid: target.pid,
            width: self.view.width(),
            regions,
            uses: &self.uses,
            bytes: self.bytes.saturating_sub(apart),
        })
    }

    /// Looks at what each way would cost: says so where another one is much better, and takes one that stops
    /// the target for no longer than is wanted.
    fn choose(&mut self, target: &Target, apart: u64, can_fork: bool) -> Result<(), CaptureError> {
        if self.method == Method::Fork && target.max_pause.is_none() {
            return Ok(());
        }
        let may_measure = is_within(target.memory_limit, 2 * MEASURED, 0);
        let speed = may_measure.then(|| copy_speed().ok().flatten()).flatten();
        let huge = self.uses.iter().map(|part| part.huge).sum();
        let work = Work {
            threads: self.threads,
            bytes: self.bytes,
            huge,
            apart,
            speed: speed.unwrap_or(USUAL_SPEED),
        };
        let costs = Costs::of(&work, can_fork);
        let Some(limit) = target.max_pause else {
            self.warnings.extend(costs.notice());
            return Ok(());
        };
        let chosen = costs.within(limit, allowed(self.method));
        // A copy for which there is no memory becomes a stream, which must be short enough, too.
        let becomes_stream = chosen == Some(Method::Copy)
            && self.why_not_copied(target.memory_limit).is_some()
            && costs.within(limit, &[Method::Stream]).is_none();
        let chosen = chosen.filter(|_| !becomes_stream);
        self.method = chosen.ok_or_else(|| self.too_long(limit, costs))?;
        Ok(())
    }

    fn too_long(&self, limit: Duration, costs: Costs) -> CaptureError {
        let hint = if self.method != Method::Fork && costs.can_fork_within(limit) {
            ": --snapshot=fork allows that"
        } else {
            ""
        };
        CaptureError::TooLong {
            pid: self.process.pid,
            limit,
            costs,
            hint,
        }
    }

    /// Starts who is to make a child of the target, and takes memory for the `apart` bytes that a child does not
    /// get; where nobody can be started, the target will be copied.
    fn prepare_fork(&mut self, apart: u64) -> Result<(), CaptureError> {
        match Guardian::start() {
            Ok(guardian) => {
                let wanted = copy_size(apart);
                let buffer = CopyBuffer::faulted_in(wanted);
                self.buffer = Some(buffer.map_err(|error| CaptureError::Buffer(wanted, error))?);
                self.guardian = Some(guardian);
            }
            Err(refusal) => self.copy_instead(&refusal),
        }
        Ok(())
    }

    fn copy_instead(&mut self, refusal: &ForkRefusal) {
        self.method = Method::Copy;
        self.warnings.push(refusal.warning());
    }

    /// Takes memory for a copy; where that is too much, the target will be read while it stands
    /// still.
    fn prepare_copy(&mut self, limit: Option<u64>) -> Result<(), CaptureError> {
        let wanted = self.copy_size();
        let Some(why) = self.why_not_copied(limit) else {
            let buffer = CopyBuffer::faulted_in(wanted);
            self.buffer = Some(buffer.map_err(|error| CaptureError::Buffer(wanted, error))?);
            return Ok(());
        };
        self.method = Method::Stream;
        self.warnings.push(Warning::new(
            "streamed",
            format!(
                "{why} for a copy of {} MiB: the target was read while it stood still, which is a \
                 longer pause",
                wanted >> 20
            ),
            Bias::None,
        ));
        Ok(())
    }

    /// Says why there is no memory for a copy.
    fn why_not_copied(&self, limit: Option<u64>) -> Option<&'static str> {
        let wanted = self.copy_size();
        if !is_within(limit, wanted, self.bytes) {
            return Some("--memory-limit leaves too little room");
        }
        let is_too_large = copy_limit().is_some_and(|limit| wanted > limit);
        is_too_large.then_some("too little free memory")
    }
}

/// Says whether a copy that takes `wanted` bytes, and the analysis of `analysed` bytes of a target, stay within
/// a limit for all anonymous memory of rleaks.
fn is_within(limit: Option<u64>, wanted: u64, analysed: u64) -> bool {
    limit.is_none_or(|limit| {
        let analysis = analysed / 100 * ANALYSIS_PERCENT + ANALYSIS;
        let held = anonymous_memory().unwrap_or(0);
        held.saturating_add(wanted).saturating_add(analysis) <= limit
    })
}

/// The ways that may be taken where `method` is wanted, the wanted one first: a child is made only where the user
/// has asked for it.
fn allowed(method: Method) -> &'static [Method] {
    match method {
        Method::Copy => &[Method::Copy, Method::Stream],
        // A file is read as it is.
        Method::Stream | Method::File => &[Method::Stream],
        Method::Fork => &[Method::Fork, Method::Copy, Method::Stream],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_within_a_limit_that_leaves_room_for_the_analysis() {
        let held = anonymous_memory().unwrap_or(0);
        let (copy, bytes) = (1 << 34, 1 << 33);
        assert!(is_within(None, u64::MAX, u64::MAX));
        assert!(!is_within(Some(copy), copy, 0));
        assert!(!is_within(Some(copy + bytes / 4), copy, bytes));
        assert!(is_within(
            Some(2 * held + (2 << 30) + copy + bytes),
            copy,
            bytes
        ));
    }
}
