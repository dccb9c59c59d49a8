//! Programs that rleaks starts: it becomes them, or it follows them to their end.

mod cause;
mod executable;
mod followed;
mod follower;
mod inherited;
mod program;
mod spawn;
mod traced;

pub use followed::{CommandEnd, Ending, Follow, FollowEvent, Followed, Waiter, Waiters};
pub use inherited::Disposition;
pub use program::{Limit, ProgramFile, RunError};
pub use spawn::CommandLine;

pub(super) use inherited::keep_statuses_of_children;

#[cfg(any(test, fuzzing))]
pub(super) use executable::Executable;
