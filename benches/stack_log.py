#!/usr/bin/env python3
"""Measures what recording costs a program, beside heaptrack and LeakSanitizer.

    cargo build --release && benches/stack_log.py [--pairs N] [--runs N] [--memory] [--rleaks FILE]

stack_log.c allocates and frees in a loop, with one thread and with two, from 10,000 stacks of 20 frames, beside 100,000
blocks that live. Each way to record runs once in each round, so that all share what else the machine does; the table
has the medians of nanoseconds for a pair of malloc and free, and what is added to those of the program alone as a ratio
to what LeakSanitizer (gcc's, which follows frame pointers) and heaptrack add. Last comes the memory that the log takes
for each of 10 million blocks; the exit status is 1 where that is more than 32 bytes for blocks of up to 512.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Bytes for each block, beside the stacks.
MEMORY_LIMIT = 32
HEAPTRACK = "/usr/lib/heaptrack/libheaptrack_preload.so"
BUILDS = {"pointers": ["-fno-omit-frame-pointer"], "none": ["-fomit-frame-pointer"],
          "lsan": ["-fno-omit-frame-pointer", "-fsanitize=leak"]}


def ways(recorder, folder):
    """Name -> build, environment, part of the pairs that it runs."""
    full = {"LD_PRELOAD": recorder, "RLEAKS_STACK_LOG": "full", "RLEAKS_STACK_LOG_HISTORY": f"{folder}/events.%p"}
    found = {
        "native": ("pointers", {}, 1),
        "native, no frame pointers": ("none", {}, 1),
        "lite": ("pointers", {"LD_PRELOAD": recorder}, 1),
        "lite, no frame pointers": ("none", {"LD_PRELOAD": recorder}, 1),
        "full": ("pointers", full, 1),
        "sample of 524288": ("pointers", {"LD_PRELOAD": recorder, "RLEAKS_STACK_LOG_SAMPLE": "524288"}, 1),
        "LeakSanitizer": ("lsan", {"LSAN_OPTIONS": "detect_leaks=0"}, 1),
    }
    if os.path.exists(HEAPTRACK):
        found["heaptrack"] = ("pointers", {"LD_PRELOAD": HEAPTRACK, "DUMP_HEAPTRACK_OUTPUT": "/dev/null"}, 4)
    return found


def build(folder):
    for name, flags in BUILDS.items():
        subprocess.run(["gcc", "-O2", "-g", *flags, "-o", f"{folder}/{name}", ROOT / "benches/stack_log.c", "-lpthread"],
                       check=True)


def measure(folder, way, pairs, threads, pattern):
    program, environment, part = way
    command = [f"{folder}/{program}", str(pairs // part), str(threads), pattern]
    output = subprocess.run(command, env=dict(os.environ, **environment), check=True, capture_output=True, text=True)
    for events in Path(folder).glob("events.*"):
        events.unlink()
    return tuple(float(number) for number in output.stdout.split())


def table(folder, all_ways, arguments, threads, pattern):
    runs = {name: [] for name in all_ways}
    for _ in range(arguments.runs):
        for name, way in all_ways.items():
            runs[name].append(measure(folder, way, arguments.pairs, threads, pattern))
    cpu, wall = ({name: statistics.median(run[i] for run in runs[name]) for name in runs} for i in (0, 1))
    native = lambda name: "native, no frame pointers" if "no frame pointers" in name else "native"
    added = {name: cpu[name] - cpu[native(name)] for name in cpu}
    print(f"\n{pattern}, {threads} thread{'s' * (threads > 1)}: ns per pair")
    print(f"{'':28}{'CPU':>8}{'wall':>8}{'added':>8}{'/ LSan':>8}{'/ heaptrack':>12}")
    for name in cpu:
        ratios = [added[name] / added[other] if added.get(other) else float("nan")
                  for other in ("LeakSanitizer", "heaptrack")]
        print(f"{name:28}{cpu[name]:8.1f}{wall[name]:8.1f}{added[name]:8.1f}{ratios[0]:8.2f}{ratios[1]:12.2f}")
    return {name: wall[name] - wall[native(name)] for name in wall}


def memory(folder, recorder):
    """Says whether the log takes no more than MEMORY_LIMIT for any block that it is promised for."""
    print("\nbytes of memory per block, 10,000,000 blocks: alone, recorded, the log")
    is_within = True
    for low, high in ((16, 16), (16, 64), (16, 512), (500, 600)):
        command = [f"{folder}/pointers", "memory", "10000000", str(low), str(high)]
        alone, recorded = (float(subprocess.run(command, env=dict(os.environ, **environment), check=True,
                                                capture_output=True, text=True).stdout)
                           for environment in ({}, {"LD_PRELOAD": recorder}))
        log = recorded - alone
        # The heads of chains take 1/64 of the addresses that the heap has.
        limit = MEMORY_LIMIT if high <= 512 else None
        is_within &= limit is None or log <= limit
        print(f"blocks of {low:3} to {high:3} bytes: {alone:6.1f} {recorded:6.1f} {log:6.1f}" +
              (f", more than {limit}" if limit and log > limit else ""))
    return is_within


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=2_000_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--memory", action="store_true", help="measure the memory alone")
    parser.add_argument("--rleaks", default=ROOT / "target/release/rleaks")
    arguments = parser.parse_args()
    recorder = subprocess.run([arguments.rleaks, "preload-path"], check=True, capture_output=True, text=True)
    with tempfile.TemporaryDirectory() as folder:
        build(folder)
        all_ways = ways(recorder.stdout.strip(), folder)
        for pattern in () if arguments.memory else ("inner", "spread"):
            one, two = (table(folder, all_ways, arguments, threads, pattern) for threads in (1, 2))
            print("added wall time per pair, two threads to one: " +
                  ", ".join(f"{name} {two[name] / one[name]:.2f}" for name in one if not name.startswith("native")))
        sys.exit(not memory(folder, recorder.stdout.strip()))


if __name__ == "__main__":
    main()
