"""A model server's list of models, and the choice of the base model among them."""

from collections.abc import Sequence

import msgspec

LIST_BYTES, LIST_SECONDS = 4 * 2**20, 5.0
"""Bounds of a server's list of models."""


class Model(msgspec.Struct):
    """An entry of a server's list of models."""

    id: str
    parent: str | None = None
    owned_by: str | None = None

    @property
    def asked_as(self) -> str:
        """The model's name in a request. SGLang answers an adapter's listed name with the base model."""
        return f"{self.parent}:{self.id}" if self.parent and self.owned_by == "sglang" else self.id


class Models(msgspec.Struct):
    """A server's list of models."""

    data: list[Model]


MODELS = msgspec.json.Decoder(Models)


def base_of(models: Sequence[Model], configured: str | None) -> str | None:
    """Returns the name of the base model: the configured one, else the first one listed without a parent; None if it
    is not listed."""
    if configured:
        return configured if any(model.id == configured for model in models) else None
    first = next((model.id for model in models if model.parent is None), None)
    # If the first entry is a version, the server does not list its base model.
    return None if "@" in (first or "") else first
