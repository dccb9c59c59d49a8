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
import statistics
import subprocess
import tempfile
import time

from measured import RLEAKS, Peak, Target, compile, kilobytes

HUGE = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


def scan(target, rleaks, method):
    """One scan: a row of numbers."""
    fork, = target.ask("fork")
    target.ask("gap")
    with tempfile.TemporaryFile("w+") as output:
        command = [rleaks, target.pid, "--json", f"--snapshot={method}"]
        start = time.monotonic()
        process = subprocess.Popen(command, stdout=output)
        peak = Peak(process.pid)
        status = process.wait()
        total = time.monotonic() - start
        peak.end()
        gap, = target.ask("gap")
        assert status in (0, 1), f"{command} exited with status {status}"
        output.seek(0)
        report = json.load(output)
    capture = report["capture"]
    assert capture["method"] == method, report["warnings"]
    resident = target.resident()
    return (fork, capture["pause_seconds"], capture["longest_pause_seconds"], gap / 1e9, total, peak.most / resident,
            peak.fall / resident, capture["pause_seconds"] / fork, report["summary"]["leaked_blocks"])


def show(label, fork, pause, longest, gap, total, own, fall, ratio, leaks):
    print(f"{label:>14} {fork * 1e3:8.2f} {pause * 1e3:9.2f} {longest * 1e3:10.2f} {gap * 1e3:8.1f} {total * 1e3:8.0f} "
          f"{own * 100:9.1f} {fall * 100:8.1f} {ratio:8.2f} {leaks:8.0f}", flush=True)


def measure(program, arguments, pages, environment):
    target = Target([program], arguments.blocks, environment)
    try:
        print(f"{pages}: {target.resident() / 1024:.0f} MiB resident, "
              f"{kilobytes(f'/proc/{target.pid}/smaps_rollup', 'AnonHugePages:') / 1024:.0f} MiB in huge pages")
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
    parser.add_argument("--rleaks", default=RLEAKS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        program = compile("heap_target", folder)
        measure(program, arguments, "4 KiB pages", {})
        measure(program, arguments, "huge pages", HUGE)


if __name__ == "__main__":
    main()
