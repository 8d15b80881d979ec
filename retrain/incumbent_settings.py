"""Settings of the incumbent of a workload."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from retuned.consumers.sections import HttpUrl, PositiveFloat, PositiveInt, Section, Share


class CascadeSettings(Section):
    """The requests that the incumbent answers whichever version is in service."""

    longer_than: PositiveInt | None = Field(
        None, description="requests whose messages have more characters go to the incumbent; null: no limit"
    )
    tools: bool = Field(False, description="true: requests that offer tools go to the incumbent")
    languages: tuple[Annotated[str, StringConstraints(pattern="^[a-z]{2}$")], ...] = Field(
        (),
        description="languages that versions answer, as ISO codes such as en and de; requests whose last message is "
        "clearly in another one go to the incumbent; empty: all languages",
    )
    helpful_rate: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None,
        description="the least helpful rate of a version's own answers: answers of which the version is less sure than "
        "where the votes show this rate are replaced by the incumbent's; null: none is replaced",
    )


class IncumbentSettings(Section):
    """The commercial API that answers a workload until a version of its own does, and instead of one that fails."""

    url: HttpUrl | None = Field(
        None,
        description="base URL of the API, for example https://api.openai.com/v1 or https://api.anthropic.com/v1; null: "
        "the base model of the model servers answers until a version does",
    )
    api: Literal["openai", "anthropic"] = Field(
        "openai",
        description="what it speaks, and so the apps and the model servers of the workload: openai (chat completions) "
        "or anthropic (messages)",
    )
    model: str | None = Field(None, description="the model to request, for example gpt-4.1-mini", min_length=1)
    key_file: Path | None = Field(
        None,
        description="file that holds the API key; null: the key that the app sends goes to the incumbent, and to no "
        "model server",
    )
    timeout_seconds: PositiveFloat = Field(120.0, description="longest wait for the next byte of an answer")
    input_price: Annotated[float, Field(ge=0)] | None = Field(
        None,
        description="price of a million input tokens, in roi.currency; null: its answers have no cost of their own",
    )
    output_price: Annotated[float, Field(ge=0)] | None = Field(
        None, description="price of a million output tokens, in roi.currency"
    )
    fallback: bool = Field(
        True,
        description="whether the incumbent answers what the model servers fail to answer, and a version in service "
        "what the incumbent fails to answer; false: the app gets the error",
    )
    margin: Share = Field(
        0.0,
        description="by how much a candidate may score worse than the incumbent's answers and still be promoted; the "
        "whole interval must be above that",
    )
    wrong_share: Share | None = Field(
        None,
        description="share of all of its answers that are wrong, measured on a random sample, such as 200 that an "
        "expert checks; null: not known, so a candidate is compared only where people called its answer good",
    )

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.url is None) != (self.model is None):
            raise ValueError("expected url and model together")
        if (self.input_price is None) != (self.output_price is None):
            raise ValueError("expected input_price and output_price together")
        return self

    @property
    def prices(self) -> tuple[float, float] | None:
        """The prices of a million input and output tokens, if set."""
        if self.input_price is None or self.output_price is None:
            return None
        return self.input_price, self.output_price
