"""What the demo prints: its stages, what it waits for, and what happens meanwhile."""

import time
from collections.abc import Callable
from typing import Any

from retuned.consumers.errors import RetunedError

LONGEST_SECONDS = 1_800.0
"""A wait that takes longer fails. A process that ends, ends every wait at once."""
PROGRESS_SECONDS = 10.0


class Story:
    """Prints a line for each stage that begins or ends, each wait and each setback.

    Args:
        look: called twice a second during a wait; returns a line on what is going on. It raises to end the wait.
    """

    def __init__(
        self,
        look: Callable[[], str],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._look, self._clock, self._sleep = look, clock, sleep
        self._began = self._stage_began = self._looked = clock()
        self._title = self._setback = ""

    @property
    def seconds(self) -> float:
        """Since the demo began."""
        return self._clock() - self._began

    def say(self, line: str) -> None:
        """Prints a line with the seconds since the start."""
        print(f"[{self.seconds:5.0f} s] {line}", flush=True)

    def begin(self, title: str) -> None:
        """A stage begins."""
        self._title, self._stage_began, self._setback = title, self._clock(), ""
        self.say(f"… {title}")

    def end(self, note: str) -> None:
        """The stage ends; the note gives its result."""
        self.say(f"✓ {self._title}: {note} ({self._clock() - self._stage_began:.0f} s)")

    def set_back(self, text: str) -> None:
        """Prints why a step must be repeated; the error of a wait that fails names the last one."""
        self._setback = text
        self.say(f"    {text}")

    def until(self, happened: Callable[[], Any], what: str) -> Any:
        """Waits for a condition and returns its value once it is true.

        Raises:
            RetunedError: it took too long, or `look` raised it.
        """
        began = self._clock()
        self.say(f"    waiting for {what}")
        while not (result := happened()):
            line = self._look()
            if line and self._clock() - self._looked >= PROGRESS_SECONDS:
                self._looked = self._clock()
                self.say(f"        {line}")
            if self._clock() - began > LONGEST_SECONDS:
                why = self._setback or "nothing failed"
                raise RetunedError(f"demo: waited {LONGEST_SECONDS:.0f} s for {what}; {why}")
            self._sleep(0.5)
        return result


def setbacks(workload: dict[str, Any]) -> list[str]:
    """Returns what must be repeated, oldest first, from the status of a workload: refusals of the gate, and runs that
    ended without a decision."""
    decisions, runs = workload.get("decisions", []), workload.get("runs", [])
    refused = [one for one in decisions if one["kind"] == "gate" and not one["outcome"]]
    ended = [one for one in runs if one["state"] in ("failed", "refused")]
    found = [(one["created_at"], f"the gate refused an adapter: {one['reasons'][0]}") for one in refused]
    found += [(one["started_at"], f"a retraining ended ({one['state']}): {one['error']}") for one in ended]
    return [text for _, text in sorted(found)]


def progress(training: dict[str, Any]) -> str:
    """Describes a run that is under way, by the status; empty if there is none."""
    match training.get("stage"):
        case None:
            return ""
        case "train" if training.get("step"):
            return f"retraining: step {training['step']} of {training['steps']}, loss {training['loss']:.3f}"
        case "evaluate" if "evaluated" in training:
            return f"evaluation: {training['evaluated']} of {training['rows']} {training['split']} questions"
        case stage:
            return f"retraining: {stage}"
