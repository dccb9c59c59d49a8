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

/// The name of an allocator that is linked into a file of `size` bytes. `read` fills the buffer
/// with the bytes at an offset and says whether it could.
pub fn embedded_allocator(
    size: u64,
    mut read: impl FnMut(u64, &mut [u8]) -> bool,
) -> Option<&'static str> {
    let signs = SIGNS.map(|(_, signs)| signs.map(forwards));
    let mut seen = [[false; 2]; SIGNS.len()];
    let mut window = vec![0; WINDOW];
    let mut offset = 0;
    while offset < size {
        let wanted = usize::try_from(size - offset).map_or(WINDOW, |rest| rest.min(WINDOW));
        let window = &mut window[..wanted];
        if !read(offset, window) {
            return None;
        }
        for (signs, seen) in signs.iter().zip(&mut seen) {
            for (sign, seen) in signs.iter().zip(seen) {
                *seen = *seen || sign.find(window).is_some();
            }
        }
        if wanted < WINDOW {
            break;
        }
        offset += (WINDOW - OVERLAP) as u64;
    }
    let found = seen.iter().position(|seen| seen.iter().all(|seen| *seen))?;
    Some(SIGNS[found].0)
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
