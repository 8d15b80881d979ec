"""The state of replicas, and whether enough of them answer with a version."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from math import floor
from typing import Any, Literal

State = Literal["loading", "serving", "failed", "wrong"]

_NAMED = 4
"""The maximum number of replicas that are named as lacking a version."""


@dataclass
class Model:
    """A version on a replica.

    Attributes:
        state: loading: not loaded or not probed yet. serving: loaded, and not known to be wrong. wrong: the effect
            probe failed. failed: it cannot be loaded.
        detail: why it does not serve, or why it could not be probed.
        matches: the result of the effect probe; None if it had none.
        tried_at: the time of the last load or probe, naive UTC.
    """

    workload: str
    name: str
    state: State = "loading"
    detail: str = ""
    matches: bool | None = None
    probed_at: datetime | None = None
    tried_at: datetime | None = None
    tries: int = 0
    next_try: datetime | None = None


@dataclass
class Replica:
    """A replica of a target, as of its last reconciliation.

    Attributes:
        up: whether it answered; None before the first reconciliation.
        problem: a problem of the replica as a whole, if any.
        models: the versions that it has or should have; empty while it does not list its versions.
    """

    kind: str
    address: str
    workloads: tuple[str, ...] = ()
    up: bool | None = None
    problem: str = ""
    looked_at: datetime | None = None
    models: dict[str, Model] = field(default_factory=dict)

    @property
    def was_looked_at(self) -> bool:
        """Whether it was reconciled at least once."""
        return self.up is not None or bool(self.problem)

    def in_sync(self, workload: str) -> bool | None:
        """Returns whether it has the versions that it should have of a workload; None if unknown."""
        if self.up is not True:
            return None
        return not self.problem and all(
            model.state == "serving" for model in self.models.values() if model.workload == workload
        )

    def answers_with(self, name: str) -> bool:
        """Returns whether it has a version that is not known to be wrong."""
        model = self.models.get(name)
        return model is not None and model.state == "serving"

    def why_not(self, name: str, now: datetime) -> str:
        """Returns why it does not answer with a version."""
        model = self.models.get(name)
        reason, at = (model.detail, model.tried_at) if model is not None else (self.problem, self.looked_at)
        if not reason:
            return "it is being loaded" if self.was_looked_at else "the replica was not asked yet"
        return reason if at is None else f"{reason}, tried {max(0.0, (now - at).total_seconds()):.0f} s ago"

    def as_dict(self) -> dict[str, Any]:
        """Returns the state as JSON values, for the status."""
        return {
            "target": self.kind,
            "replica": self.address,
            "up": self.up,
            "problem": self.problem or None,
            "models": [
                {
                    "model": model.name,
                    "state": model.state,
                    "detail": model.detail or None,
                    "probe": model.matches,
                    "tried_at": model.tried_at,
                }
                for model in list(self.models.values())
            ],
        }


@dataclass(frozen=True)
class Service:
    """Whether enough replicas answer with a version.

    Attributes:
        enough: whether each target has it on enough replicas; None if some were not reconciled yet.
        lacking: a description of what is missing; empty if nothing is.
    """

    enough: bool | None
    lacking: str


def service(
    targets: Sequence[Sequence[Replica]], share: float, name: str, before: str | None, now: datetime
) -> Service:
    """Returns whether enough replicas of each target answer with a version.

    Enough are more than a share of the configured replicas, and no fewer than answer with the version before it. So an
    unavailable replica does not delay a version while the share is met, but one that answers and refuses it does.

    Args:
        targets: the replicas of each target of the version.
        share: 0 to 1; 1 requires all replicas.
        before: the name of the version that it replaces, or `WORKLOAD@base`, which every server has; None if it
            replaces none.
    """
    lacking, known = list[str](), True
    for replicas in targets:
        known = known and all(one.was_looked_at for one in replicas)
        serving = [one for one in replicas if one.answers_with(name)]
        needed = max(min(len(replicas), floor(share * len(replicas)) + 1), _answering(replicas, before))
        if len(serving) >= needed:
            continue
        missing = [one for one in replicas if one not in serving]
        reasons = [f"{one.address} lacks it: {one.why_not(name, now)}" for one in missing[:_NAMED]]
        if len(missing) > _NAMED:
            reasons.append(f"{len(missing) - _NAMED} more lack it")
        lacking.append(
            f"{len(serving)} of {len(replicas)} replicas of {replicas[0].kind} answer with {name}, and {needed} "
            f"{'has' if needed == 1 else 'have'} to: {'; '.join(reasons)}"
        )
    if not known:
        return Service(None, "; ".join(lacking) or f"not all replicas of {name} were asked yet")
    return Service(not lacking, "; ".join(lacking))


def _answering(replicas: Sequence[Replica], name: str | None) -> int:
    if name is None:
        return 0
    if name.endswith("@base"):
        return sum(one.up is True and not one.problem for one in replicas)
    return sum(one.answers_with(name) for one in replicas)
