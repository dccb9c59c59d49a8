//! Which allocations are recorded where not all are: a Poisson process over the allocated bytes.
//!
//! Each byte is as likely as any other to be the one that makes its block a sample: a block of `s`
//! bytes is one with probability 1 − exp(−s / mean), whatever was allocated before it.

use crate::thread::Local;

/// Says whether a block of `size` bytes is a sample, with `mean` bytes between two.
#[inline]
pub(crate) fn takes(local: &Local, size: usize, mean: u64) -> bool {
    let left = local
        .until_sample
        .get()
        .saturating_sub_unsigned(size.max(1) as u64);
    if left >= 0 && local.random.get() != 0 {
        local.until_sample.set(left);
        return false;
    }
    take(local, size, mean)
}

#[cold]
fn take(local: &Local, size: usize, mean: u64) -> bool {
    if local.random.get() == 0 {
        local.random.set(seed(local));
        local.until_sample.set(distance(local, mean));
        return takes(local, size, mean);
    }
    // What is left of the block after its first sample has no memory of it: a new distance counts
    // from the block's end.
    local.until_sample.set(distance(local, mean));
    true
}

fn seed(local: &Local) -> u64 {
    let clock = crate::sys::steady_clock();
    let mixed = (u64::from(local.id()) << 32 ^ clock ^ (local as *const Local as u64) << 7)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed | 1
}

/// A random distance, exponentially distributed.
fn distance(local: &Local, mean: u64) -> i64 {
    let mut random = local.random.get();
    random ^= random << 13;
    random ^= random >> 7;
    random ^= random << 17;
    local.random.set(random);
    // In (0, 1]: 53 bits, and never 0.
    let uniform = ((random >> 11) + 1) as f64 / (1_u64 << 53) as f64;
    (-natural_logarithm(uniform) * mean as f64) as i64
}

/// The natural logarithm of a positive normal number, to twelve digits.
fn natural_logarithm(number: f64) -> f64 {
    const MANTISSA: u64 = (1 << 52) - 1;
    let bits = number.to_bits();
    let exponent = (bits >> 52) as i64 - 1023;
    let mantissa = f64::from_bits(bits & MANTISSA | 1023 << 52);
    // ln m = 2 artanh((m − 1) / (m + 1)), whose argument is at most a third.
    let argument = (mantissa - 1.0) / (mantissa + 1.0);
    let square = argument * argument;
    let mut term = argument;
    let mut sum = 0.0;
    let mut divisor = 1.0;
    while divisor < 24.0 {
        sum += term / divisor;
        term *= square;
        divisor += 2.0;
    }
    2.0 * sum + exponent as f64 * core::f64::consts::LN_2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_logarithm_is_that_of_the_standard_library() {
        for number in [1.0, 0.5, 0.3, 0.999_999, 1e-10, 2.0, 1e-16] {
            let expected: f64 = std::primitive::f64::ln(number);
            assert!(
                (natural_logarithm(number) - expected).abs() < 1e-10,
                "{number}"
            );
        }
    }

    #[test]
    fn blocks_are_sampled_as_often_as_their_size_says() {
        const MEAN: u64 = 4096;
        for size in [16, 1000, 4096, 20_000] {
            let local = Local::for_tests(size as u64 * 77 + 1);
            let blocks = 200_000;
            let samples = (0..blocks).filter(|_| takes(&local, size, MEAN)).count();
            let probability = 1.0 - (-(size as f64) / MEAN as f64).exp();
            let expected = f64::from(blocks) * probability;
            let deviation = (expected * (1.0 - probability)).sqrt();
            assert!(
                (samples as f64 - expected).abs() < 5.0 * deviation + 1.0,
                "{size}: {samples}, {expected}"
            );
        }
    }
}
