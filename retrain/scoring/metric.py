"""Chooses the workload's metric. The rest of the program depends on `Metric` only, not on single metrics."""

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

from retuned.consumers.errors import ConfigurationError
from retuned.retrain.scoring import custom
from retuned.retrain.scoring.code import Code, is_code
from retuned.retrain.scoring.custom import Custom
from retuned.retrain.scoring.exact import Exact
from retuned.retrain.scoring.facts import Facts, facts, is_read, values
from retuned.retrain.scoring.json_fields import Json, fields, inferred_schema
from retuned.retrain.scoring.judge import Judge, staged
from retuned.retrain.scoring.label import Label, learned_labels
from retuned.retrain.scoring.score import Metric as Metric
from retuned.retrain.scoring.score import Score as Score
from retuned.retrain.scoring.score import Unjudged
from retuned.retrain.scoring.text import Text
from retuned.retrain.scoring.tool_calls import ToolCalls, has_calls
from retuned.retrain.scoring.words import plain, tokens
from retuned.retrain.settings import METRICS, Settings

MOST = 0.8
"""The minimum share of approved answers that fit a metric. It abstains on the others, or scores them as wrong."""
CALLING = 0.2
"""The minimum share of answers with tool calls for an agent's workload, which also answers in words."""
LABEL_WORDS, LABEL_MEDIAN = 8, 5
LABEL_ROWS = 4
"""The minimum mean number of approved answers per label that proves a closed set."""
SHORT = 4
"""The maximum number of words of an answer that is compared as a whole."""
FACTUAL = 50
"""The maximum number of words of an answer whose values all matter. Letters also have values that do not."""
HALF = 0.5

_SAMPLE = 400
_SENTENCE_WORDS = 3
_SENTENCE = re.compile(r"\.\s*$")


@dataclass(frozen=True)
class Chosen:
    """A metric, and the reason for its choice."""

    metric: Metric
    reason: str

    @cached_property
    def compare(self) -> Callable[[str, str], bool | None]:
        """`Metric.compare`, cached because the same pairs are compared repeatedly."""
        return lru_cache(50_000)(self.metric.compare)

    def same(self, one: str, other: str) -> bool:
        """Returns whether two answers are known to have the same meaning."""
        return self.compare(one, other) is True

    def as_dict(self) -> dict[str, Any]:
        """Returns the part that is stored with a dataset; see `restored`."""
        return {
            "name": self.metric.name,
            "meaning": self.metric.meaning,
            "reason": self.reason,
            **self.metric.learned,
        }

    def __str__(self) -> str:
        return f"Answers are scored by the metric {self.metric.name}, {self.metric.meaning}: {self.reason}."


def choose(settings: Settings, approved: Sequence[str], repeated: Sequence[str] = ()) -> Chosen:
    """Returns the metric of `metric.name`, or the one that fits the approved answers.

    `auto` takes the first that fits: tool_calls, json, label (a closed set of short answers without values), code,
    facts (half of the answers are short and state values), exact (short answers), judge if one is configured; else
    `none`, which abstains.

    Args:
        approved: the approved answers, one per example, without those that are set aside.
        repeated: answers of others, which add labels and keys. They are no sample, so the metric is not chosen by them.

    Raises:
        ConfigurationError: the metric lacks something, or its module cannot be imported.
    """
    name, reason, answers = settings.metric.name, "metric.name names it", [*approved, *repeated]
    if name == "auto":
        name, fitting = _fitting(approved, settings.evaluate.judge_url is not None)
        reason = f"{fitting} (metric.name: auto)"
    return Chosen(named(name, settings, answers), reason)


def check_metric(settings: Settings) -> str | None:
    """Checks that the configured metric is available. Returns its description; None if the dataset chooses it.

    A custom function is imported in a child process.

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
    """Returns the metric of a dataset, unless the configuration names another one now.

    Args:
        kept: `Chosen.as_dict()`; None for a dataset from before version 0.2.0.
        cache: the file of a judge's verdicts, so that none is paid for twice.
    """
    if kept is None or settings.metric.name not in ("auto", kept["name"]):
        chosen = choose(settings, approved)
        return Chosen(named(chosen.metric.name, settings, approved, chosen.metric.learned, cache), chosen.reason)
    return Chosen(named(kept["name"], settings, approved, kept, cache), kept["reason"])


def named(
    name: str,
    settings: Settings,
    approved: Sequence[str],
    learned: Mapping[str, Any] | None = None,
    cache: Path | None = None,
) -> Metric:
    """Returns the metric of a name. Labels and schemas come from the configuration, `learned` or `approved`."""
    learned = learned or {}
    options, judged = settings.metric, settings.evaluate.judge_url is not None

    def judge() -> Judge:
        return Judge(options.criteria or "", settings.evaluate, settings.objective, cache)

    match name:
        case "facts":
            return staged(Facts(), judge()) if judged else Facts()
        case "code":
            return staged(Code(), judge()) if judged else Code()
        case Unjudged.name:
            return Unjudged()
        case "exact":
            return Exact()
        case "label":
            if options.labels:
                return Label(options.labels)
            return Label(learned.get("labels") or learned_labels(approved), inferred=True)
        case "json":
            if schema := _schema(options.json_schema):
                return Json(schema)
            return Json(learned.get("schema") or inferred_schema(approved), inferred=True)
        case "tool_calls":
            return ToolCalls()
        case "text":
            return Text(options.embedding_model)
        case "judge":
            return judge()
    return Custom(name)


def _schema(file: Path | None) -> dict[str, Any] | None:
    if file is None:
        return None
    try:
        schema: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"metric.json_schema: {file} cannot be read as JSON ({error})") from error
    return schema


def _fitting(approved: Sequence[str], judged: bool) -> tuple[str, str]:
    """Returns the name of the metric that fits, and the reason. `judged`: a judge is configured."""
    if not approved:
        return "facts", "there are no approved answers yet"
    times = Counter(answer.strip() for answer in approved)
    of_answers = f"of {len(approved)} approved answers"
    if (share := _share(times, has_calls)) >= CALLING:
        return "tool_calls", f"{share:.0%} {of_answers} call tools"
    if (share := _share(times, lambda answer: fields(answer) is not None)) >= MOST:
        return "json", f"{share:.0%} {of_answers} are JSON documents"
    if (labels := _closed_set(times)) is not None:
        return "label", f"the {len(approved)} approved answers are {labels} short texts that repeat"
    if (share := _share(times, is_code)) >= MOST:
        return "code", f"{share:.0%} {of_answers} are code"
    stated = _share(times, _states_values)
    if stated >= HALF:
        return "facts", f"{stated:.0%} {of_answers} are short and state values"
    words = median(len(tokens(answer)) for answer in times.elements())
    if words <= SHORT and not judged:
        return "exact", f"the median {of_answers} has {words:g} words, and few state values"
    if judged:
        return (
            "judge",
            f"{1 - stated:.0%} {of_answers} are letters, code or prose, whose values do not settle what they mean",
        )
    return Unjudged.name, f"{1 - stated:.0%} {of_answers} are letters, code or prose; {Unjudged.reason}"


def _states_values(answer: str) -> bool:
    """Returns whether an answer is short, in a language that `facts` reads, and has a value."""
    return len(tokens(answer)) <= FACTUAL and is_read(answer) and bool(facts(answer))


def _share(times: Counter[str], fits: Callable[[str], bool]) -> float:
    """Returns the share of answers that fit, by a sample of the distinct ones if there are many."""
    sample = (
        sorted(times, key=lambda answer: sha256(answer.encode()).digest())[:_SAMPLE] if len(times) > _SAMPLE else times
    )
    return sum(times[answer] for answer in sample if fits(answer)) / sum(times[answer] for answer in sample)


def _closed_set(times: Counter[str]) -> int | None:
    """Returns the number of labels; None if the answers are no labels."""
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
    """Returns whether an answer is a sentence, or a value that may change, such as 30 days, 5 euros or Sunday."""
    if len(answer.split()) >= _SENTENCE_WORDS and _SENTENCE.search(answer):
        return True
    return any(not fact.startswith("number:") for fact in values(facts(answer)))
