"""The licence of a base model, by the files in its folder."""

import json
import re
from pathlib import Path

import yaml

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
    """The licence of a base model, by its folder's README.md, config.json or LICENSE; `unknown` where none says it."""
    header = re.match(r"---\n(.*?)\n---", text_of(base / "README.md"), re.DOTALL)
    try:
        told = yaml.safe_load(header[1]) if header else None
        configured = json.loads(text_of(base / "config.json") or "{}")
    except (yaml.YAMLError, ValueError):
        told, configured = None, {}
    for found in (told, configured):
        if isinstance(found, dict) and isinstance(found.get("license"), str):
            return str(found["license"])
    text = text_of(base / "LICENSE") or text_of(base / "LICENSE.txt") or text_of(base / "LICENSE.md")
    if not text:
        return UNKNOWN
    return next((name for pattern, name in _LICENCES if re.search(pattern, text, re.IGNORECASE)), "other")


def text_of(file: Path) -> str:
    """A text, or none where there is no file."""
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
