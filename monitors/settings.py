"""Settings of watching the model: windows, drift, quality, return on investment."""

from typing import Annotated

from pydantic import Field

from retuned.consumers.settings import PositiveFloat, PositiveInt, Section, Share

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
    seasonal_rows: PositiveInt | None = Field(
        500,
        description="once the reference holds so many events of the same hours of the week (else of the day) as the "
        "current window, it is of these alone; null: of all hours",
    )


class DriftSettings(Section):
    """When two windows count as different."""

    false_alarm_rate: Share = Field(
        0.05,
        description="chance that quiet traffic flags any feature at any check within windows.current_seconds",
    )
    topics: PositiveInt = Field(12, description="clusters that the prompts of both windows are sorted into")
    keep_reports: PositiveInt = Field(50, description="reports kept for each workload; older ones are deleted")
    timeout_seconds: PositiveFloat = Field(
        300.0, description="a check that takes longer is ended and counted as failed"
    )


class QualitySettings(Section):
    """How answers are judged."""

    grounding_threshold: Share = Field(
        0.7, description="an answer whose grounding in its context is lower counts as a hallucination"
    )


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
