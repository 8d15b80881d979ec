"""How much memory processes may still take, and how often the kernel ended one because there was none left.

Read from Linux's /proc and from control groups, version 2, which is how containers and systemd limit memory.
"""

import re
from collections.abc import Iterator
from pathlib import Path

_SIZE = re.compile(r"(\d{1,18}(?:\.\d{1,6})?)\s?(?:([kmgt])(i)?)?b?", re.IGNORECASE)
PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def available_bytes(proc: Path = PROC, cgroups: Path = CGROUPS) -> int | None:
    """What this process and its children can take before the kernel ends one of them; None: not known here.

    The least of what the machine has and what each limit above this process leaves. Cached files count as free.
    """
    known = [_table(proc / "meminfo").get("MemAvailable:", None), *(_left(folder) for folder in _groups(proc, cgroups))]
    return min((size for size in known if size is not None), default=None)


def oom_kills(proc: Path = PROC, cgroups: Path = CGROUPS) -> int | None:
    """How many processes of this control group the kernel has ended for want of memory; None: not known here."""
    own = next(_groups(proc, cgroups), None)
    return None if own is None else _table(own / "memory.events").get("oom_kill")


def gibibytes(size: int) -> str:
    """A size for people."""
    return f"{size / 2**30:.1f} GiB"


def size_of(text: str) -> int:
    """Bytes of a size as people write it: `80GB` (powers of 1000), `80GiB` (of 1024), `80000000000`.

    Raises:
        ValueError: it is none.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text!r} is no size: expected bytes, or a number with a unit, such as 80GB or 80GiB")
    number, power, binary = float(found[1]), "kmgt".find((found[2] or "").lower()), 1024 if found[3] else 1000
    return round(number * binary ** (power + 1)) if found[2] else round(number)


def _groups(proc: Path, cgroups: Path) -> Iterator[Path]:
    """The control groups of this process that exist here, its own first, then those around it."""
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
    """What a group's limit leaves; None where it has none."""
    most, used = _text(group / "memory.max").strip(), _text(group / "memory.current").strip()
    if not (most.isdecimal() and used.isdecimal()):
        return None
    held = _table(group / "memory.stat")
    return max(0, int(most) - int(used) + held.get("inactive_file", 0) + held.get("active_file", 0))


def _table(file: Path) -> dict[str, int]:
    """Lines of a name and a number, in bytes where the line says kB."""
    found = {}
    for line in _text(file).splitlines():
        name, *rest = line.split()
        if rest and rest[0].isdecimal():
            found[name] = int(rest[0]) * (1_024 if rest[1:] == ["kB"] else 1)
    return found


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError:
        return ""
