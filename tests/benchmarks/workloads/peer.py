"""A child: TRL's SFTTrainer learns the same rows for the same number of steps, with its defaults otherwise.

peer.py JOB.json OUT.json
"""

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq


def main(job: dict[str, Any]) -> dict[str, Any]:
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    from retuned.retrain.settings import TrainSettings
    from retuned.retrain.training.batches import encode

    settings = TrainSettings.model_validate(job["settings"])
    tokenizer = AutoTokenizer.from_pretrained(job["base"])
    rows = [
        encode(tokenizer, row, **settings.encoding)
        for row in pq.read_table(Path(job["dataset"]) / "train.parquet").to_pylist()
    ]
    tokens = [
        {"input_ids": row.ids, "completion_mask": [0] * len(row.prompt) + [1] * len(row.completion)} for row in rows
    ]
    trainer = SFTTrainer(
        model=job["base"],
        processing_class=tokenizer,
        args=SFTConfig(
            output_dir=job["folder"],
            per_device_train_batch_size=settings.batch_size,
            max_steps=job["steps"],
            learning_rate=job["learning_rate"],
            warmup_steps=round(job["steps"] * settings.warmup_share),
            lr_scheduler_type="cosine",
            max_length=settings.max_length,
            seed=settings.seed,
            logging_steps=10,
            save_strategy="no",
            report_to="none",
            use_cpu=not torch.cuda.is_available(),
            gradient_checkpointing=False,
        ),
        peft_config=LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            lora_dropout=0.0,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
        train_dataset=Dataset.from_list(tokens),
    )
    trainer.train()
    trainer.model.save_pretrained(Path(job["folder"]) / "adapter")
    return {"adapter": str(Path(job["folder"]) / "adapter"), "seconds": trainer.state.log_history[-1]["train_runtime"]}


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))))
