"""Runs a fixture and compares the blocks, and the leaks, that rleaks finds with what it says itself.

  check.py RLEAKS COMMAND...

prints one line, and exits 0 if nothing is missing, nothing is surplus, and all sizes are equal. A block
that the fixture does not know must be libc's own, and is named: a thread's dynamic thread vector
(DTV), or what the dynamic loader keeps. Each is reachable: none may be among the leaks."""

import json
import os
import subprocess
import sys

SHOWN = 6
# What the dynamic loader keeps of a library that the program loads, or, in a static program, of the program.
LOADER_BLOCKS = 9


def start(command):
    """The fixture, and the lines that it prints before "ready"."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    lines = []
    for line in process.stdout:
        if line == "ready\n":
            return process, lines
        lines.append(line.split())
    process.wait()
    raise SystemExit(f"FAILED to run: status {process.returncode}")


def run(rleaks, *arguments):
    done = subprocess.run([rleaks, *arguments, "--json"], capture_output=True, text=True)
    if done.returncode == 2:
        return None, done.stderr.strip()
    return json.loads(done.stdout), ""


def addresses(entries):
    return {int(entry["address"], 16): entry["size"] for entry in entries}


def word_size(pid):
    with open(f"/proc/{pid}/exe", "rb") as program:
        return {1: 4, 2: 8}[program.read(5)[4]]


def word(pid, address, size):
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        memory.seek(address)
        return int.from_bytes(memory.read(size), "little")


def text(pid, address, size):
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        memory.seek(address)
        return memory.read(size).split(b"\0")[0].decode("latin-1")


def name_of(pid, address, size):
    """What libc keeps in a block that the fixture does not know, or None."""
    # A DTV starts with its number of slots, of two words each, and the generation of its modules.
    width = word_size(pid)
    slots = word(pid, address, width)
    if slots in range(14, 64) and (size - 3 * width) // (2 * width) >= slots:
        return "dtv"
    if size < 256 and ".so" in text(pid, address, size):
        return "path"
    return None


def is_static(pid):
    with open(f"/proc/{pid}/maps") as maps:
        return "/ld-linux" not in maps.read()


def compare(what, found, truth, problems):
    for kind, some in (
        ("missing", [at for at in truth if at not in found]),
        ("surplus", [at for at in found if at not in truth]),
        ("size", [at for at in truth if at in found and found[at] != truth[at]]),
    ):
        if some:
            shown = " ".join(f"{at:#x}({found.get(at, truth.get(at))})" for at in sorted(some)[:SHOWN])
            problems.append(f"{what}: {len(some)} {kind} {shown}")


def check(rleaks, process, lines):
    pid = next((line[1] for line in lines if line[0] == "pid"), str(process.pid))
    truth = {int(line[1], 16): int(line[2]) for line in lines if line[0] in ("block", "live", "leak")}
    libc = {int(line[1], 16): line[2] for line in lines if line[0] == "libc"}
    leaked = {int(line[1], 16): int(line[2]) for line in lines if line[0] == "block" and line[3] == "leaked"}
    problems = []

    heap, error = run(rleaks, "heap", pid)
    if heap is None:
        return f"FAILED {error}"
    found = addresses(heap["blocks"])
    named = []
    for at in [at for at in found if at not in truth]:
        name = libc.get(at) or name_of(pid, at, found[at])
        if name:
            named.append(name)
            del found[at]
    problems += [f"libc's {name} at {at:#x} missing" for at, name in libc.items() if at in truth]
    if named.count("dtv") < len(libc):
        problems.append(f"{len(libc)} dtv expected, {named.count('dtv')} found")
    unknown = sorted(set(found) - set(truth))
    has_loader = is_static(pid) or any(line[0] == "loader" for line in lines)
    if has_loader and len(unknown) <= LOADER_BLOCKS:
        report, error = run(rleaks, pid)
        leaks = addresses(report["leaks"]) if report else unknown
        for at in [at for at in unknown if at not in leaks]:
            named.append("loader")
            del found[at]
    compare("blocks", found, truth, problems)
    if sum(zone["blocks"] for zone in heap["zones"]) != len(heap["blocks"]):
        problems.append("zones do not add up")

    if any(line[0] == "block" for line in lines):
        report, error = run(rleaks, pid)
        if report is None:
            problems.append(error)
        else:
            compare("leaks", addresses(report["leaks"]), leaked, problems)
            problems += [f"warning {warning['code']}" for warning in report["warnings"]]
    if problems:
        return "DIFFERENT " + "; ".join(problems)
    zones = " ".join(f"{zone['blocks']}" for zone in heap["zones"])
    named = ",".join(f"{named.count(name)} {name}" for name in sorted(set(named)))
    return f"exact: {len(truth)} blocks (zones {zones}), {len(leaked)} leaked, libc's own: {named or 'none'}"


def main():
    rleaks, *command = sys.argv[1:]
    process, lines = start(command)
    try:
        answer = check(rleaks, process, lines)
    finally:
        process.kill()
        process.stdin.close()
        process.wait()
    print(answer)
    return 0 if answer.startswith("exact") else 1


if __name__ == "__main__":
    sys.exit(main())
