"""Truth discovery: determines the right answer to a question from conflicting votes, and the reliability of accounts.

The method is ACCUSIM of Dong, Berti-Equille and Srivastava 2009, "Integrating conflicting data: the role of source
dependence". Each account is right with a probability of its own, and a wrong answer is one of many. The weight of an
account follows from how often it is right, and the right answers follow from the weights. Accounts that copy each other
count as one, and similar answers support each other. Time is evidence: a question's right answer may have changed once,
so the accounts before and after the change were both right. Pure functions of the votes.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property, lru_cache, partial
from itertools import groupby
from typing import Literal

import numpy as np

Kind = Literal["correction", "accepted", "declined"]

PRIOR: Mapping[Kind, float] = {"correction": 0.8, "accepted": 0.7, "declined": 0.7}
"""The probability that a vote of an unknown account is right, by kind. Writing takes more effort than a click."""
WRONG_ANSWERS = 10
"""The number of wrong answers to a question, as in the paper; a closed set of labels has its own number."""
CHANGED = 0.02
"""The share of questions whose right answer has changed."""
QUORUM = 2.0
"""The number of independent accounts that prove a change of an answer with equal support before."""
ENOUGH = 0.5
"""An answer is learned above this probability."""
CHANCE = 0.01
_WORTH = 10.0
"""The weight, in votes, of the reliability of all accounts as the prior of one."""
_CROWD = 20.0
"""The weight, in votes, of PRIOR in the reliability of all accounts."""
_BEST, _WORST = 0.95, 0.02
_ROUNDS = 10
_SETTLED = 0.01


@dataclass(frozen=True)
class Vote:
    """A vote of an account on a question.

    Attributes:
        claim: the number of the claim that it supports or, if `declined`, denies.
        trusted: the account is an expert.
    """

    id: str
    account: str
    claim: int
    at: datetime
    kind: Kind
    trusted: bool = False


@dataclass(frozen=True)
class Question:
    """The votes on one question, oldest first.

    Attributes:
        rivals: for each claim that may be right, the claims that contradict it.
        likeness: the similarity, 0 to 1, of two claims if it is unknown whether they have the same meaning.
        wrong_answers: the number of possible wrong answers.
        elsewhere: for two rivals, the accounts and times of votes for the first one on other questions with both.
        until: the time of the last vote on any question.
    """

    votes: Sequence[Vote]
    rivals: Sequence[frozenset[int]]
    likeness: Mapping[tuple[int, int], float] = field(default_factory=dict)
    wrong_answers: int = WRONG_ANSWERS
    elsewhere: Mapping[tuple[int, int], Sequence[tuple[str, datetime]]] = field(default_factory=dict)
    until: datetime | None = None

    @cached_property
    def final(self) -> list[Vote]:
        """The last word of each account, oldest first: its last vote for a claim, and its denials of claims that it did
        not vote for since. A later denial of the same claim takes its vote back."""
        words = {(vote.account, vote.claim): vote for vote in self.votes}
        upheld = {vote.account: vote for vote in self.votes if vote.kind != "declined"}
        return [
            vote
            for vote in self.votes
            if words[vote.account, vote.claim] is vote and (vote.kind == "declined" or upheld[vote.account] is vote)
        ]

    @cached_property
    def expert_since(self) -> datetime | None:
        """The time of the first vote of an expert."""
        return min((vote.at for vote in self.votes if vote.trusted), default=None)

    @cached_property
    def is_checked(self) -> bool:
        """Whether more than one account has voted."""
        return len({vote.account for vote in self.votes}) > 1


@dataclass(frozen=True)
class Verdict:
    """The right answer by the votes on a question.

    Attributes:
        claim: the number of the right claim; None if none has a probability above ENOUGH.
        probability: the probability of that claim, or of the likeliest one.
        by_expert: an expert decided.
        changed_at: the time since when the claim is right, if another one was right before.
        before: the claim that was right before.
    """

    claim: int | None
    probability: float
    by_expert: bool = False
    changed_at: datetime | None = None
    before: int | None = None


@dataclass(frozen=True)
class Truth:
    """The verdict on each question, and the reliability of each account.

    Attributes:
        checked: by account, the number of its votes on questions with votes of other accounts.
    """

    verdicts: Sequence[Verdict]
    reliability: Mapping[str, float]
    checked: Mapping[str, int]

    def is_distrusted(self, account: str) -> bool:
        """Returns whether most of an account's votes that others could check were wrong, of at least two."""
        return self.checked.get(account, 0) >= 2 and self.reliability[account] < ENOUGH


class Independence:
    """The dependence between accounts; here all are independent. See `crowd.Crowd`."""

    def source(self, account: str) -> str:
        """Returns the account that represents this one and its copies."""
        return account

    def shares(self, accounts: Sequence[str]) -> list[float]:
        """Returns the weight of each account among these; 1 if it is independent of the others."""
        return [1.0] * len(accounts)


def discover(questions: Sequence[Question], independence: Independence) -> Truth:
    """Decides all questions together: estimates reliability and truth in turn until both converge."""
    shares = [_shares(question, independence) for question in questions]
    checked = Counter(
        independence.source(vote.account)
        for question in questions
        if question.is_checked
        for vote in question.final
        if not vote.trusted and vote.kind != "declined"
    )
    crowd, worth = dict(PRIOR), dict[str, float]()
    verdicts: list[Verdict] = []
    several = [number for number, question in enumerate(questions) if question.is_checked]
    for _ in range(_ROUNDS):
        weights = _Weights(crowd, worth, independence)
        latest = [_decided(questions[number], shares[number], weights) for number in several]
        before, (crowd, worth) = crowd, _reliabilities([questions[n] for n in several], latest, independence)
        settled = len(latest) == len(verdicts) and all(
            one.claim == other.claim and abs(one.probability - other.probability) < _SETTLED
            for one, other in zip(latest, verdicts, strict=True)
        )
        verdicts = latest
        if settled and all(abs(before[kind] - crowd[kind]) < _SETTLED for kind in crowd):
            break
    weights = _Weights(crowd, worth, independence)
    verdicts = [_decided(question, share, weights) for question, share in zip(questions, shares, strict=True)]
    accounts = {vote.account for question in questions for vote in question.votes if not vote.trusted}
    return Truth(
        verdicts,
        {account: weights.reliability(account, "correction") for account in accounts},
        {account: checked[independence.source(account)] for account in accounts},
    )


class _Weights:
    """The reliability of votes, from that of all accounts and that of each."""

    def __init__(self, crowd: Mapping[Kind, float], worth: Mapping[str, float], independence: Independence) -> None:
        self._crowd, self._worth, self.independence = crowd, worth, independence

    def reliability(self, account: str, kind: Kind) -> float:
        known = _shifted(self._crowd[kind], self._worth.get(self.independence.source(account), 0.0))
        return min(max(known, _WORST), _BEST)


def _shifted(probability: float, shift: float) -> float:
    """Adds `shift` to the log odds of a probability."""
    return 1 / (1 + math.exp(-(math.log(probability / (1 - probability)) + shift)))


def _shares(question: Question, independence: Independence) -> dict[str, float]:
    """Returns the weight of each vote, by its id. Dependent accounts share one vote."""
    groups: dict[tuple[int, bool], list[Vote]] = defaultdict(list)
    for vote in question.final:
        groups[vote.claim, vote.kind == "declined"].append(vote)
    return {
        vote.id: share
        for votes in groups.values()
        for vote, share in zip(votes, independence.shares([vote.account for vote in votes]), strict=True)
    }


def _reliabilities(
    questions: Sequence[Question], verdicts: Sequence[Verdict], independence: Independence
) -> tuple[dict[Kind, float], dict[str, float]]:
    """Returns how often votes of each kind are right, and by how much the log odds of each source differ from that."""
    votes: dict[str, list[tuple[Kind, float]]] = defaultdict(list)
    for question, verdict in zip(questions, verdicts, strict=True):
        if verdict.claim is None:
            continue  # without a decision no vote is known to be right or wrong
        for vote in question.final:
            if not vote.trusted and vote.kind != "declined" and _is_shown(vote, question, verdict):
                votes[independence.source(vote.account)].append((vote.kind, _chance_of(vote, verdict)))
    crowd = dict(PRIOR)
    for kind, prior in PRIOR.items():
        right = [chance for own in votes.values() for own_kind, chance in own if own_kind == kind]
        crowd[kind] = (sum(right) + _CROWD * prior) / (len(right) + _CROWD)
    worth = {}
    for source, own in votes.items():
        usual = sum(crowd[kind] for kind, _ in own) / len(own)
        mine = (sum(chance for _, chance in own) + _WORTH * usual) / (len(own) + _WORTH)
        worth[source] = _log_odds(mine) - _log_odds(usual)
    return crowd, worth


def _is_shown(vote: Vote, question: Question, verdict: Verdict) -> bool:
    """Returns whether the verdict proves that a vote was right or wrong.

    A claim that is no rival may be right, too, and a vote before an expert's may have been right at the time.
    """
    if vote.claim == verdict.claim:
        return True
    if verdict.claim is None or verdict.claim >= len(question.rivals):
        return False
    since = question.expert_since if verdict.by_expert else None
    return vote.claim in question.rivals[verdict.claim] and (since is None or vote.at > since)


def _chance_of(vote: Vote, verdict: Verdict) -> float:
    """Returns the probability that a vote was right at its time."""
    if vote.claim == verdict.claim:
        return verdict.probability
    if verdict.changed_at is not None and vote.claim == verdict.before and vote.at < verdict.changed_at:
        return verdict.probability
    return 1 - verdict.probability


def _log_odds(probability: float) -> float:
    probability = min(max(probability, 1e-3), 1 - 1e-3)
    return math.log(probability / (1 - probability))


_Counted = Sequence[tuple[Vote, float, float]]
"""Votes of users, oldest first, each with the share of its account and its weight; that of a denial is negative."""
_Times = Mapping[int, Sequence[datetime]]
"""The times of the votes for each claim, oldest first."""
_Change = tuple[float, datetime, int]
"""A change of the right answer: its score, its time and the claim that was right before."""


def _decided(question: Question, shares: Mapping[str, float], weights: _Weights) -> Verdict:
    experts = [vote for vote in question.votes if vote.trusted]
    if upheld := [vote for vote in experts if vote.kind != "declined"]:
        last = upheld[-1]
        if not any(vote.claim == last.claim and vote.at > last.at for vote in experts if vote.kind == "declined"):
            return Verdict(last.claim, 1.0, by_expert=True)
    denied = {vote.claim for vote in experts if vote.kind == "declined"}
    support, counted = _support(question, shares, weights)
    scores = {claim: score for claim, score in support.items() if claim not in denied}
    if not scores:
        return Verdict(None, 0.0, by_expert=bool(denied))
    alike = dict.fromkeys(scores, 0.0)
    for (one, other), likeness in question.likeness.items():
        if one in scores and other in scores:
            alike[one] += likeness * max(scores[other], 0.0)
            alike[other] += likeness * max(scores[one], 0.0)
    times = defaultdict[int, list[datetime]](list)
    for vote, _, _ in counted:
        if vote.kind != "declined":
            times[vote.claim].append(vote.at)
    changes = _changes(question, counted, times, weights.independence)
    for claim in list(scores):
        if any(_is_new(question, times, other, claim) for other in question.rivals[claim] if other in scores):
            if claim not in changes:
                del scores[claim]
            else:
                scores[claim] = min(scores[claim], changes[claim][0])
    total = {claim: alike[claim] + score for claim, score in scores.items()}
    for claim in scores.keys() & changes.keys():  # it was always right, or became right by a change
        total[claim] = alike[claim] + float(np.logaddexp(scores[claim], changes[claim][0]))
    best = max(total, key=lambda claim: (total[claim], -claim))
    probability = _probability(question, best, total)
    if probability <= ENOUGH:
        return Verdict(None, probability, by_expert=bool(denied))
    if best in changes and changes[best][0] > scores[best]:
        _, at, before = changes[best]
        return Verdict(best, probability, changed_at=at, before=before)
    return Verdict(best, probability)


def _support(
    question: Question, shares: Mapping[str, float], weights: _Weights
) -> tuple[dict[int, float], list[tuple[Vote, float, float]]]:
    """Returns the score of each claim that users voted for, and the votes for and against these claims."""
    odds = math.log(question.wrong_answers)
    final = [vote for vote in question.final if not vote.trusted and vote.claim < len(question.rivals)]
    support = {vote.claim: 0.0 for vote in final if vote.kind != "declined"}
    counted: list[tuple[Vote, float, float]] = []
    for vote in final:
        if vote.claim not in support:
            continue
        share, sure = shares[vote.id], _log_odds(weights.reliability(vote.account, vote.kind))
        weight = -max(sure, 0.0) if vote.kind == "declined" else max(odds + sure, 0.0)
        support[vote.claim] += share * weight
        counted.append((vote, share, weight))
    return support, counted


def _probability(question: Question, claim: int, scores: Mapping[int, float]) -> float:
    """Returns the probability of a claim among its rivals and the answers that nobody gave."""
    rivals = [scores[other] for other in question.rivals[claim] if other in scores]
    unseen = math.log(max(question.wrong_answers - len(rivals), 1))
    return math.exp(scores[claim] - np.logaddexp.reduce([scores[claim], unseen, *rivals]))


def _changes(question: Question, counted: _Counted, times: _Times, independence: Independence) -> dict[int, _Change]:
    """Returns the likeliest change to each claim.

    A change is proved by the number of independent accounts that give the new answer, not by their reliability. So here
    A change is proved by the number of independent accounts that give the new answer, not by their reliability. So here
    no vote for an answer has more weight than that of an unknown account. QUORUM accounts are required if as many
    supported the old answer; one is enough if enough accounts replaced the same old answer by the new one on other
    questions. Two answers with votes at the same time are no change: if accounts keep giving the old one about as often
    as before, on this question or on others with both answers, nothing has changed. Denials of the old answer after its
    support was the greatest, and of the new answer before the change, are no evidence against the change.
    """
    if len(times) < 2:
        return {}
    usual = {kind: math.log(question.wrong_answers) + _log_odds(prior) for kind, prior in PRIOR.items()}
    prior = math.log(CHANGED / sum(map(len, times.values())))
    later, coming = defaultdict[int, float](float), defaultdict[int, float](float)
    upheld, voters = defaultdict[int, float](float), defaultdict[int, float](float)
    greatest = defaultdict[int, float](float)
    for vote, share, weight in counted:
        later[vote.claim] += share * min(weight, usual[vote.kind])
        coming[vote.claim] += share * (vote.kind != "declined")
    leading: list[int] = []  # the claims with the most support so far, best first
    upheld_still = lru_cache(None)(partial(_is_still_upheld, question, times))
    known_elsewhere = lru_cache(None)(partial(_is_known_elsewhere, question, independence))
    changes: dict[int, _Change] = {}
    for at, votes in groupby(counted, key=lambda one: one[0].at):  # votes of one time have no order
        together = list(votes)
        given = {vote.claim for vote, _, _ in together if vote.kind != "declined"}
        for new in given:  # the change is assumed right before these votes
            old = next((one for one in leading if one in question.rivals[new]), None)
            known = old is not None and known_elsewhere(old, new)
            enough = old is not None and (known or voters[old] < QUORUM or coming[new] >= QUORUM)
            if old is not None and enough and not upheld_still(old, new):
                score = greatest[old] + later[new] + (math.log(ENOUGH) if known else prior)
                if new not in changes or score > changes[new][0]:
                    changes[new] = (score, at, old)
        for vote, share, weight in together:
            upheld[vote.claim] += share * weight
            if vote.kind == "declined":
                later[vote.claim] -= share * weight
                continue
            later[vote.claim] -= share * min(weight, usual[vote.kind])
            coming[vote.claim] -= share
            greatest[vote.claim] = max(greatest[vote.claim], upheld[vote.claim])
            voters[vote.claim] += share
        leading = sorted({*leading, *given}, key=lambda one: (-greatest[one], one))[:4]
    return changes


def _is_new(question: Question, times: _Times, old: int, new: int) -> bool:
    """Returns whether an answer appeared after another one, beyond chance. Then only a change can make it right."""
    arrived, upheld = _given(question, times, new, old), _given(question, times, old, new)
    first = min(arrived)
    before = sum(at < first for at in upheld)
    share = len(arrived) / (len(arrived) + len(upheld) - before)
    return before >= QUORUM and (1 - share) ** before < CHANCE


def _is_still_upheld(question: Question, times: _Times, old: int, new: int) -> bool:
    """Returns whether accounts still give the old answer at half its earlier rate or more."""
    upheld, since = _given(question, times, old, new), min(_given(question, times, new, old))
    after, before = sum(at > since for at in upheld), sum(at < since for at in upheld)
    if after < QUORUM or not before:
        return False
    end = question.until or max(own[-1] for own in times.values())
    pace = (since - min(upheld)) / max(end - since, timedelta(seconds=1))
    return after * pace >= before / 2


def _is_known_elsewhere(question: Question, independence: Independence, old: int, new: int) -> bool:
    """Returns whether enough independent accounts replaced the old answer by the new one on other questions.

    Required are QUORUM accounts, and the binary logarithm of the number of accounts that gave the old answer.
    """
    before, after = ({name for name, _ in question.elsewhere.get(pair, ())} for pair in ((old, new), (new, old)))
    if len(after) < QUORUM:
        return False
    return sum(independence.shares(sorted(after))) >= max(QUORUM, math.log2(max(len(before), 1)))


def _given(question: Question, times: _Times, claim: int, other: int) -> list[datetime]:
    """Returns the times of votes for a claim on this question and on others that have both claims."""
    return [*times.get(claim, ()), *(at for _, at in question.elsewhere.get((claim, other), ()))]
