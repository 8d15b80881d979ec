"""The available memory, and the number of processes that the kernel killed for lack of it.

Read from Linux's /proc and from control groups (version 2), which containers and systemd use to limit memory.
"""

import re
from collections.abc import Iterator
from pathlib import Path

_SIZE = re.compile(r"(\d{1,18}(?:\.\d{1,6})?)\s?(?:([kmgt])(i)?)?b?", re.IGNORECASE)
PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def available_bytes(proc: Path = PROC, cgroups: Path = CGROUPS) -> int | None:
    """Returns the memory that this process and its children can still take; None: unknown on this system.

    It is the minimum of the machine's available memory and what each control group leaves. Cached files count as free.
    """
    known = [_table(proc / "meminfo").get("MemAvailable:", None), *(_left(folder) for folder in _groups(proc, cgroups))]
    return min((size for size in known if size is not None), default=None)


def oom_kills(proc: Path = PROC, cgroups: Path = CGROUPS) -> int | None:
    """Returns how many processes of this control group the kernel killed for lack of memory; None: unknown."""
    own = next(_groups(proc, cgroups), None)
    return None if own is None else _table(own / "memory.events").get("oom_kill")


def gibibytes(size: int) -> str:
    """Formats a size for a person."""
    return f"{size / 2**30:.1f} GiB"


def size_of(text: str) -> int:
    """Parses a size into bytes: `80GB` (powers of 1000), `80GiB` (powers of 1024), `80000000000`.

    Raises:
        ValueError: the text is not a size.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size: expected bytes, or a number with a unit, such as 80GB or 80GiB")
    number, power, binary = float(match[1]), "kmgt".find((match[2] or "").lower()), 1024 if match[3] else 1000
    return round(number * binary ** (power + 1)) if match[2] else round(number)


def _groups(proc: Path, cgroups: Path) -> Iterator[Path]:
    """Yields the control groups of this process, the innermost first."""
    lines = _text(proc / "self" / "cgroup").splitlines()
    path = next((line[3:].strip("/") for line in lines if line.startswith("0::")), None)
    if path is None:
        return
    own = cgroups / path
    for folder in (own, *own.parents):
        if (folder / "memory.events").is_file():
            yield folder
        if folder == cgroups:
            return


def _left(group: Path) -> int | None:
    """Returns the memory that a group's limit leaves; None: no limit."""
    most, used = _text(group / "memory.max").strip(), _text(group / "memory.current").strip()
    if not (most.isdecimal() and used.isdecimal()):
        return None
    held = _table(group / "memory.stat")
    return max(0, int(most) - int(used) + held.get("inactive_file", 0) + held.get("active_file", 0))


def _table(file: Path) -> dict[str, int]:
    """Reads lines of a name and a number; numbers in kB are converted to bytes."""
    table = {}
    for line in _text(file).splitlines():
        name, *rest = line.split()
        if rest and rest[0].isdecimal():
            table[name] = int(rest[0]) * (1_024 if rest[1:] == ["kB"] else 1)
    return table


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError:
        return ""
