//! How long it takes to walk the heap of a real process: `cargo bench --bench walk`. The process is
//! `benches/heap_target.c` with a million blocks, of which a copy is walked. Needs gcc.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use rleaks::heap::{self, Exporter};
use rleaks::platform::Target;
use rleaks::snapshot::{Method, Snapshot};

const BLOCKS: u64 = 1_000_000;

/// A process that has allocated its blocks.
struct Process(Child);

impl Process {
    fn start(folder: &Path) -> Self {
        let program = folder.join("heap_target");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/heap_target.c");
        let compiled = Command::new("gcc")
            .args(["-O2", "-pthread", source, "-lm", "-o"])
            .arg(&program)
            .status();
        assert!(compiled.expect("gcc").success());
        let child = Command::new(program)
            .args(["-n", &BLOCKS.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let mut process = Self(child.expect("the target starts"));
        let output = process.0.stdout.take().expect("a pipe");
        let mut lines = BufReader::new(output).lines();
        assert!(lines.any(|line| line.is_ok_and(|line| line == "ready")));
        process
    }

    /// A copy of its memory, and whose malloc it calls.
    fn capture(&self) -> (Snapshot, Vec<Exporter>) {
        let target = Target::new(self.0.id());
        let survey = target.survey(Method::Copy).expect("a process of ours");
        let exporters = heap::exporters(survey.memory(), &survey.modules);
        let stopped = target.stop(&survey).expect("it stops");
        let (snapshot, _) = stopped.capture(survey).expect("it is copied");
        (snapshot, exporters)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn benchmarks(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a folder");
    let (snapshot, exporters) = Process::start(folder.path()).capture();
    let walk = || heap::walk(&snapshot, &exporters, None, None).expect("a heap of glibc's malloc");
    let blocks = walk().heap.blocks.len() as u64;
    assert!(blocks >= BLOCKS, "{blocks} blocks");

    let mut group = criterion.benchmark_group("heap");
    group.sample_size(10);
    group.throughput(Throughput::Elements(blocks));
    group.bench_function("walk", |b| b.iter(walk));
    group.finish();
}

criterion_group!(benches, benchmarks);
criterion_main!(benches);
