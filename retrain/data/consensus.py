"""Consensus: what a hostile or mistaken minority states is set aside, before anything is learned from it.

The unit is the account, never the message. Where people answer one question differently, independent accounts are
counted, and accounts that copy each other count as one (source dependence, Dong et al. 2009, "Integrating conflicting
data"). Experts, and what was imported as a demonstration, are trusted. Nothing is deleted: what is set aside is judged
anew for each dataset, and comes back when others corroborate it.
"""

import math
from bisect import bisect
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import permutations
from typing import Any, Literal

import numpy as np

from retuned.retrain.data.contradictions import Changes
from retuned.retrain.data.examples import Example
from retuned.retrain.data.questions import questions_of
from retuned.retrain.data.similarity import NearIndex, Template, normalise
from retuned.retrain.scoring.facts import facts, kinds, tokens, values
from retuned.retrain.scoring.metric import Same

_Change = tuple[int, frozenset[str]]  # from a text to other facts
Reason = Literal["outvoted", "contradicts_expert", "account", "burst", "collusion", "superseded"]

QUARANTINED: tuple[Reason, ...] = ("outvoted", "contradicts_expert", "account", "burst", "collusion")
QUORUM = 2.0
"""Independent accounts that it takes to put another answer in the place of one that several upheld; of one that many
upheld, as many as it takes doublings to count them: 4 for 16, 7 for 128."""
YOUNG = timedelta(days=3)
BURST = timedelta(hours=1)
BURST_MESSAGES = 20
BURST_RATIO = 5
OPEN_CLAIMS = 4
OPEN_SHARE = 1 / 3
RING_ACCOUNTS = 5
RING_WINDOW = 0.05  # of all messages, in the order of time
RING_SHARE = 0.6
CHANCE = 0.01
_ALIKE = 0.8
_SAME_WORK = 0.5
_MOST = 1_000
_ROUNDS = 4
_LABEL_WORDS = 3


@dataclass(frozen=True)
class Doubt:
    """Why something is set aside, as a word and as a sentence."""

    reason: Reason
    detail: str


@dataclass(frozen=True)
class Consensus:
    """What is set aside.

    Attributes:
        doubts: by feedback id. `superseded` is no error: it was so once.
        distrusted: accounts that were wrong in most of what others could check.
    """

    doubts: Mapping[str, Doubt] = field(default_factory=dict)
    distrusted: frozenset[str] = frozenset()


def find_consensus(
    examples: Sequence[Example],
    first_seen: Mapping[str, datetime],
    similarity: float,
    same: Same,
    template: Template | None = None,
    *,
    one_right: bool = False,
) -> Consensus:
    """Which of the corrections and accepted answers are not to be learned from.

    - A newer answer takes the place of an older one when more independent accounts give it than have upheld the older
      one since, who must be fewer than usual, and at least a QUORUM where so many upheld that before. Else the newer
      one is rejected. What was stated of an answer while it stood is superseded, and no error: policies change. What an
      expert contradicts is rejected. A question with another answer for each who asks is not decided.
    - An account that was wrong in most of what others could check is distrusted, except where others state the same.
    - So is an account for what it states in a burst, many times faster than others.
    - So are new accounts, many more than usual, that write nearly the same at once, or what is contradicted elsewhere.

    Args:
        examples: in any order.
        first_seen: when each account was first heard of.
        similarity, template: which prompts are one question (see `QuestionIndex`).
        same: whether two answers say the same.
        one_right: of answers to one question that do not say the same, one is right at most (see `Metric.one_right`).
            Else that is told by their facts: prose may say two things that are both true.
    """
    votes = _Votes(examples, first_seen, similarity, template or Template(), same, one_right)
    distrusted: frozenset[str] = frozenset()
    for _ in range(_ROUNDS):  # the distrusted have no vote
        doubts = votes.rejected(distrusted)
        found = distrusted | votes.unreliable(doubts)
        if found == distrusted:
            break
        distrusted = found
    suspects = {
        **votes.collusions(doubts),
        **votes.bursts(),
        **{
            vote: Doubt("account", "most of what this account says is contradicted by independent accounts")
            for vote in votes.votes_of(distrusted)
        },
    }
    for vote, doubt in suspects.items():
        if vote not in doubts and not votes.is_corroborated(vote, suspects):
            doubts[vote] = doubt
    return Consensus(
        {votes.examples[vote].feedback_id: doubt for vote, doubt in doubts.items()},
        frozenset(name for name in distrusted if name in first_seen),
    )


@dataclass
class _Claim:
    """One answer to one question, and who gives it."""

    text: str
    stated: frozenset[str]
    opening: str
    votes: list[int] = field(default_factory=list)  # in the order of time


class _Votes:
    """The votes, sorted by time and numbered; the questions that they answer, and the claims that they make."""

    def __init__(
        self,
        examples: Sequence[Example],
        first_seen: Mapping[str, datetime],
        similarity: float,
        template: Template,
        same: Same,
        one_right: bool,
    ) -> None:
        self._one_right = one_right
        self.examples = sorted(examples, key=lambda row: (row.timestamp, row.feedback_id))
        self._times = [row.timestamp for row in self.examples]
        self._expert = [row.source in ("expert", "demonstration") for row in self.examples]
        self._accounts = _accounts(self.examples)
        self._young = [
            name in first_seen and row.timestamp - first_seen[name] < YOUNG
            for name, row in zip(self._accounts, self.examples, strict=True)
        ]
        people = [number for number in range(len(self.examples)) if not self._expert[number]]
        self._of_account: dict[str, list[int]] = defaultdict(list)
        for number in people:
            self._of_account[self._accounts[number]].append(number)
        self._questions = self._group(similarity, template, same)
        self._claim_of = {vote: claim for claims in self._questions for claim in claims for vote in claim.votes}
        # Votes where nobody disagrees: the pace of ordinary traffic, which an attack does not speed up.
        self._quiet = sorted(
            vote
            for claims in self._questions
            if not any(self._contradict(claims[0], other) for other in claims)
            for claim in claims
            for vote in claim.votes
            if not self._expert[vote]
        )
        self._texts: NearIndex[tuple[int, frozenset[str]]] = NearIndex(_ALIKE)
        self._known: dict[str, int] = {}
        self._text_of = [
            self._text(row.completion, self._claim_of[vote].stated) for vote, row in enumerate(self.examples)
        ]
        self._index_texts()
        self._find_disputes()
        self._usual_young = self._usual_share_of_young()
        self._new_accounts_texts = {text for text, votes in self._with_text.items() if self._mostly_new(votes)}

    # What is there

    def _group(self, similarity: float, template: Template, same: Same) -> list[list[_Claim]]:
        """The claims of each question, in the order in which they were first made."""
        question = questions_of(self.examples, similarity, template)
        questions: dict[str, list[_Claim]] = {}
        stated: dict[str, frozenset[str]] = {}
        for number, row in enumerate(self.examples):
            claims = questions.setdefault(question[row.prompt_hash], [])
            text = row.completion
            if text not in stated:
                stated[text] = facts(text)
            made = _Claim(text, stated[text], _opening(text))
            claim = next((claim for claim in claims if claim.text == text or same(claim.text, text)), None)
            if claim is None:
                claims.append(claim := made)
            claim.votes.append(number)
        return list(questions.values())

    def _text(self, text: str, stated: frozenset[str]) -> int:
        """A number for a text; near duplicates that state the same facts have one."""
        text = normalise(text)
        if text not in self._known:
            alike = (number for number, others in self._texts.near(text) if others == stated)
            self._known[text] = next(alike, len(self._known))
            self._texts.add(text, (self._known[text], stated))
        return self._known[text]

    def _index_texts(self) -> None:
        """Which texts each account has written or upheld."""
        from scipy.sparse import csr_matrix

        self._with_text: dict[int, list[int]] = defaultdict(list)
        for vote, text in enumerate(self._text_of):
            if not self._expert[vote]:
                self._with_text[text].append(vote)
        self._index = {name: number for number, name in enumerate(self._of_account)}
        pairs = sorted({(self._index[name], self._text_of[v]) for name, all in self._of_account.items() for v in all})
        rows, columns = (np.array([pair[side] for pair in pairs], dtype=int) for side in (0, 1))
        shape = (len(self._index), max(self._text_of, default=0) + 1)
        self._written = csr_matrix((np.ones(len(pairs)), (rows, columns)), shape=shape)
        self._count = np.asarray(self._written.sum(axis=1)).ravel()
        shares = np.asarray(self._written.sum(axis=0)).ravel() / max(len(pairs), 1)
        self._meeting = float((shares**2).sum())  # two texts drawn at random are one

    def _find_disputes(self) -> None:
        """Which claims cannot both be right, and who could be checked by others."""
        self._contested = [
            claims for claims in self._questions if len(claims) > 1 and not self._has_no_one_answer(claims)
        ]
        self._disputes: dict[_Change, list[tuple[_Claim, _Claim]]] = defaultdict(list)
        opposed: set[int] = set()
        for claims in self._contested:
            for one, other in permutations(claims, 2):
                if self._contradict(one, other):
                    opposed.add(id(one))
                    for change in self._between(one, other):
                        self._disputes[change].append((one, other))
        self._checked = [
            vote
            for claims in self._questions
            for claim in claims
            if id(claim) in opposed or len({self._accounts[vote] for vote in claim.votes}) > 1
            for vote in claim.votes
        ]
        # "Not this text but B", over all wordings of a question: who says so of one bears out who says so of another.
        self._instead: dict[_Change, list[int]] = defaultdict(list)
        self._became = Changes()
        number = {id(claim): str(place) for place, claims in enumerate(self._questions) for claim in claims}
        for vote, row in enumerate(self.examples):
            claim = self._claim_of[vote]
            self._became.add(number[id(claim)], self._text_of[vote], claim.stated)
            rejected = facts(row.rejected) if row.rejected else None
            if row.rejected and rejected and claim.stated and rejected != claim.stated:
                text = self._text(row.rejected, rejected)
                self._instead[text, claim.stated].append(vote)
                self._became.corrected(number[id(claim)], text, claim.stated)

    def _changes(self, old: _Claim, new: _Claim) -> set[_Change]:
        """The changes from one claim to another that all wordings of the question share; of a label there are none."""
        return {change for change in self._between(old, new) if self._became.became(*change)}

    def _between(self, old: _Claim, new: _Claim) -> set[_Change]:
        """From each text of one claim to the facts of another. Without facts no two wordings are one change."""
        return {(self._text_of[vote], new.stated) for vote in old.votes} if old.stated and new.stated else set()

    def _contradict(self, one: _Claim, other: _Claim) -> bool:
        """Whether two answers to one question cannot both be right."""
        return one is not other and (self._one_right or _facts_contradict(one, other))

    # Votes

    def rejected(self, distrusted: frozenset[str]) -> dict[int, Doubt]:
        """The votes for claims that lose, and why."""
        doubts: dict[int, Doubt] = {}
        for claims in self._contested:
            self._resolve(claims, distrusted, doubts)
        return doubts

    def _has_no_one_answer(self, claims: list[_Claim]) -> bool:
        """Whether a question has no one answer, as "where is my parcel?": no claim has a third of the accounts.

        New accounts are not asked: a crowd of them could make any question seem so.
        """
        sizes = [len({self._accounts[vote] for vote in claim.votes if not self._young[vote]}) for claim in claims]
        return len(claims) >= OPEN_CLAIMS and OPEN_SHARE * sum(sizes) > max(sizes)

    def _resolve(self, claims: list[_Claim], distrusted: frozenset[str], doubts: dict[int, Doubt]) -> None:
        last, right = self._expert_answer(claims)
        standing: list[_Claim] = []
        for claim in claims:
            since = claim.votes[0]
            if right is not None and self._contradict(claim, right):
                doubt = Doubt("contradicts_expert", f"an expert says: {_short(right.text)}")
                self._reject(claim, last, doubt, doubts)
                for vote in claim.votes:
                    if self._expert[vote]:
                        doubts[vote] = Doubt("superseded", doubt.detail)
                continue
            if claim is right:
                standing.append(claim)
                continue
            beaten = []
            for other in standing:
                if not self._contradict(claim, other):
                    continue
                if not self._overturns(claim, other, distrusted):
                    why = f"more independent accounts say: {_short(other.text)}"
                    self._reject(claim, -1, Doubt("outvoted", why), doubts)
                    break
                beaten.append(other)
            else:
                for other in beaten:
                    standing.remove(other)
                    why = f"more independent accounts say: {_short(claim.text)}"
                    self._reject(other, since, Doubt("outvoted", why), doubts)
                standing.append(claim)

    def _expert_answer(self, claims: list[_Claim]) -> tuple[int, _Claim | None]:
        """The last vote of an expert and the claim that it makes right, if there is one."""
        last = max((vote for claim in claims for vote in claim.votes if self._expert[vote]), default=-1)
        right = self._claim_of[last] if last >= 0 else None
        for claim in claims if right is not None else ():
            # Of another wording of the question an expert may have stated since that it is so no more.
            changes = self._changes(right, claim) if right is not None and self._contradict(claim, right) else ()
            later = [v for change in changes for v in self._instead.get(change, ()) if self._expert[v] and v > last]
            if later:
                last, right = max(later), claim
        return last, right

    def _overturns(self, claim: _Claim, other: _Claim, distrusted: frozenset[str]) -> bool:
        """Does a claim put another out of date that was there before it?

        One fact is asked for in many wordings: all those count in which both claims are made, and who corrects the one
        to the other anywhere. An expert who does so decides.
        """
        changes = self._changes(other, claim)
        for decided, corrected in ((False, self._changes(claim, other)), (True, changes)):
            if any(self._expert[vote] for change in corrected for vote in self._instead.get(change, ())):
                return decided
        rounds = [(other, claim), *(pair for change in changes for pair in self._disputes[change])]
        old = sorted({vote for before, _ in rounds for vote in before.votes})
        new = {vote for _, after in rounds for vote in after.votes}
        since = min(new)
        new |= {vote for change in changes for vote in self._instead.get(change, ())}
        support, before = self._weight(sorted(new), distrusted), self._weight(old, distrusted)
        after = self._weight(old, distrusted, since)
        # What is no longer true is no longer upheld; what as many uphold as before has not changed, whoever says so.
        passed = bisect(self._quiet, since)
        earlier = self._weight(old[: bisect(old, since)], distrusted)
        usual = earlier * (len(self._quiet) - passed) / max(passed, 1)
        upheld = earlier >= QUORUM and after >= max(QUORUM, usual / 2)
        return support >= min(before, max(QUORUM, math.log2(max(before, 1)))) and support > after and not upheld

    def _reject(self, claim: _Claim, since: int, doubt: Doubt, doubts: dict[int, Doubt]) -> None:
        """A claim loses. Votes for it after `since` were wrong, those before were right then."""
        for vote in claim.votes:
            if not self._expert[vote]:
                doubts[vote] = doubt if vote > since else Doubt("superseded", doubt.detail)

    def _weight(self, votes: Sequence[int], distrusted: frozenset[str], since: int = -1) -> float:
        """How many independent accounts voted, those that work alike counted as one."""
        all = [v for v in votes if not self._expert[v] and self._accounts[v] not in distrusted]
        accounts = sorted({self._index[self._accounts[vote]] for vote in all})[:_MOST]
        if len(accounts) < 2:
            return float(any(vote > since for vote in all))
        alike = self._alike(accounts)
        young = {
            self._index[self._accounts[vote]]
            for vote in all
            if self._young[vote] and self._text_of[vote] in self._new_accounts_texts
        }
        new = np.array([number in young for number in accounts])
        alike |= np.outer(new, new)
        np.fill_diagonal(alike, True)
        weights = 1 / alike.sum(axis=1)
        late = {self._index[self._accounts[vote]] for vote in all if vote > since}
        return float(sum(weight for number, weight in zip(accounts, weights, strict=True) if number in late))

    def _alike(self, accounts: list[int]) -> Any:
        """Which accounts share half of their texts, and more than chance explains."""
        written, count = self._written[accounts], self._count[accounts]
        shared = (written @ written.T).toarray()
        either = count[:, None] + count[None, :] - shared
        expected = self._meeting * np.outer(count, count)
        return (shared >= 2) & (shared >= _SAME_WORK * either) & (shared > expected + 3 * np.sqrt(expected))

    def _usual_share_of_young(self) -> float:
        """The share of new accounts where nobody disagrees; an attack is no part of what is usual."""
        young = sum(self._young[vote] for vote in self._quiet)
        return min(max((young + 1) / (len(self._quiet) + 2), 0.01), 0.99)

    def _mostly_new(self, votes: list[int]) -> bool:
        """Whether far more of the accounts behind a text are new than chance explains."""
        from scipy.special import bdtrc

        accounts = {self._accounts[vote] for vote in votes}
        young = {self._accounts[vote] for vote in votes if self._young[vote]}
        return len(young) >= 2 and float(bdtrc(len(young) - 1, len(accounts), self._usual_young)) < CHANCE

    def unreliable(self, doubts: Mapping[int, Doubt]) -> frozenset[str]:
        """The accounts that lost at least twice, and most of what others could check."""
        checked = Counter(self._accounts[vote] for vote in self._checked)
        lost = Counter(self._accounts[vote] for vote, doubt in doubts.items() if doubt.reason in QUARANTINED)
        return frozenset(name for name, times in lost.items() if times >= 2 and 2 * times > checked[name])

    # Other signs

    def votes_of(self, accounts: Iterable[str]) -> Iterable[int]:
        """The votes of these accounts."""
        return (vote for name in accounts for vote in self._of_account[name])

    def bursts(self) -> dict[int, Doubt]:
        """The votes of accounts within BURST, many times as many as others cast at their busiest."""
        people = (row.user_id for row in self.examples if row.source == "user" and row.user_id is not None)
        busiest = {name: self._busiest(self._of_account[name]) for name in set(people)}
        if len(busiest) < RING_ACCOUNTS:
            return {}
        usual = float(np.quantile([len(votes) for votes in busiest.values()], 0.75))
        limit = max(BURST_MESSAGES, BURST_RATIO * usual)
        return {
            vote: Doubt("burst", f"{len(votes)} messages of one account within an hour; {usual:g} are usual")
            for votes in busiest.values()
            if len(votes) >= limit
            for vote in votes
        }

    def _busiest(self, votes: list[int]) -> list[int]:
        best, start = votes[:1], 0
        for end, vote in enumerate(votes):
            while self._times[vote] - self._times[votes[start]] > BURST:
                start += 1
            if end + 1 - start > len(best):
                best = votes[start : end + 1]
        return best

    def collusions(self, doubts: Mapping[int, Doubt]) -> dict[int, Doubt]:
        """What far more new accounts state than usual, when it is contradicted elsewhere or comes all at once.

        At once, nearly the same corrections: thumbs on one answer are alike by nature.
        """
        window = max(RING_WINDOW * len(self.examples), RING_ACCOUNTS)
        found: dict[int, Doubt] = {}
        for text in self._new_accounts_texts:
            votes = self._with_text[text]
            young = [vote for vote in votes if self._young[vote]]
            if any(vote in doubts and doubts[vote].reason in QUARANTINED for vote in votes):
                doubt = Doubt("collusion", "new accounts say what independent accounts contradict elsewhere")
                found |= dict.fromkeys(young, doubt)
                continue
            written = [vote for vote in votes if self.examples[vote].kind == "correction"]
            writers = {self._accounts[vote] for vote in written if self._young[vote]}
            starts = np.searchsorted(written, np.array(written) - window)
            at_once = int((np.arange(len(written)) + 1 - starts).max(initial=0))
            if len(writers) >= RING_ACCOUNTS and at_once >= RING_SHARE * len(written):
                doubt = Doubt("collusion", f"{len(writers)} new accounts wrote nearly the same in a short time")
                found |= {vote: doubt for vote in written if self._young[vote]}
        return found

    def is_corroborated(self, vote: int, suspects: Mapping[int, Doubt]) -> bool:
        """Does somebody who is not suspect, and not of the same account, give the same answer to the question?"""
        return any(
            self._expert[other] or (other not in suspects and self._accounts[other] != self._accounts[vote])
            for other in self._claim_of[vote].votes
        )


def _accounts(examples: Sequence[Example]) -> list[str]:
    """The account of each vote. Where most users are named, the unnamed are one account; else each message is one."""
    users = [row for row in examples if row.source == "user"]
    named = 2 * sum(row.user_id is not None for row in users) > len(users)
    return [
        row.user_id or (f"source {row.source}" if row.source != "user" else "nobody" if named else row.feedback_id)
        for row in examples
    ]


def _opening(text: str) -> str:
    word = text.split(maxsplit=1)[0].strip(",.;:!").casefold() if text.strip() else ""
    return word if word in ("yes", "no") else ""


def _facts_contradict(one: _Claim, other: _Claim) -> bool:
    """Whether two answers cannot both be right: yes and no, other values, nothing in common."""
    if {one.opening, other.opening} == {"yes", "no"}:
        return True
    if not one.stated and not other.stated:
        return _labels(one.text, other.text)
    if not one.stated or not other.stated:
        return True
    if one.stated <= other.stated or other.stated <= one.stated:
        return False
    if not one.stated & other.stated:
        return True
    mine, theirs = values(one.stated), values(other.stated)
    return bool(kinds(mine - theirs) & kinds(theirs - mine))


def _labels(one: str, other: str) -> bool:
    """Whether two answers of few words have none in common: two labels, of which one is right at most."""
    mine, theirs = tokens(one), tokens(other)
    return max(len(mine), len(theirs)) <= _LABEL_WORDS and not set(mine) & set(theirs)


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:79]}…"
