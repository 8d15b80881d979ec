"""What a model server lists, and which of it is its base model."""

from collections.abc import Sequence

import msgspec

LIST_SECONDS = 5.0
"""Longest wait for a server's list of models."""


class Model(msgspec.Struct):
    """An entry of a server's list of models."""

    id: str
    parent: str | None = None
    owned_by: str | None = None

    @property
    def asked_as(self) -> str:
        """Its name in a request. SGLang lists an adapter by its name, and takes that name alone for the base model."""
        return f"{self.parent}:{self.id}" if self.parent and self.owned_by == "sglang" else self.id


class Models(msgspec.Struct):
    """A server's list of models."""

    data: list[Model]


MODELS = msgspec.json.Decoder(Models)


def base_of(models: Sequence[Model], configured: str | None) -> str | None:
    """The name of the base model: the configured one, else the first that is listed without a parent; None: it is not
    listed."""
    if configured:
        return configured if any(model.id == configured for model in models) else None
    first = next((model.id for model in models if model.parent is None), None)
    # A server that names versions lists no base model, but one of them.
    return None if "@" in (first or "") else first
