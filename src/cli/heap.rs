//! `rleaks heap`: the zones of a process's heap and, in JSON, its live blocks.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use anyhow::Context;
use serde::Serialize;

use super::ExitStatus;
use super::args::HeapArgs;
use super::capture::{Captured, Purpose, capture};
use super::error;
use super::saved;
use super::target;
use crate::heap::Heap;
use crate::platform::Target;
use crate::report::text::{Count, Size};
use crate::snapshot::Method;

/// What `rleaks heap --json` prints of one process. Addresses are strings, sizes are bytes.
#[derive(Serialize)]
struct HeapDocument {
    schema_version: u32,
    pid: u32,
    zones: Vec<ZoneEntry>,
    blocks: Vec<BlockEntry>,
    /// All memory that the allocators own: blocks, free memory and their own data.
    owned: Vec<RangeEntry>,
}

#[derive(Serialize)]
struct ZoneEntry {
    id: u32,
    name: String,
    allocator: String,
    blocks: u64,
    bytes: u64,
}

#[derive(Serialize)]
struct BlockEntry {
    address: String,
    size: u64,
    zone: Option<u32>,
}

#[derive(Serialize)]
struct RangeEntry {
    start: String,
    end: String,
}

/// Lists the zones of each target. A target that cannot be read does not keep the others from being
/// listed.
pub(crate) fn heap(args: &HeapArgs) -> anyhow::Result<ExitStatus> {
    if let Some(path) = target::file(&args.target)? {
        return print_file(path, args)
            .with_context(|| format!("cannot read the heap in {}", error::printable(path)));
    }
    let processes = target::find(&args.target)?;
    let mut out = output(args)?;
    if let [process] = processes.as_slice() {
        return read_and_print(process.pid, args, &mut out);
    }
    let mut status = ExitStatus::Done;
    for process in processes {
        let one = read_and_print(process.pid, args, &mut out)
            .with_context(|| format!("cannot read the heap of process {}", process.pid));
        status = status.max(one.unwrap_or_else(|error| error::report(&error)));
    }
    Ok(status)
}

/// Where the heaps go, one after the other.
fn output(args: &HeapArgs) -> anyhow::Result<Box<dyn Write>> {
    let file = args.json.as_deref().filter(|path| *path != Path::new("-"));
    let Some(path) = file else {
        return Ok(Box::new(BufWriter::new(io::stdout())));
    };
    let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    Ok(Box::new(BufWriter::new(file)))
}

fn read_and_print(pid: u32, args: &HeapArgs, out: &mut dyn Write) -> anyhow::Result<ExitStatus> {
    let captured = capture(&Target::new(pid), Method::Copy, Purpose::Scan)?;
    print(&captured, args, out)
}

/// Lists the zones of the heap in the core file at `path`.
fn print_file(path: &str, args: &HeapArgs) -> anyhow::Result<ExitStatus> {
    let (captured, _, damage) = saved::read(Path::new(path), &args.files)?;
    if let Some(error) = damage.error() {
        return Err(error.clone().into());
    }
    print(&captured, args, &mut output(args)?)
}

fn print(captured: &Captured, args: &HeapArgs, out: &mut dyn Write) -> anyhow::Result<ExitStatus> {
    let pid = captured.snapshot.process.pid;
    let written = match args.json {
        None => write_text(pid, &captured.heap, out),
        Some(_) => write_json(pid, &captured.heap, out),
    };
    written
        .and_then(|()| out.flush())
        .context("cannot write the heap")?;
    Ok(ExitStatus::Done)
}

fn write_text(pid: u32, heap: &Heap, out: &mut dyn Write) -> io::Result<()> {
    writeln!(
        out,
        "Process {pid}: {}, {}",
        Count(heap.blocks.len() as u64, "block", "blocks"),
        Size(heap.bytes())
    )?;
    writeln!(out, "{:>12} {:>12}  ZONE", "BLOCKS", "BYTES")?;
    for zone in &heap.zones {
        let bytes = Size(zone.bytes).to_string();
        writeln!(out, "{:>12} {bytes:>12}  {}", zone.blocks, zone.name)?;
    }
    Ok(())
}

fn write_json(pid: u32, heap: &Heap, out: &mut dyn Write) -> io::Result<()> {
    let zones = (0..).zip(&heap.zones).map(|(id, zone)| ZoneEntry {
        id,
        name: zone.name.clone(),
        allocator: zone.allocator.clone(),
        blocks: zone.blocks,
        bytes: zone.bytes,
    });
    let blocks = heap.blocks.iter().map(|block| BlockEntry {
        address: block.start.to_string(),
        size: block.size,
        zone: heap.zone_at(block.start),
    });
    let owned = heap.owned.ranges().iter().map(|range| RangeEntry {
        start: range.start.to_string(),
        end: range.end.to_string(),
    });
    let document = HeapDocument {
        schema_version: 1,
        pid,
        zones: zones.collect(),
        blocks: blocks.collect(),
        owned: owned.collect(),
    };
    let mut out = BufWriter::new(out);
    serde_json::to_writer(&mut out, &document)?;
    out.write_all(b"\n")?;
    out.flush()
}
