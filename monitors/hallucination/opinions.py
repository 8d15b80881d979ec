"""Second opinions on answers: a judge asked over HTTP and a model from a folder, each shown a sample of either kind."""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from retuned.consumers.common.chat import ChatFailed
from retuned.consumers.errors import ConfigurationError
from retuned.monitors.hallucination.judge import Judge
from retuned.monitors.hallucination.nli import Entailment
from retuned.monitors.hallucination.scorer import Answer, Judgement, Scorer, ScorerFailed
from retuned.monitors.settings import QualitySettings
from retuned.monitors.statistics import stratified_rate

log = logging.getLogger(__name__)

_MOST_KEPT = 20_000
_EASY = ("Parcels take two days.", "Parcels take nine days.")
_CHECK_SECONDS = 120.0


class Opinions:
    """What the judge (source llm) and the model (source nli) said of answers; kept in memory, for one thread."""

    def __init__(self, settings: QualitySettings, stop: threading.Event) -> None:
        self.settings, self.stop = settings, stop
        self._invented: OrderedDict[tuple[str, str], bool] = OrderedDict()
        self._due: dict[tuple[str, str], datetime] = {}
        self._failing: set[str] = set()
        self._scorers: list[Scorer] = []
        if settings.judge_url is not None:
            self._scorers.append(Judge(settings, stop))
        if settings.nli_model is not None:
            self._scorers.append(Entailment(settings.nli_model, settings.judging_seconds, stop))

    def __bool__(self) -> bool:
        return bool(self._scorers)

    def rates(
        self,
        workload: str,
        doubtful: Sequence[str],
        clear: Sequence[str],
        now: datetime,
        answers: Callable[[Sequence[str]], Sequence[Answer]],
    ) -> dict[str, tuple[float, float, float, int]]:
        """By source, the share of the answers that it calls invented, with its 95% interval and how many it saw.

        Args:
            doubtful, clear: ids of the answers of a sample of the window in which the grounding rules found a fault,
                and of the others; in random order, the same order each time.
            answers: gives the answers with some of these ids; it is called for those alone that are shown.

        Answers that were shown before are not shown again. As more of the doubtful ones are shown, both kinds are
        weighed by how many of them there are. A scorer that fails costs its figure, and is logged once.

        Raises:
            Cancelled: stop was set.
        """
        half = self.settings.judged_answers // 2
        shown = list(doubtful[: max(half, self.settings.judged_answers - len(clear))])
        shown += clear[: self.settings.judged_answers - len(shown)]
        found = {}
        for scorer in self._scorers:
            source = scorer.source
            if now >= self._due.get((source, workload), now):
                new = [identity for identity in shown if (source, identity) not in self._invented]
                self._due[source, workload] = now + timedelta(seconds=self.settings.judging_every_seconds)
                if new:
                    self._ask(scorer, answers(new))
            strata, n = [], 0
            for stratum in (doubtful, clear):
                verdicts = [
                    self._invented[source, identity] for identity in stratum if (source, identity) in self._invented
                ]
                strata.append((len(stratum), len(verdicts), sum(verdicts)))
                n += len(verdicts)
            rate = stratified_rate(strata)
            if rate is not None:
                found[source] = (*rate, n)
        return found

    def _ask(self, scorer: Scorer, answers: Sequence[Answer]) -> None:
        source = scorer.source
        try:
            verdicts = scorer.judge(answers)
        except ScorerFailed as error:
            if source not in self._failing:
                self._failing.add(source)
                why = "quality: no verdicts of %s (%s); its hallucination rate is missing until it answers"
                log.warning(why, source, error)
            return
        self._failing.discard(source)
        self._invented |= {
            (source, answer.id): judged.score < scorer.threshold
            for answer, judged in verdicts
            if isinstance(judged, Judgement)
        }
        while len(self._invented) > _MOST_KEPT:
            self._invented.popitem(last=False)


def check(settings: QualitySettings) -> str | None:
    """Ask those that are configured something easy; returns what was found, None where none is configured.

    Raises:
        ConfigurationError: one gives no usable answer.
    """
    if settings.judge_url is None and settings.nli_model is None:
        return None
    right, wrong = (Answer("", "How long do parcels take?", ("Parcels take two days.",), said) for said in _EASY)
    found = []
    if settings.judge_url is not None:
        judge = Judge(settings, threading.Event())
        try:
            verdicts = [judge.verdict(answer) for answer in (right, wrong)]
        except ChatFailed as error:
            raise ConfigurationError(f"quality.judge_url: {settings.judge_url} gives no verdict ({error})") from error
        if not _tells(verdicts, judge.threshold):
            raise ConfigurationError(
                f"quality.judge_model: {settings.judge_model} does not tell two days from nine; name a better one"
            )
        found.append(f"{settings.judge_model} at {settings.judge_url}")
    if settings.nli_model is not None:
        model = Entailment(settings.nli_model, _CHECK_SECONDS, threading.Event())
        try:
            certain = [judged for _, judged in model.judge([right, wrong])]
        except ScorerFailed as error:
            raise ConfigurationError(f"quality.nli_model: {error}") from error
        if not _tells(certain, model.threshold):
            raise ConfigurationError(f"quality.nli_model: {settings.nli_model} does not tell two days from nine")
        found.append(f"the model in {settings.nli_model}")
    return " and ".join(found) + " judge samples"


def _tells(judged: Sequence[Judgement], threshold: float) -> bool:
    """Whether the first counts as supported and the second as invented."""
    right, wrong = (one.score >= threshold for one in judged)
    return right and not wrong
