#!/usr/bin/env python3
"""Compares the stacks that the recorder writes with those that gdb unwinds at the same allocations.

    tests/oracle/stacks.py RECORDER COUNT EVERY PROGRAM [ARGUMENT]...

gdb runs the program with the library RECORDER preloaded and stops at COUNT allocations, about each EVERYth one: it
notes the return addresses of its own backtrace, lets the allocation return, and reads from the program's memory what
the recorder wrote down for the block. The two must be the same to the last frame. The reader of the log in here shares
no code with that of rleaks.
"""

import itertools
import os
import random
import struct
import subprocess
import sys

FUNCTIONS = ["malloc", "calloc", "realloc"]


def main(recorder, count, every, command):
    symbols = subprocess.run(["nm", "-D", recorder], check=True, capture_output=True, text=True).stdout
    offsets = {line.split()[-1]: line.split()[0] for line in symbols.splitlines() if " T " in line or " B " in line}
    wanted = [offsets[name] for name in ["rleaks_stack_log"] + FUNCTIONS]
    environment = dict(os.environ, ORACLE=" ".join([os.path.realpath(recorder), count, every] + wanted))
    gdb = ["gdb", "-nx", "-batch", "-iex", "set debuginfod enabled off", "-x", __file__, "--args"] + command
    result = subprocess.run(gdb, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    lines = [line for line in result.stdout.splitlines() if line.startswith("oracle: ")]
    print("\n".join(lines))
    if not lines or not lines[-1].startswith("oracle: compared"):
        sys.exit(f"stacks.py: gdb ended early:\n{result.stdout[-2000:]}\n{result.stderr[-2000:]}")
    sys.exit(0 if len(lines) == 1 else 1)


# What follows runs in gdb.

def numbers(address, layout):
    layout = "<" + layout
    return struct.unpack(layout, bytes(gdb.selected_inferior().read_memory(address, struct.calcsize(layout))))


def recorded(header, block):
    """The return addresses that the log has for a block, innermost first; then 0 if the stack is cut there."""
    areas, block_chunks, _, node_chunks = numbers(header + 48, "4Q")
    area, = numbers(areas + 8 * (block >> 26), "Q")
    index = numbers(area + 4 * (block >> 8 & (1 << 18) - 1), "I")[0] if area else 0
    while index:
        chunk, = numbers(block_chunks + 8 * (index >> 16), "Q")
        key, index, stack = numbers(chunk + 24 * (index & 0xffff), "QII")
        if key & 3 == 2 and key >> 2 & 0xff == block & 0xff:
            return frames_of(node_chunks, stack)
    return None


def frames_of(node_chunks, stack):
    addresses = []
    while stack > 1:
        chunk, = numbers(node_chunks + 8 * (stack >> 16), "Q")
        code, stack = numbers(chunk + 16 * (stack & 0xffff), "QI")
        addresses.append(code & (1 << 48) - 1)
    return addresses + [0] * stack


def unwound():
    """The return addresses that gdb finds outside of the present function, innermost first."""
    addresses = []
    frame = gdb.newest_frame().older()
    while frame is not None:
        # A function that was inlined has no return address of its own, and one that ended with a jump has none
        # any more: gdb deduces it.
        if frame.type() not in (gdb.INLINE_FRAME, gdb.TAILCALL_FRAME):
            addresses.append(frame.pc())
        frame = frame.older()
    # Where a stack ends without saying so, as at the start of the dynamic loader, gdb goes on with what lies there.
    return list(itertools.takewhile(lambda address: address >= 0x10000, addresses))


def difference(block, expected, found):
    if found is None:
        return f"block {block:#x} is not in the log"
    pairs = itertools.zip_longest(expected, found)
    index, (by_gdb, by_recorder) = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
    name = lambda address: gdb.execute(f"info symbol {address or 0:#x}", to_string=True).split(" in ")[0].strip()
    return (f"block {block:#x} after {name(expected[max(index - 1, 0)])}, frame {index} of {len(expected)}: gdb {by_gdb or 0:#x} {name(by_gdb)}, recorder "
            f"{by_recorder or 0:#x} {name(by_recorder)} ({len(found)} frames)")


def start(recorder):
    for setting in ["pagination off", "confirm off", "backtrace past-main on", "backtrace past-entry on",
                    "backtrace limit 2000", "startup-with-shell off", "detach-on-fork on",
                    f"environment LD_PRELOAD {recorder}", "environment RLEAKS_STACK_LOG_DEPTH 512"]:
        gdb.execute("set " + setting)
    gdb.execute("handle all nostop noprint pass", to_string=True)
    gdb.execute("starti", to_string=True)
    gdb.execute("set stop-on-solib-events 1")
    base = None
    while base is None:
        gdb.execute("continue", to_string=True)
        with open(f"/proc/{gdb.selected_inferior().pid}/maps", encoding="utf-8") as maps:
            starts = [line.split("-")[0] for line in maps if line.rstrip().endswith(recorder)]
        base = int(starts[0], 16) if starts else None
    gdb.execute("set stop-on-solib-events 0")
    return base


def compare():
    recorder, count, every, header, *functions = os.environ["ORACLE"].split()
    base = start(recorder)
    breakpoints = [gdb.Breakpoint(f"*{base + int(function, 16):#x}", internal=True) for function in functions]
    compared, frames = 0, 0
    random.seed(1)
    while compared < int(count):
        for breakpoint in breakpoints:
            breakpoint.ignore_count = random.randrange(2 * int(every))
        gdb.execute("continue", to_string=True)
        if gdb.selected_inferior().pid == 0:
            break
        expected = unwound()
        for breakpoint in breakpoints:
            breakpoint.enabled = False
        gdb.execute("finish", to_string=True)
        for breakpoint in breakpoints:
            breakpoint.enabled = True
        block = int(gdb.newest_frame().read_register("rax")) & (1 << 64) - 1
        found = recorded(base + int(header, 16), block)
        compared, frames = compared + 1, frames + len(expected)
        if found != expected:
            print(f"oracle: {difference(block, expected, found)}")
    print(f"oracle: compared {compared} stacks with {frames} frames")
    if gdb.selected_inferior().pid:
        gdb.execute("kill")


if __name__ == "__main__":
    try:
        import gdb
    except ImportError:
        gdb = None
    if gdb is None:
        if len(sys.argv) < 5:
            sys.exit(__doc__)
        main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:])
    else:
        compare()
