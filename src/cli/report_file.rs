//! Files with reports in them.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use anyhow::{Context, bail};

use crate::report::{Report, read_reports};

/// The most bytes that are read: a report of ten million leaks has about half as many.
const LARGEST_FILE: u64 = 8 << 30;

/// The reports in the file at `path`, which may be a pipe.
///
/// # Errors
/// Says, naming the file, that it cannot be opened or where it is no report.
pub(super) fn read(path: &Path) -> anyhow::Result<Vec<Report>> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let read = read_from(BufReader::new(file));
    read.with_context(|| format!("cannot read {}", path.display()))
}

fn read_from(mut file: BufReader<File>) -> anyhow::Result<Vec<Report>> {
    let mut json = Vec::new();
    // The rest of what does not begin as a report is not worth reading: it may have no end.
    let begins = file.fill_buf()?;
    if begins.iter().find(|b| !b.is_ascii_whitespace()) == Some(&b'{') {
        file.take(LARGEST_FILE).read_to_end(&mut json)?;
    } else {
        json = begins.to_vec();
    }
    if json.len() as u64 == LARGEST_FILE {
        bail!("it is larger than {LARGEST_FILE} bytes, and no report is");
    }
    Ok(read_reports(&json)?)
}
