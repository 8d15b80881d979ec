"""What is in force for a workload, and where each value comes from, as text: `retuned config --workload`."""

import json
from collections.abc import Mapping
from typing import Any

from retuned.daemon import overrides
from retuned.daemon.settings import Settings

HEAD = """\
# What is in force for the workload {workload}; behind each value, where it is set. All other settings are the same for
# all workloads.
"""


def in_force(settings: Settings, given: Mapping[str, Mapping[str, Any]], workload: str) -> str:
    """The YAML text. Secrets are masked.

    Args:
        given: see `retuned.daemon.settings.given`.
    """
    own = settings.for_workload(workload)
    values = own.model_dump(mode="json", include={*overrides.known(), "models"})

    def line(value: Any, *path: str) -> str:
        name = settings.origin(workload, *path)
        full = ("workloads", name, *path) if name else ("models", "base") if path == ("base",) else path
        where = next((source for source, set_there in given.items() if overrides.has(set_there, full)), "default")
        source = f"workloads.{name}, {where}" if name else where
        return f"{path[-1]}: {json.dumps(value, ensure_ascii=False)}  # {source}\n"

    parts = [HEAD.format(workload=workload), line(own.objective, "objective"), line(values["models"]["base"], "base")]
    for section in overrides.known()[2:]:
        parts.append(f"{section}:\n")
        parts += (f"  {line(value, section, key)}" for key, value in values[section].items())
    return "".join(parts)
