"""This package's own training loop: rows without padding and shared beginnings once, where a model may compute so.

Runs in child processes alone.
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
from retuned.retrain.kernels.replace import replace_layers
from retuned.retrain.settings import TrainSettings
from retuned.retrain.training import adapter as lora
from retuned.retrain.training import checkpoints
from retuned.retrain.training.batches import losses
from retuned.retrain.training.preference import Preferences
from retuned.retrain.training.ranks import Ranks
from retuned.retrain.training.steps import BETAS, CLIP, check_finite, learning_rate, order

_SEEDS = 1_000_003  # a prime between the seeds of two trainings


class Training:
    """The loop and all that a checkpoint must hold of it."""

    def __init__(
        self,
        model: Any,
        train: list[Encoded],
        validation: list[Encoded],
        preferences: Preferences | None,
        pad: int,
        dtype: torch.dtype,
        settings: TrainSettings,
        folder: Path,
        ranks: Ranks,
    ) -> None:
        self.packed = lora.packing_fits(model, train, pad, settings.max_length)
        self.about = {"packed": self.packed, "fused": replace_layers(model)}
        if settings.method == "full":
            lora.compute_in(model, dtype)
        self.model, self.rows, self.validation, self.pad = model, train, validation, pad
        self.preferences, self.settings, self.folder, self.ranks = preferences, settings, folder, ranks
        self.parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
        self.optimizer = torch.optim.AdamW(self.parameters.values(), lr=0.0, betas=BETAS, weight_decay=0.0, fused=True)
        self.dropouts = lora.dropouts(model)
        self.times = checkpoints.Times(settings)
        self.best: dict[str, torch.Tensor] = {}
        self.step = self.tokens = self.without_gain = 0
        self.seconds = self.epoch_loss = self.epoch_preference = 0.0
        self.best_loss: float | None = None
        self.last_loss: float | None = None
        self.last_epoch_loss: float | None = None
        self.last_preference: float | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which each row is seen once."""
        return math.ceil(len(self.rows) / self.settings.batch_size)

    @property
    def steps(self) -> int:
        """Steps of a training that does not stop early."""
        return self.steps_per_epoch * self.settings.epochs

    def run(self, emit: Emit, stopped: Callable[[], bool]) -> None:
        """Train to the end, or until stopped: then a checkpoint is written.

        Raises:
            Cancelled: it was stopped.
        """
        while self.step < self.steps and self.without_gain < self.settings.patience:
            if self.ranks.total(stopped()):  # the signal reaches one process, and all must heed it at the same step
                self.save()
                raise Cancelled("train: stopped before it was done")
            emit(self._one_step())
            if self.step % self.steps_per_epoch == 0:
                emit(self._end_epoch())
            if self.times.due(self.step):
                self.save()

    def _one_step(self) -> dict[str, Any]:
        started = perf_counter()
        torch.manual_seed((self.settings.seed * _SEEDS + self.step) * self.ranks.count + self.ranks.number)
        self._drop(True)
        batch = self._batch()
        rate = learning_rate(self.step, self.steps, self.settings)
        count = sum(len(row.completion) for row in batch)
        total = 0.0
        for part in losses(self.model, self.ranks.part(batch), self.pad, self.packed):
            loss = part.sum() / count
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        total = self.ranks.total(total)
        preference = self._learn_preferences()
        self._add_gradients()
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
        } | ({} if preference is None else {"preference_loss": preference})

    def _drop(self, on: bool) -> None:
        for dropout in self.dropouts:
            dropout.train(on)

    def _learn_preferences(self) -> float | None:
        """Add the gradient of the step's preferences to that of its completions."""
        if self.preferences is None:
            return None
        total = 0.0
        for part in self.preferences.losses(self.model, self.step, self.pad, self.packed, self.settings, self.ranks):
            (self.settings.preference_weight * part).backward()  # type: ignore[no-untyped-call]
            total += float(part.detach())
        total = self.ranks.total(total)
        self.epoch_preference += total
        return total

    def _add_gradients(self) -> None:
        """Add up what the processes found, each on its part of the batch; one may have had none."""
        if self.ranks.count > 1:
            for value in self.parameters.values():
                if value.grad is None:
                    value.grad = torch.zeros_like(value)
        self.ranks.add(value.grad for value in self.parameters.values() if value.grad is not None)

    def _batch(self) -> list[Encoded]:
        epoch, index = divmod(self.step, self.steps_per_epoch)
        size = self.settings.batch_size
        rows = [self.rows[i] for i in order(len(self.rows), epoch, self.settings)[index * size : (index + 1) * size]]
        return sorted(rows, key=lambda row: row.ids)  # a sum has no order, and neighbours share the most

    def _end_epoch(self) -> dict[str, Any]:
        self.last_epoch_loss, self.epoch_loss = self.epoch_loss / self.steps_per_epoch, 0.0
        if self.preferences is not None:
            self.last_preference, self.epoch_preference = self.epoch_preference / self.steps_per_epoch, 0.0
        loss = self.last_loss = self._validation_loss()
        better = loss is not None and (self.best_loss is None or loss < self.best_loss)
        if better:
            self.best_loss, self.without_gain = loss, 0
            self.best = {name: value.detach().clone() for name, value in self.parameters.items()}
        elif loss is not None:
            self.without_gain += 1
        return {"epoch": self.step // self.steps_per_epoch, "validation_loss": loss, "best": better}

    def _validation_loss(self) -> float | None:
        if not self.validation:
            return None
        own = self.ranks.part(self.validation)
        with torch.no_grad():
            total = self.ranks.total(sum(float(part.sum()) for part in losses(self.model, own, self.pad, self.packed)))
        return total / sum(len(row.completion) for row in self.validation)

    def save(self) -> None:
        """Write a checkpoint of this step."""
        if not self.ranks.first:
            return
        tensors = {f"adapter/{name}": value.detach() for name, value in self.parameters.items()}
        tensors |= {f"best/{name}": value for name, value in self.best.items()}
        if self.preferences is not None:
            tensors["reference"] = self.preferences.reference
        for number, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{number}/{key}": value for key, value in state.items()}
        numbers = {name: getattr(self, name) for name in self._NUMBERS}
        with self.times.writing():
            checkpoints.save(self.folder, self.step, numbers, tensors)

    def resume(self) -> None:
        """Go on from the newest checkpoint that is whole, if there is one; else what there is now is the reference."""
        found = checkpoints.newest(self.folder)
        if found is None:
            if self.preferences is not None:
                self.preferences.measure(self.model, self.pad, self.packed, self.ranks)
            return
        numbers, tensors = found
        for name in self._NUMBERS:
            setattr(self, name, numbers[name])
        with torch.no_grad():
            for name, value in self.parameters.items():
                value.copy_(tensors[f"adapter/{name}"])
        if self.preferences is not None:
            self.preferences.reference = tensors["reference"]
        self.best = {name.removeprefix("best/"): value for name, value in tensors.items() if name.startswith("best/")}
        state: dict[int, dict[str, Any]] = {}
        for name, value in tensors.items():
            if name.startswith("optimizer/"):
                _, number, key = name.split("/")
                state.setdefault(int(number), {})[key] = value
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": state})

    def write(self, folder: Path) -> None:
        """Save the adapter of the best epoch, without validation that of the last one, as PEFT does."""
        with torch.no_grad():
            for name, value in self.best.items():
                self.parameters[name].copy_(value)
        self.model.save_pretrained(folder, save_embedding_layers=False)

    def result(self) -> dict[str, Any]:
        """The figures of the whole training, over all interruptions."""
        learned = self.last_epoch_loss
        figures = {
            "steps": self.step,
            "epochs": self.step / self.steps_per_epoch,
            "train_loss": learned,
            "validation_loss": self.best_loss,
            "best_epoch": self.step // self.steps_per_epoch - self.without_gain,
            "epochs_after_best": self.without_gain,
            "validation_gap": self.last_loss - learned if self.last_loss is not None and learned is not None else None,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "tokens_per_second": self.tokens / self.seconds if self.seconds else 0.0,
        }
        if self.preferences is not None:
            figures |= {"preference_pairs": len(self.preferences.pairs), "preference_loss": self.last_preference}
        return figures

    _NUMBERS = (
        "step", "tokens", "without_gain", "seconds", "epoch_loss", "epoch_preference", "best_loss", "last_loss",
        "last_epoch_loss", "last_preference",
    )  # fmt: skip
