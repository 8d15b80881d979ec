"""Settings of the memory of corrections."""

from typing import Annotated, Literal

from pydantic import Field

from retuned.consumers.sections import PositiveInt, Section


class MemorySettings(Section):
    """Approved corrections that apply within seconds, until a version has learned them."""

    mode: Literal["context", "answer", "off"] = Field(
        "off",
        description="context: the gateway adds the approved answer to the request as a message; answer: it answers the "
        "same question itself, and asks no model server; off: corrections wait for the next version",
    )
    holdout_share: Annotated[float, Field(ge=0, le=0.5)] = Field(
        0.1,
        description="share of conversations that an entry does not help, to measure its effect; 0: it is not measured, "
        "and an entry that makes answers worse is not withdrawn",
    )
    similar: bool = Field(
        True,
        description="an entry may also help related questions, if an embedding library is installed "
        "(pip install 'retuned[memory]'); false: the same question only",
    )
    error_rate: Annotated[float, Field(gt=0, le=0.5)] = Field(
        0.02,
        description="highest share of related questions that get an entry which is not their answer; an entry without "
        "evidence for this bound helps the same question only",
    )
    max_prompt_bytes: PositiveInt = Field(
        64 * 2**10,
        description="longest prompt that is looked up: messages, passages, tools and template arguments, as JSON; "
        "redacting it takes about a millisecond for 2 KiB, during which other look-ups wait",
    )
    entries_per_account: PositiveInt = Field(
        100, description="most entries in force that rest on the correction of one user; the oldest expire"
    )
    max_entries: PositiveInt = Field(100_000, description="most entries in force of a workload; the oldest expire")
