"""Return on investment from the ledger: (gains - costs) / costs with its interval, in all and for each promotion."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from datetime import datetime, timedelta
from typing import Any

from retuned.consumers.warehouse.connection import Warehouse, named_queries
from retuned.monitors.money.ledger import COST, GAIN
from retuned.monitors.settings import Settings
from retuned.monitors.statistics import Z95

QUERIES = named_queries("retuned.monitors.money", "roi.sql")
LEAST_CONVERSATIONS = 30
"""With fewer, a sum over conversations is not approximately normal, and no interval is reported."""


@dataclass(frozen=True)
class Item:
    """The sum of all entries of one item."""

    kind: str
    item: str
    quantity: float
    unit: str
    amount: float


@dataclass(frozen=True)
class Roi:
    """Gains, costs and (gains - costs) / costs; the ratio is None while nothing was spent or no gain is known.

    Lows and highs are 95% intervals for as many conversations of the same kind; None: too few conversations.
    """

    gains: float
    gains_low: float | None
    gains_high: float | None
    costs: float
    ratio: float | None
    ratio_low: float | None
    ratio_high: float | None
    items: list[Item]


@dataclass(frozen=True)
class Tenure:
    """The gain of a champion since a change, and the gain that its predecessor would have had with the same traffic.

    Attributes:
        promotion, event, created_at, version, previous_version: the row of `promotions`.
        conversations, interactions, gains, costs, ratio, ratio_low, ratio_high: of the new champion until the next
            change, as in Roi; the costs include its training.
        counterfactual: the previous champion's gain per conversation in the days before the change × conversations;
            None: it gave no answers then, or no gain of either is known.
        uplift, uplift_low, uplift_high: gains - counterfactual, and its 95% interval (see `uplift_interval`).
    """

    promotion: str
    event: str
    created_at: datetime
    version: str | None
    previous_version: str | None
    conversations: int
    interactions: int
    gains: float
    costs: float
    ratio: float | None
    ratio_low: float | None
    ratio_high: float | None
    counterfactual: float | None
    uplift: float | None
    uplift_low: float | None
    uplift_high: float | None


@dataclass(frozen=True)
class Moments:
    """Sums over conversations of interactions, gains and costs, and of their squares and products.

    Attributes:
        days: the number of days with conversations.
        conversations_squared: sum over days of conversations².
        daily_gain_squared: sum over days of gain² / conversations.
    """

    conversations: float = 0.0
    interactions: float = 0.0
    gain: float = 0.0
    cost: float = 0.0
    gain_squared: float = 0.0
    cost_squared: float = 0.0
    gain_cost: float = 0.0
    days: float = 0.0
    conversations_squared: float = 0.0
    daily_gain_squared: float = 0.0

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    @property
    def has_gains(self) -> bool:
        """Whether any conversation has a gain or loss."""
        return self.gain_squared > 0

    @property
    def gain_variance(self) -> float | None:
        """The variance of the sum of gains."""
        return self._variance(self.gain, self.gain_squared)

    def ratio_variance(self, ratio: float, costs: float) -> float | None:
        """Returns the variance of gains / costs, where costs include more than those of conversations."""
        variance = self._variance(
            self.gain - ratio * self.cost,
            self.gain_squared - 2 * ratio * self.gain_cost + ratio * ratio * self.cost_squared,
        )
        return None if variance is None else variance / costs / costs

    @property
    def mean(self) -> float:
        """The gain per conversation."""
        return self.gain / self.conversations

    @property
    def within_days(self) -> float:
        """The variance of the gain of a conversation within a day."""
        rest = self.conversations - self.days
        return max(self.gain_squared - self.daily_gain_squared, 0.0) / rest if rest > 0 else 0.0

    @property
    def between_days(self) -> float:
        """The sum over days of conversations × (gain per conversation - mean)²."""
        return max(self.daily_gain_squared - self.gain * self.mean, 0.0)

    @property
    def concentration(self) -> float:
        """The sum over days of the squared share of the conversations; 1 / days if all days are equal."""
        return self.conversations_squared / self.conversations**2

    def _variance(self, total: float, squares: float) -> float | None:
        """Returns the variance of a sum over conversations from the sum and the sum of squares.

        None: too few conversations, or an overflow.
        """
        n = self.conversations
        if n < LEAST_CONVERSATIONS:
            return None
        variance = n / (n - 1) * max(squares - total * total / n, 0.0)
        return variance if math.isfinite(variance) else None


def summary(warehouse: Warehouse, workload: str | None = None) -> Roi:
    """Returns the ledger of one workload, or of all, summed by item."""
    workloads = [workload] if workload else [row["workload"] for row in warehouse.rows(QUERIES["workloads"])]
    moments = (version for by_version in _moments(warehouse, workloads) for version in by_version.values())
    return _roi(warehouse.rows(QUERIES["items"], {"workloads": workloads}), sum(moments, Moments()))


def of_workload(warehouse: Warehouse, workload: str) -> tuple[Roi, dict[str | None, Roi]]:
    """Returns the ledger of a workload, and of each version; the version None is the base model or a foreign model."""
    return of_workloads(warehouse, [workload])[workload]


def of_workloads(warehouse: Warehouse, workloads: Sequence[str]) -> dict[str, tuple[Roi, dict[str | None, Roi]]]:
    """Returns `of_workload` for each workload."""
    rows = defaultdict[str, list[dict[str, Any]]](list)
    for row in warehouse.rows(QUERIES["items"], {"workloads": list(workloads)}):
        rows[row["workload"]].append(row)
    ledgers = {}
    for workload, moments in zip(workloads, _moments(warehouse, workloads), strict=True):
        by_version = defaultdict[str | None, list[dict[str, Any]]](list)
        for row in rows[workload]:
            by_version[row["version"]].append(row)
        versions = {version: _roi(own, moments.get(version, Moments())) for version, own in by_version.items()}
        ledgers[workload] = _roi(rows[workload], sum(moments.values(), Moments())), versions
    return ledgers


def left_out(warehouse: Warehouse, workload: str) -> dict[str, int]:
    """Returns by item how many reported numbers were beyond the limits of the settings, and so not booked."""
    return left_out_of(warehouse, [workload])[workload]


def left_out_of(warehouse: Warehouse, workloads: Sequence[str]) -> dict[str, dict[str, int]]:
    """Returns `left_out` for each workload."""
    counts: dict[str, dict[str, int]] = {workload: {} for workload in workloads}
    for row in warehouse.rows(QUERIES["left_out"], {"workloads": list(workloads)}):
        counts[row["workload"]][row["item"]] = row["reported"]
    return counts


def tenures(warehouse: Warehouse, settings: Settings, workload: str, most: int = 10) -> list[Tenure]:
    """Returns the latest changes of the champion with their uplift, newest first.

    The counterfactual uses the previous champion's gain per conversation in the `windows.reference_seconds` before the
    change (whole days).
    """
    return tenures_of(warehouse, {workload: settings}, most)[workload]


def tenures_of(warehouse: Warehouse, settings: Mapping[str, Settings], most: int = 10) -> dict[str, list[Tenure]]:
    """Returns `tenures` for each workload with settings."""
    changes = warehouse.rows(QUERIES["changes"], {"workloads": list(settings), "most": most})
    windows = [timedelta(seconds=settings[change["workload"]].windows.reference_seconds) for change in changes]
    since = [change["created_at"] - window for change, window in zip(changes, windows, strict=True)]
    workloads = [change["workload"] for change in changes]
    after = _moments(warehouse, workloads, [change["id"] for change in changes])
    before = _moments(warehouse, workloads, [change["before"] for change in changes], since)
    tenures: dict[str, list[Tenure]] = {workload: [] for workload in settings}
    for change, own, others in zip(changes, after, before, strict=True):
        now, former = own.get(change["version"], Moments()), others.get(change["previous_version"], Moments())
        tenures[change["workload"]].append(_tenure(change, now, former))
    return tenures


def _tenure(change: Mapping[str, Any], now: Moments, before: Moments) -> Tenure:
    ratio, ratio_low, ratio_high = _ratio(now.gain, change["costs"], now)
    known = before.conversations > 0 and (now.has_gains or before.has_gains)
    counterfactual = before.mean * now.conversations if known else None
    uplift = None if counterfactual is None else now.gain - counterfactual
    low, high = uplift_interval(now, before) if known else (None, None)
    return Tenure(
        promotion=change["id"],
        **{name: change[name] for name in ("event", "created_at", "version", "previous_version", "costs")},
        conversations=int(now.conversations),
        interactions=int(now.interactions),
        gains=now.gain,
        ratio=ratio,
        ratio_low=ratio_low,
        ratio_high=ratio_high,
        counterfactual=counterfactual,
        uplift=uplift,
        uplift_low=low,
        uplift_high=high,
    )


def _roi(rows: Iterable[dict[str, Any]], moments: Moments) -> Roi:
    """Sums items, with intervals for the variation between conversations."""
    sums = dict[tuple[str, str, str], tuple[float, float]]()
    for row in rows:
        key = row["kind"], row["item"], row["unit"]
        quantity, amount = sums.get(key, (0.0, 0.0))
        sums[key] = quantity + row["quantity"], amount + row["amount"]
    items = [Item(kind, item, quantity, unit, amount) for (kind, item, unit), (quantity, amount) in sums.items()]
    gains = sum(item.amount for item in items if item.kind == GAIN)
    costs = sum(item.amount for item in items if item.kind == COST)
    gains_low, gains_high = interval(gains, moments.gain_variance)
    ratio, ratio_low, ratio_high = _ratio(gains, costs, moments)
    return Roi(gains, gains_low, gains_high, costs, ratio, ratio_low, ratio_high, items)


def _ratio(gains: float, costs: float, moments: Moments) -> tuple[float | None, float | None, float | None]:
    """Returns (gains - costs) / costs and its interval; None: nothing was spent, or no gain is known.

    Gains and costs vary between conversations; costs of training and fixed costs are exact. The variance of the ratio
    of two sums is that of the sum of gain - ratio × cost, divided by the square of the costs (linearisation; W. G.
    Cochran, "Sampling Techniques", 3rd edition (1977), chapters 6 and 9A for whole clusters).
    """
    if costs <= 0 or not moments.has_gains:
        return None, None, None
    ratio = (gains - costs) / costs
    return ratio, *interval(ratio, moments.ratio_variance(gains / costs, costs))


def interval(value: float, variance: float | None) -> tuple[float | None, float | None]:
    """Returns the 95% interval of a figure; None: its variance is unknown."""
    if variance is None:
        return None, None
    half = Z95 * math.sqrt(variance)
    return value - half, value + half


def uplift_interval(now: Moments, before: Moments) -> tuple[float | None, float | None]:
    """Returns the 95% interval of the gain of `now` less that of as many conversations at the mean of `before`.

    The unit is the conversation, and days are blocks, because conversations of a day share its conditions. The variance
    of a mean is the variance between days × the concentration of its days + the variance within days / conversations.
    The variance between days is estimated from the days of both sides by moments (Searle, Casella and McCulloch,
    "Variance components", 1992), with Satterthwaite's degrees of freedom (1946). With days of equal size this is the
    t-test of their means.

    None: fewer than three days, which do not show how days differ, or too few conversations.
    """
    from scipy.special import stdtrit

    sides = (now, before)
    degrees = now.days + before.days - 2
    if degrees < 1 or min(side.conversations for side in sides) < LEAST_CONVERSATIONS:
        return None, None
    expected = sum((side.days - 1) * side.within_days for side in sides)
    scale = sum(side.conversations * (1 - side.concentration) for side in sides)
    observed = sum(side.between_days for side in sides)
    concentration = sum(side.concentration for side in sides)
    within = sum(side.within_days / side.conversations for side in sides)
    variance = concentration * max(observed - expected, 0.0) / scale + within
    estimated = concentration * observed / scale
    if estimated > 0:
        degrees *= max(variance / estimated, 1.0) ** 2
    half = float(stdtrit(degrees, 0.975)) * math.sqrt(variance) * now.conversations
    uplift = (now.mean - before.mean) * now.conversations
    return (uplift - half, uplift + half) if math.isfinite(half) else (None, None)


def _moments(
    warehouse: Warehouse,
    workloads: Sequence[str],
    promotions: Sequence[str] | None = None,
    since: Sequence[datetime] | None = None,
) -> list[dict[str | None, Moments]]:
    """Returns the moments by version, for each request.

    Args:
        workloads: the workload of each request.
        promotions: the promotion of each request ('': before the first); None: all.
        since: the first day of each request; None: all days.
    """
    moments: list[dict[str | None, Moments]] = [{} for _ in workloads]
    none = [None] * len(workloads)
    requests = {"workloads": list(workloads), "promotions": promotions or none, "since": since or none}
    for row in warehouse.rows(QUERIES["moments"], requests):
        request, version = row.pop("request"), row.pop("version")
        moments[request][version] = Moments(**row)
    return moments
