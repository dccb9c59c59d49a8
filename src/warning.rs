//! What could not be done, and which way it biases the result.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The direction in which something that was not done pushes the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Bias {
    /// Blocks that are in use may be reported as leaks: a root may have been missed.
    FalseLeaks,
    /// Leaks may be missing from the report: something was treated as a root that may be none.
    MissedLeaks,
    /// The set of leaks is not affected.
    None,
}

/// Something that was not done, and the direction in which it biases the result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Warning {
    /// A stable word for scripts, such as `region_unreadable`.
    pub code: String,
    /// One sentence for people.
    pub message: String,
    /// The direction of the error.
    pub bias: Bias,
}

impl Warning {
    /// A warning with a stable `code` for scripts and a sentence for people.
    #[must_use]
    pub fn new(code: &str, message: impl Into<String>, bias: Bias) -> Self {
        Self {
            code: code.to_owned(),
            message: message.into(),
            bias,
        }
    }
}
