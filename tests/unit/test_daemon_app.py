"""The daemon's process: what it sets of the interpreter and of the allocator."""

import subprocess
import sys

import pytest

LARGE_BUFFERS = """
import ctypes
from retuned.daemon.app import tune_interpreter

def in_heap(buffer):
    place = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    with open("/proc/self/maps") as maps:
        ranges = [[int(end, 16) for end in line.split()[0].split("-")] for line in maps if line.endswith("[heap]\\n")]
    return any(low <= place < high for low, high in ranges)

tune_interpreter()
for _ in range(2):  # glibc maps the first ones by itself; having seen them go, it would keep the next ones
    buffers = [bytearray(4 << 20) for _ in range(16)]
    print(sum(map(in_heap, buffers)))
    del buffers
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_large_buffers_are_given_back() -> None:
    """What is mapped apart from the heap goes back to the system; up to 8 MiB may lie free at the heap's end."""
    done = subprocess.run([sys.executable, "-c", LARGE_BUFFERS], capture_output=True, text=True, check=True)
    assert max(map(int, done.stdout.split())) <= 2, done.stdout
