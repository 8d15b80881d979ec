"""Learns which features of users' wordings never separate two approved answers of a workload."""

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import combinations

from retuned.retrain.data.examples import Example
from retuned.retrain.data.identity import normalise
from retuned.retrain.data.question import Rules, Wording, forms
from retuned.retrain.scoring.metric import Chosen

LEAST = 59
"""The questions that have to agree, while none differs: then, with 95% confidence, fewer than one in 20 would differ
(0.95 ** 59 < 0.05)."""
_MOST_WORDINGS = 8


def learned_wording(rows: Iterable[Example], harmless: tuple[str, ...], metric: Chosen) -> Wording:
    """Returns the features that make no difference.

    For each feature, wordings are compared that differ in nothing else. They are evidence against the feature if
    neither ever had the other's latest answer: a changed answer reaches the wordings of a question one by one.

    Args:
        rows: statements whose answers are approved, or contradict each other.
        harmless: see `Rules`.
    """
    known = list(rows)

    def makes_no_difference(wording: Wording) -> bool:
        asked: dict[tuple[str, str], dict[tuple[str, str], list[Example]]] = defaultdict(lambda: defaultdict(list))
        for row, exact in zip(known, exactly, strict=True):
            asked[_forms(row, Rules(wording, harmless))][exact].append(row)
        found = [_agree(list(wordings.values()), metric) for wordings in asked.values() if len(wordings) > 1]
        return False not in found and found.count(True) >= LEAST

    exactly = [_forms(row, Rules(harmless=harmless)) for row in known]
    return Wording(makes_no_difference(Wording(case=True)), makes_no_difference(Wording(end=True)))


def _agree(wordings: Sequence[Sequence[Example]], metric: Chosen) -> bool | None:
    """Whether the wordings of a question have the same latest answer; None: it cannot be told."""
    given = [[row.completion for row in sorted(rows, key=lambda row: row.timestamp)] for rows in wordings]
    found = [_same(one, other, metric) for one, other in combinations(given[:_MOST_WORDINGS], 2)]
    return False if False in found else None if None in found else True


def _same(given: Sequence[str], others: Sequence[str], metric: Chosen) -> bool | None:
    """Whether two wordings have the same latest answer; None: one of them had the other's before."""
    before = [(given[-1], one) for one in others[:-1]] + [(others[-1], one) for one in given[:-1]]
    latest = _compare(given[-1], others[-1], metric)
    return None if latest is False and any(_compare(*pair, metric) for pair in before) else latest


def _compare(one: str, other: str, metric: Chosen) -> bool | None:
    if normalise(one) == normalise(other):
        return True
    # Where only a judge can tell, other words count as another answer: it is asked about answers of models alone.
    return False if metric.metric.name == "judge" else metric.compare(one, other)


def _forms(row: Example, rules: Rules) -> tuple[str, str]:
    context, tools, extras = (json.loads(value) if value else None for value in (row.context, row.tools, row.extras))
    return forms(json.loads(row.messages), context or (), tools, extras, rules)
