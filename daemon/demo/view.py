"""The demo's terminal view: what has happened, what is happening, and the figures, live."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

SPLITS = {
    "holdout": "questions like those that it was trained on",
    "regression": "questions of earlier trainings",
    "traffic": "recent questions that nobody rated",
    "general": "general questions",
}
PROGRESS_SECONDS = 10.0
"""Where there is no live view, a line of progress comes so often."""


@dataclass
class Stage:
    """A step of the story."""

    title: str
    began: float | None = None
    ended: float | None = None
    note: str = ""


@dataclass
class Figures:
    """What the view shows beside the stages."""

    status: dict[str, Any] = field(default_factory=dict)
    events_per_second: float = 0.0
    right_share: float | None = None
    policies: str = "the first policies"
    memory_gigabytes: float = 0.0


class View:
    """Shows the stages live on a terminal; elsewhere, a line for each stage that begins or ends."""

    def __init__(self, console: Console, titles: Iterable[str], headline: str) -> None:
        self.stages = [Stage(title) for title in titles]
        self.figures = Figures()
        self._console, self._headline = console, headline
        self._began = time.monotonic()
        self._waiting: tuple[str, float, float] | None = None
        self._setback = ""
        self._progress, self._progress_at = "", 0.0
        self._live = Live(self, console=console, refresh_per_second=4, transient=False) if console.is_terminal else None

    def __enter__(self) -> "View":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def begin(self, number: int) -> None:
        """A stage begins; the one before it must have ended."""
        self.stages[number].began = time.monotonic()
        self._say(f"… {self.stages[number].title}")

    def end(self, number: int, note: str) -> None:
        """A stage ended; the note says with what."""
        stage = self.stages[number]
        stage.ended, stage.note = time.monotonic(), note
        self._waiting, self._setback = None, ""
        assert stage.began is not None
        self._say(f"✓ {stage.title}: {note} ({stage.ended - stage.began:.0f} s)")

    def wait(self, what: str, seconds: float) -> None:
        """A wait for something begins, of so many seconds at most."""
        self._waiting = (what, time.monotonic(), seconds)
        self._say(f"    waiting for {what} ({seconds:.0f} s at most)")

    def tell_setback(self, text: str) -> None:
        """Something must be tried again, and what it would take."""
        self._setback = text
        self._say(f"    {text}")

    def tell_progress(self, training: dict[str, Any], asked: str) -> None:
        """What goes on meanwhile: the stage of a run under way, else what customers do."""
        stage = training.get("stage", "")
        if stage == self._progress and time.monotonic() - self._progress_at < PROGRESS_SECONDS:
            return
        self._progress, self._progress_at = stage, time.monotonic()
        self._say(f"        {progress(training) or asked}")

    def tell_step(self, text: str) -> None:
        """Another share of the customers gets the new adapter; a terminal shows it beside what serves."""
        self._say(f"    {text}")

    def setback(self) -> str:
        """The latest setback; empty when there was none."""
        return self._setback

    def __rich__(self) -> RenderableType:
        elapsed = time.monotonic() - self._began
        return Panel(
            Group(self._stages(), *self._wait_lines(), Text(), self._numbers(), *self._training()),
            title=self._headline,
            subtitle=f"{elapsed // 60:.0f}:{elapsed % 60:02.0f}",
        )

    def _say(self, line: str) -> None:
        if not self._live:
            self._console.print(f"[{time.monotonic() - self._began:5.0f} s] {line}", markup=False, highlight=False)

    def _stages(self) -> Table:
        table = Table.grid(padding=(0, 1))
        for stage in self.stages:
            if stage.ended is not None:
                mark, style, spent = "✓", "green", stage.ended - (stage.began or 0)
            elif stage.began is not None:
                mark, style, spent = "▶", "bold", time.monotonic() - stage.began
            else:
                mark, style, spent = "·", "dim", 0.0
            table.add_row(
                Text(mark, style),
                Text(stage.title, style),
                Text(f"{spent:4.0f} s" if spent else "", "dim"),
                Text(stage.note, "dim"),
            )
        return table

    def _wait_lines(self) -> list[RenderableType]:
        lines: list[RenderableType] = []
        if self._waiting:
            what, began, seconds = self._waiting
            spent = time.monotonic() - began
            lines.append(Text(f"waiting for {what}: {spent:.0f} of {seconds:.0f} s at most", "dim"))
        if self._setback:
            lines.append(Text(self._setback, "yellow"))
        return lines

    def _numbers(self) -> Table:
        figures = self.figures
        table = Table.grid(padding=(0, 2))
        ingestion = figures.status.get("ingestion", {})
        table.add_row(
            "events",
            f"{figures.events_per_second:.0f}/s · {ingestion.get('interactions', 0)} interactions, "
            f"{ingestion.get('feedback', 0)} feedback, {ingestion.get('lag_events') or 0} behind",
        )
        if figures.right_share is not None:
            table.add_row(
                "customers", f"{figures.right_share:.0%} of the latest answers are right by {figures.policies}"
            )
        for workload in figures.status.get("workloads", {}).values():
            rates = {
                f["metric"]: f
                for f in workload["quality"]
                if f["model"] == "*" and f["source"] == "user" and f["metric"].endswith("_rate")
            }
            table.add_row(
                "measured",
                " · ".join(
                    f"{name.replace('_', ' ')} {f['value']:.0%} ({f['low']:.0%}–{f['high']:.0%})"
                    for name, f in rates.items()
                )
                or "–",
            )
            if workload["drift"]:
                check = workload["drift"][0]
                table.add_row(
                    "drift",
                    Text(check["detail"], "yellow" if check["drifted"] else "", overflow="ellipsis", no_wrap=True),
                )
            if workload["decisions"]:
                decision = workload["decisions"][0]
                said = f"{decision['kind']}: {'yes' if decision['outcome'] else 'no'}: {'; '.join(decision['reasons'])}"
                table.add_row("decision", Text(said, overflow="ellipsis", no_wrap=True))
            if workload["roi"]["ratio"] is not None:
                table.add_row("ROI", f"{workload['roi']['ratio']:.1f}")
            table.add_row("serving", in_service(workload))
            if (rollout := workload.get("rollout")) and rollout["check"]:
                check = rollout["check"]
                said = f"{check['verdict'].replace('_', ' ')}: {'; '.join(check['reasons'])}"
                table.add_row("canary", Text(said, overflow="ellipsis", no_wrap=True))
        table.add_row("memory", f"{figures.memory_gigabytes:.1f} GB in all")
        return table

    def _training(self) -> list[RenderableType]:
        training = self.figures.status.get("training") or {}
        if not training:
            return []
        lines: list[RenderableType] = [Text(), Text(progress(training), "cyan")]
        if training["stage"] == "train" and training.get("steps"):
            lines.append(ProgressBar(total=training["steps"], completed=training.get("step", 0), width=60))
        return lines


def progress(training: dict[str, Any]) -> str:
    """What a run under way does, by the status; empty where there is none."""
    match training.get("stage"):
        case None:
            return ""
        case "dataset":
            return "retraining: the daemon selects what to learn from"
        case "train" if training.get("step"):
            return f"retraining: step {training['step']} of {training['steps']}, loss {training['loss']:.3f}"
        case "train":
            return "retraining: the base model is loaded"
        case "evaluate" if training.get("split") in SPLITS and isinstance(training["rows"], int):
            done = f"{training['evaluated']} of {training['rows']}"
            return f"evaluation: {SPLITS[training['split']]}, {done}"
        case "evaluate":
            return "evaluation: the base model, the champion and the new adapter are loaded"
        case stage:
            return f"retraining: {stage}"


def in_service(workload: dict[str, Any]) -> str:
    """Which versions answer, by the status of a workload, each with its share where there are two."""
    rollout = workload.get("rollout")
    if rollout is None:
        return workload["champion"] or "the base model"
    share, before = rollout["share"], rollout["previous_version"] or "the base model"
    return f"{share:.0%} {rollout['version']} · {1 - share:.0%} {before}"
