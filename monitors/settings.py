"""Settings of the monitors: windows, drift, quality, watch, and return on investment."""

import logging
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from retuned.consumers.sections import JudgeSettings, PositiveFloat, PositiveInt, Section, Share, WorkloadSettings
from retuned.consumers.settings import RolloutSettings
from retuned.monitors.money.dated import Rate, ShareRate

log = logging.getLogger(__name__)

Attribute = Annotated[str, Field(pattern=r'^[^"\\]+$')]
NotNegative = Annotated[float, Field(ge=0)]


class WindowsSettings(Section):
    """Which events are compared. Windows are read as samples, never as the whole history."""

    reference_seconds: PositiveFloat = Field(
        7 * 86_400.0,
        description="length of the reference, from the champion's promotion on; before any promotion, from the first "
        "event that minimum_rows others follow within this length",
    )
    current_seconds: PositiveFloat = Field(86_400.0, description="length of the current window")
    current_events: PositiveInt | None = Field(
        None, description="if set, the current window has only the latest of its events, at most this many"
    )
    sample_rows: PositiveInt = Field(
        1_000, description="most conversations that are read of each window, with one event of each"
    )
    minimum_rows: PositiveInt = Field(
        100,
        description="a window with fewer conversations is widened until it has this many; if there are not enough, a "
        "drift check is blind",
    )
    seasonal_rows: PositiveInt | None = Field(
        500,
        description="once the reference has this many conversations in the current window's hours of the day (after "
        "four weeks, of the week), only these hours are compared; null: all hours",
    )


class DriftSettings(Section):
    """When two windows count as different."""

    false_alarm_rate: Share = Field(
        0.05,
        description="chance that quiet traffic flags any feature at any check within windows.current_seconds",
    )
    minimum_distance: Share = Field(
        0.05,
        description="smallest relevant shift: a feature drifts if it moved beyond chance and at least this share of "
        "the events changed",
    )
    segments: tuple[Attribute, ...] = Field(
        (),
        description="attributes of interactions (channel, country …) whose mix is compared; with topic and language, "
        "they also locate where a feature moved most",
    )
    topics: PositiveInt = Field(12, description="number of clusters of the prompts of both windows")
    embedding_model: Path | None = Field(
        None,
        description="folder of a static embedding model in model2vec's format to compare prompts with, for example "
        "minishlab/potion-multilingual-128M; needs the extra static-embeddings; null: compare their words (TF-IDF)",
    )
    keep_reports: PositiveInt = Field(
        50, description="reports of checks with drift that are kept for each workload, besides the latest report"
    )
    timeout_seconds: PositiveFloat = Field(
        300.0, description="a check that takes longer is killed and counted as failed"
    )


class QualitySettings(JudgeSettings):
    """How answers are judged. A judge and a detector judge a sample; labels calibrate their alarms."""

    grounding_threshold: Share = Field(
        0.05,
        description="the grounding scorer alarms on answers with a lower score. The score is 0 if the passages "
        "contradict a value or lack a source, 0.5 if they do not support a value, else 1: with a threshold above 0.5, "
        "unsupported values are alarms as well",
    )
    detector: Path | None = Field(
        None,
        description="folder of a model (transformers) that detects unsupported content, run in a child process: one "
        "that marks tokens (LettuceDetect), HHEM-2.1-Open, or one of natural language inference; null: none",
    )
    judged_answers: PositiveInt = Field(
        50, description="most answers of a workload that the judge and the detector get each time"
    )
    judging_every_seconds: PositiveFloat = Field(3_600.0, description="interval at which they get new answers")
    judging_seconds: PositiveFloat = Field(
        60.0, description="longest time for each of them, and for the grounding scorer, to judge answers of a workload"
    )

    @model_validator(mode="before")
    @classmethod
    def _former_names(cls, given: Any) -> Any:
        """Accepts the deprecated key nli_model for detector until version 1.1."""
        if isinstance(given, dict) and "nli_model" in given:
            log.warning("quality.nli_model is deprecated: use quality.detector")
            given = {key: value for key, value in given.items() if key != "nli_model"} | {
                "detector": given["nli_model"]
            }
        return given


class WatchSettings(Section):
    """When a champion that performs worse in service than its predecessor is rolled back."""

    enabled: bool = Field(True, description="false: champions are only rolled back by people")
    duration_seconds: PositiveFloat = Field(
        14 * 86_400.0,
        description="longest time for which a champion promoted by the gate is watched; then it is kept",
    )
    minimum_seconds: PositiveFloat = Field(
        3 * 86_400.0,
        description="shortest time before it is kept, however clear the evidence: whole days, so that all hours count",
    )
    compare_seconds: PositiveFloat = Field(
        28 * 86_400.0,
        description="farthest time before the promotion that it is compared with: the former champion's answers in the "
        "same hours of earlier days and weeks, as many as hold 500 votes",
    )
    vote_seconds: PositiveFloat = Field(
        86_400.0, description="a vote counts if it arrives within this time after its answer, for all versions"
    )
    margin: Share = Field(
        0.05, description="tolerated increase of each of the shares of unhelpful, invented and slow answers"
    )
    latency_ratio: Annotated[float, Field(ge=1)] = Field(
        3.0, description="an answer is slow if it takes this many times the 90th percentile of the former champion"
    )
    false_rollback_rate: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.05,
        description="chance that a version within the margin is rolled back, over the whole watch and all comparisons, "
        "however often it is checked",
    )
    minimum_votes: PositiveInt = Field(
        30,
        description="accounts (else conversations) with votes on either side that a comparison needs for a rollback",
    )


class RoiSettings(Section):
    """The worth of gains and the rates of costs, in one currency. Items without a rate are not booked."""

    currency: str = Field("EUR", description="name of the currency; nothing is converted")
    hourly_rate: Rate = Field(
        None,
        description="worth of an hour that an answer saved (time_saved_seconds). Each rate is a number, or a list of "
        "numbers with their first day (UTC), oldest first: "
        "[{from: 2026-01-01, value: 40}, {from: 2026-07-01, value: 42}]; null, and before the first day: not booked",
    )
    escalation_cost: Rate = Field(None, description="cost of one conversation handed to a person")
    baseline_escalation_rate: ShareRate = Field(
        None,
        description="measured share of conversations that were handed to a person before the model was introduced; "
        "null: no escalation counts as avoided",
    )
    ticket_cost: Rate = Field(
        None,
        description="worth of a resolved conversation: the cost of a ticket × the share of such questions that would "
        "have become one. If escalations count as well, leave out what escalation_cost includes",
    )
    third_party_cost: Rate = Field(
        None,
        description="price of the third-party call that an answer without the attribute third_party_cost replaces",
    )
    training_hourly_rate: Rate = Field(None, description="cost of an hour of training and evaluation")
    judge_token_cost: Rate = Field(
        None,
        description="cost of one token of the language model that judges a run's answers (evaluate.judge_url)",
    )
    token_cost: Rate = Field(None, description="cost of one token of events without a cost")
    expert_hourly_rate: Rate = Field(None, description="cost of an hour of an expert who corrects or judges answers")
    expert_minutes: NotNegative = Field(3.0, description="minutes of an expert for one answer")
    licence_monthly_cost: Rate = Field(None, description="licences: cost of one calendar month")
    fixed_daily_cost: Rate = Field(None, description="machines, people and other fixed costs: cost of one day")
    maximum_time_saved_seconds: PositiveFloat = Field(
        14_400.0,
        description="more time saved by one answer counts as a mistake: it is not booked, but counted "
        "(retuned_ledger_left_out_events)",
    )
    maximum_event_amount: PositiveFloat = Field(
        100.0,
        description="more money for one answer (cost, tokens × token_cost, third_party_cost) counts as a mistake as "
        "well",
    )


class Settings(WorkloadSettings):
    """All settings of this package."""

    windows: WindowsSettings = Field(default_factory=lambda: WindowsSettings())
    drift: DriftSettings = Field(default_factory=lambda: DriftSettings())
    quality: QualitySettings = Field(default_factory=lambda: QualitySettings())
    watch: WatchSettings = Field(default_factory=lambda: WatchSettings())
    rollout: RolloutSettings = Field(default_factory=lambda: RolloutSettings())
    roi: RoiSettings = Field(default_factory=lambda: RoiSettings())
