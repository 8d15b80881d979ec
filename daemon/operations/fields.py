"""Fields shared by several requests."""

import os
from contextlib import suppress
from typing import Annotated

from pydantic import Field, StringConstraints

from retuned.consumers.errors import RetunedError
from retuned.daemon.operations.operation import Author, Request

Text = Annotated[str, StringConstraints(strip_whitespace=True, pattern=r"\S")]
Workload = Annotated[str, Field(description="a workload that has events")]
OneWorkload = Annotated[str | None, Field(description="only those of this workload")]
Reason = Annotated[Text, Field(description="the reason, kept with the decision")]
User = Annotated[
    str | None,
    Field(
        description="who decides, stored as an unverified name; used only if no principals are configured. With "
        "a token, the principal decides"
    ),
    Author(),
]


def check_path(text: str, what: str) -> None:
    """Raises a RetunedError where a text can be no path of this machine: too long, or with a character of none."""
    try:
        with suppress(FileNotFoundError, NotADirectoryError):
            os.lstat(text)
    except (OSError, ValueError) as error:
        raise RetunedError(f"{what}: no path on the daemon's machine ({getattr(error, 'strerror', error)})") from error


class Nothing(Request):
    """No fields."""


class OfOne(Request):
    workload: Workload


class OfWorkload(Request):
    workload: OneWorkload = None


class Named(Request):
    id: Annotated[str, Field(description="the id")]
