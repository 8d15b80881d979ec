"""Detects the licence of a base model."""

import json
import re
from collections.abc import Collection
from pathlib import Path

import yaml

from retuned.consumers.errors import ConfigurationError

UNKNOWN = "unknown"
_LICENCES = (
    (r"Apache License\s+Version 2\.0", "apache-2.0"),
    (r"MIT License|Permission is hereby granted, free of charge", "mit"),
    (r"Llama 2 Community License", "llama2"),
    (r"Llama 3 Community License", "llama3"),
    (r"Llama 3\.1 Community License", "llama3.1"),
    (r"Llama 3\.2 Community License", "llama3.2"),
    (r"Llama 3\.3 Community License", "llama3.3"),
    (r"Gemma Terms of Use", "gemma"),
)


def licence_of(base: Path) -> str:
    """Returns the licence of a base model from its README.md, config.json or LICENSE; `unknown` if none states it."""
    header = re.match(r"---\n(.*?)\n---", text_of(base / "README.md"), re.DOTALL)
    try:
        card = yaml.safe_load(header[1]) if header else None
        config = json.loads(text_of(base / "config.json") or "{}")
    except (yaml.YAMLError, ValueError):
        card, config = None, {}
    for source in (card, config):
        if isinstance(source, dict) and isinstance(source.get("license"), str):
            return str(source["license"])
    text = text_of(base / "LICENSE") or text_of(base / "LICENSE.txt") or text_of(base / "LICENSE.md")
    if not text:
        return UNKNOWN
    return next((name for pattern, name in _LICENCES if re.search(pattern, text, re.IGNORECASE)), "other")


def check_licence(base: Path | None, allowed: Collection[str] | None, key: str = "models.base") -> None:
    """Checks that a base model has an allowed licence.

    Args:
        allowed: see `models.allowed_licences`.
        key: the setting that names the base model.

    Raises:
        ConfigurationError: it has another licence, or none that can be found.
    """
    if base is None or allowed is None:
        return
    found = licence_of(base)
    if found.lower() not in {one.lower() for one in allowed}:
        raise ConfigurationError(
            f"{key}: {base} has the licence {found}; models.allowed_licences allows {', '.join(allowed) or 'none'}"
        )


def text_of(file: Path) -> str:
    """Returns the text of a file; empty if it cannot be read."""
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
