#!/usr/bin/env python3
"""Measures scans of a large heap, beside a plain copy of the same memory.

    cargo build --release && benches/first_light.py [--blocks N] [--runs N] [RLEAKS_ARGUMENT]...

For every run: the pause that rleaks reports, the longest gap that a spinning thread of the target saw, the time
that rleaks took in all, its peak memory; and the time of a memcpy of the heap. On a machine with few processors
the gap contains waiting for one: without rleaks it is measured as well.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


class Target:
    """A running heap_target."""

    def __init__(self, program, blocks):
        self.process = subprocess.Popen([program, "-n", str(blocks)], text=True, bufsize=1,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.blocks, self.bytes = self.numbers("blocks")
        self.leaked, self.leaked_bytes = self.numbers("leaked")
        assert self.process.stdout.readline() == "ready\n"

    def numbers(self, what):
        word, *numbers = self.process.stdout.readline().split()
        assert word == what, word
        return [float(number) if "." in number else int(number) for number in numbers]

    def ask(self, command):
        self.process.stdin.write(command + "\n")
        return self.numbers(command)

    def end(self):
        self.process.stdin.close()
        self.process.wait()


def run(command, output):
    """Runs a command. Returns its exit status, seconds, and peak memory in bytes."""
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=output)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, time.monotonic() - start, usage.ru_maxrss * 1024


def scan(target, command):
    """One scan: (pause, gap, total, memcpy) in seconds, peak memory in bytes, leaks."""
    copy, _ = target.ask("memcpy")
    target.ask("gap")
    with tempfile.TemporaryFile("w+") as output:
        status, total, peak = run(command, output)
        gap, = target.ask("gap")
        assert status in (0, 1), f"{command} exited with status {status}"
        output.seek(0)
        report = json.load(output)
    return report["capture"]["pause_seconds"], gap / 1e9, total, copy, peak, report["summary"]["leaked_blocks"]


def idle_gap(target, seconds):
    target.ask("gap")
    time.sleep(seconds)
    return target.ask("gap")[0] / 1e9


def show(label, pause, gap, total, copy, peak, leaks):
    print(f"{label:>7} {pause * 1e3:9.1f} {gap * 1e3:9.1f} {total * 1e3:9.0f} {copy * 1e3:9.1f} "
          f"{peak / 2**20:9.0f} {gap / copy:11.2f} {leaks:9.0f}")


def main():
    parser = argparse.ArgumentParser(description="measure scans of a large heap")
    parser.add_argument("--blocks", type=int, default=7_500_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--rleaks", default=ROOT / "target/release/rleaks")
    arguments, more = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        program = f"{folder}/heap_target"
        subprocess.run(["cc", "-O2", "-pthread", "-o", program, ROOT / "benches/heap_target.c", "-lm"], check=True)
        target = Target(program, arguments.blocks)
        try:
            print(f"heap: {target.blocks} blocks, {target.bytes / 2**20:.0f} MiB; leaked: {target.leaked} blocks, "
                  f"{target.leaked_bytes / 2**20:.1f} MiB; processors: {os.cpu_count()}")
            print(f"longest gap in 2 s without rleaks: {idle_gap(target, 2) * 1e3:.1f} ms")
            print(f"{'run':>7} {'pause ms':>9} {'gap ms':>9} {'total ms':>9} {'memcpy ms':>9} {'peak MiB':>9} "
                  f"{'gap/memcpy':>11} {'leaks':>9}")
            command = [arguments.rleaks, str(target.process.pid), "--json", *more]
            rows = []
            for number in range(1, arguments.runs + 1):
                rows.append(scan(target, command))
                show(number, *rows[-1])
            show("median", *map(statistics.median, zip(*rows)))
        finally:
            target.end()


if __name__ == "__main__":
    main()
