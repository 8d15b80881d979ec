"""A figure of quality."""

from dataclasses import dataclass

ALL_MODELS = "*"


@dataclass(frozen=True)
class Figure:
    """One figure of one model, or of all models (`*`), with its 95% interval and the number of observations.

    Metrics:
        hallucination_rate: sources user, expert, judge, app (votes) and grounding_calibrated.
        helpful_rate: sources as in feedback (votes, see `judgements.comparable_votes`).
        alarm_rate: share of the answers judged by a scorer on which it alarms; sources grounding, nli, llm.
        abstention_rate: share of the answers with passages that have no comparable values; source grounding.
        contradiction_rate: share of the pairs of answers to the same question; source grounding.
        tone_likeness: likeness to approved answers in tone and format, see `tone.likeness`; source features.
        latency_p50_seconds, latency_p95_seconds, latency_p99_seconds: source app.
        input_tokens, output_tokens: means per interaction; source app.
        window_seconds: length of the window, which ends when it was measured; n: all answers in it; source app.
        cascade_share, cascade_cost: share of the answers that the incumbent gave by rule, and mean cost of one; source:
            the rule. cascade_helpful_rate: their helpful rate; sources as in feedback.
        least_confidence: of a version's own answers (see `cascade`); source: the configured helpful rate.

    Sources are never mixed. `n` is at least 1, and no value is NaN.

    The source `grounding_calibrated` estimates the share of invented answers among all answers with passages. It uses
    experts' `hallucination` labels of answers drawn at random from two strata, those on which any scorer alarms and all
    others, weighted by the size of the stratum. Each stratum needs `calibration.MINIMUM` labels. `nli` and `llm` are
    the configured detector and judge (see Opinions), for all models together; `judge` is feedback from events.
    """

    workload: str
    model: str
    metric: str
    source: str
    value: float
    low: float
    high: float
    n: int
