"""The daemon's process: what it sets of the interpreter and of the allocator."""

import subprocess
import sys

import pytest

LARGE_BUFFERS = """
import ctypes
from retuned.daemon.app import tune_interpreter
tune_interpreter()
for _ in range(2):  # glibc maps the first one by itself; having seen it go, it would keep the next ones
    buffer = bytearray(4 << 20)
    with open("/proc/self/maps") as maps:
        ranges = [[int(end, 16) for end in line.split()[0].split("-")] + line.split()[5:] for line in maps]
    place = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    print("heap" if any(low <= place < high and name == ["[heap]"] for low, high, *name in ranges) else "apart")
    del buffer
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_large_buffers_are_given_back() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LARGE_BUFFERS], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.split() == ["apart", "apart"]
