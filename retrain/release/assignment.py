"""Assigns conversations to the arms of an experiment. Apps may use this module: it imports nothing else of retuned."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

BUCKETS = 10_000
"""The number of buckets. The smallest share is one bucket, 0.0001."""
EVERYWHERE = "*"
"""Stands for all model servers where versions are withheld by server."""


def bucket(salt: str, conversation: str) -> int:
    """Returns the bucket of a conversation, 0 to 9,999.

    It is the first four bytes of `sha256(salt ‖ conversation)` as a big-endian number, modulo 10,000. Both texts are
    encoded in UTF-8 and concatenated.
    """
    digest = hashlib.sha256((salt + conversation).encode()).digest()
    return int.from_bytes(digest[:4], "big") % BUCKETS


def assign(salt: str, conversation: str, shares: Iterable[tuple[str, float]]) -> str:
    """Returns the arm of a conversation.

    Arms take buckets in their order, from 0 up. While the share of the first arm grows, conversations only move to it.
    Another salt gives another assignment.

    Args:
        salt: the id of the experiment.
        shares: arms with shares that sum to 1. The arm whose share grows is the first.

    Raises:
        ValueError: the shares are not between 0 and 1, or do not sum to 1.
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
Unit = Literal["conversation", "account"]


@dataclass(frozen=True)
class Served:
    """A model, and its name on servers.

    Attributes:
        model: the name in interactions, such as `support@3f2a91c0`.
        name: the name on servers; None for their base model, whose name may differ between servers.
    """

    model: str
    name: str | None


@dataclass(frozen=True)
class Arm(Served):
    """A model with a share of a workload's conversations.

    Attributes:
        arm: `champion`, which every workload has; `canary`, a candidate in rollout; or `holdback`, the model before the
            champion, kept for comparison.
    """

    arm: Part
    share: float


@dataclass(frozen=True)
class Route:
    """The models that answer a workload.

    Attributes:
        experiment: the salt of the assignment; None if there is one arm.
        arms: the arms; the one whose share grows is the first.
        base: the base model, the last fallback.
        previous: the champion before, unless there was none or it was taken back.
        shadow: the share of conversations for which a canary with share 0 is also asked. Its answers are not shown.
        unit: the unit of the assignment: the conversation, or the account if the request has one.
        confident: by model, the least mean log-probability of the tokens of an answer; the incumbent replaces others.
        labels: by model, all of its possible answers, if they are labels that programs read; another model replaces
            others.
    """

    experiment: str | None
    arms: tuple[Arm, ...]
    base: Served
    previous: Served | None = None
    shadow: float = 0.0
    unit: Unit = "conversation"
    confident: dict[str, float] = field(default_factory=dict)
    labels: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises a ValueError if there is no champion, or if the shares do not sum to 1."""
        if not any(one.arm == "champion" for one in self.arms):
            raise ValueError("arms: expected a champion among them")
        _check_shares([(one.arm, one.share) for one in self.arms])

    def arm(self, conversation: str) -> Arm:
        """Returns the arm of a conversation or account."""
        if self.experiment is None or len(self.arms) == 1:
            return self.arms[0]
        return self._named(assign(self.experiment, conversation, [(one.arm, one.share) for one in self.arms]))

    def shadowed_by(self, conversation: str) -> Arm | None:
        """Returns the canary if it is asked in shadow for a conversation, by the same buckets; else None."""
        if not self.shadow or self.experiment is None or bucket(self.experiment, conversation) >= self.shadow * BUCKETS:
            return None
        return next((one for one in self.arms if one.arm == "canary"), None)

    def instead(self, arm: Arm) -> list[Served]:
        """Returns the fallbacks for an arm whose model is on no server: the champion, the one before it, which is still
        loaded while a new champion is loading, then the base model."""
        others = {one.model: one for one in (self._named("champion"), self.previous, self.base) if one is not None}
        return [one for model, one in others.items() if model != arm.model]

    def _named(self, arm: str) -> Arm:
        return next(one for one in self.arms if one.arm == arm)


def base_only(workload: str) -> Route:
    """Returns the route of an unknown workload."""
    base = f"{workload}@base"
    return Route(None, (Arm(base, None, "champion", 1.0),), Served(base, None))


def _check_shares(shares: list[tuple[str, float]]) -> None:
    if any(not 0 <= share <= 1 for _, share in shares) or abs(sum(share for _, share in shares) - 1) > 1e-9:
        raise ValueError(f"shares: expected numbers from 0 to 1 that sum to 1, got {shares}")
