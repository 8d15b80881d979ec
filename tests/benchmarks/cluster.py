"""A cluster: what is lost there, and what it costs beside one machine.

RETUNED_RAY=/opt/ray/bin/ray python tests/benchmarks/run.py cluster          all parts
RETUNED_RAY=/opt/ray/bin/ray python tests/benchmarks/run.py cluster.ray      one of them alone: ingesters, queries,
                                                                             failover, erasure, ray
"""

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import cluster_erasure
import cluster_ingesters
import cluster_queries
import ray_resume

FAULTS = 8


def failover() -> dict[str, float]:
    """Seconds until a daemon leads again: the median and the longest of a few, and all that the chaos of leaders finds
    wrong, which is to be 0."""
    from fixtures.cluster.servers import run_postgres
    from fixtures.faults.leaders import ZERO, survive
    from fixtures.kafka.brokers import run_tansu
    from fixtures.models.served import Adapters

    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name, run_postgres() as postgres:
        folder = Path(name)
        with run_tansu(folder) as broker:
            kinds = ["leader killed", "leader frozen"]
            row = survive(kinds, broker, postgres, Adapters(folder / "adapters"), folder, FAULTS, seconds)
    found = {"cluster_failover_wrong": float(sum(row[key] for key in ZERO))}
    for kind, took in (("kill", seconds["leader killed"]), ("freeze", seconds["leader frozen"])):
        found |= {
            f"cluster_failover_{kind}_seconds": statistics.median(took),
            f"cluster_failover_{kind}_longest_seconds": max(took),
        }
    return found


PARTS: dict[str, Callable[[], dict[str, float]]] = {
    "ingesters": cluster_ingesters.main,
    "queries": cluster_queries.main,
    "failover": failover,
    "erasure": cluster_erasure.main,
    "ray": ray_resume.main,
}


def main(*named: str) -> dict[str, float]:
    """All parts, or those that are named."""
    found: dict[str, float] = {}
    for name in named or PARTS:
        found |= PARTS[name]()
    return found
