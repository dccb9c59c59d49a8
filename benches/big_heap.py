#!/usr/bin/env python3
"""Measures scans of heaps of several sizes, beside the limits of the machine and beside other tools.

    cargo build --release && benches/big_heap.py [--sizes GIB,...] [--methods NAME,...] [--peers NAME,...] [--runs N]

For each size it builds a heap of 7.5 million blocks of 16 to 512 bytes per GiB and prints the median of some runs:
of a single-threaded copy of the heap into warm memory, of rleaks by snapshot method, and of other tools on the
same heap. Each time is also given as a multiple of the copy in the same runs. rleaks runs twice for each figure: alone
for its time, and again beside a thread of the target that spins, and one that looks at the memory of rleaks, for the
pause, the gap and the memory. Those two would take one of two processors. --realtime measures with a real-time
priority, for machines that do other work too: the copy, the scans and the peers alike. With it the gap is still
that of an ordinary thread, so "gap" can be trusted on a quiet machine only.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from measured import RLEAKS, Peak, Target, compile

BLOCKS_PER_GIB = 7_500_000
PEERS = ["readv", "fork", "gcore", "lsan", "valgrind"]
VALGRIND_BLOCKS = 1_000_000
REALTIME = ["chrt", "-f", "5"]


class Table:
    """The lines of one size; each time beside the copy's."""

    def __init__(self, blocks, gib, copy):
        self.blocks, self.gib, self.copy = blocks, gib, copy

    def row(self, name, seconds, pause=None, gap=None, anon=None, note=""):
        cell = lambda value, format, width: f"{value:{format}}" if value is not None else " " * width
        print(f"{self.gib:5.2f}  {name:<18} {seconds * 1e3:9.1f} {seconds / self.copy:7.2f} "
              f"{cell(pause and pause * 1e3, '8.1f', 8)} {cell(gap and gap * 1e3, '8.1f', 8)} "
              f"{cell(anon, '8.0f', 8)} {cell(anon and anon / 1024 / self.gib * 100, '6.1f', 6)} "
              f"{seconds / self.blocks * 1e9:8.1f} {seconds / self.gib:7.3f}  {note}", flush=True)

    @staticmethod
    def head():
        print(f"{'GiB':>5}  {'what':<18} {'ms':>9} {'x copy':>7} {'pause ms':>8} {'gap ms':>8} {'anon MiB':>8} "
              f"{'% heap':>6} {'ns/block':>8} {'s/GiB':>7}")


class Bench:
    """The programs and how they are run."""

    def __init__(self, folder, arguments, more):
        self.folder, self.arguments, self.more = Path(folder), arguments, more
        self.prefix = REALTIME if arguments.realtime else []
        self.target = compile("heap_target", folder)
        self.reader = compile("read_memory", folder)

    def median(self, measure):
        return [statistics.median(values) for values in zip(*(measure() for _ in range(self.arguments.runs)))]

    def size(self, gib):
        blocks = round(gib * BLOCKS_PER_GIB)
        target = Target([*self.prefix, self.target], blocks)
        try:
            start, end = target.ask("heap")
            target.ask("rest")
            copy, = self.median(lambda: target.ask("memcpy")[:1])
            table = Table(target.blocks, (end - start) / 2**30, copy)
            table.row("copy, 1 thread", copy)
            for method in self.arguments.methods:
                self.rleaks(table, target, method)
            for peer in self.arguments.peers:
                self.peer(table, target, peer, start, end)
        finally:
            target.end()

    def rleaks(self, table, target, method):
        command = [*self.prefix, self.arguments.rleaks, target.pid, "--json",
                   f"--snapshot={method}", f"--threads={self.arguments.threads}", *self.more]

        def once():
            seconds, _, _ = self.scan(command, False)
            target.ask("spin")
            target.ask("gap")
            _, anon, report = self.scan(command, True)
            gap, = target.ask("gap")
            target.ask("rest")
            assert report["capture"]["method"] == method, report["warnings"]
            return (seconds, report["capture"]["pause_seconds"], gap / 1e9, anon / 1024,
                    report["summary"]["leaked_blocks"])
        seconds, pause, gap, anon, leaks = self.median(once)
        table.row(f"rleaks {method}", seconds, pause, gap, anon, f"{leaks:.0f} leaks of {target.leaked}")

    @staticmethod
    def scan(command, is_watched):
        """One run of rleaks: seconds, the most memory in KiB if that is watched, and the report."""
        with tempfile.TemporaryFile("w+") as output:
            start = time.monotonic()
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.PIPE, text=True)
            peak = Peak(process.pid) if is_watched else None
            messages = process.communicate()[1]
            seconds = time.monotonic() - start
            if peak:
                peak.end()
            assert process.returncode in (0, 1), messages
            output.seek(0)
            return seconds, peak and peak.most, json.load(output)

    def timed(self, command):
        start = time.monotonic()
        subprocess.run([*self.prefix, *command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return [time.monotonic() - start]

    def peer(self, table, target, name, start, end):
        pid, threads = target.pid, self.arguments.threads
        match name:
            case "readv":
                command = [*self.prefix, self.reader, pid, str(start), str(end), str(threads)]
                read = lambda: [float(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)]
                table.row(f"readv, {threads} threads", *self.median(read))
            case "fork":
                table.row("fork() by itself", *self.median(lambda: target.ask("fork")))
            case "gcore":
                if shutil.disk_usage(self.folder).free < 2 * (end - start):
                    print(f"{table.gib:5.2f}  gcore: no room for the core in {self.folder}")
                    return
                table.row("gcore", *self.median(lambda: self.timed(["gcore", "-o", str(self.folder / "core"), pid])))
                for core in self.folder.glob("core.*"):
                    core.unlink()
            case "lsan":
                self.lsan(table, target.blocks)
            case "valgrind":
                if target.blocks <= VALGRIND_BLOCKS * 2.5 and not hasattr(self, "valgrinded"):
                    self.valgrinded = True
                    self.valgrind()

    def lsan(self, table, blocks):
        program = compile("heap_target", self.folder, "-DLSAN", "-fsanitize=leak")
        target = Target([*self.prefix, program], blocks)
        try:
            target.ask("rest")
            table.row("LeakSanitizer", *self.median(lambda: target.ask("lsan")))
        finally:
            target.end()

    def valgrind(self):
        """The leak check at the end of a program of a million blocks, once: it takes long."""
        plain = Target([*self.prefix, self.target], VALGRIND_BLOCKS)
        start, end = plain.ask("heap")
        plain.ask("rest")
        copy, = self.median(lambda: plain.ask("memcpy")[:1])
        plain.end()
        target = Target([*self.prefix, "valgrind", "--leak-check=full", self.target], VALGRIND_BLOCKS)
        before = time.monotonic()
        target.end()
        Table(target.blocks, (end - start) / 2**30, copy).row("valgrind", time.monotonic() - before)


def main():
    parser = argparse.ArgumentParser(description="measure scans of large heaps; other arguments go to rleaks")
    listed = lambda kind: lambda text: [kind(item) for item in text.split(",") if item]
    parser.add_argument("--sizes", type=listed(float), default=[0.25, 0.5, 1, 2, 4], help="in GiB")
    parser.add_argument("--methods", type=listed(str), default=None, help="snapshot methods; all by default")
    parser.add_argument("--peers", type=listed(str), default=PEERS, help=f"of {','.join(PEERS)}")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rleaks", default=RLEAKS)
    parser.add_argument("--realtime", action="store_true", help="needs root")
    arguments, more = parser.parse_known_args()
    if arguments.methods is None:
        text = subprocess.run([arguments.rleaks, "--help"], check=True, stdout=subprocess.PIPE, text=True).stdout
        methods = text.split("--snapshot", 1)[1][:2000]
        arguments.methods = ["copy", "stream"] + (["fork"] if "fork" in methods else [])
    if arguments.realtime:
        # Above what is measured: memory is looked at meanwhile. Children begin without it.
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(6))
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(folder, arguments, more)
        print(f"medians of {arguments.runs}, {arguments.threads} threads, {os.cpu_count()} processors"
              f"{', real-time priority' if arguments.realtime else ''}")
        Table.head()
        for gib in arguments.sizes:
            bench.size(gib)


if __name__ == "__main__":
    main()
