"""The metrics of watching the model, with their help. Gauges are set from results; nothing is queried at a scrape."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.samples import Exemplar, Sample

from retuned.consumers.common.series import exemplar_labels, forget_other_workloads
from retuned.monitors.blindness import MONITORS, Blindness
from retuned.monitors.drift.check import DriftCheck
from retuned.monitors.money.outcomes import Outcomes
from retuned.monitors.money.roi import Roi, Tenure
from retuned.monitors.quality.measure import ALL_MODELS, QUANTILES, Figure
from retuned.monitors.watch.canary import CanaryCheck
from retuned.monitors.watch.check import WatchCheck


class Quantiles(Gauge):
    """A gauge of quantiles, which are a summary in Prometheus' terms: those alone may have a label `quantile`."""

    _type = "summary"


class Total(Gauge):
    """A counter that is set, to a sum that the warehouse keeps: a restart does not reset it."""

    _type = "counter"
    exemplar: Exemplar | None = None

    def _child_samples(self) -> Iterable[Sample]:
        return (Sample("_total", {}, self._value.get(), None, self.exemplar),)


class Metrics:
    """All metrics of this package, on the registry that is passed in.

    `*` as model_name is all models of the window, `other` those beyond its busiest.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        model = ["workload", "model_name"]
        self.drift_detected = Gauge(
            "retuned_drift_detected",
            "1 when the latest check found drift, 0 when it did not; absent when it had too few rows or failed",
            ["workload"],
            registry=registry,
        )
        self.drift_severity = Gauge(
            "retuned_drift_severity_ratio",
            "Share of the events that the feature that moved furthest says is different; absent when the latest check "
            "had too few rows or failed",
            ["workload"],
            registry=registry,
        )
        self.drift_severity_interval = Gauge(
            "retuned_drift_severity_interval_ratio",
            "95% interval of the severity, by end: low or high; absent when the severity is",
            ["workload", "end"],
            registry=registry,
        )
        self.drift_missing = Gauge(
            "retuned_drift_missing_conversations",
            "Conversations that are missing until the windows can be compared: above 0 the drift check is blind",
            ["workload"],
            registry=registry,
        )
        self.drift_checked = Gauge(
            "retuned_drift_check_timestamp_seconds",
            "When the latest drift check was made, enough rows or not",
            ["workload"],
            registry=registry,
        )
        self.drift_checks = Counter(
            "retuned_drift_checks_total",
            "Drift checks since start, by outcome: drifted, quiet or too_few_rows",
            ["workload", "outcome"],
            registry=registry,
        )
        self.hallucination = Gauge(
            "retuned_hallucination_ratio",
            "Share of the judged answers of the current window that were invented, by who judged them",
            [*model, "source"],
            registry=registry,
        )
        self.alarms = Gauge(
            "retuned_grounding_alarm_ratio",
            "Share of the answers of the current window judged by the grounding scorer on which it alarms; no rate of "
            "invented answers, as it alarms on good ones too",
            model,
            registry=registry,
        )
        self.grounding = Gauge(
            "retuned_grounding_answers",
            "Answers with passages of the current window's sample, by what the grounding scorer did: judged or "
            "abstained (another language than English, tables, code); deprecated: model_name *, all models, for which "
            "there is retuned_workload_grounding_answers",
            [*model, "outcome"],
            registry=registry,
        )
        self.workload_grounding = Gauge(
            "retuned_workload_grounding_answers",
            "As retuned_grounding_answers, of all models together",
            ["workload", "outcome"],
            registry=registry,
        )
        self.contradiction = Gauge(
            "retuned_contradiction_ratio",
            "Share of the pairs of answers to the same question in the current window that contradict each other",
            [*model, "source"],
            registry=registry,
        )
        self.tone = Gauge(
            "retuned_tone_likeness_ratio",
            "Likeness of the answers of the current window to approved ones, in tone and format; 1: as like as those "
            "are to each other",
            [*model, "source"],
            registry=registry,
        )
        self.helpful = Gauge(
            "retuned_helpful_ratio",
            "Share of the rated answers of the current window that were helpful, by who rated them",
            [*model, "source"],
            registry=registry,
        )
        self.judged = Gauge(
            "retuned_judged_answers",
            "Answers (pairs, for contradiction) of the current window that a rate was counted from, by rate; "
            "deprecated: model_name *, all models, for which there is retuned_workload_judged_answers",
            [*model, "rate", "source"],
            registry=registry,
        )
        self.workload_judged = Gauge(
            "retuned_workload_judged_answers",
            "As retuned_judged_answers, of all models together",
            ["workload", "rate", "source"],
            registry=registry,
        )
        self.feedback = Total(
            "retuned_feedback",
            "Feedback on stored answers of the workload, by name (other: not one of the reserved names) and source; "
            "what comes before its answer counts once that is there",
            ["workload", "name", "source"],
            registry=registry,
        )
        self.latency = Quantiles(
            "retuned_answer_latency_seconds",
            "Latency of the answers of the current window, by quantile",
            [*model, "quantile"],
            registry=registry,
        )
        self.tokens = Gauge(
            "retuned_answer_tokens",
            "Mean tokens of an interaction of the current window, by kind: input or output",
            [*model, "kind"],
            registry=registry,
        )
        self.watch_active = Gauge(
            "retuned_watch_active",
            "1 while a champion that the gate promoted is watched in service, else 0",
            ["workload"],
            registry=registry,
        )
        self.watch_evidence = Gauge(
            "retuned_watch_evidence_ratio",
            "Evidence that the watched champion is worse than the one before, of what takes it back (1), by what is "
            "compared (helpful, hallucination, latency) and who says so",
            ["workload", "metric", "source"],
            registry=registry,
        )
        self.watch_power = Gauge(
            "retuned_watch_power",
            "1 when the watch can find a fall of 20 points in its time at the present rate of votes, else 0; absent "
            "when nothing is watched",
            ["workload"],
            registry=registry,
        )
        self.watch_detection = Gauge(
            "retuned_watch_detection_seconds",
            "How long after the promotion a fall of 20 points shows at the present rate of votes; absent when not "
            "within a year, or nothing is watched",
            ["workload"],
            registry=registry,
        )
        self.watch_checks = Counter(
            "retuned_watch_checks_total",
            "Looks at a watched champion since start, by verdict: keep, roll_back or go_on",
            ["workload", "verdict"],
            registry=registry,
        )
        self.rollout_decisions = Counter(
            "retuned_rollout_decisions_total",
            "Looks at a canary since start, by verdict: advance, hold or roll_back",
            ["workload", "verdict"],
            registry=registry,
        )
        self.rollout_answers = Gauge(
            "retuned_rollout_answers",
            "Answers of the canary in its present step; absent while there is none",
            ["workload"],
            registry=registry,
        )
        self.rollout_evidence = Gauge(
            "retuned_rollout_evidence_ratio",
            "Evidence that the canary is worse than the champion beside it, of what takes it back (1), by what is "
            "compared (helpful, hallucination, latency, shadow) and who says so",
            ["workload", "metric", "source"],
            registry=registry,
        )
        self.blind = Gauge(
            "retuned_monitor_blind",
            "1 while a monitor (quality, policy or drift) has too few rows to report what can be relied on, else 0",
            ["workload", "monitor"],
            registry=registry,
        )
        self.roi_ratio = Gauge(
            "retuned_roi_ratio",
            "(gains - costs) / costs of the whole ledger; absent while nothing was spent or no gain is known",
            ["workload"],
            registry=registry,
        )
        self.roi_amount = Gauge(
            "retuned_roi_amount",
            "Sum of the whole ledger by kind (gain or cost) and item, in the configured currency",
            ["workload", "kind", "item"],
            registry=registry,
        )
        self.left_out = Gauge(
            "retuned_ledger_left_out_events",
            "Numbers that events reported beyond roi.maximum_…, which are not booked, by item of the ledger",
            ["workload", "item"],
            registry=registry,
        )
        self.roi_interval = Gauge(
            "retuned_roi_interval_ratio",
            "95% interval of the ROI, by end: low or high; absent below 30 conversations",
            ["workload", "end"],
            registry=registry,
        )
        self.roi_gain_interval = Gauge(
            "retuned_roi_gain_interval_amount",
            "95% interval of all gains, by end: low or high; absent below 30 conversations",
            ["workload", "end"],
            registry=registry,
        )
        self.roi_version_amount = Gauge(
            "retuned_roi_version_amount",
            "Sum of the ledger of the champion and of the one before it, by kind: gain or cost",
            [*model, "kind"],
            registry=registry,
        )
        self.cost_per_resolved = Gauge(
            "retuned_roi_cost_per_resolved_amount",
            "All booked costs over the conversations that were resolved, both since it is known whether they are; "
            "absent while no cost is booked or none was resolved",
            ["workload"],
            registry=registry,
        )
        self.conversations = Gauge(
            "retuned_roi_conversations",
            "Conversations of the ledger by outcome (resolved, unresolved, escalated, unknown) since it is known "
            "whether any was resolved; absent before",
            ["workload", "outcome"],
            registry=registry,
        )
        self.roi_uplift = Gauge(
            "retuned_roi_uplift_amount",
            "What the champion gained since it came into service, less what the one before it would have gained",
            ["workload"],
            registry=registry,
        )
        self.roi_uplift_interval = Gauge(
            "retuned_roi_uplift_interval_amount",
            "95% interval of the uplift, by end: low or high; absent while either champion has too few conversations",
            ["workload", "end"],
            registry=registry,
        )
        self._shown: dict[tuple[Gauge, str], set[tuple[str, ...]]] = {}

    def drift(self, check: DriftCheck, *, counted: bool = True) -> None:
        """Show a check; without a verdict there is no gauge. One from before a restart is shown and not counted."""
        self.drift_checked.labels(check.workload).set(check.created_at.replace(tzinfo=UTC).timestamp())
        outcome = {None: "too_few_rows", True: "drifted", False: "quiet"}[check.drifted]
        if counted:
            self.drift_checks.labels(check.workload, outcome).inc()
        self._drift(check.workload, check)

    def drift_unknown(self, workload: str) -> None:
        """Show that nothing is known: the latest check failed, or was of a reference that is one no more."""
        self._drift(workload, None)

    def drift_ended(self, workload: str) -> None:
        """Show nothing: the workload is not checked any more."""
        self.drift_unknown(workload)
        self.drift_checked.remove_by_labels({"workload": workload})

    def _drift(self, workload: str, check: DriftCheck | None) -> None:
        self._replace(self.drift_detected, workload, [((), check.drifted)] if check else [])
        self._replace(self.drift_severity, workload, [((), check.severity)] if check else [])
        ends = _ends(check.severity_low, check.severity_high) if check else []
        self._replace(self.drift_severity_interval, workload, ends)
        self._replace(self.drift_missing, workload, [((), check.missing or 0)] if check else [])

    def watch(self, workload: str, seen: WatchCheck | None) -> None:
        """Show a look at the watched champion of a workload; None: none is watched."""
        self.watch_active.labels(workload).set(seen is not None and seen.verdict == "go_on")
        comparisons = seen.comparisons if seen else []
        watched = seen if seen is not None and seen.verdict == "go_on" else None
        self._replace(self.watch_power, workload, [((), watched.has_power)] if watched else [])
        self._replace(self.watch_detection, workload, [((), watched.seconds_to_find)] if watched else [])
        self._replace(self.watch_evidence, workload, [((c.metric, c.source), c.worse) for c in comparisons])
        if seen is not None:
            self.watch_checks.labels(workload, seen.verdict).inc()

    def canary(self, workload: str, seen: CanaryCheck | None) -> None:
        """Show a look at the canary of a workload; None: there is none."""
        self._replace(self.rollout_answers, workload, [((), seen.answers)] if seen else [])
        comparisons = seen.comparisons if seen else []
        self._replace(self.rollout_evidence, workload, [((c.metric, c.source), c.worse) for c in comparisons])
        if seen is not None:
            self.rollout_decisions.labels(workload, seen.verdict).inc()

    def quality(self, workload: str, figures: list[Figure]) -> None:
        """Show the figures of a workload; what has no figure any more disappears."""
        rates = {
            "hallucination_rate": self.hallucination,
            "contradiction_rate": self.contradiction,
            "tone_likeness": self.tone,
            "helpful_rate": self.helpful,
        }
        quantiles = {metric: f"{quantile:g}" for quantile, metric in QUANTILES.items()}
        for metric, gauge in rates.items():
            self._replace(gauge, workload, [((f.model, f.source), f.value) for f in figures if f.metric == metric])
        judged: list[tuple[tuple[str, ...], int]] = [
            ((f.model, f.metric.removesuffix("_rate"), f.source), f.n) for f in figures if f.metric in rates
        ]
        latency = [((f.model, quantiles[f.metric]), f.value) for f in figures if f.metric in quantiles]
        tokens = [
            ((f.model, f.metric.removesuffix("_tokens")), f.value) for f in figures if f.metric.endswith("_tokens")
        ]
        self._replace(self.alarms, workload, [((f.model,), f.value) for f in figures if f.metric == "alarm_rate"])
        outcomes = list[tuple[tuple[str, ...], int]]()
        for figure in figures:
            if figure.metric == "abstention_rate":
                abstained = round(figure.value * figure.n)
                outcomes += [
                    ((figure.model, "abstained"), abstained),
                    ((figure.model, "judged"), figure.n - abstained),
                ]
        for counts, gauge, of_all in (
            (outcomes, self.grounding, self.workload_grounding),
            (judged, self.judged, self.workload_judged),
        ):
            self._replace(gauge, workload, counts)
            self._replace(of_all, workload, [(labels[1:], n) for labels, n in counts if labels[0] == ALL_MODELS])
        self._replace(self.latency, workload, latency)
        self._replace(self.tokens, workload, tokens)

    def feedback_totals(
        self,
        workload: str,
        totals: Mapping[tuple[str, str], int],
        complaints: Mapping[tuple[str, str], tuple[str, datetime]],
    ) -> None:
        """Show how much feedback there was on a workload's answers, by name and source, with an answer that was
        complained of lately as exemplar: the id of its interaction, and when (naive UTC)."""
        self._replace(self.feedback, workload, totals.items())
        for series in complaints.keys() & totals.keys():
            name, at = complaints[series]
            if labels := exemplar_labels(name):
                self.feedback.labels(workload, *series).exemplar = Exemplar(
                    labels, 1, at.replace(tzinfo=UTC).timestamp()
                )

    def blindness(self, workload: str, found: Collection[Blindness]) -> None:
        """Show which monitors of a workload have too few rows."""
        for monitor in MONITORS:
            self.blind.labels(workload, monitor).set(any(one.monitor == monitor for one in found))

    def roi(
        self,
        workload: str,
        found: Roi,
        versions: Mapping[str | None, Roi],
        latest: Tenure | None,
        left_out: Mapping[str, int],
        became: Outcomes | None,
    ) -> None:
        """Show the ledger of a workload. Of its versions, those that the latest change of the champion is about."""
        amounts = defaultdict[tuple[str, str], float](float)
        for item in found.items:
            amounts[item.kind, item.item] += item.amount
        self._replace(self.roi_ratio, workload, [((), found.ratio)])
        self._replace(self.roi_amount, workload, amounts.items())
        self._replace(self.left_out, workload, [((item,), reported) for item, reported in left_out.items()])
        self._replace(self.cost_per_resolved, workload, [((), became.cost_per_resolved)] if became else [])
        counts = became.counts() if became else {}
        self._replace(self.conversations, workload, [((outcome,), count) for outcome, count in counts.items()])
        self._replace(self.roi_interval, workload, _ends(found.ratio_low, found.ratio_high))
        self._replace(self.roi_gain_interval, workload, _ends(found.gains_low, found.gains_high))
        named = (latest.version, latest.previous_version) if latest else (None,)
        by_version = {f"{workload}@{version or 'base'}": versions[version] for version in named if version in versions}
        gains = [((name, "gain"), of.gains) for name, of in by_version.items()]
        costs = [((name, "cost"), of.costs) for name, of in by_version.items()]
        self._replace(self.roi_version_amount, workload, gains + costs)
        self._replace(self.roi_uplift, workload, [((), latest.uplift)] if latest else [])
        ends = _ends(latest.uplift_low, latest.uplift_high) if latest else []
        self._replace(self.roi_uplift_interval, workload, ends)

    def keep(self, measured: Collection[str], watched: Collection[str]) -> None:
        """Forget the workloads that are no longer measured; of the watch, those that are no longer watched."""
        watch = (
            self.watch_active, self.watch_evidence, self.watch_power, self.watch_detection, self.watch_checks
        )  # fmt: skip
        others = [metric for metric in vars(self).values() if metric not in watch]
        gone = forget_other_workloads(others, measured) | forget_other_workloads(watch, watched)
        self._shown = {
            (gauge, workload): labels
            for (gauge, workload), labels in self._shown.items()
            if workload not in gone or (gauge in watch and workload in watched)
        }

    def _replace(self, gauge: Gauge, workload: str, series: Iterable[tuple[tuple[str, ...], float | None]]) -> None:
        values = {labels: value for labels, value in series if value is not None}
        for labels in self._shown.get((gauge, workload), set()) - values.keys():
            gauge.remove(workload, *labels)
        self._shown[gauge, workload] = set(values)
        for labels, value in values.items():
            gauge.labels(workload, *labels).set(value)


def _ends(low: float | None, high: float | None) -> list[tuple[tuple[str, ...], float | None]]:
    return [(("low",), low), (("high",), high)]
