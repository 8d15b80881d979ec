"""What newer corrections make of older examples: contradicted on the same question, or changed for all who ask."""

from collections import defaultdict
from collections.abc import Hashable, Sequence
from datetime import datetime
from functools import lru_cache

from retuned.retrain.data.examples import Example, facts_of
from retuned.retrain.data.questions import QuestionIndex, questions_of, word_replaced
from retuned.retrain.data.similarity import Template, normalise
from retuned.retrain.scoring.facts import kinds, token_f1
from retuned.retrain.scoring.metric import Same

_SAME_RESPONSE = 0.8
_QUESTIONS = 2


class Changes:
    """Which answers became others for all who ask, in whatever words?

    One fact is asked for in many wordings, and when it changes, people correct some of them. The text of an answer
    alone does not show that: of a label ("REFUND") most questions are right while others are corrected from it to
    another. An old answer became a new one when

    - most of the questions that it answered, or half of them, have the new answer by now: the same questions moved;
    - the new answer came in the old one's place: in more than half of its questions people gave the old one before, or
      corrected it to the new one. A label has questions of its own.
    - this was seen of two questions at least.

    An answer is known by its text, and on one question by its facts, whatever the metric of the workload: what changes
    in all wordings is a value, also within a document. What states none is decided question by question, by
    `Metric.same`.
    """

    def __init__(self) -> None:
        self._answered: dict[Hashable, set[str]] = defaultdict(set)
        self._texts: dict[tuple[str, frozenset[str]], set[Hashable]] = defaultdict(set)
        self._current: dict[str, frozenset[str]] = {}
        self._corrected: dict[tuple[Hashable, frozenset[str]], set[str]] = defaultdict(set)
        self._became: dict[tuple[Hashable, frozenset[str]], bool] = {}

    def add(self, question: str, text: Hashable, stated: frozenset[str]) -> None:
        """An answer to a question, with its facts; of a question the answer that counts today is added last."""
        self._answered[text].add(question)
        self._texts[question, stated].add(text)
        self._current[question] = stated

    def corrected(self, question: str, old: Hashable, new: frozenset[str]) -> None:
        """Somebody corrected an answer to this question to other facts."""
        self._corrected[old, new].add(question)

    def became(self, old: Hashable, new: frozenset[str]) -> bool:
        """Whether the old answer became one with the new facts. Ask when all answers are added."""
        if (old, new) not in self._became:
            self._became[old, new] = self._moved(old, new)
        return self._became[old, new]

    def _moved(self, old: Hashable, new: frozenset[str]) -> bool:
        before = self._answered.get(old, set())
        moved = {question for question in before if self._current[question] == new}
        came = moved | self._corrected.get((old, new), set())
        texts = {text for question in came for text in self._texts.get((question, new), ())}
        own = {question for text in texts for question in self._answered[text]}
        return len(came) >= _QUESTIONS and bool(moved) and 2 * len(moved) >= len(before) and 2 * len(came) > len(own)


class Contradictions:
    """Which examples do newer corrections contradict?

    A correction contradicts an older example when it answers the same question differently, or when the example's
    answer became the correction's for all wordings of the question (see `Changes`).
    """

    def __init__(
        self, evidence: Sequence[Example], earlier: Sequence[Example], since: datetime | None, similarity: float,
        template: Template, same: Same,
    ) -> None:  # fmt: skip
        """`evidence`: corrections and accepted answers. `earlier`: what stands in earlier datasets, or was right once.
        `since`: when earlier datasets end, if there are any. `same`: whether two answers say the same."""
        self._agree = same
        self._by_question: QuestionIndex[Example] = QuestionIndex(similarity, template)
        newest_first = sorted(evidence, key=lambda row: row.timestamp, reverse=True)
        said: set[tuple[str, str, int]] = set()
        for row in newest_first:
            # Of those that state the same of one prompt, the newest counts for all.
            if row.kind == "correction" and (key := (row.prompt_hash, row.completion, row.rank)) not in said:
                said.add(key)
                self._by_question.add(row, row)
        self._same: dict[str, list[Example]] = {}
        self._texts: dict[frozenset[str], list[str]] = defaultdict(list)
        self._changed = self._changes(newest_first, earlier, since, similarity, template)

    def of(self, example: Example, *, earlier: bool) -> Example | None:
        """A correction that puts the example out of date, or None.

        Args:
            earlier: the example stands in an earlier dataset, and any newer correction counts against it. Otherwise
                both are new evidence, where a less trusted source does not overrule a more trusted one, whatever
                the order.
        """
        if example.prompt_hash not in self._same:
            self._same[example.prompt_hash] = list(self._by_question.same(example))
        for correction in self._same[example.prompt_hash]:
            agree = self._agree(correction.completion, example.completion)
            if not agree and self._overrules(correction, example, earlier):
                return correction
        changed = self._changed.get(self._text(example.completion), ())
        return next((one for one in changed if self._overrules(one, example, earlier)), None)

    def _changes(
        self, newest_first: Sequence[Example], earlier: Sequence[Example], since: datetime | None, similarity: float,
        template: Template,
    ) -> dict[str, list[Example]]:  # fmt: skip
        """For each text of an answer that became another, the corrections to what it became, newest first."""
        everything = {row.row_id: row for row in [*earlier, *newest_first]}.values()
        question = questions_of(everything, similarity, template)
        changes = Changes()
        answers: dict[str, set[str]] = defaultdict(set)
        for row in sorted(
            everything, key=lambda row: (since is None or row.received_at > since, row.rank, row.timestamp)
        ):
            asked = question[row.prompt_hash]
            stated = facts_of(row.completion)
            changes.add(asked, self._text(row.completion), stated)
            answers[asked].add(self._text(row.completion))
        corrections = [row for row in newest_first if row.kind == "correction" and facts_of(row.completion)]
        for row in corrections:
            if row.rejected:
                changes.corrected(question[row.prompt_hash], self._text(row.rejected), facts_of(row.completion))
        changed: dict[str, list[Example]] = defaultdict(list)
        for row in corrections:
            new = facts_of(row.completion)
            before = answers[question[row.prompt_hash]] | ({self._text(row.rejected)} if row.rejected else set())
            for old in before:
                if facts_of(old) != new and kinds(facts_of(old)) & kinds(new) and changes.became(old, new):
                    changed[old].append(row)
        return changed

    def _text(self, text: str) -> str:
        """The first of the answers that state the same facts in mostly the same words."""
        if not (stated := facts_of(text)):
            return text
        known = self._texts[stated]
        found = next((other for other in known if text == other or _same_response(text, other)), None)
        if found is None:
            known.append(found := text)
        return found

    @staticmethod
    def _overrules(correction: Example, example: Example, earlier: bool) -> bool:
        if earlier or correction.rank == example.rank:
            return correction.timestamp > example.timestamp
        return correction.rank > example.rank


@lru_cache(50_000)
def _same_response(one: str, other: str) -> bool:
    """Mostly the same words, and none in the place of another: an answer about a lamp is none about a sofa."""
    return token_f1(one, other) >= _SAME_RESPONSE and not word_replaced(normalise(one), normalise(other))
