"""Settings of watching the model: windows, drift, quality, the watch over a new champion, return on investment."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from retuned.consumers.settings import (
    JudgeSettings,
    PositiveFloat,
    PositiveInt,
    RolloutSettings,
    Section,
    Share,
    WorkloadSettings,
)
from retuned.monitors.rates import Rate, ShareRate

Attribute = Annotated[str, Field(pattern=r'^[^"\\]+$')]
NotNegative = Annotated[float, Field(ge=0)]


class WindowsSettings(Section):
    """Which events are compared with which. Windows are read as samples, never as the whole history."""

    reference_seconds: PositiveFloat = Field(
        7 * 86_400.0,
        description="length of the reference, from the champion's promotion on; before any, from the first event on "
        "that minimum_rows others follow within this length",
    )
    current_seconds: PositiveFloat = Field(86_400.0, description="the current window reaches this far back")
    current_events: PositiveInt | None = Field(
        None, description="when set, the current window is the latest so many events within current_seconds"
    )
    sample_rows: PositiveInt = Field(
        1_000, description="most conversations of either window that are read, one event of each"
    )
    minimum_rows: PositiveInt = Field(
        100,
        description="a window that holds fewer conversations is widened until it holds so many; where there are not "
        "enough, a drift check is blind",
    )
    seasonal_rows: PositiveInt | None = Field(
        500,
        description="once the reference holds so many conversations of the same hours of the day (after four weeks of "
        "the week) as the current window, it is of these alone; null: of all hours",
    )


class DriftSettings(Section):
    """When two windows count as different."""

    false_alarm_rate: Share = Field(
        0.05,
        description="chance that quiet traffic flags any feature at any check within windows.current_seconds",
    )
    minimum_distance: Share = Field(
        0.05,
        description="smallest shift that matters: a feature drifts when it moved beyond chance and at least this share "
        "of the events changed",
    )
    segments: tuple[Attribute, ...] = Field(
        (),
        description="attributes of interactions (channel, country …) whose mix is compared, and by which, as by topic "
        "and language, a check tells where a feature moved most",
    )
    topics: PositiveInt = Field(12, description="clusters that the prompts of both windows are sorted into")
    embedding_model: Path | None = Field(
        None,
        description="folder of a static embedding model in model2vec's format, by which prompts are compared, for "
        "example minishlab/potion-multilingual-128M; needs the extra static-embeddings; null: by their words (TF-IDF)",
    )
    keep_reports: PositiveInt = Field(
        50, description="reports kept of checks that found drift, for each workload, beside that of the latest check"
    )
    timeout_seconds: PositiveFloat = Field(
        300.0, description="a check that takes longer is ended and counted as failed"
    )


class QualitySettings(JudgeSettings):
    """How answers are judged. A judge and an NLI model see a sample, and doubtful cases; their rates stand apart."""

    grounding_threshold: Share = Field(
        0.05,
        description="an answer whose grounding in its passages is lower is an alarm of the grounding scorer: about the "
        "share of answers that invent nothing on which it alarms, however long they are",
    )
    nli_model: Path | None = Field(
        None,
        description="folder of a model (transformers) that tells whether a text entails a sentence (sequence "
        "classification with a label entailment), or marks the tokens of an answer that passages do not bear out "
        "(token classification with two labels), run in a child process; null: none",
    )
    judged_answers: PositiveInt = Field(
        50, description="most answers of a workload that the judge and the NLI model are shown each time"
    )
    judging_every_seconds: PositiveFloat = Field(3_600.0, description="how often they are shown new answers")
    judging_seconds: PositiveFloat = Field(
        60.0, description="longest that a measurement waits for either of them, and for the grounding scorer"
    )


class WatchSettings(Section):
    """When a champion that does worse in service than the one before it is taken back."""

    enabled: bool = Field(True, description="false: only a person takes a champion back")
    duration_seconds: PositiveFloat = Field(
        14 * 86_400.0,
        description="a champion that the gate promoted is watched for so long at most, then it is kept",
    )
    minimum_seconds: PositiveFloat = Field(
        3 * 86_400.0,
        description="nor is it kept before so long, however clearly it is as good: whole days, so that all hours count",
    )
    compare_seconds: PositiveFloat = Field(
        28 * 86_400.0,
        description="it is compared with what the champion before it answered, in the same hours of the days and weeks "
        "before the promotion; as many of them as hold 500 votes, and none longer ago than this",
    )
    vote_seconds: PositiveFloat = Field(
        86_400.0, description="a vote counts when it comes within so long after the answer, whichever version gave that"
    )
    margin: Share = Field(
        0.05, description="the shares of unhelpful, of invented and of slow answers may each be higher by so much"
    )
    latency_ratio: Annotated[float, Field(ge=1)] = Field(
        3.0, description="slow is what takes so many times longer than nine in ten answers of the champion before"
    )
    false_rollback_rate: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.05,
        description="chance that a version within the margin is taken back, over the whole watch however often it is "
        "looked at and whatever is compared",
    )
    minimum_votes: PositiveInt = Field(
        30,
        description="with fewer voters (accounts, else conversations) on either side, a comparison takes nothing back",
    )


class RoiSettings(Section):
    """What a gain is worth and what a run costs, in one currency. What has no rate is not booked."""

    currency: str = Field("EUR", description="name of the currency; nothing is converted")
    hourly_rate: Rate = Field(
        None,
        description="worth of an hour that an answer saved (time_saved_seconds). Each rate is a number, or a list of "
        "numbers with the day (UTC) from which on they hold, oldest first: "
        "[{from: 2026-01-01, value: 40}, {from: 2026-07-01, value: 42}]; null, and before the first day: not booked",
    )
    escalation_cost: Rate = Field(None, description="cost of one conversation handed to a person")
    baseline_escalation_rate: ShareRate = Field(
        None,
        description="share of conversations that were handed to a person before there was the model, as you measured "
        "it; null: no escalation is counted as avoided",
    )
    ticket_cost: Rate = Field(
        None,
        description="worth of a conversation that was called resolved: the cost of a ticket × the share of such "
        "questions that would have become one. Where escalations count too, price here what is not in escalation_cost",
    )
    third_party_cost: Rate = Field(
        None,
        description="price of the third-party call that one answer replaces, where its attribute third_party_cost "
        "does not say it",
    )
    training_hourly_rate: Rate = Field(None, description="cost of an hour of training and evaluation")
    judge_token_cost: Rate = Field(
        None,
        description="cost of one token that a language model is paid for to judge a run's answers (evaluate.judge_url)",
    )
    provider_training_token_cost: Rate = Field(
        None, description="train.engine api: cost of one token that the provider trains on, in each epoch"
    )
    provider_input_token_cost: Rate = Field(
        None, description="train.engine api: cost of one token that a model of the provider reads in an evaluation"
    )
    provider_output_token_cost: Rate = Field(
        None, description="train.engine api: cost of one token that it generates there"
    )
    token_cost: Rate = Field(None, description="cost of one token, where an event does not say its cost")
    expert_hourly_rate: Rate = Field(None, description="cost of an hour of an expert who corrects or judges answers")
    expert_minutes: NotNegative = Field(3.0, description="minutes that an expert takes for one answer")
    licence_monthly_cost: Rate = Field(None, description="licences: cost of one calendar month")
    fixed_daily_cost: Rate = Field(None, description="machines, people and all else that is fixed: cost of one day")
    maximum_time_saved_seconds: PositiveFloat = Field(
        14_400.0,
        description="an event that reports more time saved by one answer is taken for a mistake: it is not booked, and "
        "counted (retuned_ledger_left_out_events)",
    )
    maximum_event_amount: PositiveFloat = Field(
        100.0,
        description="so is one that reports that one answer cost or replaced more money than this (cost, tokens × "
        "token_cost, third_party_cost)",
    )


class Settings(WorkloadSettings):
    """All settings of this package."""

    windows: WindowsSettings = Field(default_factory=lambda: WindowsSettings())
    drift: DriftSettings = Field(default_factory=lambda: DriftSettings())
    quality: QualitySettings = Field(default_factory=lambda: QualitySettings())
    watch: WatchSettings = Field(default_factory=lambda: WatchSettings())
    rollout: RolloutSettings = Field(default_factory=lambda: RolloutSettings())
    roi: RoiSettings = Field(default_factory=lambda: RoiSettings())
