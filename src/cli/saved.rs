//! `rleaks FILE`: a snapshot that was saved, or a core file.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, anyhow};

use super::args::FileArgs;
use super::capture::{Captured, of_saved};
use super::core_file;
use crate::platform::{DiskFile, TargetFiles, unlinked_file};
use crate::snapshot::core::{CoreFile, FileBytes};
use crate::snapshot::packed::{self, Packing};
use crate::snapshot::saved::{self, Damage, SeekableFile};

/// The snapshot in the file at `path`, and what tells of damage that is found while it is read.
pub(super) fn read(
    path: &Path,
    args: &FileArgs,
) -> anyhow::Result<(Captured, TargetFiles, Damage)> {
    let file = DiskFile::open(path)?;
    let taken_at = file.modified();
    let (bytes, damage) = plain(file)?;
    let core = CoreFile::parse(bytes);
    let captured = core.map_err(anyhow::Error::from).and_then(|core| {
        if saved::is_saved(&core) {
            let captured = of_saved(saved::open(&core)?)?;
            let program = captured.snapshot.process.executable.clone();
            Ok((captured, core_file::files(&program, args)))
        } else {
            core_file::read(&core, taken_at, args)
        }
    });
    let (captured, files) = captured.map_err(|error| match damage.error() {
        Some(damage) => anyhow!(damage.clone()),
        None => error,
    })?;
    Ok((captured, files, damage))
}

/// The bytes that `file` stands for: those that it has, or those that it has compressed.
fn plain(file: DiskFile) -> anyhow::Result<(Arc<dyn FileBytes>, Damage)> {
    let file = match SeekableFile::open(Box::new(file))? {
        Ok(container) => {
            let damage = container.damage();
            return Ok((Arc::new(container), damage));
        }
        Err(file) => file,
    };
    let Some(packing) = Packing::of(&*file) else {
        return Ok((Arc::from(file), Damage::default()));
    };
    let folder = std::env::temp_dir();
    let place = || folder.display().to_string();
    let unpacked =
        unlinked_file(&folder).with_context(|| format!("cannot make a file in {}", place()))?;
    packed::unpack(&*file, packing, &unpacked).with_context(|| {
        format!(
            "cannot decompress it to {}: where there is no room, name another directory by TMPDIR, or \
             decompress the file yourself",
            place()
        )
    })?;
    Ok((Arc::new(DiskFile::new(unpacked)?), Damage::default()))
}
