//! `rleaks heap`: the zones of a process's heap and, in JSON, its live blocks.

use anyhow::bail;

use super::ExitStatus;
use super::args::HeapArgs;
use super::target;

/// Lists the zones of each target.
pub(crate) fn heap(args: &HeapArgs) -> anyhow::Result<ExitStatus> {
    let targets = target::find(&args.target)?;
    let _ = &args.json;
    bail!(
        "cannot list the heap of {} processes: not there yet",
        targets.len()
    )
}
