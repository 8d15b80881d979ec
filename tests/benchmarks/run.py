"""`make bench`: every benchmark, one after the other; figures go to build/bench.json, flat, one name one number.

Those named as arguments run alone (`make bench-drift`), a part of one too (`workloads.german`), and their figures join
those that are there.

A ratio compares two programs within this one run: absolute figures move with the machine.
"""

import importlib
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import cast

FOLDER = Path(__file__).parent
RESULT = FOLDER.parents[1] / "build" / "bench.json"
BENCHMARKS = (
    "ingest", "pressure", "ready", "scrape", "redact", "grounding", "poison", "learned", "gate", "policy", "train",
    "evaluate", "vllm_evaluation", "cluster", "serving", "watch", "canary", "rates", "forget", "forget_person",
    "gateway", "gateway_hostile", "incumbent", "memory", "restaurant8k", "banking77", "aa", "coverage", "workloads",
)  # fmt: skip


def main() -> int:
    sys.path[:0] = [str(FOLDER), str(FOLDER.parent)]
    named = sys.argv[1:]
    figures: dict[str, float] = json.loads(RESULT.read_text(encoding="utf-8")) if named and RESULT.exists() else {}
    for name in named or BENCHMARKS:
        print(f"{name} …", file=sys.stderr, flush=True)
        began = time.monotonic()
        found = benchmark(name)()
        figures |= found | {f"{name}_benchmark_seconds": time.monotonic() - began}
        for figure, value in found.items():
            print(f"{figure:36} {value:.4g}", flush=True)
        # After each: if a later one fails, these stand.
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(f"written to {RESULT}", file=sys.stderr)
    return 0


def benchmark(name: str) -> Callable[[], dict[str, float]]:
    """What a name runs: `learned.cost` is `learned_cost.py` if that can be run, else a part of `learned.py`."""
    own = name.replace(".", "_")
    if (FOLDER / f"{own}.py").exists() and hasattr(module := importlib.import_module(own), "main"):
        return cast("Callable[[], dict[str, float]]", module.main)
    whole, _, part = name.partition(".")
    return partial(importlib.import_module(whole).main, *[part] * bool(part))


if __name__ == "__main__":
    sys.exit(main())
