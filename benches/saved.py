#!/usr/bin/env python3
"""Measures snapshots of a large heap: their sizes, and the times of saving and of scanning them.

    cargo build --release && benches/saved.py [--blocks N] [--folder DIR]

For each way to save: the size of the file and what it takes on disk, the time of saving and the pause of the
target, the time of scanning the file, and the private memory that the scan takes at most (RssAnon). The first
line is a scan of the process itself.
"""

import argparse
import json
import os
import subprocess
import tempfile
import time

from measured import RLEAKS, Peak, Target, compile

WAYS = {
    "plain": [],
    "compressed": ["--compress"],
    "no content": ["--no-content"],
    "no content, compressed": ["--no-content", "--compress"],
    "streamed": ["--snapshot=stream"],
}


def run(command):
    """Runs a command. Returns its output, its seconds, and its peak of private memory in bytes."""
    start = time.monotonic()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.DEVNULL)
        peak = Peak(process.pid)
        process.wait()
        seconds = time.monotonic() - start
        peak.end()
        assert process.returncode in (0, 1), f"{command} exited with status {process.returncode}"
        output.seek(0)
        return output.read(), seconds, peak.most * 1024


def show(label, size, disk, save, pause, scan, peak, leaks):
    mebibytes = [f"{number / 2**20:9.0f}" for number in (size, disk)]
    print(f"{label:>24} {' '.join(mebibytes)} {save:8.2f} {pause * 1e3:9.1f} {scan:8.2f} {peak / 2**20:9.0f} "
          f"{leaks:8}", flush=True)


def scan(rleaks, target):
    output, seconds, peak = run([rleaks, target, "--json", "--no-content"])
    report = json.loads(output)
    return report["capture"]["pause_seconds"], seconds, peak, report["summary"]["leaked_blocks"]


def main():
    parser = argparse.ArgumentParser(description="measure snapshots of a large heap")
    parser.add_argument("--blocks", type=int, default=7_500_000)
    parser.add_argument("--folder", help="where the files are written")
    parser.add_argument("--rleaks", default=RLEAKS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        target = Target([compile("heap_target", folder)], arguments.blocks)
        pid = target.pid
        try:
            print(f"heap: {target.blocks} blocks, {target.bytes / 2**20:.0f} MiB; processors: {os.cpu_count()}")
            print(f"{'':>24} {'size MiB':>9} {'disk MiB':>9} {'save s':>8} {'pause ms':>9} {'scan s':>8} "
                  f"{'anon MiB':>9} {'leaks':>8}")
            pause, seconds, peak, leaks = scan(arguments.rleaks, pid)
            show("the process", 0, 0, 0, pause, seconds, peak, leaks)
            for label, options in WAYS.items():
                path = f"{folder}/saved"
                _, save, _ = run([arguments.rleaks, pid, "--output-graph", path, *options])
                pause, seconds, peak, found = scan(arguments.rleaks, path)
                status = os.stat(path)
                show(label, status.st_size, status.st_blocks * 512, save, pause, seconds, peak, found)
                os.unlink(path)
        finally:
            target.end()


if __name__ == "__main__":
    main()
