"""The scorer `grounding`: the rules. Many answers are judged in a child process, beside the daemon's threads."""

import logging
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from retuned.consumers.child import child_main
from retuned.consumers.common.process import Emit, run_child
from retuned.consumers.errors import ChildFailed
from retuned.monitors.hallucination.abstention import abstention
from retuned.monitors.hallucination.rules import ground
from retuned.monitors.hallucination.scorer import Abstention, Answer, Judgement
from retuned.monitors.hallucination.sources import MOST_CHARACTERS
from retuned.monitors.settings import QualitySettings

log = logging.getLogger(__name__)

FEW = 10
"""So many answers are judged at once, here: some 0.1 s, where a child takes 0.5 s to start."""
_TOLD_AT_ONCE = 10

Found = Judgement | Abstention


class Grounding:
    """The rules as a scorer. They abstain where they cannot judge."""

    source = "grounding"

    def __init__(self, settings: QualitySettings, stop: threading.Event) -> None:
        self.threshold, self.seconds, self.stop = settings.grounding_threshold, settings.judging_seconds, stop

    def judge(self, answers: Sequence[Answer]) -> list[tuple[Answer, Found]]:
        """What the rules find, of as many answers as they come to in time.

        Raises:
            Cancelled: it was stopped.
        """
        if len(answers) <= FEW:
            return [(answer, judged(answer)) for answer in answers]
        shown = [
            {
                "id": one.id,
                "question": one.question[:MOST_CHARACTERS],
                "passages": _first(one.passages),
                "response": one.response[:MOST_CHARACTERS],
            }
            for one in answers
        ]
        found: list[Found] = []

        def take(progress: dict[str, Any]) -> None:
            found.extend(_read(one) for one in progress["judged"])

        with tempfile.TemporaryDirectory(prefix="retuned-grounding-") as folder:  # what it is shown does not stay
            module = "retuned.monitors.hallucination.grounding"
            try:
                run_child(
                    module,
                    {"answers": shown},
                    Path(folder),
                    timeout_seconds=self.seconds,
                    stop=self.stop,
                    on_progress=take,
                )
            except ChildFailed as error:
                log.warning(
                    "quality: %d of %d answers were judged by the grounding rules: %s", len(found), len(shown), error
                )
        return list(zip(answers, found, strict=False))


def judged(answer: Answer) -> Found:
    """What the rules find in one answer."""
    reason = abstention(answer.response, answer.passages)
    return Abstention(reason) if reason else ground(answer.response, answer.passages, answer.question)


def _first(passages: Sequence[str]) -> list[str]:
    """As much of the passages as is read."""
    left, kept = MOST_CHARACTERS, []
    for passage in passages:
        if left <= 0:
            break
        kept.append(passage[:left])
        left -= len(passage)
    return kept


def _read(one: dict[str, Any]) -> Found:
    return Abstention(one["reason"]) if "reason" in one else Judgement(one["score"], tuple(one["spans"]))


# The child's side from here on.


def _written(found: Found) -> dict[str, Any]:
    if isinstance(found, Abstention):
        return {"reason": found.reason}
    return {"score": found.score, "spans": found.spans}


def work(job: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """Judge the answers of a job; what is found of some at a time is its progress."""
    answers = [Answer(**one | {"passages": tuple(one["passages"])}) for one in job["answers"]]
    for start in range(0, len(answers), _TOLD_AT_ONCE):
        emit({"judged": [_written(judged(answer)) for answer in answers[start : start + _TOLD_AT_ONCE]]})
    return {}


if __name__ == "__main__":
    child_main(work)
