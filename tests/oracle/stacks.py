#!/usr/bin/env python3
"""Compares the stacks that the recorder writes with those that gdb unwinds at the same allocations.

    tests/oracle/stacks.py RECORDER COUNT EVERY FUNCTIONS PROGRAM [ARGUMENT]...

gdb runs the program with the library RECORDER preloaded and stops at COUNT allocations, about each EVERYth one: it
notes the return addresses of its own backtrace, lets the allocation return, and reads from the program's memory what
the recorder wrote down for the block. The two must be the same to the last frame, and the image that the recorder has
for each frame must be the file that is mapped there. Of FUNCTIONS, separated by commas, each must be on one of the
stacks: else the run did not see what it is for. ORACLE_NO_TABLES in the environment says that the program has no unwind
tables, so that gdb guesses. The reader of the log in here shares no code with that of rleaks.
"""

import itertools
import os
import random
import re
import struct
import subprocess
import sys

FUNCTIONS = ["malloc", "calloc", "realloc"]


def main(recorder, count, every, wanted_functions, command):
    symbols = subprocess.run(["nm", "-D", recorder], check=True, capture_output=True, text=True).stdout
    offsets = {line.split()[-1]: line.split()[0] for line in symbols.splitlines() if " T " in line or " B " in line}
    wanted = [offsets[name] for name in ["rleaks_stack_log"] + FUNCTIONS]
    environment = dict(os.environ, ORACLE=" ".join([os.path.realpath(recorder), count, every] + wanted),
                       ORACLE_FUNCTIONS=wanted_functions)
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
    """The frames that the log has for a block, innermost first: return address and image, None where it is in none.
    Then (0, None) if the stack is cut there."""
    areas, block_chunks, _, node_chunks = numbers(header + 48, "4Q")
    area, = numbers(areas + 8 * (block >> 26), "Q")
    index = numbers(area + 4 * (block >> 8 & (1 << 18) - 1), "I")[0] if area else 0
    while index:
        chunk, = numbers(block_chunks + 8 * (index >> 16), "Q")
        key, index, stack = numbers(chunk + 24 * (index & 0xffff), "QII")
        if key & 3 == 2 and key >> 2 & 0xff == block & 0xff:
            return frames_of(header, node_chunks, stack)
    return None


def frames_of(header, node_chunks, stack):
    frames = []
    while stack > 1:
        chunk, = numbers(node_chunks + 8 * (stack >> 16), "Q")
        code, stack = numbers(chunk + 16 * (stack & 0xffff), "QI")
        frames.append((code & (1 << 48) - 1, image(header, (code >> 48) - 1)))
    return frames + [(0, None)] * stack


def image(header, number):
    """The path of an image, "unloaded" if the log says that it is gone."""
    images, count = numbers(header + 88, "2Q")
    if not 0 <= number < count:
        return None if number == -1 else f"image {number} of {count}"
    path, length, _, _, _, _, _, unloaded = numbers(images + 80 * number, "QIIQQQII")
    if unloaded:
        return "unloaded"
    if not path:
        return os.path.realpath(f"/proc/{gdb.selected_inferior().pid}/exe")
    return os.path.realpath(bytes(gdb.selected_inferior().read_memory(path, length)).decode())


def mapped(addresses, only_code=False):
    """The file that is mapped at each address, None where there is none; only the addresses that are mapped, or that
    code may be at."""
    found = {}
    with open(f"/proc/{gdb.selected_inferior().pid}/maps", encoding="utf-8") as maps:
        for line in maps:
            fields = line.rstrip("\n").split(None, 5)
            if only_code and "x" not in fields[1]:
                continue
            start, end = (int(number, 16) for number in fields[0].split("-"))
            path = fields[5] if len(fields) == 6 and fields[5].startswith("/") else None
            found.update((address, path) for address in addresses if start <= address < end)
    return found


def unwound():
    """The return addresses that gdb finds outside of the present function, innermost first, and the names of the
    functions."""
    addresses, names = [], set()
    frame = gdb.newest_frame().older()
    while frame is not None:
        # Rust's names end with a hash.
        names.add(re.sub("::h[0-9a-f]{16}$", "", (frame.name() or "").split("(")[0]))
        # A function that was inlined has no return address of its own, and one that ended with a jump has none
        # any more: gdb deduces it.
        if frame.type() not in (gdb.INLINE_FRAME, gdb.TAILCALL_FRAME):
            addresses.append(frame.pc())
        frame = frame.older()
    # Where a stack ends without saying so, as at the start of the dynamic loader or of a program without unwind
    # tables, gdb goes on with what lies there: no code.
    code = mapped(addresses, only_code=True)
    return list(itertools.takewhile(lambda address: address in code, addresses)), names


def is_gdb_wrong():
    """Where a signal interrupts a function at its `ret`, the frame pointer is the caller's again. Without unwind tables
    gdb looks for that in the innermost frame only; in others it takes the frame pointer, and misses the caller."""
    frame = gdb.newest_frame()
    while frame.older() is not None:
        is_interrupted, frame = frame.type() == gdb.SIGTRAMP_FRAME, frame.older()
        if is_interrupted and bytes(gdb.selected_inferior().read_memory(frame.pc(), 1)) == b"\xc3":
            return True
    return False


def difference(block, expected, found):
    """What is wrong with the frames that were recorded; None where nothing is."""
    if found is None:
        return f"block {block:#x} is not in the log"
    pairs = itertools.zip_longest(expected, (address for address, _ in found))
    wrong = next(((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1]), None)
    if wrong:
        index, (by_gdb, by_recorder) = wrong
        return (f"block {block:#x} after {name(expected[max(index - 1, 0)])}, frame {index} of {len(expected)}: gdb "
                f"{by_gdb or 0:#x} {name(by_gdb)}, recorder {by_recorder or 0:#x} {name(by_recorder)} "
                f"({len(found)} frames)")
    files = mapped(expected)
    wrong = next(((address, path) for address, path in found if path != files.get(address)), None)
    return wrong and f"block {block:#x}, {wrong[0]:#x} is in {files.get(wrong[0])}, recorder: {wrong[1]}"


def name(address):
    return gdb.execute(f"info symbol {address or 0:#x}", to_string=True).split(" in ")[0].strip()


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
    compared, left_out, frames, functions_seen = 0, 0, 0, set()
    has_tables = "ORACLE_NO_TABLES" not in os.environ
    random.seed(1)
    while compared < int(count):
        for breakpoint in breakpoints:
            breakpoint.ignore_count = random.randrange(2 * int(every))
        gdb.execute("continue", to_string=True)
        if gdb.selected_inferior().pid == 0:
            break
        if not has_tables and is_gdb_wrong():
            left_out += 1
            continue
        expected, names = unwound()
        functions_seen |= names
        for breakpoint in breakpoints:
            breakpoint.enabled = False
        gdb.execute("finish", to_string=True)
        for breakpoint in breakpoints:
            breakpoint.enabled = True
        block = int(gdb.newest_frame().read_register("rax")) & (1 << 64) - 1
        found = recorded(base + int(header, 16), block)
        compared, frames = compared + 1, frames + len(expected)
        wrong = difference(block, expected, found)
        if wrong:
            print(f"oracle: {wrong}")
    missed = set(filter(None, os.environ["ORACLE_FUNCTIONS"].split(","))) - functions_seen
    if missed or not compared:
        print(f"oracle: no stack has {', '.join(sorted(missed)) or 'been compared'}")
    note = f", left out {left_out} that gdb cannot unwind" if left_out else ""
    print(f"oracle: compared {compared} stacks with {frames} frames{note}")
    if gdb.selected_inferior().pid:
        gdb.execute("kill")


if __name__ == "__main__":
    try:
        import gdb
    except ImportError:
        gdb = None
    if gdb is None:
        if len(sys.argv) < 6:
            sys.exit(__doc__)
        main(*sys.argv[1:5], sys.argv[5:])
    else:
        compare()
