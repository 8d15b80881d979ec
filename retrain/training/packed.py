"""The training loop for adapters on CPUs: without padding, and with shared prefixes computed once, for the models that
support it. Used in child processes only.
"""

import math
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from retuned.consumers.common.process import Emit
from retuned.consumers.errors import Cancelled
from retuned.retrain.kernels.packing import Encoded
from retuned.retrain.settings import TrainSettings
from retuned.retrain.training import adapter as lora
from retuned.retrain.training import checkpoints
from retuned.retrain.training.batches import losses, tokens_at_once
from retuned.retrain.training.steps import BETAS, CLIP, check_finite, learning_rate, order

_SEEDS = 1_000_003  # a prime between the seeds of two trainings


class Training:
    """The training loop with the state that its checkpoints hold."""

    def __init__(
        self,
        model: Any,
        train: list[Encoded],
        pad: int,
        settings: TrainSettings,
        folder: Path,
        halved: int,
    ) -> None:
        """
        Args:
            pad: the id of the pad token.
            halved: the number of times that the tokens computed at once were halved, after running out of memory.
        """
        self.packed = lora.packing_fits(model, train, pad, settings.max_length)
        # As TRL's trainers compute in bfloat16, and without the copies in float32 that PEFT makes of what layers take.
        self.precision = torch.autocast("cpu", torch.bfloat16, enabled=model.dtype is torch.bfloat16)
        for layer in lora.layers(model):
            layer.cast_input_dtype_enabled = False
        self.limit = tokens_at_once(self.packed) >> halved
        self.about = {"packed": self.packed}
        self.can_halve = self.limit > max(map(len, train))  # else the longest row, alone, takes the most
        self.model, self.rows, self.pad = model, train, pad
        self.settings, self.folder = settings, folder
        self.parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
        self.optimizer = torch.optim.AdamW(self.parameters.values(), lr=0.0, betas=BETAS, weight_decay=0.0, fused=True)
        self.dropouts = lora.dropouts(model)
        self.times = checkpoints.Times(settings)
        self.step = self.tokens = 0
        self.seconds = self.epoch_loss = 0.0
        self.last_epoch_loss: float | None = None

    @property
    def steps_per_epoch(self) -> int:
        """The number of steps in which each row is seen once."""
        return math.ceil(len(self.rows) / self.settings.batch_size)

    @property
    def steps(self) -> int:
        """The number of steps of the whole training."""
        return self.steps_per_epoch * self.settings.epochs

    def run(self, emit: Emit, stopped: Callable[[], bool]) -> None:
        """Trains to the end, or writes a checkpoint when stopped.

        Raises:
            Cancelled: `stopped` returned true.
        """
        while self.step < self.steps:
            if stopped():
                self.save()
                raise Cancelled("train: stopped before it was done")
            emit(self._one_step())
            if self.step % self.steps_per_epoch == 0:
                self.last_epoch_loss, self.epoch_loss = self.epoch_loss / self.steps_per_epoch, 0.0
            if self.times.due(self.step):
                self.save()

    def _one_step(self) -> dict[str, Any]:
        started = perf_counter()
        torch.manual_seed(self.settings.seed * _SEEDS + self.step)
        self._drop(True)
        batch = self._batch()
        rate = learning_rate(self.step, self.steps, self.settings)
        count = sum(len(row.completion) for row in batch)
        total = 0.0
        with self.precision:
            for part in losses(self.model, batch, self.pad, self.packed, self.limit):
                loss = part.sum() / count
                loss.backward()  # type: ignore[no-untyped-call]
                total += float(loss.detach())
        self._drop(False)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), CLIP, foreach=True)
        check_finite(self.step + 1, total, float(norm), self.settings)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        self.epoch_loss += total
        tokens, seconds = sum(map(len, batch)), perf_counter() - started
        self.tokens += tokens
        self.seconds += seconds
        return {
            "step": self.step,
            "steps": self.steps,
            "epoch": (self.step - 1) / self.steps_per_epoch,
            "loss": total,
            "tokens_per_second": tokens / seconds,
            "learning_rate": rate,
        }

    def _drop(self, on: bool) -> None:
        for dropout in self.dropouts:
            dropout.train(on)

    def _batch(self) -> list[Encoded]:
        epoch, index = divmod(self.step, self.steps_per_epoch)
        size = self.settings.batch_size
        rows = [self.rows[i] for i in order(len(self.rows), epoch, self.settings)[index * size : (index + 1) * size]]
        return sorted(rows, key=lambda row: row.ids)  # a sum has no order, and neighbours share the most

    def save(self) -> None:
        """Writes a checkpoint of this step."""
        tensors = {f"adapter/{name}": value.detach() for name, value in self.parameters.items()}
        for number, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{number}/{key}": value for key, value in state.items()}
        numbers = {name: getattr(self, name) for name in self._NUMBERS}
        with self.times.writing():
            checkpoints.save(self.folder, self.step, numbers, tensors)

    def resume(self) -> None:
        """Restores the newest complete checkpoint, if there is one."""
        checkpoint = checkpoints.newest(self.folder)
        if checkpoint is None:
            return
        numbers, tensors = checkpoint
        for name in self._NUMBERS:
            setattr(self, name, numbers[name])
        with torch.no_grad():
            for name, value in self.parameters.items():
                value.copy_(tensors[f"adapter/{name}"])
        state: dict[int, dict[str, Any]] = {}
        for name, value in tensors.items():
            if name.startswith("optimizer/"):
                _, number, key = name.split("/")
                state.setdefault(int(number), {})[key] = value
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": state})

    def write(self, folder: Path) -> None:
        """Saves the adapter in PEFT's format."""
        self.model.save_pretrained(folder, save_embedding_layers=False)

    def result(self) -> dict[str, Any]:
        """Returns the figures of the whole training, including the time before interruptions."""
        return {
            "steps": self.step,
            "epochs": self.step / self.steps_per_epoch,
            "train_loss": self.last_epoch_loss,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "tokens_per_second": self.tokens / self.seconds if self.seconds else 0.0,
        }

    _NUMBERS = ("step", "tokens", "seconds", "epoch_loss", "last_epoch_loss")
