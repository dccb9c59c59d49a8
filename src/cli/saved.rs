//! `rleaks FILE`: a snapshot that was saved.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, anyhow};

use super::capture::{Captured, of_saved};
use crate::platform::{DiskFile, TargetFiles};
use crate::snapshot::core::FileBytes;
use crate::snapshot::saved::{self, Damage, SeekableFile};

/// The snapshot in the file at `path`, and what tells of damage that is found while it is read.
pub(super) fn read(path: &Path) -> anyhow::Result<(Captured, TargetFiles, Damage)> {
    let file = DiskFile::open(path)?;
    let (file, damage): (Arc<dyn FileBytes>, Damage) = match SeekableFile::open(Box::new(file))? {
        Ok(container) => {
            let damage = container.damage();
            (Arc::new(container), damage)
        }
        Err(plain) => (Arc::from(plain), Damage::default()),
    };
    let headers = saved::headers(&*file);
    if let Some(damage) = damage.error() {
        return Err(damage.clone().into());
    }
    let (stored, notes) = headers.context("it is no core file, or a damaged one")?;
    if !saved::is_saved(&notes) {
        return Err(anyhow!("it is no snapshot that rleaks has saved"));
    }
    let captured = saved::open(&file, &stored, &notes)
        .map_err(anyhow::Error::from)
        .and_then(of_saved);
    let captured = captured.map_err(|error| match damage.error() {
        Some(damage) => anyhow!(damage.clone()),
        None => error,
    })?;
    Ok((captured, TargetFiles::under(Path::new("/")), damage))
}
