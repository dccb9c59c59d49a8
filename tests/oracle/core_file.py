"""Reads ELF64 core files of x86_64 Linux processes: memory, and the registers of every thread."""

import bisect
import mmap
import struct

try:
    import numpy
except ImportError:  # All works without it, ten times slower.
    numpy = None

PT_LOAD, PT_NOTE = 1, 4
NT_PRSTATUS, NT_FPREGSET, NT_AUXV, NT_X86_XSTATE = 1, 2, 6, 0x202
AT_EXECFN = 31
RED_ZONE = 128
PRSTATUS_PID, PRSTATUS_REGISTERS = 32, 112
REGISTER_NAMES = (
    "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss "
    "fs_base gs_base ds es fs gs"
).split()


class Ranges:
    """Disjoint address ranges, each with a value."""

    def __init__(self, ranges):
        """`ranges` holds tuples (start, end, value)."""
        self.ranges = sorted(ranges, key=lambda each: each[:2])
        self.starts = [each[0] for each in self.ranges]

    def find(self, address):
        """The range (start, end, value) that contains `address`, or None."""
        at = bisect.bisect_right(self.starts, address) - 1
        if at >= 0 and address < self.ranges[at][1]:
            return self.ranges[at]
        return None


class Thread:
    def __init__(self, tid, registers):
        self.tid = tid
        self.registers = registers
        self.vectors = []  # (name of the note, bytes)

    def words(self):
        """Every register word, as (name, value). Vector state is looked at every 8 bytes."""
        for name, value in self.registers.items():
            yield name, value
        for name, data in self.vectors:
            usable = len(data) // 8 * 8
            for at, (value,) in enumerate(struct.iter_unpack("<Q", data[:usable])):
                yield f"{name}+{at * 8}", value


class Core:
    """A core file. `segments` holds tuples (start, end, offset in the file, flags)."""

    def __init__(self, path):
        with open(path, "rb") as file:
            self.data = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        if self.data[:6] != b"\x7fELF\x02\x01":
            raise ValueError(f"{path} is no little-endian ELF64 file")
        self.segments, self.threads, self.auxv = [], [], {}
        self._read_headers()
        self._lookup = Ranges([(start, end, offset) for start, end, offset, _ in self.segments])

    def _read_headers(self):
        header_offset, = struct.unpack_from("<Q", self.data, 32)
        entry_size, count = struct.unpack_from("<HH", self.data, 54)
        if count == 0xFFFF:  # PN_XNUM: the count is in the first section header.
            section_offset, = struct.unpack_from("<Q", self.data, 40)
            count, = struct.unpack_from("<I", self.data, section_offset + 44)
        for at in range(count):
            kind, flags, offset, address, _, file_size, _, _ = struct.unpack_from(
                "<IIQQQQQQ", self.data, header_offset + at * entry_size)
            if kind == PT_LOAD and file_size:
                self.segments.append((address, address + file_size, offset, flags))
            elif kind == PT_NOTE:
                self._read_notes(offset, file_size)

    def _read_notes(self, at, size):
        end = at + size
        while at + 12 <= end:
            name_size, size, kind = struct.unpack_from("<III", self.data, at)
            at += 12
            name = self.data[at:at + name_size].rstrip(b"\0")
            at += (name_size + 3) & ~3
            self._note(name, kind, self.data[at:at + size])
            at += (size + 3) & ~3

    def _note(self, name, kind, data):
        if name == b"CORE" and kind == NT_PRSTATUS:
            tid, = struct.unpack_from("<I", data, PRSTATUS_PID)
            values = struct.unpack_from("<27Q", data, PRSTATUS_REGISTERS)
            self.threads.append(Thread(tid, dict(zip(REGISTER_NAMES, values))))
        elif name == b"CORE" and kind == NT_FPREGSET:
            self.threads[-1].vectors.append(("fpregs", data))
        elif name == b"LINUX" and kind == NT_X86_XSTATE:
            self.threads[-1].vectors.append(("xstate", data))
        elif name == b"CORE" and kind == NT_AUXV:
            self.auxv = dict(struct.iter_unpack("<QQ", data[:len(data) // 16 * 16]))

    def segment(self, address):
        """The segment (start, end, offset) that contains `address`, or None."""
        return self._lookup.find(address)

    def word(self, address):
        """The word at `address`, or None where the core has nothing."""
        segment = self.segment(address)
        if segment is None or address + 8 > segment[1]:
            return None
        return struct.unpack_from("<Q", self.data, segment[2] + address - segment[0])[0]

    def words_between(self, low, high):
        """Every aligned word of memory with low <= value < high, as (address, value)."""
        for start, end, offset, _ in self.segments:
            count = (end - start) // 8
            if numpy is not None:
                words = numpy.frombuffer(self.data, dtype="<u8", count=count, offset=offset)
                at = numpy.flatnonzero((words >= low) & (words < high))
                for index, value in zip(at.tolist(), words[at].tolist()):
                    yield start + index * 8, value
                continue
            words = memoryview(self.data)[offset:offset + count * 8].cast("Q")
            for at, value in enumerate(words):
                if low <= value < high:
                    yield start + at * 8, value

    def dead_stacks(self, owned):
        """Ranges (start, end, None) of stack below the stack pointers and their red zones.

        Only where it is certainly a thread's stack: the kernel's stack of the process, or a segment
        with the thread's control block above its stack pointer; never in memory of an allocator.
        """
        initial = self.segment(self.auxv.get(AT_EXECFN, 0))
        dead = []
        for thread in self.threads:
            pointer, control_block = thread.registers["rsp"], thread.registers["fs_base"]
            segment = self.segment(pointer)
            if segment is None or owned.find(pointer):
                continue
            if segment == initial or segment[0] <= pointer < control_block < segment[1]:
                dead.append((segment[0], pointer - RED_ZONE, None))
        return dead
