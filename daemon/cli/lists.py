"""Tables of runs and versions, for a person at a terminal."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from retuned.consumers.common.times import shown
from retuned.daemon.cli import screen
from retuned.daemon.cli.command import LINES
from retuned.daemon.jobs.progress import words

if TYPE_CHECKING:
    from rich.console import RenderableType

GATE: dict[bool | None, screen.Cell] = {True: ("passed", "green"), False: ("refused", "yellow"), None: ""}
STYLES = {"running": "cyan", "waiting": "cyan", "interrupted": "cyan", "failed": "bold red", "refused": "yellow"}


def runs(found: Sequence[Mapping[str, Any]]) -> Iterator["RenderableType"]:
    """One run a row."""
    if not found:
        yield screen.text("No retraining yet. `retuned status WORKLOAD` shows what the policy decided last.")
        return
    yield screen.table(
        ("STARTED", "WORKLOAD", "STATE", ">TOOK", "RESULT"),
        [
            (
                shown(run["started_at"]),
                run["workload"],
                (run["state"], STYLES.get(run["state"], "")),
                _took(run["started_at"], run["finished_at"]),
                _result(run),
            )
            for run in found[:LINES]
        ],
    )
    yield from _more(found)


def versions(found: Sequence[Mapping[str, Any]]) -> Iterator["RenderableType"]:
    """One version a row."""
    if not found:
        yield screen.text("No version yet: nothing was trained.")
        return
    yield screen.table(
        ("TRAINED", "VERSION", ">EXAMPLES", ">SCORE", ">CHAMPION", "GATE", "SERVES"),
        [
            (
                shown(one["created_at"]).partition(" ")[0],  # the line has no room for more
                f"{one['workload']}@{one['version']}",
                "" if one["examples"] is None else f"{one['examples']:,}",
                _score(one["scores"], "candidate"),
                _score(one["scores"], "champion", "base"),
                GATE[one["passed"]],
                _serves(one),
            )
            for one in found[:LINES]
        ],
    )
    yield from _more(found)
    yield screen.text("")
    yield screen.text(
        "SCORE: of the version on held-out questions, 0 to 1. CHAMPION: of what it was compared with.", "dim"
    )


def _more(found: Sequence[Mapping[str, Any]]) -> Iterator["RenderableType"]:
    if len(found) > LINES:
        yield screen.text(f"And {len(found) - LINES} more; --json has them.", "dim")


def _result(run: Mapping[str, Any]) -> str:
    if run["progress"]:
        return words(run["progress"])
    if run["state"] == "succeeded":
        scores = run["scores"] or {}
        before = next((name for name in ("champion", "base") if name in scores), None)
        score = f": score {scores['candidate']:.3f}" if scores.get("candidate") is not None else ""
        return f"{run['version'] or 'no version'}{score}" + (
            f", {before} {scores[before]:.3f}" if score and before else ""
        )
    return str(run["waits_for"] or run["error"] or "; ".join(run["reasons"]))


def _serves(one: Mapping[str, Any]) -> str:
    if one["removed_at"]:
        return f"removed by retention at {shown(one['removed_at'])}"
    share = f"{one['share']:.0%}" if one["share"] else ""
    return " ".join(filter(None, [", ".join(one["aliases"]), share]))


def _score(scores: Mapping[str, Any] | None, *models: str) -> str:
    value = next((scores[model] for model in models if scores and scores.get(model) is not None), None)
    return "" if value is None else f"{value:.3f}"


def _took(started: str, finished: str | None) -> str:
    if finished is None:
        return ""
    seconds = (datetime.fromisoformat(finished) - datetime.fromisoformat(started)).total_seconds()
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.0f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )
