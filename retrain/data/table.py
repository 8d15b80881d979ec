"""The table of statements: question → claims → accounts. `truth` decides it, which gives each statement a state.

Only votes on the same question are compared. Answers with the same meaning by the workload's metric are one claim. If
the metric abstains, they are two claims that may both be right, and support each other as far as their wording agrees.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import combinations
from typing import Literal

from retuned.retrain.data.crowd import Crowd, Statement
from retuned.retrain.data.examples import Example
from retuned.retrain.data.identity import normalise
from retuned.retrain.data.similarity import NearIndex
from retuned.retrain.data.specific import unspecific
from retuned.retrain.data.truth import WRONG_ANSWERS, Question, Truth, Verdict, Vote, discover
from retuned.retrain.scoring.metric import Chosen
from retuned.retrain.scoring.words import numbers, plain, token_f1

State = Literal["taught", "held_out", "waiting", "set_aside", "overruled"]

QUARANTINED = ("outvoted", "contradicts_expert", "account", "declined", "unspecific")
"""The reasons for quarantine: others contradict the statement, or it is unrelated to the question."""
CLAIMS = 20
"""The maximum number of claims of a question that are compared with each other. Others are compared with the right one
only."""
_ALIKE = 0.8
_POOL = 500
_SAME_VALUES = 0.9
_HELPED = "the model was given the approved answer, and the metric does not find that this one means the same"


@dataclass(frozen=True)
class Decided:
    """The decision on a statement.

    Attributes:
        state: `taught` if it has the learned answer or the same meaning; `selection` then decides about the split.
        reason: a word; empty for the row that is learned.
        detail: a sentence without text of conversations: it names other statements by the id of their feedback.
        other: the feedback with a different answer, if it is unknown whether it means the same or which one is right.
    """

    row: Example
    state: State
    reason: str = ""
    detail: str = ""
    other: str | None = None


@dataclass(frozen=True)
class Table:
    """All statements, decided.

    Attributes:
        rows: the row with the right answer to each question that has one, in the wording of an expert or of most
            accounts.
        decided: the decision on every statement.
        truth: the reliability of the accounts.
        crowd: which accounts are independent.
    """

    rows: list[Example]
    decided: list[Decided]
    truth: Truth
    crowd: Crowd

    @property
    def distrusted(self) -> frozenset[str]:
        """The accounts that were wrong in most of the votes that others could check."""
        return frozenset(name for name in self.truth.reliability if self.truth.is_distrusted(name))


def decide(
    statements: Sequence[Example],
    first_seen: Mapping[str, datetime],
    metric: Chosen,
    *,
    all_trusted: bool = False,
    overruled: Collection[str] = (),
    helped: Mapping[str, Sequence[str]] | None = None,
) -> Table:
    """Decides the right answer to each question, and the state of each statement.

    Args:
        statements: corrections, accepted answers and, as kind `declined`, answers that people called wrong.
        first_seen: the time of each account's first feedback.
        all_trusted: treat every account as an expert, so that the newest statement on a question counts.
        overruled: feedback with a decision of a person, which applies to its own question only.
        helped: by interaction, the answers of the memory that helped.
    """
    ordered = sorted(statements, key=lambda row: (row.timestamp, row.feedback_id))
    account = dict(zip((row.feedback_id for row in ordered), accounts_of(ordered), strict=True))
    groups: dict[str, list[Example]] = defaultdict(list)
    for row in ordered:
        groups[row.prompt_hash].append(row)
    asked = [
        _Asked(rows, account, metric, all_trusted, helped or {})
        for rows in groups.values()
        if any(row.kind != "declined" for row in rows)
    ]
    until = ordered[-1].timestamp if ordered else None
    elsewhere = _elsewhere(asked if "labels" not in metric.metric.learned else ())  # a label has many questions
    for one in asked:
        one.question = replace(one.question, elsewhere=one.elsewhere(elsewhere), until=until)
    crowd = _crowd(asked, account, first_seen)
    truth = discover([one.question for one in asked], crowd)
    vague = frozenset[str]()
    if not (metric.metric.one_right or all_trusted):
        vague = unspecific([row for row in ordered if row.feedback_id not in overruled]) - _upheld(asked, truth)
    rows: list[Example] = []
    decided: list[Decided] = []
    for one, verdict in zip(asked, truth.verdicts, strict=True):
        learned, decisions = one.decided(verdict, truth, vague)
        decided += decisions
        if learned is not None:
            rows.append(learned)
    return Table(rows, decided, truth, crowd)


class _Asked:
    """A question, its claims and the accounts behind them."""

    def __init__(
        self,
        rows: Sequence[Example],
        account: Mapping[str, str],
        metric: Chosen,
        all_trusted: bool,
        helped: Mapping[str, Sequence[str]],
    ) -> None:
        rows, self._abstaining = _attributed(rows, metric, helped)
        self._rows, self._account, self._metric, self._all_trusted = rows, account, metric, all_trusted
        self._claim_of, self._texts = self._grouped()
        self._last = {account[row.feedback_id]: row for row in rows if row.kind != "declined"}
        self._leading = next(row.feedback_id for row in rows if self._claim(row) == 0)
        declined = [row for row in rows if row.kind == "declined"]
        self._declined = {self._claim(row) for row in declined}
        self._denied = {self._claim(row) for row in declined if self._trusts(row)}
        rivals, likeness = self._compared()
        labels = metric.metric.learned.get("labels")
        self.question = Question(
            [self._vote(row) for row in rows if self._claim(row) is not None],
            rivals,
            likeness,
            max(len(labels) - 1, 1) if labels else WRONG_ANSWERS,
        )

    def _compared(self) -> tuple[list[frozenset[int]], dict[tuple[int, int], float]]:
        """Returns the rivals of each claim, and the likeness of claims that may both be right."""
        compared = range(min(len(self._texts), CLAIMS))
        if self._metric.metric.one_right:
            return [frozenset(compared) - {claim} for claim in compared], {}
        rivals: list[set[int]] = [set() for _ in compared]
        likeness: dict[tuple[int, int], float] = {}
        for one, other in combinations(compared, 2):
            match self._metric.compare(self._texts[one], self._texts[other]):
                case False:
                    rivals[one].add(other)
                    rivals[other].add(one)
                case None:
                    likeness[one, other] = self._likeness(one, other)
        return [frozenset(own) for own in rivals], likeness

    def _vote(self, row: Example) -> Vote:
        kind = row.kind
        assert kind != "unrated"
        claim = self._claim(row)
        assert claim is not None
        return Vote(row.feedback_id, self._account[row.feedback_id], claim, row.timestamp, kind, self._trusts(row))

    def _grouped(self) -> tuple[dict[str, int], list[str]]:
        """Returns the claim of each wording, and a text of each claim, those with the most accounts first.

        Only the metric decides which wordings are the same answer. One that people only called wrong makes no claim.
        """
        accounts: dict[str, set[str]] = {row.completion.strip(): set() for row in self._rows}
        for row in self._rows:
            if row.kind != "declined":
                accounts[row.completion.strip()].add(self._account[row.feedback_id])
        claim_of: dict[str, int] = {}
        texts: list[str] = []
        by_key: dict[object, int] = {}
        exact = self._metric.metric.one_right
        for text in sorted(accounts, key=lambda one: -len(accounts[one])):
            if exact:
                known = by_key.get(self._metric.metric.key(text))
            else:
                known = next((n for n, other in enumerate(texts[:CLAIMS]) if self._metric.compare(other, text)), None)
            if known is None and accounts[text]:
                known = len(texts)
                texts.append(text)
                by_key[self._metric.metric.key(text)] = known
            if known is not None:
                claim_of[text] = known
        return claim_of, texts

    def _claim(self, row: Example) -> int | None:
        """Returns the number of the claim that a statement supports or denies; None: nobody supports it."""
        return self._claim_of.get(row.completion.strip())

    def _likeness(self, one: int, other: int) -> float:
        """Returns how far two claims support each other: almost fully if they have the same values."""
        first, second = self._texts[one], self._texts[other]
        same = self._metric.metric.key(first) == self._metric.metric.key(second)
        return _SAME_VALUES if same else token_f1(first, second)

    def decided(self, verdict: Verdict, truth: Truth, vague: frozenset[str]) -> tuple[Example | None, list[Decided]]:
        """Returns the row that is learned, if any, and the decision on each statement."""
        stated = [row for row in self._rows if row.kind != "declined"]
        abstaining = [Decided(row, "waiting", "helped", _HELPED) for row in self._abstaining]
        if verdict.claim is None:
            return None, [*(self._undecided(row, truth) for row in stated), *abstaining]
        right = [row for row in stated if self._claim(row) == verdict.claim]
        learned, same = self._representative(right), {row.feedback_id for row in right}
        is_vague = normalise(learned.completion) in vague and not any(self._trusts(row) for row in right)

        def decision(row: Example) -> Decided:
            if row.feedback_id not in same:
                return self._other(row, learned, verdict)
            if is_vague:
                why = "people give this answer to questions that have nothing in common, and no expert has confirmed it"
                return Decided(row, "waiting", "unspecific", why)
            if row is learned:
                return Decided(row, "taught")
            return Decided(row, "taught", "duplicates", f"{learned.feedback_id} gives the same answer")

        return None if is_vague else learned, [*map(decision, stated), *abstaining]

    def _representative(self, right: Sequence[Example]) -> Example:
        """Returns the row whose wording is learned: the newest of an expert, else that of most accounts."""
        if experts := [row for row in right if self._trusts(row) and row.kind == "correction"]:
            return experts[-1]
        accounts: dict[str, set[str]] = defaultdict(set)
        for row in right:
            accounts[row.completion.strip()].add(self._account[row.feedback_id])
        most = max(accounts, key=lambda wording: len(accounts[wording]))  # ties: the oldest
        return max((row for row in right if row.completion.strip() == most), key=lambda row: (row.rank, row.timestamp))

    def _other(self, row: Example, learned: Example, verdict: Verdict) -> Decided:
        claim = self._claim(row)
        assert verdict.claim is not None
        instead = learned.feedback_id
        rivals = self.question.rivals
        rival = verdict.claim < len(rivals) and claim in rivals[verdict.claim]
        rival = rival or self._metric.compare(learned.completion, row.completion) is False
        last = self._last[self._of(row)]
        if last.timestamp > row.timestamp and self._claim(last) == verdict.claim:
            why = f"the same account has given another answer since, {instead}"
            return Decided(row, "set_aside", "superseded", why)
        if not rival:
            why = f"another answer is learned, and the metric cannot tell whether this one means the same, {instead}"
            return Decided(row, "waiting", "alternative", why, learned.feedback_id)
        if verdict.by_expert:
            if self._trusts(row) or row.timestamp < learned.timestamp:
                why = f"an expert or an operator has given another answer since, {instead}"
                return Decided(row, "set_aside", "superseded", why)
            return Decided(row, "set_aside", "contradicts_expert", f"an expert gives another answer, {instead}")
        if verdict.changed_at is not None and row.timestamp < verdict.changed_at and claim == verdict.before:
            why = f"independent accounts have given another answer since, {instead}"
            return Decided(row, "set_aside", "superseded", why)
        number = self.accounts(verdict.claim)
        who = f"{number} independent accounts give" if number > 1 else "an account that is right more often gives"
        return Decided(row, "set_aside", "outvoted", f"{who} another answer, {instead}")

    def _undecided(self, row: Example, truth: Truth) -> Decided:
        if truth.is_distrusted(self._of(row)):
            why = "most of what this account states is contradicted by independent accounts"
            return Decided(row, "set_aside", "account", why)
        if self._claim(row) in self._denied:
            return Decided(row, "set_aside", "declined", "an expert calls this answer wrong")
        if self._claim(row) in self._declined:
            return Decided(row, "set_aside", "declined", "as many votes call this answer wrong as right")
        if len(self._texts) > 1:
            other = self._leading if self._claim(row) != 0 else None
            why = "people give different answers, and none is upheld by enough of them"
            return Decided(row, "waiting", "disputed", why, other)
        why = "a single account gives it, and most of what such accounts state proves wrong"
        return Decided(row, "waiting", "uncorroborated", why)

    @property
    def disputes(self) -> list[tuple[int, int]]:
        """The pairs of claims that contradict each other."""
        return [(old, new) for old, rivals in enumerate(self.question.rivals) for new in rivals]

    def words(self, claim: int) -> str:
        """Returns the text of a claim."""
        return self._texts[claim]

    def accounts(self, claim: int) -> int:
        """Returns the number of accounts that support a claim."""
        return len({vote.account for vote in self.question.final if vote.claim == claim and vote.kind != "declined"})

    def elsewhere(
        self, votes: Mapping[tuple[str, str], Sequence[tuple["_Asked", Vote]]]
    ) -> dict[tuple[int, int], list[tuple[str, datetime]]]:
        """Returns, for each dispute, the accounts and times of votes for its first answer on other questions."""
        return {
            (old, new): [
                (vote.account, vote.at)
                for one, vote in votes.get((plain(self.words(old)), plain(self.words(new))), ())
                if one is not self
            ]
            for old, new in self.disputes
        }

    def _trusts(self, row: Example) -> bool:
        return self._all_trusted or row.is_expert

    def _of(self, row: Example) -> str:
        return self._account[row.feedback_id]


def _attributed(
    rows: Sequence[Example], metric: Chosen, helped: Mapping[str, Sequence[str]]
) -> tuple[list[Example], list[Example]]:
    """Returns the votes on a question, and the likes that count neither for an answer nor against one.

    A verdict on an answer that the memory helped is one on the answer that it gave, if others state that. So where the
    metric does not find both the same, a denial is of the given answer, and a like is no rival of it.
    """

    def given(row: Example) -> Sequence[str]:
        """Returns the answers of the memory, if the metric does not find that the row is one of them."""
        answers = helped.get(row.interaction_id, ()) if row.kind != "correction" else ()
        return () if any(metric.same(text, row.completion) for text in answers) else answers

    other = {row.feedback_id: given(row) for row in rows}
    stated = {row.completion.strip() for row in rows if row.kind != "declined" and not other[row.feedback_id]}
    votes: list[Example] = []
    abstaining: list[Example] = []
    for row in rows:
        answers = other[row.feedback_id]
        known = next(
            (one for one in answers if one.strip() in stated or any(metric.same(one, text) for text in stated)), None
        )
        if known is None:
            votes.append(row)
        elif row.kind == "declined":
            votes.append(replace(row, completion=known))
        else:
            abstaining.append(row)
    return votes, abstaining


def _upheld(asked: Iterable[_Asked], truth: Truth) -> frozenset[str]:
    """Returns the texts that are right on some question by the votes of several accounts."""
    return frozenset(
        normalise(one.words(verdict.claim))
        for one, verdict in zip(asked, truth.verdicts, strict=True)
        if verdict.claim is not None and one.accounts(verdict.claim) > 1
    )


def _elsewhere(asked: Iterable[_Asked]) -> dict[tuple[str, str], list[tuple[_Asked, Vote]]]:
    """Returns, for two answers that contradict each other, the votes for the first on questions that have both."""
    votes: dict[tuple[str, str], list[tuple[_Asked, Vote]]] = defaultdict(list)
    for one in asked:
        for old, new in one.disputes:
            pool = votes[plain(one.words(old)), plain(one.words(new))]
            if len(pool) < _POOL:
                pool += [(one, vote) for vote in one.question.final if vote.claim == old and vote.kind != "declined"]
    return votes


def _crowd(asked: Iterable[_Asked], account: Mapping[str, str], first_seen: Mapping[str, datetime]) -> Crowd:
    texts: NearIndex[tuple[str, tuple[str, ...]]] = NearIndex(_ALIKE)
    known: dict[str, tuple[str, tuple[str, ...]]] = {}

    def text_of(row: Example) -> tuple[str, tuple[str, ...]]:
        """Returns a key that is equal for near copies with the same numbers."""
        text = normalise(row.completion)
        if text not in known:
            stated = tuple(sorted(numbers(text).elements()))
            known[text] = next((one for one in texts.near(text) if one[1] == stated), (text, stated))
            texts.add(text, known[text])
        return known[text]

    all, quiet = [], []
    for one in asked:
        own = [
            Statement(account[row.feedback_id], text_of(row), row.timestamp, row.kind == "correction")
            for row in one._rows
            if not row.is_expert and row.kind != "declined"
        ]
        all += own
        if not any(one.question.rivals):
            quiet += own
    return Crowd(all, first_seen, quiet)


def accounts_of(rows: Sequence[Example]) -> list[str]:
    """Returns the account of each vote. If most users have an id, all others are one account; else each vote is one."""
    users = [row for row in rows if row.source == "user"]
    named = 2 * sum(row.user_id is not None for row in users) > len(users)
    return [
        row.user_id or (f"source {row.source}" if row.source != "user" else "nobody" if named else row.feedback_id)
        for row in rows
    ]
