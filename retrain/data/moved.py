"""Detects answers that changed for all questions about them.

People ask about one policy in many wordings, and when it changes, they correct some of these questions. The others
still have the old answer, which nobody has contradicted. Such an answer waits: it is not taught, replayed or used for
evaluation until somebody asks that question again or an expert confirms an answer. It is never replaced.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping
from datetime import datetime

from retuned.retrain.data.examples import Example
from retuned.retrain.data.truth import Independence
from retuned.retrain.scoring.score import Metric
from retuned.retrain.scoring.words import plain

_QUESTIONS = 2
_CHANCE = 0.05
"""That so few of the questions with an answer that is still right were confirmed, as a share."""


class Moved:
    """The old answers that were replaced by a new one.

    Corrections from one answer to another are no proof alone: a label such as "REFUND" stays right for most questions
    while others are corrected from it. An old answer was replaced if

    - at least half of the questions that had it have the new answer now, or users gave it since an expert gave the old
      one; or half of those with a statement since the first of them changed, if people confirm answers so often that
      silence about the others is no chance. Where they only correct, silence shows nothing; and
    - the new answer replaced the old one: at least two of the questions that have it, and most of them, had the old one
      before or got it from the model. A label has other questions, too.

    Old answers are compared by wording, since two policies may have the same value; new ones by the metric's key.

    Args:
        rows: every answer that was ever right: earlier datasets, and the evidence of today.
        today: the row with the current answer to each question, by hash.
        contradictions: statements that contradict an expert's older answer to the same question, each with its account.
            They replace no answer, but are the newest on their question.
        independence: which accounts are independent. Each of these counts for one contradiction.
    """

    def __init__(
        self,
        rows: Iterable[Example],
        today: Mapping[str, Example],
        metric: Metric,
        contradictions: Iterable[tuple[Example, str]] = (),
        independence: Independence | None = None,
    ) -> None:
        from scipy.special import bdtr  # the binomial distribution function

        had, has = defaultdict[str, set[str]](set), defaultdict[str, set[str]](set)
        written = defaultdict[str, set[str]](set)  # the answers of each wording as they are: keys read case and signs
        for row in rows:
            had[plain(row.completion)].add(row.prompt_hash)
            written[plain(row.completion)].add(row.completion)
        corrected = defaultdict[tuple[str, Hashable], set[str]](set)
        now = {question: metric.key(row.completion) for question, row in today.items()}
        for question, row in today.items():
            has[plain(row.completion)].add(question)
            if row.rejected is not None:
                corrected[plain(row.rejected), now[question]].add(question)
        given_since = defaultdict[tuple[str, Hashable], set[str]](set)  # the accounts behind each contradiction
        for row, account in contradictions:
            given_since[row.prompt_hash, metric.key(row.completion)].add(account)
        shares = (independence or Independence()).shares
        confirmed = sorted(row.timestamp for row in today.values() if row.kind == "accepted")
        self._since: dict[str, tuple[datetime, bool]] = {}
        for old, questions in had.items():
            known = [today[question] for question in sorted(questions & now.keys())]
            unchanged = set(map(metric.key, written[old]))
            became = defaultdict[Hashable, set[str]](set)
            for row in known:
                if now[row.prompt_hash] not in unchanged:
                    became[now[row.prompt_hash]].add(row.prompt_hash)
            for new, moved in became.items():
                came = moved | corrected[old, new]
                own = set[str]().union(*(has[plain(today[question].completion)] for question in came))
                if len(came) < _QUESTIONS or 2 * len(came) <= len(own):
                    continue
                by = [today[question] for question in moved]
                since = min(row.timestamp for row in by)
                stated = [row for row in known if row.timestamp >= since]
                elsewhere = (
                    len(confirmed) - bisect_left(confirmed, since) - sum(row.kind == "accepted" for row in stated)
                )
                share = elsewhere / max(len(today) - len(known), 1)
                asked = sum(row.prompt_hash not in moved for row in stated)
                silence = len(moved) >= asked and bdtr(asked, len(known) - len(moved), share) <= _CHANCE
                keys = [(row.prompt_hash, new) for row in known if row.timestamp < since]
                against = [given_since[key] for key in keys if key in given_since]
                contradicted = min(len(against), sum(shares(sorted(set[str]().union(*against)))))
                if silence or 2 * (len(moved) + contradicted) >= len(questions):
                    self._since[old] = since, any(row.is_expert for row in by)

    def outdated(self, row: Example) -> bool:
        """Returns whether a row has a replaced answer. An expert's answer is replaced only by experts."""
        since, by_expert = self._since.get(plain(row.completion), (None, False))
        return since is not None and row.timestamp < since and (by_expert or not row.is_expert)
