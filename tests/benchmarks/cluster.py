"""A cluster: what is lost there, and what it costs beside one machine.

RETUNED_RAY=/opt/ray/bin/ray python tests/benchmarks/run.py cluster          all parts
RETUNED_RAY=/opt/ray/bin/ray python tests/benchmarks/run.py cluster.ray      one of them alone
"""

from collections.abc import Callable

import ray_resume

PARTS: dict[str, Callable[[], dict[str, float]]] = {"ray": ray_resume.main}


def main(*named: str) -> dict[str, float]:
    """All parts, or those that are named."""
    found: dict[str, float] = {}
    for name in named or PARTS:
        found |= PARTS[name]()
    return found
