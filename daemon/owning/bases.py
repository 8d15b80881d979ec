"""Base models that may answer in the incumbent's place: a table of open ones, and the configured one."""

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from retuned.consumers.errors import RetunedError

AT_ONCE = 8
"""Answers of the greatest length that a server holds at once, in the estimate of its memory."""
WEIGHT_BYTES = 2
RESERVED_BYTES = 2 * 2**30
"""Workspaces of the server beside weights, keys and values."""
USABLE = 0.9
"""The share of a GPU's memory that a server may use, as vLLM's default."""


@dataclass(frozen=True)
class Base:
    """A base model.

    Attributes:
        kv: layers, heads of keys and values, size of a head.
    """

    name: str
    parameters: int
    context: int
    kv: tuple[int, int, int]
    licence: str

    def memory(self, tokens: float) -> int:
        """Returns the bytes to serve it in 16 bits, with AT_ONCE answers of so many tokens."""
        layers, heads, size = self.kv
        keys_and_values = 2 * layers * heads * size * WEIGHT_BYTES * tokens
        return int(WEIGHT_BYTES * self.parameters + AT_ONCE * keys_and_values + RESERVED_BYTES)


@cache
def known() -> tuple[Base, ...]:
    """Returns the table of open base models, the smallest first."""
    import yaml

    rows = yaml.safe_load((files("retuned.daemon.owning") / "bases.yaml").read_text(encoding="utf-8"))
    return tuple(Base(**{**row, "kv": tuple(row["kv"])}) for row in rows)


def candidates(name: str | None, configured: Path | None) -> tuple[Base, ...]:
    """Returns the base models to compare: the named one; else the configured one, if it can be read, and the table.

    Raises:
        RetunedError: the name is neither in the table nor the configured folder.
    """
    own = _configured(configured)
    if name is None:
        return (*([own] if own else []), *known())
    found = [base for base in ([own] if own else []) + [*known()] if base.name == name]
    if not found:
        names = ", ".join(base.name for base in known())
        raise RetunedError(f"base {name}: expected the configured one (models.base), or one of {names}")
    return (found[0],)


def _configured(folder: Path | None) -> Base | None:
    """Returns a base model on this machine; None: there is none, or its config.json describes no dense decoder."""
    from retuned.retrain.training.plan import Shape

    if folder is None:
        return None
    try:
        shape = Shape.of(folder)
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        text = config | config.get("text_config", {})
        kv = (shape.layers, shape.key_heads, shape.head_size)
        return Base(str(folder), shape.parameters, text["max_position_embeddings"], kv, "")
    except (RetunedError, KeyError):
        return None
