//! What the fuzz targets share. Each is a function of bytes, in a file `fuzzing.rs` beside what it is
//! for, so that a test can run the corpora in `fuzz/corpus/` too. No release has any of it.

/// The bytes of an input, taken from the front. After their end there are zeros.
#[derive(Clone, Debug)]
pub(crate) struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What is left.
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.0
    }

    /// Up to `count` bytes.
    pub(crate) fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    pub(crate) fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    /// A number of up to `bytes` bytes, little endian.
    pub(crate) fn number(&mut self, bytes: usize) -> u64 {
        let mut number = [0; 8];
        let taken = self.take(bytes.min(8));
        number[..taken.len()].copy_from_slice(taken);
        u64::from_le_bytes(number)
    }

    /// The same, as an index or a count.
    pub(crate) fn index(&mut self, bytes: usize) -> usize {
        usize::try_from(self.number(bytes)).expect("64 bits")
    }
}

/// Runs `target` on each file of the corpus `name`, and says how many there are.
#[cfg(test)]
pub(crate) fn run_corpus(name: &str, target: fn(&[u8])) {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/");
    let files = std::fs::read_dir(format!("{folder}{name}")).expect("a corpus");
    let mut count = 0;
    for file in files {
        let path = file.expect("a file").path();
        target(&std::fs::read(&path).expect("an input"));
        count += 1;
    }
    assert!(count > 0, "the corpus is empty");
}
