#!/usr/bin/env python3
"""Measures how long a scan stops its target by each way to keep its memory, beside the target's own fork().

    cargo build --release && benches/pause.py [--blocks N] [--runs N] [--methods copy,fork,stream] [--writes 0,100]

The heap is that of heap_target.c, once in pages of 4 KiB and once in huge pages. For every scan: the pause as rleaks
says it, all stops and the longest; the longest gap that a spinning thread of the target saw; the time that rleaks took
in all; the most that rleaks had of memory of its own (RssAnon, of all its processes), and by how much the
memory that the system has available fell meanwhile, both as parts of the target's resident memory: what is read
of a child must not be duplicated by that. With --writes the target writes to so many MiB of pages all over its heap in
each second: those are there twice until the child ends. The target's own fork() is measured before each scan, so the ratio is one
of the same moment.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HUGE = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


class Target:
    """A running heap_target."""

    def __init__(self, program, blocks, environment):
        self.process = subprocess.Popen([program, "-n", str(blocks)], text=True, bufsize=1, stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, env={**os.environ, **environment})
        while self.process.stdout.readline() != "ready\n":
            assert self.process.poll() is None

    def ask(self, command):
        self.process.stdin.write(command + "\n")
        word, number, *_ = self.process.stdout.readline().split()
        assert word == command.split()[0], word
        return float(number)

    def resident(self):
        return kilobytes(f"/proc/{self.process.pid}/status", "VmRSS:")

    def end(self):
        self.process.stdin.close()
        self.process.wait()


def kilobytes(file, key):
    try:
        for line in Path(file).read_text().splitlines():
            if line.startswith(key):
                return int(line.split()[1])
    except (FileNotFoundError, ProcessLookupError):
        pass
    return 0


def family(pid):
    """A process and all that it has started."""
    pids = [pid]
    for one in pids:
        for task in Path(f"/proc/{one}/task").glob("*/children"):
            try:
                pids.extend(int(child) for child in task.read_text().split())
            except (FileNotFoundError, ProcessLookupError):
                pass
    return pids


class Sampler(threading.Thread):
    """Looks at the memory while a scan runs."""

    def __init__(self, pid):
        super().__init__()
        self.pid, self.stop = pid, threading.Event()
        self.most, self.least = 0, kilobytes("/proc/meminfo", "MemAvailable:")
        self.before = self.least

    def run(self):
        while not self.stop.wait(0.01):
            own = sum(kilobytes(f"/proc/{pid}/status", "RssAnon:") for pid in family(self.pid))
            self.most = max(self.most, own)
            self.least = min(self.least, kilobytes("/proc/meminfo", "MemAvailable:"))


def scan(target, rleaks, method):
    """One scan: a row of numbers."""
    fork = target.ask("fork")
    target.ask("gap")
    with tempfile.TemporaryFile("w+") as output:
        command = [rleaks, str(target.process.pid), "--json", f"--snapshot={method}"]
        start = time.monotonic()
        process = subprocess.Popen(command, stdout=output)
        sampler = Sampler(process.pid)
        sampler.start()
        status = process.wait()
        total = time.monotonic() - start
        sampler.stop.set()
        sampler.join()
        gap = target.ask("gap") / 1e9
        assert status in (0, 1), f"{command} exited with status {status}"
        output.seek(0)
        report = json.load(output)
    capture = report["capture"]
    assert capture["method"] == method, report["warnings"]
    resident = target.resident()
    return (fork, capture["pause_seconds"], capture["longest_pause_seconds"], gap, total, sampler.most / resident,
            (sampler.before - sampler.least) / resident, capture["pause_seconds"] / fork, report["summary"]["leaked_blocks"])


def show(label, fork, pause, longest, gap, total, own, fall, ratio, leaks):
    print(f"{label:>14} {fork * 1e3:8.2f} {pause * 1e3:9.2f} {longest * 1e3:10.2f} {gap * 1e3:8.1f} {total * 1e3:8.0f} "
          f"{own * 100:9.1f} {fall * 100:8.1f} {ratio:8.2f} {leaks:8.0f}", flush=True)


def measure(program, arguments, pages, environment):
    target = Target(program, arguments.blocks, environment)
    try:
        print(f"{pages}: {target.resident() / 1024:.0f} MiB resident, "
              f"{kilobytes(f'/proc/{target.process.pid}/smaps_rollup', 'AnonHugePages:') / 1024:.0f} MiB in huge pages")
        print(f"{'method':>14} {'fork ms':>8} {'pause ms':>9} {'longest ms':>10} {'gap ms':>8} {'total ms':>8} "
              f"{'RssAnon %':>9} {'fall %':>8} {'p/fork':>8} {'leaks':>8}")
        for writes in map(int, arguments.writes.split(",")):
            target.ask(f"write {writes}")
            if writes:
                print(f"while it writes to {writes} MiB in each second:")
            for method in arguments.methods.split(","):
                rows = [scan(target, arguments.rleaks, method) for _ in range(arguments.runs)]
                for number, row in enumerate(rows, 1):
                    show(f"{method} {number}", *row)
                show(f"{method} median", *map(statistics.median, zip(*rows)))
    finally:
        target.end()


def main():
    parser = argparse.ArgumentParser(description="measure pauses by each way to keep the target's memory")
    parser.add_argument("--blocks", type=int, default=7_500_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--methods", default="fork,copy")
    parser.add_argument("--writes", default="0", help="MiB that the target writes to in a second, one after the other")
    parser.add_argument("--rleaks", default=ROOT / "target/release/rleaks")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        program = f"{folder}/heap_target"
        subprocess.run(["cc", "-O2", "-pthread", "-o", program, ROOT / "benches/heap_target.c", "-lm"], check=True)
        measure(program, arguments, "4 KiB pages", {})
        measure(program, arguments, "huge pages", HUGE)


if __name__ == "__main__":
    main()
