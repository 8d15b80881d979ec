"""How far retrainings, exports and backups are, for a person at a terminal."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retuned.daemon.jobs.progress import COUNTED, words
from retuned.daemon.operations import training
from retuned.daemon.operations.fields import OfWorkload

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

    from retuned.daemon.operations.operation import Service

EVERY_SECONDS = 10.0
LOOK_SECONDS = 1.0
"""Between two looks at a run that is followed, or at a backup."""
MOST_NAMED = 10
PLACES = {"local": "on this machine", "ray": "on Ray"}


def queue(status: dict[str, Any]) -> list[str]:
    """The runs under way with where they are made, and those in line, as they come next, with what they wait for."""
    begun = [f"{one['workload']} {PLACES[one['runner']]}" for one in status["under_way"]]
    in_line = [f"{one['workload']} ({one['waits_for']})" for one in status["queue"]]
    return [f"{name:<9} {_some(runs)}" for name, runs in (("training", begun), ("in line", in_line)) if runs]


class Progress:
    """Of the runs that this process makes: a line on its standard error for each stage, and every few seconds."""

    def __init__(self) -> None:
        self._shown: dict[str, tuple[str, float]] = {}  # by workload: the stage, and when it was shown

    def show(self, progress: dict[str, Any]) -> None:
        """Show what a run under way reported, if it is time to."""
        now, workload = time.monotonic(), progress["workload"]
        stage, shown_at = self._shown.get(workload, ("", 0.0))
        if progress["stage"] != stage or now - shown_at >= EVERY_SECONDS:
            self._shown[workload] = progress["stage"], now
            print(f"{workload}: {words(progress)}", file=sys.stderr, flush=True)


def _some(named: list[str]) -> str:
    more = len(named) - MOST_NAMED
    return ", ".join(named[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


@contextmanager
def moving(name: str, *, shown: bool) -> Iterator[Callable[[Iterable[bytes]], Iterator[bytes]]]:
    """Shows at a terminal how many bytes have passed through what is returned."""
    from rich.progress import DownloadColumn, TimeElapsedColumn, TransferSpeedColumn

    with _bar(DownloadColumn(), TransferSpeedColumn(), TimeElapsedColumn(), shown=shown) as bar:
        task = bar.add_task(name, total=None)

        def read(pieces: Iterable[bytes]) -> Iterator[bytes]:
            for piece in pieces:
                bar.advance(task, len(piece))
                yield piece

        yield read


@contextmanager
def growing(folder: Path) -> Iterator[None]:
    """Shows at a terminal how many bytes a backup has written to a folder, where this machine has it."""
    from threading import Event, Thread

    from rich.progress import DownloadColumn, TimeElapsedColumn

    ended = Event()
    with _bar(DownloadColumn(), TimeElapsedColumn()) as bar:
        task = bar.add_task(f"backup to {folder}", total=None)

        def look() -> None:
            while not ended.wait(LOOK_SECONDS):
                bar.update(task, completed=_size(folder))

        looking = Thread(target=look, daemon=True)
        looking.start()
        try:
            yield
        finally:
            ended.set()
            looking.join()


def follow(service: "Service", asked: Mapping[str, Any]) -> int:
    """Shows the stages and the progress of a run, until it ends.

    Args:
        asked: the answer to the request for it: its `workload`, and its id as `run`.

    Returns:
        The exit status: 0 when the run made a version that the gate passed.
    """
    from rich.progress import BarColumn, TaskProgressColumn, TimeRemainingColumn

    workload, id = asked["workload"], asked["run"]

    def latest() -> Mapping[str, Any]:
        return next(one for one in service.ask(training.runs, OfWorkload(workload=workload)) if one["id"] == id)

    shown = ""
    with _bar(BarColumn(), TaskProgressColumn(), TimeRemainingColumn()) as bar:
        task = bar.add_task(workload, total=None)
        while True:
            run = latest()
            if run["finished_at"]:
                break
            progress = run["progress"] or {"stage": run["waits_for"] or run["state"]}
            # The fields of earlier stages stay, and have other types: a dataset's rows are counted by split.
            counts = (progress.get(key) for key in COUNTED.get(progress["stage"], ("", "")))
            done, steps = (count if isinstance(count, int) else None for count in counts)
            bar.update(task, description=f"{workload}: {words(progress)}", completed=done or 0, total=steps)
            if bar.disable and progress["stage"] != shown:
                shown = progress["stage"]
                print(f"{workload}: {words(progress)}", file=sys.stderr, flush=True)
            time.sleep(LOOK_SECONDS)
    print(f"{workload}: {run['state']}: {run['version'] or run['error']}")
    return 0 if run["state"] == "succeeded" else 1


def _bar(*columns: Any, shown: bool = True) -> "Bar":
    """A line of progress on the standard error, where that is a terminal; it disappears at its end."""
    from rich.progress import Progress, SpinnerColumn, TextColumn

    from retuned.daemon.cli import screen

    text = TextColumn("{task.description}", markup=False)
    return Progress(
        SpinnerColumn(),
        text,
        *columns,
        console=screen.console(sys.stderr),
        transient=True,
        disable=not (shown and sys.stderr.isatty()),
    )


def _size(folder: Path) -> int:
    """Bytes of the backup that is being written."""
    found = 0
    for path in folder.glob(".*.tmp/**/*"):
        try:
            found += path.stat().st_size if path.is_file() else 0
        except OSError:  # moved meanwhile
            continue
    return found
