"""The table of this package's metrics: their names, labels and help."""

from collections.abc import Iterable, Mapping

from prometheus_client import Gauge
from prometheus_client.samples import Exemplar, Sample


class Quantiles(Gauge):
    """A gauge of quantiles, exposed as a summary: only summaries may have a label `quantile`."""

    _type = "summary"


class Total(Gauge):
    """A counter that is set to a sum from the warehouse, so that a restart does not reset it."""

    _type = "counter"
    exemplar: Exemplar | None = None

    def _child_samples(self) -> Iterable[Sample]:
        return (Sample("_total", {}, self._value.get(), None, self.exemplar),)


WORKLOAD, MODEL = ("workload",), ("workload", "model_name")

GAUGES: Mapping[str, tuple[type[Gauge], tuple[str, ...], str]] = {
    "retuned_drift_detected": (
        Gauge,
        WORKLOAD,
        "1 when the latest check found drift, 0 when it did not; absent when it had too few rows or failed",
    ),
    "retuned_drift_severity_ratio": (
        Gauge,
        WORKLOAD,
        "Smallest share of the current events that must differ from those of the reference, by the feature that "
        "moved furthest; absent when the latest check had too few rows or failed",
    ),
    "retuned_drift_severity_interval_ratio": (
        Gauge,
        ("workload", "end"),
        "95% interval of the severity, by end: low or high; absent when the severity is",
    ),
    "retuned_helpful_rate_estimate": (
        Gauge,
        WORKLOAD,
        "Estimated helpful rate of all answers of the current window, rated or not, by a model of the votes; absent "
        "without enough votes",
    ),
    "retuned_helpful_rate_estimate_interval": (
        Gauge,
        ("workload", "end"),
        "95% interval of the estimated helpful rate, by end: low or high; absent when the estimate is",
    ),
    "retuned_memory_answers": (
        Total,
        ("workload", "outcome"),
        "Answers for which the memory had an entry, by outcome: helped, or held_out to measure the effect",
    ),
    "retuned_memory_unhelpful_difference_ratio": (
        Gauge,
        WORKLOAD,
        "Share of unhelpful votes of users on answers that the memory helped, minus that on answers held out; absent "
        "without votes on both",
    ),
    "retuned_memory_unhelpful_difference_interval_ratio": (
        Gauge,
        ("workload", "end"),
        "95% interval of that difference, by end: low or high; absent when the difference is",
    ),
    "retuned_drift_missing_conversations": (
        Gauge,
        WORKLOAD,
        "Conversations needed until the windows can be compared; above 0 the drift check is blind",
    ),
    "retuned_drift_check_timestamp_seconds": (
        Gauge,
        WORKLOAD,
        "Time of the latest drift check, with enough rows or not",
    ),
    "retuned_hallucination_ratio": (
        Gauge,
        (*MODEL, "source"),
        "Share of the judged answers of the current window that were invented, by source; grounding_calibrated is "
        "absent until enough labels calibrate it",
    ),
    "retuned_grounding_alarm_ratio": (
        Gauge,
        MODEL,
        "Share of the answers of the current window whose values were compared on which the grounding scorer alarms; "
        "not a rate of invented answers, as the scorer compares values only",
    ),
    "retuned_cascade_ratio": (
        Gauge,
        ("workload", "rule"),
        "Share of the answers of the current window that the incumbent gave by rule (cascade)",
    ),
    "retuned_cascade_cost_amount": (
        Gauge,
        ("workload", "rule"),
        "Mean cost of an answer of the current window that the incumbent gave by rule, in roi.currency",
    ),
    "retuned_cascade_helpful_ratio": (
        Gauge,
        ("workload", "source"),
        "Helpful rate of the answers of the current window that the incumbent gave by rule, by source of the votes",
    ),
    "retuned_detector_alarm_ratio": (
        Gauge,
        ("workload", "source"),
        "Share of the answers of the current window's sample judged by the detector (nli) or the judge (llm) on "
        "which it alarms; not a rate of invented answers until labels calibrate it",
    ),
    "retuned_grounding_answers": (
        Gauge,
        (*MODEL, "outcome"),
        "Answers with passages of the current window's sample, by what the grounding scorer did: judged or abstained "
        "(no values to compare, code, another language than English, German, French and Spanish); deprecated: "
        "model_name *, all models, for which there is retuned_workload_grounding_answers",
    ),
    "retuned_workload_grounding_answers": (
        Gauge,
        ("workload", "outcome"),
        "As retuned_grounding_answers, of all models together",
    ),
    "retuned_contradiction_ratio": (
        Gauge,
        (*MODEL, "source"),
        "Share of the pairs of answers to the same question in the current window that contradict each other",
    ),
    "retuned_tone_likeness_ratio": (
        Gauge,
        (*MODEL, "source"),
        "Likeness of the answers of the current window to approved ones, in tone and format; 1: as similar as "
        "approved ones are to each other",
    ),
    "retuned_helpful_ratio": (
        Gauge,
        (*MODEL, "source"),
        "Share of the rated answers of the current window that were helpful, by source",
    ),
    "retuned_rate_interval_ratio": (
        Gauge,
        ("workload", "rate", "source", "end"),
        "95% interval of a rate of all models together in the current window, by end: low or high",
    ),
    "retuned_judged_answers": (
        Gauge,
        (*MODEL, "rate", "source"),
        "Answers (pairs, for contradiction) of the current window that a rate was counted from, by rate; deprecated: "
        "model_name *, all models, for which there is retuned_workload_judged_answers",
    ),
    "retuned_workload_judged_answers": (
        Gauge,
        ("workload", "rate", "source"),
        "As retuned_judged_answers, of all models together",
    ),
    "retuned_feedback": (
        Total,
        ("workload", "name", "source"),
        "Feedback on stored answers of the workload, by name (other: not one of the reserved names) and source; "
        "feedback that arrives before its answer counts once the answer is stored",
    ),
    "retuned_answer_latency_seconds": (
        Quantiles,
        (*MODEL, "quantile"),
        "Latency of the answers of the current window, by quantile",
    ),
    "retuned_answer_tokens": (
        Gauge,
        (*MODEL, "kind"),
        "Mean tokens of an interaction of the current window, by kind: input or output",
    ),
    "retuned_watch_active": (
        Gauge,
        WORKLOAD,
        "1 while a champion that the gate promoted is watched in service, else 0",
    ),
    "retuned_watch_evidence_ratio": (
        Gauge,
        ("workload", "metric", "source"),
        "Evidence that the watched champion is worse than the one before, as a share of what causes a rollback (1), "
        "by metric (helpful, hallucination, latency) and source",
    ),
    "retuned_watch_power": (
        Gauge,
        WORKLOAD,
        "1 when the watch can find a fall of 20 points in its time at the present rate of votes, else 0; absent when "
        "nothing is watched",
    ),
    "retuned_watch_detection_seconds": (
        Gauge,
        WORKLOAD,
        "Time from the promotion until the watch finds a fall of 20 points at the present rate of votes; absent when "
        "it is more than a year, or nothing is watched",
    ),
    "retuned_rollout_answers": (
        Gauge,
        WORKLOAD,
        "Answers of the canary in its present step; absent while there is none",
    ),
    "retuned_rollout_evidence_ratio": (
        Gauge,
        ("workload", "metric", "source"),
        "Evidence that the canary is worse than the champion beside it, as a share of what causes a rollback (1), by "
        "metric (helpful, hallucination, latency, shadow) and source",
    ),
    "retuned_monitor_blind": (
        Gauge,
        ("workload", "monitor"),
        "1 while a monitor (quality, policy, drift or hallucination) has too few rows for reliable results, else 0",
    ),
    "retuned_monitor_missing_rows": (
        Gauge,
        ("workload", "monitor"),
        "Rows that a blind monitor lacks: conversations (quality, drift), ratings (policy) or labels "
        "(hallucination); absent while it has enough",
    ),
    "retuned_roi_ratio": (
        Gauge,
        WORKLOAD,
        "(gains - costs) / costs of the whole ledger; absent while nothing was spent or no gain is known",
    ),
    "retuned_roi_amount": (
        Gauge,
        ("workload", "kind", "item"),
        "Sum of the whole ledger by kind (gain or cost) and item, in the configured currency",
    ),
    "retuned_ledger_left_out_events": (
        Gauge,
        ("workload", "item"),
        "Numbers beyond roi.maximum_… that events reported and that are not booked, by item of the ledger",
    ),
    "retuned_roi_interval_ratio": (
        Gauge,
        ("workload", "end"),
        "95% interval of the ROI, by end: low or high; absent below 30 conversations",
    ),
    "retuned_roi_gain_interval_amount": (
        Gauge,
        ("workload", "end"),
        "95% interval of all gains, by end: low or high; absent below 30 conversations",
    ),
    "retuned_roi_version_amount": (
        Gauge,
        (*MODEL, "kind"),
        "Sum of the ledger of the champion and of the one before it, by kind: gain or cost",
    ),
    "retuned_roi_cost_per_resolved_amount": (
        Gauge,
        WORKLOAD,
        "All booked costs over the conversations that were resolved, both since the first day with a known outcome; "
        "absent while no cost is booked or none was resolved",
    ),
    "retuned_roi_conversations": (
        Gauge,
        ("workload", "outcome"),
        "Conversations of the ledger by outcome (resolved, unresolved, escalated, unknown) since the first day with "
        "a known outcome; absent before",
    ),
    "retuned_roi_uplift_amount": (
        Gauge,
        WORKLOAD,
        "Gain of the champion since it came into service, less what the one before it would have gained",
    ),
    "retuned_roi_uplift_interval_amount": (
        Gauge,
        ("workload", "end"),
        "95% interval of the uplift, by end: low or high; absent before there are three days, and while either "
        "champion has too few conversations",
    ),
}
"""By name: the kind, the labels and the help."""

COUNTERS: Mapping[str, tuple[tuple[str, ...], str]] = {
    "retuned_drift_checks_total": (
        ("workload", "outcome"),
        "Drift checks since start, by outcome: drifted, quiet or too_few_rows",
    ),
    "retuned_watch_checks_total": (
        ("workload", "verdict"),
        "Checks of a watched champion since start, by verdict: keep, roll_back or go_on",
    ),
    "retuned_rollout_decisions_total": (
        ("workload", "verdict"),
        "Checks of a canary since start, by verdict: advance, hold or roll_back",
    ),
}
"""By name: the labels and the help."""
