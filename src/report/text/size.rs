//! Numbers as people read them.

use std::fmt;

const UNITS: [char; 6] = ['K', 'M', 'G', 'T', 'P', 'E'];

/// A size in bytes, with three significant digits and base 1024: `208 bytes`, `1.56K`, `153K`.
/// From 1000 to 1023 of a unit there are four digits.
#[derive(Clone, Copy, Debug)]
pub struct Size(
    /// The size in bytes.
    pub u64,
);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 < 1024 {
            return Count(self.0, "byte", "bytes").fmt(f);
        }
        let mut value = self.0 as f64 / 1024.0;
        let mut unit = 0;
        // What rounds to 1024 is one of the next unit. The largest u64 is 16 of the last one.
        while value >= 1023.5 {
            value /= 1024.0;
            unit += 1;
        }
        f.pad(&format!("{value:.*}{}", decimals(value), UNITS[unit]))
    }
}

/// The number of decimals with which a value has three significant digits after rounding.
fn decimals(value: f64) -> usize {
    if value < 9.995 {
        2
    } else if value < 99.95 {
        1
    } else {
        0
    }
}

/// A number of things, with the word for one and the word for many: `1 leak`, `3 leaks`.
#[derive(Clone, Copy, Debug)]
pub struct Count(
    /// How many there are.
    pub u64,
    /// The word for one.
    pub &'static str,
    /// The word for any other number.
    pub &'static str,
);

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = if self.0 == 1 { self.1 } else { self.2 };
        write!(f, "{} {word}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_significant_digits() {
        for (bytes, text) in [
            (0, "0 bytes"),
            (1, "1 byte"),
            (208, "208 bytes"),
            (1023, "1023 bytes"),
            (1024, "1.00K"),
            (1600, "1.56K"),
            (2640, "2.58K"),
            (4096, "4.00K"),
            (10_234, "9.99K"),
            (10_235, "10.0K"),
            (45_056, "44.0K"),
            (102_348, "99.9K"),
            (102_349, "100K"),
            (157_136, "153K"),
            (1_023_000, "999K"),
            (1_047_552, "1023K"),
            (1_048_063, "1023K"),
            (1_048_064, "1.00M"),
            (1_048_576, "1.00M"),
            (5 << 30, "5.00G"),
            (1 << 40, "1.00T"),
            (1 << 50, "1.00P"),
            (u64::MAX, "16.0E"),
        ] {
            assert_eq!(Size(bytes).to_string(), text, "{bytes}");
        }
    }

    #[test]
    fn one_is_singular_and_none_is_plural() {
        assert_eq!(Count(0, "leak", "leaks").to_string(), "0 leaks");
        assert_eq!(Count(1, "leak", "leaks").to_string(), "1 leak");
        assert_eq!(Count(2, "leak", "leaks").to_string(), "2 leaks");
    }
}
