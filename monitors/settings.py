"""Settings of watching the model: windows, drift, quality, return on investment."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from retuned.consumers.settings import JudgeSettings, PositiveFloat, PositiveInt, Section, Share

NotNegative = Annotated[float, Field(ge=0)]


class WindowsSettings(Section):
    """Which events are compared with which. Windows are read as samples, never as the whole history."""

    reference_seconds: PositiveFloat = Field(
        7 * 86_400.0,
        description="length of the reference, from the champion's promotion on, or from the first event on without one",
    )
    current_seconds: PositiveFloat = Field(86_400.0, description="the current window reaches this far back")
    current_events: PositiveInt | None = Field(
        None, description="when set, the current window is the latest so many events within current_seconds"
    )
    sample_rows: PositiveInt = Field(1_000, description="most rows read of either window")
    minimum_rows: PositiveInt = Field(100, description="with fewer rows in either window, nothing is said about drift")


class DriftSettings(Section):
    """When two windows count as different."""

    false_alarm_rate: Share = Field(
        0.05, description="chance that a quiet check flags anything; shared out over the features (Bonferroni)"
    )
    topics: PositiveInt = Field(8, description="clusters that the prompts of the reference are sorted into")
    keep_reports: PositiveInt = Field(50, description="reports kept for each workload; older ones are deleted")
    timeout_seconds: PositiveFloat = Field(
        300.0, description="a check that takes longer is ended and counted as failed"
    )


class QualitySettings(JudgeSettings):
    """How answers are judged. A judge and an NLI model see a sample, and doubtful cases; their rates stand apart."""

    grounding_threshold: Share = Field(
        0.7, description="an answer whose grounding in its context is lower counts as a hallucination"
    )
    nli_model: Path | None = Field(
        None,
        description="folder of a model that tells whether a text entails a sentence (transformers, sequence "
        "classification with a label entailment), run in a child process; null: none",
    )
    judged_answers: PositiveInt = Field(
        50, description="most answers of a workload that the judge and the NLI model are shown each time"
    )
    judging_every_seconds: PositiveFloat = Field(3_600.0, description="how often they are shown new answers")
    judging_seconds: PositiveFloat = Field(60.0, description="longest that a measurement waits for either of them")


class RoiSettings(Section):
    """What a gain is worth and what a run costs, in one currency."""

    currency: str = Field("EUR", description="name of the currency; nothing is converted")
    hourly_rate: NotNegative = Field(40.0, description="worth of an hour that an answer saved (time_saved_seconds)")
    escalation_cost: NotNegative = Field(8.0, description="cost of one conversation handed to a person")
    baseline_escalation_rate: Share = Field(
        0.3, description="share of interactions that would be handed to a person without the model"
    )
    training_hourly_rate: NotNegative = Field(2.0, description="cost of an hour of training and evaluation")
    token_cost: NotNegative = Field(0.000_001, description="cost of one token, where an event does not say its cost")
    fixed_daily_cost: NotNegative = Field(0.0, description="licences, machines, people: cost of one day")


class Settings(Section):
    """All settings of this package."""

    windows: WindowsSettings = Field(default_factory=lambda: WindowsSettings())
    drift: DriftSettings = Field(default_factory=lambda: DriftSettings())
    quality: QualitySettings = Field(default_factory=lambda: QualitySettings())
    roi: RoiSettings = Field(default_factory=lambda: RoiSettings())
