"""The example configuration, written from the settings themselves: every key, its default, what it means."""

import json
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from retuned.daemon.http_settings import OidcSettings
from retuned.daemon.settings import Settings
from retuned.retrain.serving_settings import TargetSettings

# In the order in which an event meets them.
SECTIONS = (
    *("kafka", "ingest", "privacy", "warehouse", "store", "retention", "audit"),
    *("windows", "drift", "quality", "watch", "roi"),
    *("models", "dataset", "train", "evaluate", "runner", "metric", "gate", "rollout"),
    *("incumbent", "cascade", "labels", "memory", "serving", "forget"),
    *("policy", "schedule", "http", "gateway", "logging", "tracing"),
)

HEAD = """\
# Configuration of retuned: every key with its default and its meaning. A file needs only the keys that differ.
# The environment overrides the file: RETUNED__KAFKA__BOOTSTRAP_SERVERS=broker:9092. Secrets belong there, or in files.
"""


@dataclass(frozen=True)
class Key:
    """A key of the configuration: its name in its section, its default as YAML, and what it means."""

    name: str
    default: str
    meaning: str


def keys() -> list[Key]:
    """Those that stand beside the sections."""
    return [_key(name, Settings.model_fields[name]) for name in ("objective", "workloads")]


def sections() -> Iterator[tuple[str, str, list[Key]]]:
    """Name, meaning and keys of each section."""
    for section in SECTIONS:
        model = Settings.model_fields[section].annotation
        assert isinstance(model, type)
        assert issubclass(model, BaseModel)
        yield section, (model.__doc__ or "").strip(), [_key(*field) for field in model.model_fields.items()]


def targets() -> Iterator[tuple[str, str, list[Key]]]:
    """Kinds, meaning and keys of each entry that serving.targets may have."""
    for model in get_args(get_args(TargetSettings)[0]):
        kinds = " or ".join(f"`{kind}`" for kind in get_args(model.model_fields["kind"].annotation))
        own = [_key(name, field) for name, field in model.model_fields.items() if name != "kind"]
        yield kinds, (model.__doc__ or "").strip(), own


def single_sign_on() -> tuple[str, list[Key]]:
    """The meaning and the keys of http.oidc."""
    return (OidcSettings.__doc__ or "").strip(), [_key(name, one) for name, one in OidcSettings.model_fields.items()]


def example() -> str:
    """The YAML text of deploy/retuned.example.yaml."""
    parts = [HEAD]
    for section, meaning, own in sections():
        parts.append(f"\n# {meaning}\n{section}:\n")
        parts += (textwrap.indent(_explained(key), "  ") for key in own)
    return "".join([*parts, *(f"\n{_explained(key)}" for key in keys())])


def _explained(key: Key) -> str:
    meaning = textwrap.indent(textwrap.fill(key.meaning, 110), "# ") + "\n" if key.meaning else ""
    return f"{meaning}{key.name}: {key.default}\n"


def _key(name: str, field: FieldInfo) -> Key:
    meaning = ". ".join(part for part in (field.description, _choices(field.annotation)) if part)
    default = "required" if field.is_required() else _plain(field.get_default(call_default_factory=True))
    return Key(name, default, meaning)


def _choices(annotation: Any) -> str:
    values = [v for v in getattr(annotation, "__args__", ()) if isinstance(v, str)]
    nested = [
        v for part in getattr(annotation, "__args__", ()) for v in getattr(part, "__args__", ()) if isinstance(v, str)
    ]
    return f"One of {', '.join(values or nested)}" if values or nested else ""


def _plain(value: Any) -> str:
    return json.dumps(value, default=_as_json)


def _as_json(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(exclude_unset=True)
    return str(value) if isinstance(value, Path) else list(value)
