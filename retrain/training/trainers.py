"""TRL's trainers with our order of rows, learning rate, losses and checkpoints. Used in child processes only."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate.utils import reduce
from datasets import Dataset
from torch.utils.data import Sampler
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, SFTConfig, SFTTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from retuned.consumers.common import durable as files
from retuned.retrain.kernels.packing import Encoded
from retuned.retrain.settings import TrainSettings
from retuned.retrain.training.batches import IGNORED
from retuned.retrain.training.checkpoints import Times
from retuned.retrain.training.preferences import Preferences
from retuned.retrain.training.steps import check_finite, learning_rate, order

WHOLE = "whole"
"""The file that marks a complete checkpoint."""


class Course(Protocol):
    """The state of a training that its trainer reads.

    Attributes:
        seconds: the duration of the last step.
    """

    settings: TrainSettings
    rows: Sequence[Encoded]
    steps_per_epoch: int
    seconds: float
    times: Times


class _Trainer:
    """A TRL trainer with our order of rows, learning rate and checkpoints."""

    args: Any
    state: Any
    optimizer: Any
    settings: TrainSettings
    course: Course

    def _get_train_sampler(self, _: Any = None) -> "_Order":
        return _Order(self)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Sets the learning rate of each step, as a share of its peak."""
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer or self.optimizer,
            lambda step: learning_rate(step, num_training_steps, self.settings) / self.args.learning_rate,
        )
        return self.lr_scheduler

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Records the figures of a step, which are kept over interruptions."""
        if "loss" in logs:
            logs = self.separated(logs)
            check_finite(self.state.global_step, logs["loss"], logs.get("grad_norm", 0.0), self.settings)
            logs = logs | {"seconds": self.course.seconds}
        super().log(logs, start_time)  # type: ignore[misc]

    def separated(self, logs: dict[str, float]) -> dict[str, float]:
        """Returns a step's figures, with the loss of the completions as the loss."""
        return logs

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset  # the rows are encoded already

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        with self.course.times.writing():
            super()._save_checkpoint(model, trial)  # type: ignore[misc]
            if self.args.should_save:
                folder = Path(self.args.output_dir, f"checkpoint-{self.state.global_step}")
                for file in folder.iterdir():
                    files.fsync(file)
                files.replace_text(folder / WHOLE, "")


class _Completions(_Trainer, SFTTrainer):  # type: ignore[misc]
    pass


class _Preferring(_Trainer):
    """Trains on completions and, with a weight, on preferences, which alone unlearn more than they teach."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.preferred: list[torch.Tensor] = []

    def compute_loss(self, model: Any, inputs: Any, *_: Any, num_items_in_batch: Any = None, **__: Any) -> Any:
        """Returns the mean over the tokens of a step plus the weighted mean over the preferences of this part."""
        labels, completions = inputs.pop("labels"), inputs.pop("completions")
        output = model(**completions, labels=labels, use_cache=False, fused_lm_head=True)
        loss = -output.log_probs.sum()
        # The Trainer divides by the number of parts of a step and takes the mean over processes.
        parts = self.current_gradient_accumulation_steps * self.args.world_size  # type: ignore[attr-defined]
        preference = super().compute_loss(model, inputs)  # type: ignore[misc]
        self.preferred.append(preference.detach())
        return loss * parts / num_items_in_batch + self.settings.preference_weight * preference

    def separated(self, logs: dict[str, float]) -> dict[str, float]:
        mean = float(reduce(torch.stack(self.preferred).mean(), "mean"))
        self.preferred.clear()
        return logs | {"loss": logs["loss"] - self.settings.preference_weight * mean, "preference_loss": mean}


class _Dpo(_Preferring, DPOTrainer):  # type: ignore[misc]
    pass


class _Kto(_Preferring, KTOTrainer):  # type: ignore[misc]
    pass


class _Order(Sampler[int]):
    """Samples the rows of an epoch in the order of `order`.

    The epoch is derived from the step: accelerate does not pass it on when a training of several processes resumes
    within an epoch.
    """

    def __init__(self, trainer: _Trainer) -> None:
        self.trainer, self.course = trainer, trainer.course

    def __iter__(self) -> Iterator[int]:
        epoch = self.trainer.state.global_step // self.course.steps_per_epoch
        return iter(order(len(self), epoch, self.course.settings))

    def __len__(self) -> int:
        return len(self.course.rows)


def trainer(
    preferences: Preferences | None,
    arguments: dict[str, Any],
    settings: TrainSettings,
    flash: bool,
    pad: int,
) -> tuple[Any, Any, Any]:
    """Returns the trainer's class, its configuration and the function that collates rows.

    Args:
        preferences: None: train on completions only.
        arguments: the arguments of any configuration.
        flash: whether FlashAttention is used, which needs no padding.
        pad: the id of the pad token.
    """
    completions = DataCollatorForLanguageModeling(pad, padding_free=flash)
    if preferences is None:
        skip = {"dataset_kwargs": {"skip_prepare_dataset": True}}
        return _Completions, SFTConfig(**arguments, **skip, padding_free=flash), completions
    beta = {"beta": settings.preference_beta}
    if preferences.method == "dpo":
        kind, collator = _Dpo, DataCollatorForPreference(pad)
        config = DPOConfig(**arguments, **beta, disable_dropout=False)
    else:
        kind, collator = _Kto, DataCollatorForUnpairedPreference(pad)
        config = KTOConfig(
            **arguments, **beta, **preferences.weights, disable_dropout=False, train_sampling_strategy="sequential"
        )

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        own = completions([{name: row[name] for name in ("input_ids", "labels")} for row in rows])
        batch = {"labels": own.pop("labels"), "completions": own}
        return batch | (collator(rows) if "prompt_ids" in rows[0] else {})

    return kind, config, collate


def columns(rows: Sequence[Encoded], beside: Sequence[dict[str, Any]]) -> Any:
    """Returns a data set of rows in TRL's columns, each with the further columns of its preference."""
    return Dataset.from_list(
        [
            {"input_ids": row.ids, "labels": [IGNORED] * len(row.prompt) + row.completion} | more
            for row, more in zip(rows, beside, strict=True)
        ]
    )
