#!/usr/bin/env python3
"""Confirms the leaks that rleaks reports by a search that has nothing in common with it.

    brute_force.py CORE REPORT HEAP [--dead START-END]...

CORE is a core file of the target that gcore wrote after the scan, while the target was idle; REPORT is the
output of `rleaks PID --json`; HEAP that of `rleaks heap PID --json`, with `blocks` (address, size) and `owned`
(start, end).

A leak is confirmed if no aligned word of the core points into it, other than words in
  - free memory of the heap: `owned` memory that is in no block,
  - leaks, itself included,
  - dead stack below the stack pointers (and the red zone) of threads, and the ranges of --dead.
General and vector registers of all threads are looked at as well. Each word that contradicts is printed. Exit
status: 0 all leaks are confirmed, 1 some are not.
"""

import argparse
import json
import sys

from core_file import Core, Ranges


def address(text):
    return int(text, 16)


def block_ranges(blocks):
    return Ranges([(address(each["address"]), address(each["address"]) + each["size"], None) for each in blocks])


def range_argument(text):
    start, end = text.split("-")
    return address(start), address(end), None


class Check:
    def __init__(self, core, leaks, blocks, owned, dead):
        self.core, self.leaks, self.blocks, self.owned = core, leaks, blocks, owned
        self.dead = [Ranges([each]) for each in dead + core.dead_stacks(owned)]
        self.contradictions = {}
        self.counts = {"free memory": 0, "leaks": 0, "dead stack": 0}

    def excuse(self, at):
        """Why a word at this address is no reference, or None."""
        if self.blocks.find(at):
            return "leaks" if self.leaks.find(at) else None
        if self.owned.find(at):
            return "free memory"
        if any(each.find(at) for each in self.dead):
            return "dead stack"
        return None

    def contradict(self, leak, value, where):
        self.contradictions.setdefault(leak[0], []).append((value, where))

    def describe(self, at):
        block = self.blocks.find(at)
        if block:
            return f"live block {block[0]:#x} size {block[1] - block[0]} at offset {at - block[0]}"
        segment = self.core.segment(at)
        return f"memory at {at:#x} in {segment[0]:#x}-{segment[1]:#x}"

    def run(self):
        if not self.leaks.ranges:
            return
        low = self.leaks.ranges[0][0]
        high = max(end for _, end, _ in self.leaks.ranges)
        for at, value in self.core.words_between(low, high):
            leak = self.leaks.find(value)
            if leak is None:
                continue
            excuse = self.excuse(at)
            if excuse:
                self.counts[excuse] += 1
            else:
                self.contradict(leak, value, self.describe(at))
        for thread in self.core.threads:
            for name, value in thread.words():
                leak = self.leaks.find(value)
                if leak:
                    self.contradict(leak, value, f"register {name} of thread {thread.tid}")
        for leak in self.leaks.ranges:
            block = self.blocks.find(leak[0])
            if block is None or block[:2] != leak[:2]:
                self.contradict(leak, leak[0], "no block of the heap has its address and size")

    def report(self, name):
        for start, words in sorted(self.contradictions.items()):
            for value, where in words:
                print(f"{name}: leak {start:#x} is referenced: {value:#x} in {where}")
        leaks, wrong = len(self.leaks.ranges), len(self.contradictions)
        ignored = ", ".join(f"{count} in {what}" for what, count in self.counts.items())
        print(f"{name}: {leaks - wrong} of {leaks} leaks confirmed; words ignored: {ignored}")
        return wrong


def check(core, report, heap, dead):
    """`report` and `heap` are the parsed documents, `dead` more ranges (start, end, None)."""
    owned = Ranges([(address(each["start"]), address(each["end"]), None) for each in heap["owned"]])
    result = Check(core, block_ranges(report["leaks"]), block_ranges(heap["blocks"]), owned, dead)
    result.run()
    return result


def main():
    parser = argparse.ArgumentParser(description="confirm leaks by a brute-force search of a core file")
    parser.add_argument("core")
    parser.add_argument("report")
    parser.add_argument("heap")
    parser.add_argument("--dead", action="append", type=range_argument, default=[], metavar="START-END")
    parser.add_argument("--name", default="brute force", help="what to call the target in the output")
    arguments = parser.parse_args()
    with open(arguments.report) as file:
        report = json.load(file)
    with open(arguments.heap) as file:
        heap = json.load(file)
    result = check(Core(arguments.core), report, heap, arguments.dead)
    sys.exit(1 if result.report(arguments.name) else 0)


if __name__ == "__main__":
    main()
