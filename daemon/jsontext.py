"""What the daemon tells others as JSON."""

import json
import math
from dataclasses import fields, is_dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Any

from retuned.consumers.common.times import iso


def as_json(content: Any, indent: int | None = None) -> str:
    """As JSON; times are UTC. JSON knows neither infinity nor NaN: at any depth they are null, unknown."""
    return json.dumps(_finite(plain(content)), allow_nan=False, indent=indent)


def through_json(content: Any) -> Any:
    """What a reader of the JSON gets."""
    return json.loads(as_json(content))


def strict(text: str) -> str:
    """A JSON text in which infinity and NaN stand as JavaScript has them, as DuckDB writes it, without them."""
    return as_json(json.loads(text)) if "Infinity" in text or "NaN" in text else text


def plain(value: Any) -> Any:
    """Of Python's own types, with times as JSON has them."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, datetime):
        return iso(value)
    if isinstance(value, date):
        return value.isoformat()
    if type(value).__module__ == "numpy":  # which takes 0.4 s and 16 MB to import
        return value.item()
    return float(value) if isinstance(value, Decimal) else value


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
