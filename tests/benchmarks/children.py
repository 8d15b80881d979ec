"""Processes of their own for what is measured: nothing that ran before is in their memory or their time."""

import os
import subprocess
import sys
from pathlib import Path

from retuned.consumers.common.process import HUGE_PAGES, THREADS_WAIT_BRIEFLY


def run(script: str, *arguments: str, log: Path, timeout: float = 900) -> None:
    """Run a script to its end, with OpenMP's threads and memory as the daemon's children have them.

    Args:
        timeout: seconds after which it is ended.

    Raises:
        RuntimeError: it failed; the text is the end of its log.
    """
    environment = (
        HUGE_PAGES | os.environ | THREADS_WAIT_BRIEFLY | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    )
    with log.open("wb") as output:
        done = subprocess.run(
            [sys.executable, script, *arguments],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            timeout=timeout,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(log.read_text(errors="replace")[-2_000:])


def peak_bytes() -> int:
    """The most memory that was resident in this process. (`ru_maxrss` counts the parent's at the fork.)"""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1_024
