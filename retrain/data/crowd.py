"""Detects accounts that copy each other or belong to one person. They count as one and share one reliability.

There are two signs. Accounts that share half of the texts that they wrote themselves, beyond chance, are dependent
(source dependence, Dong et al. 2009). Likes are no such sign: many accounts like the same right answers. A text that
far more new accounts than usual have given has one author: it counts once, and these accounts have a common
reliability.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np

from retuned.retrain.data.truth import Independence

YOUNG = timedelta(days=3)
"""The age up to which an account is new."""
CHANCE = 0.01
_SAME_WORK = 0.5
_MOST = 1_000


@dataclass(frozen=True)
class Statement:
    """A text that an account gave, whatever the question.

    Attributes:
        own: the account wrote it, as a correction; else it liked the model's text.
    """

    account: str
    text: Hashable
    at: datetime
    own: bool


class Crowd(Independence):
    """The accounts behind statements.

    Args:
        statements: statements of users, not of experts.
        first_seen: the time of each account's first feedback.
        quiet: statements without disagreement. They give the usual share of new accounts, which an attack would not.
    """

    def __init__(
        self, statements: Iterable[Statement], first_seen: Mapping[str, datetime], quiet: Iterable[Statement]
    ) -> None:
        from scipy.sparse import csr_matrix

        self._first_seen = first_seen

        def is_young(one: Statement) -> bool:
            return one.account in first_seen and one.at - first_seen[one.account] < YOUNG

        given: dict[Hashable, dict[str, bool]] = defaultdict(dict)
        written: dict[Hashable, set[str]] = defaultdict(set)
        for one in statements:
            given[one.text][one.account] = is_young(one) or given[one.text].get(one.account, False)
            if one.own:
                written[one.text].add(one.account)
        self._sources: dict[str, str] = {}
        usual = _usual([is_young(one) for one in quiet])
        new = {text: sorted(name for name, young in own.items() if young) for text, own in given.items()}
        tested = [text for text, young in new.items() if len(young) >= 2]
        for text in tested:
            if _chance(len(new[text]), len(given[text]), usual) < CHANCE / len(tested):
                for name in new[text][1:]:
                    self._sources[self.source(name)] = self.source(new[text][0])
        self._index = {name: number for number, name in enumerate(sorted({n for all in given.values() for n in all}))}
        pairs = [(self._index[name], number) for number, all in enumerate(written.values()) for name in all]
        rows, columns = (np.array([pair[side] for pair in pairs], dtype=int) for side in (0, 1))
        shape = (max(len(self._index), 1), max(len(written), 1))
        self._written = csr_matrix((np.ones(len(pairs)), (rows, columns)), shape=shape)
        self._count = np.asarray(self._written.sum(axis=1)).ravel()
        often = np.array([len(own) for own in given.values()])
        # The probability that two random statements have the same text, likes included: a ring hardly raises it.
        self._meeting = float((often**2).sum()) / max(int(often.sum()) ** 2, 1)

    def independent(self, statements: Iterable[tuple[str, datetime]]) -> float:
        """Returns how many independent accounts statements come from, without accounts that were new at that time."""
        first = self._first_seen
        return sum(
            self.shares(sorted({name for name, at in statements if name in first and at - first[name] >= YOUNG}))
        )

    def source(self, account: str) -> str:
        """Returns the account that represents all new accounts with the same texts."""
        while (other := self._sources.get(account, account)) != account:
            account = other
        return account

    def shares(self, accounts: Sequence[str]) -> list[float]:
        """Returns the weight of each account among these. Dependent accounts share one vote."""
        if len(accounts) < 2:
            return [1.0] * len(accounts)
        weights = []
        for start in range(0, len(accounts), _MOST):
            part = accounts[start : start + _MOST]
            alike = self._alike([self._index.get(name, -1) for name in part])
            sources = np.array([self._index.get(self.source(name), -1) for name in part])
            alike |= (sources[:, None] == sources[None, :]) & (sources >= 0)[:, None]
            np.fill_diagonal(alike, True)
            weights += (1 / alike.sum(axis=1)).tolist()
        return weights

    def _alike(self, numbers: list[int]) -> Any:
        """Returns the matrix of accounts that share half of the texts that they wrote, beyond chance."""
        known = np.array(numbers) >= 0
        rows = np.where(known, numbers, 0)
        written, count = self._written[rows], self._count[rows]
        shared = (written @ written.T).toarray()
        either = count[:, None] + count[None, :] - shared
        expected = self._meeting * np.outer(count, count)
        alike = (shared >= 2) & (shared >= _SAME_WORK * either) & (shared > expected + 3 * np.sqrt(expected))
        return alike & known[:, None] & known[None, :]


def _usual(young: Sequence[bool]) -> float:
    return min(max((sum(young) + 1) / (len(young) + 2), 0.01), 0.99)


def _chance(young: int, accounts: int, usual: float) -> float:
    """Returns the probability that at least `young` of the accounts are new."""
    from scipy.special import bdtrc

    return float(bdtrc(young - 1, accounts, usual))
