"""The scorer `grounding`: compares values; in a child process if there are many, to keep the daemon responsive."""

import logging
import tempfile
import threading
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from retuned.consumers.child import child_main
from retuned.consumers.common.process import Emit, run_child
from retuned.consumers.errors import ChildFailed
from retuned.monitors.hallucination.scorer import Abstention, Answer, Judgement
from retuned.monitors.hallucination.values import judged, readable
from retuned.monitors.settings import QualitySettings

log = logging.getLogger(__name__)

FEW = 10
"""The most answers that are judged in this process: they take 0.1 s, while a child takes 0.5 s to start."""
_ANSWERS_PER_REPORT = 10

Result = Judgement | Abstention


class Grounding:
    """The scorer that compares values."""

    source = "grounding"

    def __init__(self, settings: QualitySettings, stop: threading.Event) -> None:
        self.threshold, self.seconds, self.stop = settings.grounding_threshold, settings.judging_seconds, stop

    def judge(self, answers: Sequence[Answer]) -> list[tuple[Answer, Result]]:
        """Judges as many answers as time allows.

        Raises:
            Cancelled: `stop` was set.
        """
        results = [_judged(answer) for answer in answers] if len(answers) <= FEW else self._in_child(answers)
        judgements = list(zip(answers, results, strict=False))
        for answer, result in judgements:
            if isinstance(result, Abstention) and result.reason == "failed":
                log.error("quality: the values of answer %s cannot be compared: %s", answer.id, result.error)
        return judgements

    def _in_child(self, answers: Sequence[Answer]) -> list[Result]:
        """Returns the results for the first answers, as many as time allows."""
        inputs = [asdict(readable(answer)) for answer in answers]
        results: list[Result] = []

        def collect(progress: dict[str, Any]) -> None:
            results.extend(_from_json(item) for item in progress["judged"])

        with tempfile.TemporaryDirectory(prefix="retuned-grounding-") as folder:  # deletes the texts afterwards
            module = "retuned.monitors.hallucination.grounding"
            try:
                run_child(
                    module,
                    {"answers": inputs},
                    Path(folder),
                    timeout_seconds=self.seconds,
                    stop=self.stop,
                    on_progress=collect,
                )
            except ChildFailed as error:
                log.warning(
                    "quality: the values of %d of %d answers were compared: %s", len(results), len(inputs), error
                )
        return results


def _judged(answer: Answer) -> Result:
    """Judges an answer. An unexpected error is an abstention, so that one answer cannot stop the others."""
    try:
        return judged(answer)
    except Exception:  # noqa: BLE001  whatever the texts of an answer cause
        return Abstention("failed", traceback.format_exc())


def _from_json(item: dict[str, Any]) -> Result:
    return Abstention(**item) if "reason" in item else Judgement(item["score"], tuple(item["why"]))


# Below runs in the child process.


def work(job: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """Judges the answers of a job, and emits the results in batches."""
    answers = [
        Answer(**item | {name: tuple(item[name]) for name in ("passages", "conversation")}) for item in job["answers"]
    ]
    for start in range(0, len(answers), _ANSWERS_PER_REPORT):
        emit({"judged": [asdict(_judged(answer)) for answer in answers[start : start + _ANSWERS_PER_REPORT]]})
    return {}


if __name__ == "__main__":
    child_main(work)
