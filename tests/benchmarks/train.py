"""Training speed beside TRL: one base model, one first adapter, the same rows in the same order, batches and rates.

    python tests/benchmarks/train.py

TRL's SFTTrainer runs with its defaults otherwise. With another order or another first adapter alone the loss moves by a
factor of two after so few steps: that is why both are the same. Each trains in a child process of its own, one after
the other. Tokens are those of prompts and completions, without padding; seconds are those of the training steps,
without loading.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from retuned.consumers.process import run_child
from retuned.daemon.demo_model import base_model
from retuned.retrain.base import load_tokenizer
from retuned.retrain.settings import TrainSettings
from retuned.retrain.train import order

ROOT = Path(__file__).parents[2]
BASE = ROOT / "build" / "smollm2-135m-instruct"
SETTINGS = TrainSettings(epochs=3, batch_size=8)
ROWS = 64

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


def rows() -> list[dict[str, str]]:
    """Questions and answers of a made-up shop, of about 55 tokens each with the system prompt of the chat template."""
    made = []
    for t, thing in enumerate(_THINGS):
        for f, (asked, answer) in enumerate(_FACTS):
            for w, wording in enumerate(_WORDINGS):
                question = wording.format(q=asked.format(x=thing.lower()))
                made.append(
                    {
                        "row_id": f"{t}{f}{w}",
                        "messages": json.dumps([{"role": "user", "content": question}]),
                        "completion": answer.format(x=thing, n=7 + 3 * t + 5 * f),
                    }
                )
    return made[:ROWS]


def main() -> dict[str, float]:
    """Train twice and compare; takes a few minutes on two cores."""
    base_model(BASE)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table = pa.Table.from_pylist(rows())
        pq.write_table(table, folder / "train.parquet")
        pq.write_table(table.slice(0, 0), folder / "validation.parquet")
        _first_adapter(folder / "first")
        ours = _retuned(folder)
        theirs = _trl(folder)
    return {
        "train_ratio_to_trl": ours["tokens_per_second"] / theirs["tokens_per_second"],
        "train_tokens_per_second": ours["tokens_per_second"],
        "train_tokens_per_second_trl": theirs["tokens_per_second"],
        "train_loss": ours["train_loss"],
        "train_loss_trl": theirs["train_loss"],
    }


def _first_adapter(folder: Path) -> None:
    import torch

    from retuned.retrain import lora
    from retuned.retrain.base import load_model

    torch.manual_seed(SETTINGS.seed)
    lora.new_adapter(load_model(BASE, torch.float32), BASE, SETTINGS).save_pretrained(folder)


def _retuned(folder: Path) -> dict[str, Any]:
    job = {
        "base": str(BASE),
        "parent": str(folder / "first"),
        "dataset": str(folder),
        "folder": str(folder / "retuned"),
        "settings": SETTINGS.model_dump(mode="json"),
    }
    return run_child("retuned.retrain.train", job, folder / "retuned", timeout_seconds=600)


def _trl(folder: Path) -> dict[str, Any]:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    out = folder / "trl.json"
    log = folder / "trl.log"
    with log.open("wb") as output:
        done = subprocess.run(
            [sys.executable, __file__, "--trl", str(folder), str(out)],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            timeout=900,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(log.read_text(errors="replace")[-2_000:])
    result: dict[str, Any] = json.loads(out.read_text())
    return result


def _train_with_trl(folder: Path, out: Path) -> None:
    from datasets import Dataset
    from peft import LoraConfig, set_peft_model_state_dict
    from safetensors.torch import load_file
    from trl import SFTConfig, SFTTrainer

    from retuned.retrain.batches import encode
    from retuned.retrain.lora import LAYERS

    tokenizer = load_tokenizer(BASE)
    data = [rows()[i] for epoch in range(SETTINGS.epochs) for i in order(ROWS, epoch, SETTINGS)]
    trainer = SFTTrainer(
        model=str(BASE),
        processing_class=tokenizer,
        args=SFTConfig(
            output_dir=str(folder / "trl"),
            per_device_train_batch_size=SETTINGS.batch_size,
            num_train_epochs=1,
            train_sampling_strategy="sequential",
            learning_rate=SETTINGS.learning_rate,
            lr_scheduler_type="linear",
            warmup_steps=SETTINGS.warmup_share,
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
            target_modules=list(LAYERS),
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
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    last = losses[-len(losses) // SETTINGS.epochs :]
    tokens = sum(len(encode(tokenizer, row, SETTINGS.max_length)) for row in data)
    result = {"tokens_per_second": tokens / seconds, "train_loss": sum(last) / len(last), "steps": len(losses)}
    out.write_text(json.dumps(result))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--trl"]:
        _train_with_trl(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        print(json.dumps(main(), indent=2))
