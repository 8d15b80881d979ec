"""The port to how good an answer is. Nothing else of the package knows how a score comes about."""

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import sha256
from pathlib import Path
from statistics import median
from typing import Any

from retuned.consumers.common.languages import is_english
from retuned.consumers.errors import ConfigurationError
from retuned.retrain.scoring import custom
from retuned.retrain.scoring.custom import Custom
from retuned.retrain.scoring.exact import Exact
from retuned.retrain.scoring.facts import Facts, facts, values
from retuned.retrain.scoring.json_fields import Json, fields, inferred_schema
from retuned.retrain.scoring.judge import Judge
from retuned.retrain.scoring.label import Label, learned_labels
from retuned.retrain.scoring.score import Metric as Metric
from retuned.retrain.scoring.score import Score as Score
from retuned.retrain.scoring.text import Text
from retuned.retrain.scoring.tool_calls import ToolCalls, has_calls
from retuned.retrain.scoring.words import plain, tokens
from retuned.retrain.settings import METRICS, Settings

MOST = 0.9
"""Share of the approved answers that must be of a kind, so that hardly any row is left that the metric abstains on."""
CALLING = 0.2
"""Share of answers with calls of tools from which on a workload is an agent's: in between it answers in words."""
LABEL_WORDS, LABEL_MEDIAN = 8, 5
LABEL_ROWS = 4
"""Approved answers for each label, in the mean, that show that the set is closed."""
SHORT = 4
"""Words of a short answer that is met word by word."""
HALF = 0.5

Same = Callable[[str, str], bool]
"""Whether two answers to one question say the same."""

_SAMPLE = 400
_SENTENCE_WORDS = 3
_SENTENCE = re.compile(r"\.\s*$")


@dataclass(frozen=True)
class Chosen:
    """A metric, and why it is the one."""

    metric: Metric
    reason: str

    @cached_property
    def same(self) -> Same:
        """`Metric.same`, which is asked of one pair again and again."""
        return lru_cache(50_000)(self.metric.same)

    def as_dict(self) -> dict[str, Any]:
        """What is kept with a dataset; see `restored`."""
        return {
            "name": self.metric.name,
            "meaning": self.metric.meaning,
            "reason": self.reason,
            **self.metric.learned,
        }

    def __str__(self) -> str:
        return f"Answers are scored by the metric {self.metric.name}, {self.metric.meaning}: {self.reason}."


def choose(settings: Settings, approved: Sequence[str]) -> Chosen:
    """The metric that `metric.name` names, or the one that fits the approved answers.

    `auto` takes the first that fits: tool_calls, json, label (a closed set of short answers without values), facts
    (English, and half of the answers state one), exact (short answers), text.

    Args:
        approved: the approved answers, one for each example.

    Raises:
        ConfigurationError: the metric lacks something, or its module cannot be imported.
    """
    name = settings.metric.name
    if name != "auto":
        return Chosen(_metric(name, settings, approved, {}), "metric.name names it")
    name, reason = _fitting(approved)
    return Chosen(_metric(name, settings, approved, {}), f"{reason} (metric.name: auto)")


def check_metric(settings: Settings) -> str | None:
    """What `metric.name` names, and that it can be had; None where the dataset chooses it.

    A function of one's own is imported by a process of its own.

    Raises:
        ConfigurationError: see `choose`.
    """
    name = settings.metric.name
    if name == "auto":
        return None
    if name not in METRICS:
        custom.check(name)
        return f"{name}: {Custom.meaning}"
    metric = choose(settings, []).metric
    return f"{metric.name}: {metric.meaning}"


def restored(
    settings: Settings, kept: Mapping[str, Any] | None, approved: Sequence[str], cache: Path | None = None
) -> Chosen:
    """The metric that a dataset was made with, unless the configuration names another one by now.

    Args:
        kept: of `Chosen.as_dict`; None of a dataset from before version 0.2.0.
        cache: file in which verdicts of a judge are kept, so that none is paid for twice.
    """
    if kept is None or settings.metric.name not in ("auto", kept["name"]):
        chosen = choose(settings, approved)
        return Chosen(_metric(chosen.metric.name, settings, approved, chosen.metric.learned, cache), chosen.reason)
    return Chosen(_metric(kept["name"], settings, approved, kept, cache), kept["reason"])


def _metric(
    name: str, settings: Settings, approved: Sequence[str], learned: Mapping[str, Any], cache: Path | None = None
) -> Metric:
    asked = settings.metric
    match name:
        case "facts":
            return Facts()
        case "exact":
            return Exact()
        case "label":
            return Label(asked.labels or learned.get("labels") or learned_labels(approved))
        case "json":
            return Json(_schema(asked.json_schema) or learned.get("schema") or inferred_schema(approved))
        case "tool_calls":
            return ToolCalls()
        case "text":
            return Text(asked.embedding_model)
        case "judge":
            return Judge(asked.criteria or "", settings.evaluate, settings.objective, cache)
    return Custom(name)


def _schema(file: Path | None) -> dict[str, Any] | None:
    if file is None:
        return None
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"metric.json_schema: {file} cannot be read as JSON ({error})") from error
    return found


def _fitting(approved: Sequence[str]) -> tuple[str, str]:
    """The name of the metric that fits, and why."""
    if not approved:
        return "facts", "there are no approved answers yet"
    times = Counter(answer.strip() for answer in approved)
    told = f"of {len(approved)} approved answers"
    if (share := _share(times, has_calls)) >= CALLING:
        return "tool_calls", f"{share:.0%} {told} call tools"
    if (share := _share(times, lambda answer: fields(answer) is not None)) >= MOST:
        return "json", f"{share:.0%} {told} are JSON documents"
    if (labels := _closed_set(times)) is not None:
        return "label", f"the {len(approved)} approved answers are {labels} short texts that come again and again"
    english, stated = _share(times, is_english), _share(times, lambda answer: bool(facts(answer)))
    if english >= MOST and stated >= HALF:
        return "facts", f"{english:.0%} {told} are in English, and {stated:.0%} state facts"
    words = median(len(tokens(answer)) for answer in times.elements())
    if words <= SHORT:
        return "exact", f"the median {told} has {words:g} words, and few state facts in English"
    if english < MOST:
        return "text", f"{1 - english:.0%} {told} are not in English"
    return "text", f"{1 - stated:.0%} {told} state no facts"


def _share(times: Counter[str], fits: Callable[[str], bool]) -> float:
    """Of the answers, by a sample of the distinct ones where these are many."""
    sample = (
        sorted(times, key=lambda answer: sha256(answer.encode()).digest())[:_SAMPLE] if len(times) > _SAMPLE else times
    )
    return sum(times[answer] for answer in sample if fits(answer)) / sum(times[answer] for answer in sample)


def _closed_set(times: Counter[str]) -> int | None:
    """How many labels the answers are, where they are labels."""
    labels: Counter[str] = Counter()
    for answer, count in times.items():
        labels[plain(answer)] += count
    if len(labels) < 2 or labels.total() < LABEL_ROWS * len(labels):
        return None
    words = [len(re.split(r"[\s_]+", label)) for label in labels.elements()]
    prose = sum(count for answer, count in times.items() if _is_statement(answer))
    long = sum(count > LABEL_WORDS for count in words)
    if median(words) > LABEL_MEDIAN or long + prose > (1 - MOST) * labels.total():
        return None
    return len(labels)


def _is_statement(answer: str) -> bool:
    """A sentence, or a value that may be another one tomorrow: 30 days, 5 euros, Sunday."""
    if len(answer.split()) >= _SENTENCE_WORDS and _SENTENCE.search(answer):
        return True
    return any(not fact.startswith("number:") for fact in values(facts(answer)))
