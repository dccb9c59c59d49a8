#!/usr/bin/env python3
"""Measures scans of a program that leaks nearly all of its memory: what it takes to report millions of leaks.

    cargo build --release && benches/many_leaks.py [--blocks N] [--runs N] [--plain|--recorded] [RLEAKS_ARGUMENT]...

It prints one table, with a column for each way to report: as text, and as JSON in a file; each without a malloc stack
log and with one (the target is started with `rleaks record`). A line for each phase, in milliseconds, the rest (what
comes after the phases: writing the report), the total, the peak of anonymous memory, also per leak and beside the
target's heap, and the size of what was written. The figures are medians of some runs.
"""

import argparse
import os
import re
import statistics
import subprocess
import tempfile
import time

from measured import RLEAKS, Peak, Target, compile


def heap_bytes(pid):
    """The anonymous memory of [heap] of a process."""
    lines = iter(open(f"/proc/{pid}/smaps"))
    for line in lines:
        if line.endswith("[heap]\n"):
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Anonymous:"))
    raise RuntimeError("no heap")


def scan(command, output):
    """One scan: the lines of the table and their values."""
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    peak = Peak(process.pid)
    text, messages = process.communicate()
    seconds = time.monotonic() - start
    peak.end()
    assert process.returncode == 1, messages.decode()
    phases = re.findall(r"^rleaks: +([\d.]+) ms  (.*)$", messages.decode(), re.M)
    phases = {name: float(ms) for ms, name in phases}
    written = os.path.getsize(output) if output else len(text)
    return {**phases, "rest (ms)": seconds * 1e3 - sum(phases.values()), "total (ms)": seconds * 1e3,
            "peak (MiB)": peak.most / 1024, "written (MiB)": written / 2**20}


def column(arguments, more, target, folder, output):
    """The medians of some scans of a target."""
    command = [arguments.rleaks, target.pid, "-v", f"--threads={arguments.threads}", *more]
    runs = [scan(command + ([f"--json={output}"] if output else []), output) for _ in range(arguments.runs)]
    medians = {line: statistics.median(run[line] for run in runs) for line in runs[0]}
    peak = medians["peak (MiB)"] * 2**20
    return {**medians, "peak (bytes/leak)": peak / target.leaked,
            "peak (% of heap)": peak / heap_bytes(target.pid) * 100}


def main():
    parser = argparse.ArgumentParser(description="measure reports of millions of leaks; other arguments go to rleaks")
    parser.add_argument("--blocks", type=int, default=10_000_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rleaks", default=str(RLEAKS))
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--plain", action="store_true", help="only without a malloc stack log")
    only.add_argument("--recorded", action="store_true", help="only with one")
    arguments, more = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        program = compile("many_leaks", folder)
        kinds = {"plain": [program], "recorded": [arguments.rleaks, "record", "--", program]}
        columns = {}
        for kind, command in kinds.items():
            if getattr(arguments, {"plain": "recorded", "recorded": "plain"}[kind]):
                continue
            target = Target(command, arguments.blocks)
            try:
                print(f"{kind}: {target.leaked} leaks, {target.leaked_bytes / 2**20:.0f} MiB asked for, heap of "
                      f"{heap_bytes(target.pid) / 2**20:.0f} MiB", flush=True)
                for way in ["text", "json"]:
                    output = f"{folder}/leaks.json" if way == "json" else None
                    columns[f"{kind}, {way}"] = column(arguments, more, target, folder, output)
            finally:
                target.end()
    print(f"{'':40}" + "".join(f"{name:>16}" for name in columns))
    for line in dict.fromkeys(line for values in columns.values() for line in values):
        cells = [values.get(line) for values in columns.values()]
        print(f"{line:40}" + "".join(f"{'' if cell is None else format(cell, '.1f'):>16}" for cell in cells))


if __name__ == "__main__":
    main()
