"""Fields shared by several requests."""

from typing import Annotated

from pydantic import Field, StringConstraints

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


class Nothing(Request):
    """No fields."""


class OfOne(Request):
    workload: Workload


class OfWorkload(Request):
    workload: OneWorkload = None


class Named(Request):
    id: Annotated[str, Field(description="the id")]
