"""Which arm of an experiment a conversation belongs to. Imports nothing else of retuned, so that apps may use it."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

BUCKETS = 10_000
"""A share is a number of them: the smallest is 0.0001."""


def bucket(salt: str, conversation: str) -> int:
    """The bucket of a conversation, 0 to 9,999: the first four bytes of `sha256(salt ‖ conversation)`, as a big-endian
    number, modulo 10,000. Both are UTF-8, one right after the other.
    """
    digest = hashlib.sha256((salt + conversation).encode()).digest()
    return int.from_bytes(digest[:4], "big") % BUCKETS


def assign(salt: str, conversation: str, shares: Iterable[tuple[str, float]]) -> str:
    """The arm of a conversation.

    Arms take buckets in their order, from 0 up: while the share of the first one grows, conversations only ever move to
    it, and those that it has stay. Another salt is another draw.

    Args:
        salt: of the experiment: its id.
        shares: arm and share, the one that grows first; together 1.

    Raises:
        ValueError: the shares are not between 0 and 1, or not 1 together.
    """
    given = list(shares)
    _check_shares(given)
    place, end = bucket(salt, conversation), 0.0
    for arm, share in given:
        end += share
        if place < round(end * BUCKETS):
            return arm
    raise AssertionError("the last arm ends at the last bucket")


Part = Literal["champion", "canary", "holdback"]


@dataclass(frozen=True)
class Served:
    """A model, and what to ask a server for to get it.

    Attributes:
        model: the name that its answers are stored under, for example `support@3f2a91c0`.
        name: its name on the servers; None: it is their base model, which each may call as it likes.
    """

    model: str
    name: str | None


@dataclass(frozen=True)
class Arm(Served):
    """A model that gets a share of a workload's conversations.

    Attributes:
        arm: `champion`, which every workload has; `canary`, a candidate that is tried; `holdback`, the model before the
            champion, kept for comparison.
    """

    arm: Part
    share: float


@dataclass(frozen=True)
class Route:
    """What answers a workload.

    Attributes:
        experiment: the salt of the assignment; None: there is one arm.
        arms: the one whose share grows comes first.
        base: the base model, for when nothing else is there.
        previous: what was the champion before; None: nothing was, or it was taken back.
        shadow: of the conversations, for which the canary, whose share is 0, is asked too; nobody is shown its answers.
    """

    experiment: str | None
    arms: tuple[Arm, ...]
    base: Served
    previous: Served | None = None
    shadow: float = 0.0

    def __post_init__(self) -> None:
        """Raises a ValueError where there is no champion, or the shares are not 1 together."""
        if not any(one.arm == "champion" for one in self.arms):
            raise ValueError("arms: expected a champion among them")
        _check_shares([(one.arm, one.share) for one in self.arms])

    def arm(self, conversation: str) -> Arm:
        """The arm of a conversation."""
        if self.experiment is None or len(self.arms) == 1:
            return self.arms[0]
        return self._named(assign(self.experiment, conversation, [(one.arm, one.share) for one in self.arms]))

    def shadowed_by(self, conversation: str) -> Arm | None:
        """What is asked for a conversation besides its arm, by the same buckets; None: nothing."""
        if not self.shadow or self.experiment is None or bucket(self.experiment, conversation) >= self.shadow * BUCKETS:
            return None
        return next((one for one in self.arms if one.arm == "canary"), None)

    def instead(self, arm: Arm) -> list[Served]:
        """What answers where an arm's model is on no server, in this order: the champion, the one before it, which is
        there while a new one is loaded, then the base model."""
        others = {one.model: one for one in (self._named("champion"), self.previous, self.base) if one is not None}
        return [one for model, one in others.items() if model != arm.model]

    def _named(self, arm: str) -> Arm:
        return next(one for one in self.arms if one.arm == arm)


def base_only(workload: str) -> Route:
    """The route of a workload of which nothing is known."""
    base = f"{workload}@base"
    return Route(None, (Arm(base, None, "champion", 1.0),), Served(base, None))


def _check_shares(shares: list[tuple[str, float]]) -> None:
    if any(not 0 <= share <= 1 for _, share in shares) or abs(sum(share for _, share in shares) - 1) > 1e-9:
        raise ValueError(f"shares: expected numbers from 0 to 1 that make 1 together, got {shares}")
