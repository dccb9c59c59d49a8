"""What the benchmarks share: the programs that are scanned, and the memory that rleaks takes meanwhile."""

import os
import subprocess
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RLEAKS = ROOT / "target/release/rleaks"


def compile(name, folder, *options):
    """Builds a program of this folder in `folder`. Returns its path."""
    program = f"{folder}/{name}" + "".join(option for option in options if "LSAN" in option)
    subprocess.run(["cc", "-O2", "-pthread", "-o", program, ROOT / f"benches/{name}.c", *options, "-lm"], check=True)
    return program


def kilobytes(file, key):
    """The value of a line like "RssAnon:  12 kB" of a file; 0 if the file is gone, or has none."""
    try:
        for line in Path(file).read_text().splitlines():
            if line.startswith(key):
                return int(line.split()[1])
    except (FileNotFoundError, ProcessLookupError):
        pass
    return 0


class Target:
    """A running heap_target or many_leaks, perhaps under another program."""

    def __init__(self, command, blocks, environment={}):
        self.process = subprocess.Popen([*command, "-n", str(blocks)], text=True, bufsize=1, stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                        env={**os.environ, **environment})
        self.pid = str(self.process.pid)
        self.blocks, self.bytes = self.numbers("blocks")
        self.leaked, self.leaked_bytes = self.numbers("leaked")
        assert self.process.stdout.readline() == "ready\n"

    def numbers(self, what):
        word, *numbers = self.process.stdout.readline().split()
        assert word == what, word
        return [float(number) if "." in number else int(number) for number in numbers]

    def ask(self, command):
        self.process.stdin.write(command + "\n")
        return self.numbers(command.split()[0])

    def resident(self):
        return kilobytes(f"/proc/{self.pid}/status", "VmRSS:")

    def end(self):
        self.process.stdin.close()
        self.process.wait()


def family(pid):
    """A process and all that it has started: one of rleaks' processes only watches the other."""
    pids = [pid]
    for one in pids:
        for task in Path(f"/proc/{one}/task").glob("*/children"):
            try:
                pids.extend(int(child) for child in task.read_text().split())
            except (FileNotFoundError, ProcessLookupError):
                pass
    return pids


class Peak(threading.Thread):
    """Looks at the memory while rleaks runs, until `end()`: `most` is the most anonymous memory in KiB, `fall` by how
    much less memory the system had available."""

    def __init__(self, pid):
        super().__init__()
        self.pid, self.ended = pid, threading.Event()
        self.most, self.before = 0, kilobytes("/proc/meminfo", "MemAvailable:")
        self.least = self.before
        self.start()

    def run(self):
        while not self.ended.wait(0.002):
            self.most = max(self.most, sum(kilobytes(f"/proc/{pid}/status", "RssAnon:") for pid in family(self.pid)))
            self.least = min(self.least, kilobytes("/proc/meminfo", "MemAvailable:"))

    @property
    def fall(self):
        return self.before - self.least

    def end(self):
        self.ended.set()
        self.join()
