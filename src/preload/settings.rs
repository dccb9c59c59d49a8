//! What the environment asks for.

use core::ffi::{CStr, c_char};

use crate::format::{
    DEPTH_VARIABLE, HISTORY_LIMIT_VARIABLE, HISTORY_VARIABLE, LIMIT_VARIABLE, MODE_FULL, MODE_LITE,
    MODE_OFF, MODE_VARIABLE, SAMPLE_VARIABLE, SCRIBBLE_VARIABLE,
};

/// The most frames of a stack that can be kept.
pub(crate) const DEPTH_MAX: usize = 512;
const DEPTH_DEFAULT: usize = 256;
const HISTORY_DEFAULT: u64 = 64 << 20;

/// What the environment asks for.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) mode: u32,
    pub(crate) depth: usize,
    /// The mean distance between two samples; 0: no sampling.
    pub(crate) sample_bytes: u64,
    pub(crate) scribble: bool,
    /// The most bytes that the log may map.
    pub(crate) limit: u64,
    /// The path of the file for events. It lives as long as the environment does.
    pub(crate) history: Option<&'static CStr>,
    pub(crate) history_limit: u64,
}

unsafe extern "C" {
    fn getenv(name: *const c_char) -> *const c_char;
}

impl Settings {
    /// Reads them. What cannot be understood is as if it were not set.
    pub(crate) fn read() -> Self {
        Self::from(|name| {
            let mut terminated = [0_u8; 64];
            terminated[..name.len()].copy_from_slice(name.as_bytes());
            // SAFETY: the name ends with a zero, and is shorter than the array.
            let value = unsafe { getenv(terminated.as_ptr().cast()) };
            // SAFETY: it is null or a string of the environment.
            (!value.is_null()).then(|| unsafe { CStr::from_ptr(value) })
        })
    }

    fn from(get: impl Fn(&str) -> Option<&'static CStr>) -> Self {
        let number = |name| get(name).and_then(|value| parse(value.to_bytes()));
        Self {
            mode: match get(MODE_VARIABLE).map(CStr::to_bytes) {
                Some(b"off") => MODE_OFF,
                Some(b"full") => MODE_FULL,
                _ => MODE_LITE,
            },
            depth: number(DEPTH_VARIABLE).map_or(DEPTH_DEFAULT, |depth| {
                usize::try_from(depth)
                    .unwrap_or(DEPTH_MAX)
                    .clamp(1, DEPTH_MAX)
            }),
            sample_bytes: number(SAMPLE_VARIABLE).unwrap_or(0),
            scribble: number(SCRIBBLE_VARIABLE) == Some(1),
            limit: number(LIMIT_VARIABLE).map_or(u64::MAX, |limit| limit.saturating_mul(1 << 20)),
            history: get(HISTORY_VARIABLE),
            history_limit: number(HISTORY_LIMIT_VARIABLE)
                .map_or(HISTORY_DEFAULT, |limit| limit.saturating_mul(1 << 20)),
        }
    }
}

/// A decimal number.
pub(crate) fn parse(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |number, digit| {
        let digit = char::from(*digit).to_digit(10)?;
        number.checked_mul(10)?.checked_add(digit.into())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_what_the_environment_says() {
        let settings = Settings::from(|name| match name {
            MODE_VARIABLE => Some(c"full"),
            DEPTH_VARIABLE => Some(c"9999"),
            SAMPLE_VARIABLE => Some(c"524288"),
            LIMIT_VARIABLE => Some(c"2"),
            HISTORY_VARIABLE => Some(c"/tmp/history"),
            _ => None,
        });
        assert_eq!(settings.mode, MODE_FULL);
        assert_eq!(settings.depth, DEPTH_MAX);
        assert_eq!(settings.sample_bytes, 524_288);
        assert!(!settings.scribble);
        assert_eq!(settings.limit, 2 << 20);
        assert_eq!(settings.history, Some(c"/tmp/history"));
    }

    #[test]
    fn what_is_no_number_is_as_if_it_were_not_set() {
        for text in [&b""[..], b"-1", b"1x", b" 1", b"99999999999999999999"] {
            assert_eq!(parse(text), None);
        }
        assert_eq!(parse(b"0012"), Some(12));
        let settings = Settings::from(|_| Some(c"nonsense"));
        assert_eq!(settings.mode, MODE_LITE);
        assert_eq!(settings.depth, DEPTH_DEFAULT);
        assert_eq!(settings.sample_bytes, 0);
    }
}
