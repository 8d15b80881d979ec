"""Return on investment, by the ledger: (gains - costs) / costs, how sure it is, and what each promotion earned."""

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
"""Below it, a sum over conversations is not taken as normal, and no interval is reported."""


@dataclass(frozen=True)
class Item:
    """All entries of one item, summed."""

    kind: str
    item: str
    quantity: float
    unit: str
    amount: float


@dataclass(frozen=True)
class Roi:
    """Gains, costs and (gains - costs) / costs; the ratio is None while nothing was spent, and while no gain is known.

    Lows and highs are 95% intervals: of what as many conversations of the same kind would come to. None: too few.
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
    """What a champion gained since a change, and what the one before it would have gained with the same traffic.

    Attributes:
        promotion, event, created_at, version, previous_version: the row of `promotions`.
        interactions, gains, costs, ratio, ratio_low, ratio_high: of the new champion, until the next change, as in Roi;
            among the costs is its training.
        counterfactual: the previous champion's gain per interaction in the window before the change × interactions;
            None where it answered nothing then, or no gain of either is known.
        uplift, uplift_low, uplift_high: gains - counterfactual, and its 95% interval; None: too few conversations.
    """

    promotion: str
    event: str
    created_at: datetime
    version: str | None
    previous_version: str | None
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
    """Sums over conversations, of their interactions, gains and costs, and of squares and products of these."""

    conversations: float = 0.0
    interactions: float = 0.0
    gain: float = 0.0
    cost: float = 0.0
    interactions_squared: float = 0.0
    gain_squared: float = 0.0
    cost_squared: float = 0.0
    gain_interactions: float = 0.0
    gain_cost: float = 0.0

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    @property
    def has_gains(self) -> bool:
        """Whether any conversation gained anything, or lost."""
        return self.gain_squared > 0

    @property
    def gain_variance(self) -> float | None:
        """Of the sum of gains."""
        return self._variance(self.gain, self.gain_squared)

    def ratio_variance(self, ratio: float, costs: float) -> float | None:
        """Of gains / costs, where costs hold more than those of conversations."""
        variance = self._variance(
            self.gain - ratio * self.cost,
            self.gain_squared - 2 * ratio * self.gain_cost + ratio * ratio * self.cost_squared,
        )
        return None if variance is None else variance / costs / costs

    @property
    def mean(self) -> float:
        """Gain per interaction."""
        return self.gain / self.interactions

    @property
    def mean_variance(self) -> float | None:
        """Of the gain per interaction: conversations are independent of each other, their interactions are not."""
        variance = self._variance(
            0.0,
            self.gain_squared
            - 2 * self.mean * self.gain_interactions
            + self.mean * self.mean * self.interactions_squared,
        )
        return None if variance is None else variance / self.interactions / self.interactions

    def _variance(self, total: float, squares: float) -> float | None:
        """Of a sum over conversations, from the sum and the sum of squares; None: too few, or beyond a float."""
        n = self.conversations
        if n < LEAST_CONVERSATIONS:
            return None
        variance = n / (n - 1) * max(squares - total * total / n, 0.0)
        return variance if math.isfinite(variance) else None


def summary(warehouse: Warehouse, workload: str | None = None) -> Roi:
    """The ledger of one workload, or of all, summed by item."""
    workloads = [workload] if workload else [row["workload"] for row in warehouse.rows(QUERIES["workloads"])]
    moments = (of for by_version in _moments(warehouse, workloads) for of in by_version.values())
    return _roi(warehouse.rows(QUERIES["items"], {"workloads": workloads}), sum(moments, Moments()))


def of_workload(warehouse: Warehouse, workload: str) -> tuple[Roi, dict[str | None, Roi]]:
    """The ledger of a workload, and that of each version; None: the base model's, or another's that is none of ours."""
    return of_workloads(warehouse, [workload])[workload]


def of_workloads(warehouse: Warehouse, workloads: Sequence[str]) -> dict[str, tuple[Roi, dict[str | None, Roi]]]:
    """`of_workload`, of each."""
    rows = defaultdict[str, list[dict[str, Any]]](list)
    for row in warehouse.rows(QUERIES["items"], {"workloads": list(workloads)}):
        rows[row["workload"]].append(row)
    found = {}
    for workload, moments in zip(workloads, _moments(warehouse, workloads), strict=True):
        by_version = defaultdict[str | None, list[dict[str, Any]]](list)
        for row in rows[workload]:
            by_version[row["version"]].append(row)
        versions = {version: _roi(of, moments.get(version, Moments())) for version, of in by_version.items()}
        found[workload] = _roi(rows[workload], sum(moments.values(), Moments())), versions
    return found


def left_out(warehouse: Warehouse, workload: str) -> dict[str, int]:
    """By item of the ledger, how many numbers beyond the limits of the settings events reported; none is booked."""
    return left_out_of(warehouse, [workload])[workload]


def left_out_of(warehouse: Warehouse, workloads: Sequence[str]) -> dict[str, dict[str, int]]:
    """`left_out`, of each."""
    found: dict[str, dict[str, int]] = {workload: {} for workload in workloads}
    for row in warehouse.rows(QUERIES["left_out"], {"workloads": list(workloads)}):
        found[row["workload"]][row["item"]] = row["reported"]
    return found


def tenures(warehouse: Warehouse, settings: Settings, workload: str, most: int = 10) -> list[Tenure]:
    """What the latest changes of the champion earned, newest first, against the champion before each.

    The counterfactual holds the previous champion at its gain per interaction in the last
    `windows.current_seconds` before the change (whole hours).
    """
    return tenures_of(warehouse, {workload: settings}, most)[workload]


def tenures_of(warehouse: Warehouse, settings: Mapping[str, Settings], most: int = 10) -> dict[str, list[Tenure]]:
    """`tenures`, of each workload that has settings."""
    changes = warehouse.rows(QUERIES["changes"], {"workloads": list(settings), "most": most})
    windows = [timedelta(seconds=settings[change["workload"]].windows.current_seconds) for change in changes]
    since = [change["created_at"] - window for change, window in zip(changes, windows, strict=True)]
    workloads = [change["workload"] for change in changes]
    after = _moments(warehouse, workloads, [change["id"] for change in changes])
    before = _moments(warehouse, workloads, [change["before"] for change in changes], since)
    found: dict[str, list[Tenure]] = {workload: [] for workload in settings}
    for change, own, others in zip(changes, after, before, strict=True):
        made = _tenure(change, own.get(change["version"], Moments()), others.get(change["previous_version"], Moments()))
        found[change["workload"]].append(made)
    return found


def _tenure(change: Mapping[str, Any], now: Moments, before: Moments) -> Tenure:
    ratio, ratio_low, ratio_high = _ratio(now.gain, change["costs"], now)
    known = before.interactions > 0 and (now.has_gains or before.has_gains)
    counterfactual = before.mean * now.interactions if known else None
    uplift = None if counterfactual is None else now.gain - counterfactual
    low, high = None, None
    if uplift is not None and now.interactions > 0:
        low, high = interval(uplift, now.mean_variance, before.mean_variance, scale=now.interactions)
    return Tenure(
        promotion=change["id"],
        **{name: change[name] for name in ("event", "created_at", "version", "previous_version", "costs")},
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
    """Sums of items, with intervals: what conversations gained scatters from one to the next."""
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
    """(gains - costs) / costs and its interval.

    None where nothing was spent, or no conversation has a gain: then it is not known what they earned. What
    conversations gained and cost scatters from one to the next; training and fixed costs are as they are. The
    variance of the ratio of two sums is that of gain - ratio × cost, summed, over the square of the costs
    (linearisation; W. G. Cochran, "Sampling Techniques", 3rd edition (1977), chapters 6 and 9A for whole clusters).
    """
    if costs <= 0 or not moments.has_gains:
        return None, None, None
    ratio = (gains - costs) / costs
    return ratio, *interval(ratio, moments.ratio_variance(gains / costs, costs))


def interval(value: float, *variances: float | None, scale: float = 1.0) -> tuple[float | None, float | None]:
    """95% interval of a sum or difference of independent figures; None where a variance is not known."""
    known = [variance for variance in variances if variance is not None]
    if len(known) < len(variances):
        return None, None
    half = Z95 * scale * math.sqrt(sum(known))
    return value - half, value + half


def _moments(
    warehouse: Warehouse,
    workloads: Sequence[str],
    promotions: Sequence[str] | None = None,
    since: Sequence[datetime] | None = None,
) -> list[dict[str | None, Moments]]:
    """Of each workload in the list, by version: of all its promotions or of that in `promotions` at the same place ('':
    before the first), in all hours or in those from that in `since` on."""
    found: list[dict[str | None, Moments]] = [{} for _ in workloads]
    none = [None] * len(workloads)
    requests = {"workloads": list(workloads), "promotions": promotions or none, "since": since or none}
    for row in warehouse.rows(QUERIES["moments"], requests):
        request, version = row.pop("request"), row.pop("version")
        found[request][version] = Moments(**row)
    return found
