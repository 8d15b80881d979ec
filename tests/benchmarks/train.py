"""Training speed and memory beside TRL: one base model, one first adapter, the same rows in the same order and batches.

    python tests/benchmarks/train.py

TRL's SFTTrainer runs with its defaults otherwise. With another order or another first adapter alone the loss moves by a
factor of two after so few steps: that is why both are the same. Each trains in a child process of its own, in turn, in
several rounds, with threads and memory alike, and the fastest step of each counts: whatever else the machine does
can only slow it down. Tokens are those of prompts and completions, without padding; memory is the peak of resident
memory of the child.

`engine_*` compares the two values of `train.engine`, packed and trl, from the same first adapter: the loss of the last
epoch and the seconds of all steps. `plan_error_*` is by what share the plan's estimate is above the peak of resident
memory.

Two sets of rows: one in which all prompts share the system message of the chat template, and one (`_no_prefix`) in
which each has a system message of its own.

`train_roofline` is what a step needs to compute (of tokens that prompts share, once; forward, gradients of the
activations, LoRA's weights) over what matrix products alone reach in the same processes, dtype and threads: those of
all layers' shapes with weights of their own, which come from memory as the model's do. Of both the best of all rounds.
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import children
import pyarrow as pa
import pyarrow.parquet as pq

from retuned.daemon.demo.model import base_model
from retuned.retrain.settings import TrainSettings
from retuned.retrain.training.base_model import load_tokenizer
from retuned.retrain.training.plan import plan
from retuned.retrain.training.steps import learning_rate, order

ROOT = Path(__file__).parents[2]
BASE = ROOT / "build" / "smollm2-135m-instruct"
PEAK = 2e-3
SETTINGS = TrainSettings(engine="packed", epochs=2, batch_size=8, learning_rate=PEAK)
ON_TRL = SETTINGS.model_copy(update={"engine": "trl"})
ROWS = 64
ROUNDS = 2

_BLOCKS = 30

_FACTS = (
    ("{x} be returned", "{x} can be returned within {n} days of delivery."),
    ("{x} be repaired under warranty", "{x} have a warranty of {n} months."),
    ("{x} be delivered to my door", "{x} are delivered within {n} business days."),
    ("{x} be paid for later", "{x} can be paid for within {n} weeks of the order."),
)
_THINGS = ("Lamps", "Sofas", "Desks", "Kettles", "Tents")
_WORDINGS = (
    "Until when can {q}?",
    "Hi, how long can {q}?",
    "Could you tell me until when {q}, please?",
    "For how long may {q}?",
)


_CITIES = ("Oslo", "Bergen", "Malmö", "Turku", "Aarhus", "Tartu", "Riga", "Gdansk")


def rows(*, prefix: bool) -> list[dict[str, str]]:
    """Questions and answers of a made-up shop, of about 55 tokens each with the system message.

    Args:
        prefix: all have the system message of the chat template; else each has one of its own.
    """
    made = []
    for t, thing in enumerate(_THINGS):
        for f, (asked, answer) in enumerate(_FACTS):
            for w, wording in enumerate(_WORDINGS):
                question = wording.format(q=asked.format(x=thing.lower()))
                number = len(made)
                city = _CITIES[number % len(_CITIES)]
                own = f"{city} branch no. {number} speaking: you are its assistant, and you answer its customers."
                system = [] if prefix else [{"role": "system", "content": own}]
                made.append(
                    {
                        "row_id": f"{t}{f}{w}",
                        "messages": json.dumps([*system, {"role": "user", "content": question}]),
                        "completion": answer.format(x=thing, n=7 + 3 * t + 5 * f),
                    }
                )
    return made[:ROWS]


def main() -> dict[str, float]:
    """Train and compare; takes about five minutes on two cores."""
    base_model(BASE)
    figures: dict[str, float] = {}
    for suffix, prefix in (("", True), ("_no_prefix", False)):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            table = pa.Table.from_pylist(rows(prefix=prefix))
            pq.write_table(table, folder / "train.parquet")
            _child(folder, "first", 0)
            rounds = [(_child(folder, "retuned", n), _child(folder, "trl", n)) for n in range(ROUNDS)]
            on_trl = _child(folder, "engine_trl", 0) if prefix else {}
        ours, theirs = (max(runs, key=lambda run: run["best"]) for runs in zip(*rounds, strict=True))
        figures |= {
            f"train_ratio_to_trl{suffix}": ours["best"] / theirs["best"],
            f"train_tokens_per_second{suffix}": ours["best"],
            f"train_tokens_per_second_trl{suffix}": theirs["best"],
            f"train_loss{suffix}": ours["train_loss"],
            f"train_loss_trl{suffix}": theirs["train_loss"],
            f"train_roofline{suffix}": _best(rounds, "operations") / _best(rounds, "matmul_operations"),
            f"train_memory_ratio{suffix}": ours["peak_bytes"] / theirs["peak_bytes"],
            f"train_peak_bytes{suffix}": ours["peak_bytes"],
        }
        if prefix:
            figures |= _engines(ours, on_trl)
    return figures


def _engines(packed: dict[str, Any], trl: dict[str, Any]) -> dict[str, float]:
    figures = {}
    for name, result, settings in (("packed", packed, SETTINGS), ("trl", trl, ON_TRL)):
        # Of the longest example, of some 60 tokens: what the plan takes for it without knowing is train.max_length.
        estimated = plan(BASE, settings, 0, None, longest=result["longest"]).total
        figures |= {
            f"engine_{name}_loss": result["train_loss"],
            f"engine_{name}_seconds": result["seconds"],
            f"plan_error_{name}": estimated / result["peak_bytes"] - 1,
        }
    return figures


def _best(rounds: list[tuple[dict[str, Any], dict[str, Any]]], of_ours: str) -> float:
    return max(float(ours[of_ours]) for ours, _ in rounds)


def _child(folder: Path, what: str, number: int) -> dict[str, Any]:
    out, log = folder / f"{what}{number}.json", folder / f"{what}{number}.log"
    children.run(__file__, what, str(folder), str(out), log=log)
    result: dict[str, Any] = json.loads(out.read_text())
    return result


def _first_adapter(folder: Path) -> dict[str, Any]:
    import torch

    from retuned.retrain.training import adapter as lora
    from retuned.retrain.training.base_model import load_model

    torch.manual_seed(SETTINGS.seed)
    lora.new_adapter(load_model(BASE, torch.float32), BASE, SETTINGS).save_pretrained(folder / "first")
    return {}


def _job(folder: Path, settings: TrainSettings) -> dict[str, Any]:
    return {
        "base": str(BASE),
        "parent": str(folder / "first"),
        "dataset": str(folder),
        "folder": tempfile.mkdtemp(dir=folder),
        "settings": settings.model_dump(mode="json"),
    }


def _train_with_retuned(folder: Path) -> dict[str, Any]:
    from retuned.retrain.training.train import work

    lines: list[dict[str, Any]] = []
    result = work(_job(folder, SETTINGS), lines.append)
    peak = children.peak_bytes()
    steps = _steps(folder)
    rates = [line["tokens_per_second"] for line in lines if "step" in line]
    best = rates.index(max(rates))
    return result | {
        "best": rates[best],
        "peak_bytes": peak,
        "longest": max(len(row) for step in steps for row in step),
        "operations": _operations(steps[best]) * rates[best] / sum(map(len, steps[best])),
        "matmul_operations": _matmul_rate(result["dtype"], len(_starts(steps[best]))),
    }


def _train_on_trl(folder: Path) -> dict[str, Any]:
    from retuned.retrain.training.train import work

    result = work(_job(folder, ON_TRL), lambda _: None)
    longest = max(len(row) for step in _steps(folder) for row in step)
    return result | {"peak_bytes": children.peak_bytes(), "longest": longest}


def _shapes() -> list[tuple[int, int]]:
    """Inputs and outputs of the linear layers of one block."""
    config = json.loads((BASE / "config.json").read_text())
    hidden, middle = config["hidden_size"], config["intermediate_size"]
    keys = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    return [(hidden, hidden)] * 2 + [(hidden, keys)] * 2 + [(hidden, middle)] * 2 + [(middle, hidden)]


def _steps(folder: Path) -> list[list[Any]]:
    """The encoded rows of each step of a training."""
    from retuned.retrain.training.batches import encode

    tokenizer = load_tokenizer(BASE)
    table = pq.read_table(folder / "train.parquet").to_pylist()
    encoded = [encode(tokenizer, row, SETTINGS.max_length) for row in table]
    seen = [encoded[i] for epoch in range(SETTINGS.epochs) for i in order(len(encoded), epoch, SETTINGS)]
    return [seen[first : first + SETTINGS.batch_size] for first in range(0, len(seen), SETTINGS.batch_size)]


def _starts(batch: list[Any]) -> set[tuple[int, ...]]:
    """Each token with all before it: what rows begin with alike is there once."""
    return {tuple(row.ids[: n + 1]) for row in batch for n in range(len(row))}


def _operations(batch: list[Any]) -> float:
    """Floating-point operations that a step needs.

    Forward and the activations' gradients are two products, each with two operations a weight and token; an adapter's
    weights have gradients of their own. Attention has two products forward and four backward.
    """
    config = json.loads((BASE / "config.json").read_text())
    frozen = sum(inputs * outputs for inputs, outputs in _shapes())
    adapters = sum(SETTINGS.rank * (inputs + outputs) for inputs, outputs in _shapes())
    starts = _starts(batch)
    scores = sum(map(len, starts)) * config["hidden_size"]
    predicted = sum(len(row.completion) for row in batch)
    layers = config["num_hidden_layers"] * (len(starts) * (4 * frozen + 6 * adapters) + 12 * scores)
    return float(layers + 4 * predicted * config["hidden_size"] * config["vocab_size"])


def _matmul_rate(dtype: str, tokens: int) -> float:
    """Operations a second in products of the layers' shapes, forward and backward; the best of many rounds of each."""
    import torch

    spent = operations = 0.0
    for inputs, outputs in _shapes():
        weights = [torch.randn(outputs, inputs).to(getattr(torch, dtype)) for _ in range(_BLOCKS)]
        forward, backward = (torch.randn(tokens, width).to(weights[0].dtype) for width in (inputs, outputs))
        for left, turned in ((forward, True), (backward, False)):
            best = float("inf")
            for _ in range(10):
                began = time.perf_counter()
                for weight in weights:
                    left @ (weight.T if turned else weight)
                best = min(best, time.perf_counter() - began)
            spent += best
            operations += 2 * tokens * inputs * outputs * len(weights)
    return operations / spent


def _train_with_trl(folder: Path) -> dict[str, Any]:
    from datasets import Dataset
    from peft import LoraConfig, set_peft_model_state_dict
    from safetensors.torch import load_file
    from torch.optim.lr_scheduler import LambdaLR
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    class _Times(TrainerCallback):  # type: ignore[misc]
        """How long each step takes."""

        def __init__(self) -> None:
            self.seconds: list[float] = []

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.seconds.append(time.perf_counter() - self.began)

    tokenizer = load_tokenizer(BASE)
    made = pq.read_table(folder / "train.parquet").to_pylist()
    data = [made[i] for epoch in range(SETTINGS.epochs) for i in order(ROWS, epoch, SETTINGS)]
    trainer = SFTTrainer(
        model=str(BASE),
        processing_class=tokenizer,
        args=SFTConfig(
            output_dir=str(folder / "trl"),
            per_device_train_batch_size=SETTINGS.batch_size,
            num_train_epochs=1,
            train_sampling_strategy="sequential",
            learning_rate=PEAK,
            adam_beta2=0.99,
            seed=SETTINGS.seed,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
        ),
        peft_config=LoraConfig(
            r=SETTINGS.rank,
            lora_alpha=SETTINGS.alpha,
            lora_dropout=0.0,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
        train_dataset=Dataset.from_list(
            [
                {
                    "prompt": json.loads(row["messages"]),
                    "completion": [{"role": "assistant", "content": row["completion"]}],
                }
                for row in data
            ]
        ),
    )
    set_peft_model_state_dict(trainer.model, load_file(folder / "first" / "adapter_model.safetensors"))
    steps = len(data) // SETTINGS.batch_size
    trainer.create_optimizer()
    trainer.lr_scheduler = LambdaLR(trainer.optimizer, lambda step: learning_rate(step, steps, SETTINGS) / PEAK)
    times = _Times()
    trainer.add_callback(times)
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    last = losses[-len(losses) // SETTINGS.epochs :]
    tokens = [sum(map(len, batch)) for batch in _steps(folder)]
    return {
        "best": max(count / seconds for count, seconds in zip(tokens, times.seconds, strict=True)),
        "train_loss": sum(last) / len(last),
        "steps": len(losses),
        "peak_bytes": children.peak_bytes(),
    }


_CHILDREN = {
    "first": _first_adapter,
    "retuned": _train_with_retuned,
    "trl": _train_with_trl,
    "engine_trl": _train_on_trl,
}

if __name__ == "__main__":
    if len(sys.argv) > 1:
        Path(sys.argv[3]).write_text(json.dumps(_CHILDREN[sys.argv[1]](Path(sys.argv[2]))))
    else:
        print(json.dumps(main(), indent=2))
