#!/usr/bin/env python3
"""Checks what a fixture says about itself, without rleaks.

    check_truth.py PROGRAM [ARGUMENT]...

Starts the fixture, takes a core of it with gcore, and checks on that core that
  - no word outside free memory, leaks and dead stack points into a block that is said to be leaked
    (brute_force.py),
  - a plain conservative marking of the core reaches exactly the blocks that are said to be reachable.
It knows the heap of glibc 2.27 to 2.42 just well enough to tell free memory from roots. Exit status: 0 the
truth is true, 1 it is not.
"""

import os
import subprocess
import sys
import tempfile

import brute_force
from core_file import Core, Ranges

HEAP_MAX = 64 << 20
IS_MMAPPED, NON_MAIN_ARENA = 2, 4  # In a chunk's size.
NONCONTIGUOUS = 2                  # In an arena's flags.
ARENA_BINS, ARENA_SIZE = 0x70, 0x898


class Truth:
    def __init__(self):
        self.live, self.leaked, self.libc, self.dead = {}, {}, [], []

    def add(self, line):
        fields = line.split()
        if fields[0] == "dead":
            self.dead.append((int(fields[1], 16), int(fields[2], 16), None))
        elif fields[0] == "libc":
            self.libc.append(int(fields[1], 16))
        else:
            leaked = fields[0] == "leak" or fields[3:4] == ["leaked"]
            (self.leaked if leaked else self.live)[int(fields[1], 16)] = int(fields[2])


def start(command):
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    truth = Truth()
    for line in process.stdout:
        if line == "ready\n":
            return process, truth
        truth.add(line)
    sys.exit(f"{command[0]} ended with status {process.wait()}")


def mappings(pid):
    """(start, end, permissions, path) of each mapping."""
    with open(f"/proc/{pid}/maps") as file:
        for line in file:
            fields = line.split(None, 5)
            low, high = (int(each, 16) for each in fields[0].split("-"))
            yield low, high, fields[1], fields[5].strip() if len(fields) > 5 else ""


def main_arena(core, maps):
    """The arena in libc's data: the last bins are always empty and point to themselves."""
    for low, high, permissions, path in maps:
        if "libc.so" not in path or not permissions.startswith("rw"):
            continue
        for at in range(high - 16, low, -8):
            if core.word(at) == at - 16 and core.word(at + 8) == at - 16:
                arena = at - 126 * 16 - ARENA_BINS
                return arena, arena + ARENA_SIZE
    return None


def walk(core, chunk, top):
    """The end of the segment whose chunks begin at `chunk`: behind top, behind two fenceposts, or None."""
    while chunk != top:
        size = core.word(chunk + 8)
        if size is None or size & ~7 == 0 or size & IS_MMAPPED:
            return None
        if size & ~7 == 16:
            return chunk + 32
        chunk += size & ~7
    return top + (core.word(top + 8) & ~7)


def scattered_segments(core, maps, arena, owned):
    """The segments of a main arena that could not extend the break and went on in mappings."""
    top = core.word(arena[0] + ARENA_BINS - 16)
    found = Ranges([(*each, None) for each in owned])
    for low, high, permissions, path in maps:
        page = low
        while page < high and permissions.startswith("rw-p") and not path:
            first = core.word(page + 8)
            inside = found.find(page)
            end = walk(core, page, top) if first and first & 1 and not inside else None
            if end and end % 4096 == 0:
                yield page, end
            page = inside[1] if inside else end if end and end % 4096 == 0 else page + 4096


def owned_ranges(core, maps, blocks):
    """The memory that malloc owns, as far as known blocks lead to it."""
    owned = {(low, high) for low, high, _, path in maps if path == "[heap]"}
    arena = main_arena(core, maps)
    if arena:
        owned.add(arena)
    found = Ranges([(*each, None) for each in owned])
    for block in sorted(blocks):
        if found.find(block):
            continue
        header = core.word(block - 8)
        if header & IS_MMAPPED:
            chunk = block - 16
            owned.add((chunk - core.word(chunk), chunk + (header & ~7)))
        elif header & NON_MAIN_ARENA:
            base = block & ~(HEAP_MAX - 1)
            owned.add((base, base + core.word(base + 16)))
            before = core.word(base + 8)
            if before:
                owned.add((before, before + core.word(before + 16)))
        found = Ranges([(*each, None) for each in owned])
    if arena and core.word(arena[0]) >> 32 & NONCONTIGUOUS:
        owned.update(scattered_segments(core, maps, arena, owned))
    return sorted(owned)


def mark(core, check, blocks):
    """A plain conservative marking. Returns for each reached block the word that first led to it."""
    references = {}
    found = {}
    low, high = blocks.ranges[0][0], max(end for _, end, _ in blocks.ranges)
    for at, value in core.words_between(low, high):
        target = blocks.find(value)
        if target is None:
            continue
        source = blocks.find(at)
        if source:
            references.setdefault(source[0], []).append(target[0])
        elif not check.owned.find(at) and not any(each.find(at) for each in check.dead):
            found.setdefault(target[0], check.describe(at))
    for thread in core.threads:
        for name, value in thread.words():
            target = blocks.find(value)
            if target:
                found.setdefault(target[0], f"register {name} of thread {thread.tid}")
    todo = list(found)
    while todo:
        source = todo.pop()
        for target in references.get(source, []):
            if target not in found:
                found[target] = f"block {source:#x}"
                todo.append(target)
    return found


def examine(name, truth, core, maps):
    known = {**truth.live, **truth.leaked}
    owned = owned_ranges(core, maps, [*known, *truth.libc])
    as_list = [{"address": hex(each), "size": size} for each, size in known.items()]
    as_list += [{"address": hex(each), "size": (core.word(each - 8) & ~7) - 8} for each in truth.libc]
    heap = {"blocks": as_list, "owned": [{"start": hex(low), "end": hex(high)} for low, high in owned]}
    report = {"leaks": [{"address": hex(each), "size": size} for each, size in truth.leaked.items()]}
    check = brute_force.check(core, report, heap, truth.dead)
    wrong = check.report(name)
    marked = mark(core, check, check.blocks)
    for block in sorted(set(truth.live) - set(marked)):
        print(f"{name}: {block:#x} size {truth.live[block]} is said to be live, and nothing references it")
        wrong += 1
    for block in sorted(set(truth.leaked) & set(marked)):
        print(f"{name}: {block:#x} is said to be leaked, and is referenced by {marked[block]}")
        wrong += 1
    for block in sorted(set(truth.libc) - set(marked)):
        print(f"{name}: libc's block {block:#x} is referenced by nothing")
        wrong += 1
    print(f"{name}: {len(truth.live)} live, {len(truth.leaked)} leaked, {len(truth.libc)} of libc, "
          f"{len(marked)} marked")
    return wrong


def main():
    command = sys.argv[1:]
    process, truth = start(command)
    try:
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(["gcore", "-o", f"{folder}/core", str(process.pid)], check=True,
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            maps = list(mappings(process.pid))
            core = Core(f"{folder}/core.{process.pid}")
            wrong = examine(" ".join([os.path.basename(command[0]), *command[1:]]), truth, core, maps)
    finally:
        process.kill()
        process.wait()
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
