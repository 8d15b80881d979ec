"""Sets the metrics of this package from results; a scrape queries nothing."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.samples import Exemplar

from retuned.consumers.common.series import exemplar_labels, forget_other_workloads
from retuned.monitors.blindness import MONITORS, Blindness
from retuned.monitors.drift.check import DriftCheck
from retuned.monitors.metrics_table import COUNTERS, GAUGES, Total
from retuned.monitors.money.outcomes import Outcomes
from retuned.monitors.money.roi import Roi, Tenure
from retuned.monitors.quality.figure import ALL_MODELS, Figure
from retuned.monitors.quality.measure import QUANTILES
from retuned.monitors.watch.canary import CanaryCheck
from retuned.monitors.watch.check import WatchCheck
from retuned.monitors.watch.comparison import Comparison

_Series = list[tuple[tuple[str, ...], float | None]]
"""The values of a gauge, by its labels after the workload."""

_RATES = {
    "hallucination_rate": "retuned_hallucination_ratio",
    "contradiction_rate": "retuned_contradiction_ratio",
    "tone_likeness": "retuned_tone_likeness_ratio",
    "helpful_rate": "retuned_helpful_ratio",
}
_QUANTILES = {metric: f"{quantile:g}" for quantile, metric in QUANTILES.items()}
_CASCADE = {
    "cascade_share": "retuned_cascade_ratio",
    "cascade_cost": "retuned_cascade_cost_amount",
    "cascade_helpful_rate": "retuned_cascade_helpful_ratio",
}
_OF_THE_WATCH = ("retuned_watch_", "retuned_rollout_", "retuned_memory_")
"""How names of metrics begin that the watch sets, also of workloads that are not measured."""
_QUALITY_GAUGES = (
    *_RATES.values(),
    "retuned_rate_interval_ratio",
    "retuned_judged_answers",
    "retuned_workload_judged_answers",
    "retuned_grounding_answers",
    "retuned_workload_grounding_answers",
    "retuned_grounding_alarm_ratio",
    "retuned_detector_alarm_ratio",
    "retuned_answer_latency_seconds",
    "retuned_answer_tokens",
    *_CASCADE.values(),
)


class Metrics:
    """All metrics of this package, on the registry that is passed in.

    The model name `*` stands for all models of the window, `other` for those beyond the busiest.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._gauges = {
            name: kind(name, text, labels, registry=registry) for name, (kind, labels, text) in GAUGES.items()
        }
        self._counters = {
            name: Counter(name, text, labels, registry=registry) for name, (labels, text) in COUNTERS.items()
        }
        self._labels: dict[tuple[str, str], set[tuple[str, ...]]] = {}  # by gauge and workload

    def drift(self, check: DriftCheck, *, counted: bool = True) -> None:
        """Shows a drift check; without a verdict the gauges are absent.

        Args:
            counted: False: do not count it, as it was made before a restart.
        """
        self._gauges["retuned_drift_check_timestamp_seconds"].labels(check.workload).set(
            check.created_at.replace(tzinfo=UTC).timestamp()
        )
        outcome = {None: "too_few_rows", True: "drifted", False: "quiet"}[check.drifted]
        if counted:
            self._counters["retuned_drift_checks_total"].labels(check.workload, outcome).inc()
        self._drift(check.workload, check)

    def drift_unknown(self, workload: str) -> None:
        """Removes the result of a workload: the latest check failed, or its reference was replaced."""
        self._drift(workload, None)

    def drift_ended(self, workload: str) -> None:
        """Removes all drift gauges of a workload that is no longer checked."""
        self.drift_unknown(workload)
        self._gauges["retuned_drift_check_timestamp_seconds"].remove_by_labels({"workload": workload})

    def _drift(self, workload: str, check: DriftCheck | None) -> None:
        self._replace("retuned_drift_detected", workload, [((), check.drifted)] if check else [])
        self._replace("retuned_drift_severity_ratio", workload, [((), check.severity)] if check else [])
        ends = _ends(check.severity_low, check.severity_high) if check else []
        self._replace("retuned_drift_severity_interval_ratio", workload, ends)
        self._replace("retuned_drift_missing_conversations", workload, [((), check.missing or 0)] if check else [])
        estimate = check and check.estimate
        self._replace("retuned_helpful_rate_estimate", workload, [((), estimate["rate"])] if estimate else [])
        ends = _ends(estimate["low"], estimate["high"]) if estimate else []
        self._replace("retuned_helpful_rate_estimate_interval", workload, ends)

    def watch(self, workload: str, check: WatchCheck | None) -> None:
        """Shows a check of the watched champion of a workload; None: none is watched."""
        watched = check if check is not None and check.verdict == "go_on" else None
        comparisons = check.comparisons if check else []
        self._gauges["retuned_watch_active"].labels(workload).set(watched is not None)
        self._replace("retuned_watch_power", workload, [((), watched.has_power)] if watched else [])
        self._replace("retuned_watch_detection_seconds", workload, [((), watched.seconds_to_find)] if watched else [])
        self._replace("retuned_watch_evidence_ratio", workload, [((c.metric, c.source), c.worse) for c in comparisons])
        if check is not None:
            self._counters["retuned_watch_checks_total"].labels(workload, check.verdict).inc()

    def canary(self, workload: str, check: CanaryCheck | None) -> None:
        """Shows a check of the canary of a workload; None: there is none."""
        self._replace("retuned_rollout_answers", workload, [((), check.answers)] if check else [])
        evidence = [((c.metric, c.source), c.worse) for c in check.comparisons] if check else []
        self._replace("retuned_rollout_evidence_ratio", workload, evidence)
        if check is not None:
            self._counters["retuned_rollout_decisions_total"].labels(workload, check.verdict).inc()

    def quality(self, workload: str, figures: list[Figure]) -> None:
        """Shows the figures of a workload, and removes the series of former ones."""
        series = {name: _Series() for name in _QUALITY_GAUGES}
        for figure in figures:
            for name, labels, value in _quality_series(figure):
                series[name].append((labels, value))
        for name, found in series.items():
            self._replace(name, workload, found)

    def feedback_totals(
        self,
        workload: str,
        totals: Mapping[tuple[str, str], int],
        complaints: Mapping[tuple[str, str], tuple[str, datetime]],
    ) -> None:
        """Shows the number of feedback events on a workload's answers.

        Args:
            totals: by name and source.
            complaints: by name and source, the id of a recent interaction with a complaint and its time (naive UTC),
                shown as exemplar.
        """
        self._replace("retuned_feedback", workload, totals.items())
        for key in complaints.keys() & totals.keys():
            interaction, at = complaints[key]
            total = self._gauges["retuned_feedback"].labels(workload, *key)
            if isinstance(total, Total) and (labels := exemplar_labels(interaction)):
                total.exemplar = Exemplar(labels, 1, at.replace(tzinfo=UTC).timestamp())

    def blindness(self, workload: str, blind: Collection[Blindness]) -> None:
        """Shows which monitors of a workload have too few rows."""
        missing = {item.monitor: item.needed - item.found for item in blind}
        for monitor in MONITORS:
            self._gauges["retuned_monitor_blind"].labels(workload, monitor).set(monitor in missing)
        self._replace("retuned_monitor_missing_rows", workload, [((name,), count) for name, count in missing.items()])

    def roi(
        self,
        workload: str,
        total: Roi,
        versions: Mapping[str | None, Roi],
        latest: Tenure | None,
        left_out: Mapping[str, int],
        outcomes: Outcomes | None,
    ) -> None:
        """Shows the ledger of a workload, and of the two versions of the latest change of the champion."""
        amounts = defaultdict[tuple[str, str], float](float)
        for item in total.items:
            amounts[item.kind, item.item] += item.amount
        named = (latest.version, latest.previous_version) if latest else (None,)
        by_version = {f"{workload}@{version or 'base'}": versions[version] for version in named if version in versions}
        sums = [((name, "gain"), ledger.gains) for name, ledger in by_version.items()]
        sums += [((name, "cost"), ledger.costs) for name, ledger in by_version.items()]
        counts = outcomes.counts() if outcomes else {}
        series: dict[str, Iterable[tuple[tuple[str, ...], float | None]]] = {
            "retuned_roi_ratio": [((), total.ratio)],
            "retuned_roi_amount": amounts.items(),
            "retuned_ledger_left_out_events": [((item,), reported) for item, reported in left_out.items()],
            "retuned_roi_cost_per_resolved_amount": [((), outcomes.cost_per_resolved)] if outcomes else [],
            "retuned_roi_conversations": [((outcome,), count) for outcome, count in counts.items()],
            "retuned_roi_interval_ratio": _ends(total.ratio_low, total.ratio_high),
            "retuned_roi_gain_interval_amount": _ends(total.gains_low, total.gains_high),
            "retuned_roi_version_amount": sums,
            "retuned_roi_uplift_amount": [((), latest.uplift)] if latest else [],
            "retuned_roi_uplift_interval_amount": _ends(latest.uplift_low, latest.uplift_high) if latest else [],
        }
        for name, values in series.items():
            self._replace(name, workload, values)

    def memory(self, workload: str, votes: Comparison | None, answers: Mapping[str, int] | None) -> None:
        """Updates the effect of the memory of corrections; None: no votes, no answers."""
        counts = [((outcome,), float(count)) for outcome, count in (answers or {}).items()]
        self._replace("retuned_memory_answers", workload, counts)
        rates = votes.bad_after / votes.n_after - votes.bad_before / votes.n_before if votes else None
        self._replace("retuned_memory_unhelpful_difference_ratio", workload, [((), rates)])
        low, high = (votes.low, votes.high) if votes else (None, None)
        self._replace("retuned_memory_unhelpful_difference_interval_ratio", workload, _ends(low, high))

    def keep(self, measured: Collection[str], watched: Collection[str]) -> None:
        """Removes the workloads that are no longer measured; from the metrics of the watch, those no longer watched."""
        metrics = {**self._gauges, **self._counters}
        watch = {name: metric for name, metric in metrics.items() if name.startswith(_OF_THE_WATCH)}
        others = [metric for name, metric in metrics.items() if name not in watch]
        gone = forget_other_workloads(others, measured) | forget_other_workloads(watch.values(), watched)
        self._labels = {
            (gauge, workload): labels
            for (gauge, workload), labels in self._labels.items()
            if workload not in gone or (gauge in watch and workload in watched)
        }

    def _replace(self, name: str, workload: str, series: Iterable[tuple[tuple[str, ...], float | None]]) -> None:
        """Sets the series of a gauge and workload, and removes all others; None: no series."""
        gauge = self._gauges[name]
        values = {labels: value for labels, value in series if value is not None}
        for labels in self._labels.get((name, workload), set()) - values.keys():
            gauge.remove(workload, *labels)
        self._labels[name, workload] = set(values)
        for labels, value in values.items():
            gauge.labels(workload, *labels).set(value)


def _ends(low: float | None, high: float | None) -> _Series:
    return [(("low",), low), (("high",), high)]


def _quality_series(figure: Figure) -> Iterable[tuple[str, tuple[str, ...], float]]:
    """Yields the series of a figure: the gauge, its labels after the workload, and the value."""
    metric, model, source, value, n = figure.metric, figure.model, figure.source, figure.value, figure.n
    if metric in _RATES:
        rate = metric.removesuffix("_rate")
        yield _RATES[metric], (model, source), value
        yield "retuned_judged_answers", (model, rate, source), n
        if model == ALL_MODELS:
            yield "retuned_workload_judged_answers", (rate, source), n
            for end, bound in (("low", figure.low), ("high", figure.high)):
                yield "retuned_rate_interval_ratio", (rate, source, end), bound
    elif metric in _CASCADE:
        yield _CASCADE[metric], (source,), value
    elif metric in _QUANTILES:
        yield "retuned_answer_latency_seconds", (model, _QUANTILES[metric]), value
    elif metric.endswith("_tokens"):
        yield "retuned_answer_tokens", (model, metric.removesuffix("_tokens")), value
    elif metric == "alarm_rate" and source == "grounding":
        yield "retuned_grounding_alarm_ratio", (model,), value
    elif metric == "alarm_rate":
        yield "retuned_detector_alarm_ratio", (source,), value
    elif metric == "abstention_rate":
        abstained = round(value * n)
        for outcome, count in (("abstained", abstained), ("judged", n - abstained)):
            yield "retuned_grounding_answers", (model, outcome), count
            if model == ALL_MODELS:
                yield "retuned_workload_grounding_answers", (outcome,), count
