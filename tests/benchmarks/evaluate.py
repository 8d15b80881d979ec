"""Answers of champion and candidate beside two `generate` runs, as one would make them by hand.

    python tests/benchmarks/evaluate.py

By hand: for each adapter a process that loads the base model with it and lets transformers' `generate` answer 64
questions, 16 at a time, the longest answer equally long. Ours: one process with both adapters, which answers the same
questions in the same batches. Both adapters are trained first, since an answer ends where a model has learned it to.
Seconds are those of whole processes, imports and loading included; memory is the largest resident set of a process.
CPU seconds say the same where something else is at work on the machine.
"""

import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import children
import pyarrow as pa
import pyarrow.parquet as pq
from train import BASE, rows

from retuned.consumers.common.process import run_child
from retuned.daemon.demo.model import base_model
from retuned.retrain.settings import EvaluateSettings, TrainSettings

SETTINGS = TrainSettings(epochs=2)
ROUNDS = 2
BATCH = EvaluateSettings().batch_size
LIMIT = 32


def main() -> dict[str, float]:
    """Train two adapters, then generate in both ways, in turn; takes a few minutes on two cores."""
    base_model(BASE)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        champion, candidate = train_two(folder)
        adapters = {"champion": champion["adapter"], "candidate": candidate["adapter"]}
        best: dict[str, dict[str, Any]] = {}
        for _ in range(ROUNDS):
            for way, runs in {"ours": [adapters], "by hand": [{k: v} for k, v in adapters.items()]}.items():
                found = [_process(folder, way, run, champion["dtype"]) for run in runs]
                seconds = sum(one["seconds"] for one in found)
                if way not in best or seconds < best[way]["seconds"]:
                    best[way] = {
                        "seconds": seconds,
                        "cpu_seconds": sum(one["cpu_seconds"] for one in found),
                        "bytes": max(one["bytes"] for one in found),
                        "answers": {name: answers for one in found for name, answers in one["answers"].items()},
                    }
    ours, by_hand = best["ours"], best["by hand"]
    pairs = [pair for name in adapters for pair in zip(ours["answers"][name], by_hand["answers"][name], strict=True)]
    return {
        "evaluate_ratio_to_generate": ours["seconds"] / by_hand["seconds"],
        "evaluate_cpu_ratio_to_generate": ours["cpu_seconds"] / by_hand["cpu_seconds"],
        "evaluate_memory_ratio": ours["bytes"] / by_hand["bytes"],
        "evaluate_seconds": ours["seconds"],
        "evaluate_seconds_by_hand": by_hand["seconds"],
        "evaluate_same_answers": sum(one == other for one, other in pairs) / len(pairs),
    }


def train_two(folder: Path, most: int | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the trainings of two adapters returned, the second of which goes on from the first; `most`: rows."""
    table = pa.Table.from_pylist(rows(prefix=True)[:most])
    pq.write_table(table, folder / "train.parquet")
    champion = _train(folder, "champion", None)
    return champion, _train(folder, "candidate", champion["adapter"])


def _train(folder: Path, name: str, parent: str | None) -> dict[str, Any]:
    job = {
        "base": str(BASE),
        "parent": parent,
        "dataset": str(folder),
        "folder": str(folder / name),
        "settings": SETTINGS.model_dump(mode="json"),
    }
    return run_child("retuned.retrain.training.train", job, folder / name, timeout_seconds=900)


def _process(folder: Path, way: str, adapters: dict[str, str], dtype: str) -> dict[str, Any]:
    job, out = folder / "job.json", folder / "out.json"
    job.write_text(json.dumps({"adapters": adapters, "dtype": dtype}))
    started = time.perf_counter()
    children.run(__file__, way, str(job), str(out), log=folder / "log")
    seconds = time.perf_counter() - started
    return {"seconds": seconds, **json.loads(out.read_text())}


def _batches(tokenizer: Any) -> list[list[list[int]]]:
    """The same for both: prompts as token ids, sorted by length."""
    prompts: list[list[int]] = sorted(
        (
            tokenizer.apply_chat_template(json.loads(row["messages"]), add_generation_prompt=True, return_dict=False)
            for row in rows(prefix=True)
        ),
        key=len,
    )
    return [prompts[first : first + BATCH] for first in range(0, len(prompts), BATCH)]


def _ours(adapters: dict[str, str], dtype: str) -> dict[str, list[str]]:
    import torch

    from retuned.retrain.generation.adapters import Generator
    from retuned.retrain.training import adapter as lora
    from retuned.retrain.training.base_model import load_model, load_tokenizer

    tokenizer = load_tokenizer(BASE)
    model = load_model(BASE, getattr(torch, dtype))
    for name, folder in adapters.items():
        model = lora.load_adapter(model, Path(folder), name=name)
    generator = Generator(model, {name: name for name in adapters}, tokenizer.pad_token_id)
    found: dict[str, list[str]] = {name: [] for name in adapters}
    for prompts in _batches(tokenizer):
        for name, answers in generator.answers(prompts, LIMIT).items():
            found[name] += tokenizer.batch_decode(answers, skip_special_tokens=True)
    return found


def _by_hand(adapters: dict[str, str], dtype: str) -> dict[str, list[str]]:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ((name, folder),) = adapters.items()
    tokenizer = AutoTokenizer.from_pretrained(BASE, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=getattr(torch, dtype))
    model = PeftModel.from_pretrained(model, folder).eval()
    found = []
    for prompts in _batches(tokenizer):
        batch = tokenizer.pad({"input_ids": prompts}, return_tensors="pt")
        with torch.inference_mode():
            ids = model.generate(**batch, max_new_tokens=LIMIT, do_sample=False)
        found += tokenizer.batch_decode(ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return {name: found}


if __name__ == "__main__":
    if len(sys.argv) == 4:
        job = json.loads(Path(sys.argv[2]).read_text())
        made = (_ours if sys.argv[1] == "ours" else _by_hand)(job["adapters"], job["dtype"])
        used = resource.getrusage(resource.RUSAGE_SELF)
        measured = {"bytes": children.peak_bytes(), "cpu_seconds": used.ru_utime + used.ru_stime}
        Path(sys.argv[3]).write_text(json.dumps(measured | {"answers": made}))
    else:
        print(json.dumps(main(), indent=2))
