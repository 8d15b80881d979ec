"""Second opinions on a sample of answers, by a judge over HTTP and a detector from a folder."""

import logging
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from retuned.consumers.common.chat import ChatFailed
from retuned.consumers.errors import ConfigurationError
from retuned.monitors.hallucination.detector import Detector
from retuned.monitors.hallucination.judge import Judge
from retuned.monitors.hallucination.scorer import Abstention, Answer, Judgement, Scorer, ScorerFailed
from retuned.monitors.settings import QualitySettings

log = logging.getLogger(__name__)

_EASY = ("Parcels take two days.", "Parcels take nine days.")
_CHECK_SECONDS = 120.0


@dataclass(frozen=True)
class Detection:
    """A scorer's verdict on an answer.

    Attributes:
        score, alarm: None: it abstained.
        abstained: why.
    """

    interaction_id: str
    score: float | None
    alarm: bool | None
    abstained: str | None = None


@dataclass(frozen=True)
class Opinion:
    """A configured scorer.

    Attributes:
        model: the folder of the detector, or the name of the judge's model.
    """

    scorer: Scorer
    model: str


class Opinions:
    """The configured judge (source llm) and detector (source nli). One thread asks them; any may read `all`."""

    def __init__(self, settings: QualitySettings, stop: threading.Event) -> None:
        self.settings, self.stop = settings, stop
        self._asked: dict[tuple[str, str], datetime] = {}
        self._failing: set[str] = set()
        self.all: list[Opinion] = []
        if settings.judge_url is not None:
            self.all.append(Opinion(Judge(settings, stop), str(settings.judge_model)))
        if settings.detector is not None:
            detector = Detector(settings.detector, settings.judging_seconds, stop)
            self.all.append(Opinion(detector, str(settings.detector)))

    def due(self, workload: str, now: datetime) -> Iterator[Opinion]:
        """Yields the scorers that judge answers of a workload now: each every `quality.judging_every_seconds`."""
        interval = timedelta(seconds=self.settings.judging_every_seconds)
        for opinion in self.all:
            key = opinion.scorer.source, workload
            last = self._asked.get(key)
            # A clock that was set back must not silence a scorer until it has caught up.
            if last is None or not last <= now < last + interval:
                self._asked[key] = now
                yield opinion

    def ask(self, opinion: Opinion, answers: Sequence[Answer]) -> list[Detection]:
        """Returns the verdicts of a scorer; a failing one returns none, and is logged once.

        Raises:
            Cancelled: `stop` was set.
        """
        scorer = opinion.scorer
        try:
            verdicts = scorer.judge(answers)
        except ScorerFailed as error:
            if scorer.source not in self._failing:
                self._failing.add(scorer.source)
                log.warning(
                    "quality: no verdicts of %s (%s); its alarms are missing until it recovers", scorer.source, error
                )
            return []
        self._failing.discard(scorer.source)
        detections = []
        for answer, judged in verdicts:
            if isinstance(judged, Judgement):
                detections.append(Detection(answer.id, judged.score, judged.score < scorer.threshold))
                continue
            detections.append(Detection(answer.id, None, None, judged.reason))
            if judged.reason == "failed":
                log.warning("quality: %s cannot judge answer %s (%s)", scorer.source, answer.id, judged.error)
        return detections


def check(settings: QualitySettings) -> str | None:
    """Tries the configured scorers on two easy answers, and describes them; None: none is configured.

    Raises:
        ConfigurationError: a scorer gives no usable verdict.
    """
    if settings.judge_url is None and settings.detector is None:
        return None
    right, wrong = (Answer("", "How long do parcels take?", ("Parcels take two days.",), text) for text in _EASY)
    names = []
    if settings.judge_url is not None:
        judge = Judge(settings, threading.Event())
        try:
            verdicts = [judge.verdict(answer) for answer in (right, wrong)]
        except ChatFailed as error:
            raise ConfigurationError(f"quality.judge_url: {settings.judge_url} gives no verdict ({error})") from error
        if not _separates(verdicts, judge.threshold):
            raise ConfigurationError(
                f"quality.judge_model: {settings.judge_model} does not tell two days from nine; use a better model"
            )
        names.append(f"{settings.judge_model} at {settings.judge_url}")
    if settings.detector is not None:
        detector = Detector(settings.detector, _CHECK_SECONDS, threading.Event())
        try:
            found = [judged for _, judged in detector.judge([right, wrong])]
        except ScorerFailed as error:
            raise ConfigurationError(f"quality.detector: {error}") from error
        verdicts = [judged for judged in found if isinstance(judged, Judgement)]
        if len(verdicts) < len(_EASY):
            errors = "; ".join(judged.error for judged in found if isinstance(judged, Abstention))
            raise ConfigurationError(f"quality.detector: {settings.detector} gives no verdict ({errors})")
        if not _separates(verdicts, detector.threshold):
            raise ConfigurationError(f"quality.detector: {settings.detector} does not tell two days from nine")
        names.append(f"the model in {settings.detector}")
    return " and ".join(names) + " judge samples"


def _separates(verdicts: Sequence[Judgement], threshold: float) -> bool:
    """Whether the first answer counts as supported and the second as invented."""
    right, wrong = (verdict.score >= threshold for verdict in verdicts)
    return right and not wrong
