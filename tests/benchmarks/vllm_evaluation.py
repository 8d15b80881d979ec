"""An evaluation by vLLM beside the same one in a process of this machine: share of equal answers, and seconds.

    RETUNED_VLLM=/opt/vllm/bin/vllm python tests/benchmarks/run.py vllm_evaluation

Two adapters of SmolLM2-135M are trained first. Both engines answer the same 64 questions with the base model, the
champion and the candidate, in bfloat16. Seconds are those of the evaluation, without the start of vLLM, whose weights
are in memory when it begins. Skipped where RETUNED_VLLM names no vLLM.
"""

import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from evaluate import LIMIT, train_two
from train import BASE, rows

from fixtures.servers.models import VLLM, vllm
from retuned.daemon.demo.model import base_model
from retuned.retrain import versions
from retuned.retrain.data.dataset import Dataset
from retuned.retrain.decision.evaluate import evaluate
from retuned.retrain.decision.evaluation import BASE as BARE
from retuned.retrain.decision.evaluation import Evaluation
from retuned.retrain.settings import EvaluateSettings, ModelsSettings, Settings
from retuned.retrain.versions import Version

NOW = datetime(2026, 11, 1)


def main() -> dict[str, float]:
    """Train two adapters and evaluate them twice; some ten minutes on two cores."""
    if VLLM is None:
        print("vllm_evaluation: skipped: RETUNED_VLLM names no vLLM", file=sys.stderr)
        return {}
    base_model(BASE)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        champion, candidate = train_two(folder)
        made = [row | {"context": None} for row in rows(prefix=True)]
        pq.write_table(pa.Table.from_pylist(made), folder / "holdout.parquet")
        pq.write_table(pa.Table.from_pylist(made[:0]), folder / "regression.parquet")
        dataset = Dataset("d", "bench", NOW, folder, {"holdout": len(made)}, 0, {})
        serving = Version(
            "champion", "bench", NOW, Path(champion["adapter"]), str(BASE), versions.base_hash(BASE), None, "d", "r",
            manifest={}, removed_at=None,
        )  # fmt: skip
        found: dict[str, dict[tuple[str, str], Evaluation]] = {}
        seconds: dict[str, float] = {}
        with vllm(BASE, "bfloat16") as url:
            asked: dict[str, dict[str, Any]] = {"server": {"url": url}, "transformers": {}}
            for engine, keys in asked.items():
                settings = Settings(
                    models=ModelsSettings(base=BASE, directory=folder),
                    evaluate=EvaluateSettings.model_validate({"engine": engine, "max_new_tokens": LIMIT} | keys),
                )
                began = time.perf_counter()
                evaluated, _ = evaluate(
                    dataset, serving, Path(candidate["adapter"]), settings, "bfloat16", folder / engine
                )
                seconds[engine] = time.perf_counter() - began
                found[engine] = {(row.model, row.row_id): row for row in evaluated}
    same = {key: found["server"][key].output == row.output for key, row in found["transformers"].items()}
    bare = [value for (model, _), value in same.items() if model == BARE]
    adapted = [value for (model, _), value in same.items() if model != BARE]
    return {
        "vllm_same_answers": sum(adapted) / len(adapted),
        "vllm_same_answers_bare": sum(bare) / len(bare),
        "vllm_seconds": seconds["server"],
        "vllm_seconds_transformers": seconds["transformers"],
    }
