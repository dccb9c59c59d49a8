//! Allocators that are linked into the executable and that it calls by names of their own: nothing
//! that it exports tells of them, but their messages do.

use memchr::memmem::Finder;

/// An allocator, and strings that every build of it has. They are written backwards here, so that
/// rleaks itself does not have them.
const SIGNS: [(&str, [&str; 2]); 2] = [
    ("jemalloc", [" :>collamej<", "sm_yaced_yzzum"]),
    ("mimalloc", [" :rorre :collamim", "d% :level eruces"]),
];
const WINDOW: usize = 1 << 20;
/// Longer than any of the strings.
const OVERLAP: usize = 32;
/// How much of a file is looked at: a file with holes can claim any size.
const MAX_SIZE: u64 = 4 << 30;

/// The name of an allocator that is linked into a file of `size` bytes. `read` fills the buffer
/// with the bytes at an offset and says whether it could.
pub fn embedded_allocator(
    size: u64,
    mut read: impl FnMut(u64, &mut [u8]) -> bool,
) -> Option<&'static str> {
    let signs = SIGNS.map(|(_, signs)| signs.map(forwards));
    let mut seen = [[false; 2]; SIGNS.len()];
    let mut window = vec![0; WINDOW];
    for offset in (0..size.min(MAX_SIZE)).step_by(WINDOW - OVERLAP) {
        let rest = usize::try_from(size.saturating_sub(offset)).unwrap_or(WINDOW);
        window.truncate(rest);
        if !read(offset, &mut window) {
            return None;
        }
        for (signs, seen) in signs.iter().zip(&mut seen) {
            for (sign, seen) in signs.iter().zip(seen) {
                *seen = *seen || sign.find(&window).is_some();
            }
        }
        if rest <= WINDOW {
            break;
        }
    }
    let mut found = SIGNS.iter().zip(&seen);
    let (name, _) = found.find(|(_, seen)| seen.iter().all(|seen| *seen))?.0;
    Some(name)
}

/// The allocator of this name, if it is one that can be found in an executable.
#[must_use]
pub fn embedded_named(name: &str) -> Option<&'static str> {
    let mut names = SIGNS.iter().map(|(name, _)| *name);
    names.find(|known| *known == name)
}

fn forwards(sign: &str) -> Finder<'static> {
    let text: String = sign.chars().rev().collect();
    Finder::new(text.as_bytes()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_bytes(bytes: &[u8]) -> Option<&'static str> {
        embedded_allocator(bytes.len() as u64, |offset, buf| {
            let start = usize::try_from(offset).expect("a small file");
            buf.copy_from_slice(&bytes[start..start + buf.len()]);
            true
        })
    }

    #[test]
    fn all_strings_of_an_allocator_must_be_there() {
        let [first, second] = SIGNS[0]
            .1
            .map(|sign| sign.chars().rev().collect::<String>());
        for at in [0, 100, WINDOW - OVERLAP - 3, WINDOW - 3, 3 * WINDOW] {
            let mut bytes = vec![0; 3 * WINDOW + 100];
            bytes[at..at + first.len()].copy_from_slice(first.as_bytes());
            assert_eq!(in_bytes(&bytes), None);
            bytes[200..200 + second.len()].copy_from_slice(second.as_bytes());
            assert_eq!(in_bytes(&bytes), Some("jemalloc"), "{at}");
        }
    }

    #[test]
    fn rleaks_itself_is_not_taken_for_one() {
        let own = std::fs::read("/proc/self/exe").expect("this program");
        assert_eq!(in_bytes(&own), None);
    }

    #[test]
    fn a_file_that_cannot_be_read_tells_nothing() {
        assert_eq!(embedded_allocator(u64::MAX, |_, _| false), None);
    }
}
