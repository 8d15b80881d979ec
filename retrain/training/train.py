"""Training of an adapter, in a child process: the parent's function and the child's work.

Only completion tokens are learned, the end of the turn included. The data order, the learning rate, what dropout drops
and the start of the adapter depend on the settings and the step alone, so a training that was interrupted ends as one
that was not.
"""

import json
import math
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retuned.consumers.child import child_main
from retuned.consumers.common import durable as files
from retuned.consumers.common.process import Emit, run_child
from retuned.consumers.errors import Cancelled
from retuned.retrain import versions
from retuned.retrain.data.dataset import Dataset, TooLongRows
from retuned.retrain.settings import Settings, TrainSettings
from retuned.retrain.training.base_model import choose_dtype, load_model, load_tokenizer
from retuned.retrain.versions import Version

if TYPE_CHECKING:
    from retuned.retrain.kernels.packing import Encoded
    from retuned.retrain.training.preference import Preferences
    from retuned.retrain.training.ranks import Ranks

BETAS = (0.9, 0.99)
CLIP = 1.0

_RESULT = "training.json"
_SEEDS = 1_000_003  # a prime between the seeds of two trainings


def train(
    dataset: Dataset,
    parent: Version | None,
    settings: Settings,
    folder: Path,
    stop: threading.Event | None = None,
    on_progress: Emit | None = None,
) -> dict[str, Any]:
    """Train an adapter on a dataset, beginning from the parent's, or from the base model.

    What is in the folder is taken up again: a checkpoint is continued, a finished training is returned.

    Args:
        folder: of this training alone; `adapter/` in it is what comes out, as PEFT saves it.
        on_progress: gets `{"step", "steps", "epoch", "loss", "tokens_per_second", "learning_rate"}` after each step
            (with preferences also `"preference_loss"`) and `{"epoch", "validation_loss", "best"}` after each epoch.

    Returns:
        `adapter` (path), `steps`, `epochs`, `train_loss` (nats per token, last epoch), `validation_loss` (of the
        adapter that is kept; None without validation rows), `tokens`, `seconds`, `tokens_per_second`, `dtype`,
        `packed`, `fused` (adapted layers that compute in fewer operations), `processes`, `threads` (of each),
        `load_seconds`; of the rows to train and to validate on, `rows_cut` (that lost turns or passages) and
        `rows_too_long` (that were left out). Signs of overfitting: `best_epoch` (the one that is kept),
        `epochs_after_best` (trained in vain), `validation_gap` (validation loss over train loss of the last epoch, nats
        per token). With preferences: `preference_pairs`, `preference_loss` (last epoch).

    Raises:
        RetunedError: no base model, or the parent was trained on another one.
        TooLongRows: more rows than train.maximum_too_long_share do not fit train.max_length.
        Cancelled: stop was set; a checkpoint was written.
        ChildFailed: the child failed or died.
    """
    base = versions.need_base(settings.models.base)
    versions.base_hash(base)
    if parent is not None:
        versions.check_base(parent, base)
    finished = folder / "adapter" / _RESULT
    if finished.is_file():
        done: dict[str, Any] = json.loads(finished.read_text(encoding="utf-8"))
        return done
    job = {
        "base": str(base),
        "parent": str(parent.path) if parent else None,
        "dataset": str(dataset.path),
        "folder": str(folder.resolve()),
        "settings": settings.train.model_dump(mode="json"),
    }
    result = run_child(
        "retuned.retrain.training.train",
        job,
        folder,
        timeout_seconds=settings.train.timeout_seconds,
        stop=stop,
        on_progress=on_progress,
        to_need_less="lower train.batch_size, train.max_length or train.rank, or take a smaller base model",
    )
    if "too_long" in result:
        raise TooLongRows(f"workload {dataset.workload}: {result['too_long']}")
    return result


def learning_rate(step: int, steps: int, settings: TrainSettings) -> float:
    """Of the step that comes next, counted from 0: a linear rise over the warm-up, then a linear fall to zero."""
    warm = math.ceil(settings.warmup_share * steps)
    share = (step + 1) / warm if step < warm else (steps - step) / max(1, steps - warm)
    return settings.peak_learning_rate * share


def order(rows: int, epoch: int, settings: TrainSettings) -> list[int]:
    """In which order the rows are seen in an epoch, both counted from 0."""
    import numpy as np

    shuffled: list[int] = np.random.default_rng([settings.seed, epoch]).permutation(rows).tolist()
    return shuffled


def work(job: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """The child's side."""
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    started = time.perf_counter()
    settings = TrainSettings.model_validate(job["settings"])
    folder, base = Path(job["folder"]), Path(job["base"])

    import pyarrow.parquet as pq
    import torch

    from retuned.retrain.kernels.replace import replace_layers
    from retuned.retrain.training import adapter as lora
    from retuned.retrain.training import preference, ranks
    from retuned.retrain.training.batches import encode_all, too_long

    together = ranks.join("retuned.retrain.training.train", settings.processes, emit)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    tokenizer = load_tokenizer(base)
    pad = tokenizer.pad_token_id
    dtype, full = choose_dtype(settings.dtype), settings.method == "full"
    # A step is too small to move most weights in bfloat16: those that train are held in float32.
    model = load_model(base, torch.float32 if full else dtype, quantized=settings.method == "qlora")
    model = lora.to_train(model, base, Path(job["parent"]) if job["parent"] else None, settings)
    tables = {
        split: pq.read_table(Path(job["dataset"]) / f"{split}.parquet").to_pylist() for split in ("train", "validation")
    }
    rows = {
        split: encode_all(tokenizer, table, settings.max_length, context=settings.context)
        for split, table in tables.items()
    }
    tried, fitting = (sum(map(len, of.values())) for of in (tables, rows))
    lengths = {"rows_cut": sum(row.cut for of in rows.values() for row in of), "rows_too_long": tried - fitting}
    if reason := too_long(tried, fitting, settings):
        return {"too_long": reason}
    packed = lora.packing_fits(model, rows["train"], pad, settings.max_length)
    replaced = replace_layers(model)
    if full:
        lora.compute_in(model, dtype)
    about = {
        "dtype": str(dtype).removeprefix("torch."),
        "packed": packed,
        "fused": replaced,
        "processes": together.count,
        "threads": torch.get_num_threads(),
        "load_seconds": time.perf_counter() - started,
    } | lengths
    emit(about)
    preferences = preference.load(tokenizer, Path(job["dataset"]), settings)
    training = Training(
        model,
        rows["train"],
        rows["validation"],
        preferences,
        tokenizer.pad_token_id,
        packed,
        settings,
        folder,
        together,
    )
    training.resume()
    training.run(emit, stopped.is_set)
    if not together.first:
        return {}
    path = folder / "adapter"
    result = {"adapter": str(path)} | training.result() | about
    with files.written_aside(path) as aside:
        training.keep_best()
        model.peft_config["default"].base_model_name_or_path = str(base)
        model.save_pretrained(aside, save_embedding_layers=False)
        (aside / _RESULT).write_text(json.dumps(result), encoding="utf-8")
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    return result


class Training:
    """The loop and all that a checkpoint must hold of it."""

    def __init__(
        self,
        model: Any,
        train: "list[Encoded]",
        validation: "list[Encoded]",
        preferences: "Preferences | None",
        pad: int,
        packed: bool,
        settings: TrainSettings,
        folder: Path,
        ranks: "Ranks",
    ) -> None:
        import torch

        from retuned.retrain.training import adapter as lora

        self.model, self.rows, self.validation, self.pad, self.packed = model, train, validation, pad, packed
        self.preferences, self.settings, self.folder, self.ranks = preferences, settings, folder, ranks
        self.parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
        self.optimizer = torch.optim.AdamW(self.parameters.values(), lr=0.0, betas=BETAS, weight_decay=0.0, fused=True)
        self.dropouts = lora.dropouts(model)
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
            if self.step % self.settings.checkpoint_steps == 0:
                self.save()

    def _one_step(self) -> dict[str, Any]:
        import torch

        from retuned.retrain.training.batches import losses

        started = time.perf_counter()
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
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), CLIP, foreach=True)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        self.epoch_loss += total
        tokens, seconds = sum(map(len, batch)), time.perf_counter() - started
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
        import torch

        if self.ranks.count > 1:
            for value in self.parameters.values():
                if value.grad is None:
                    value.grad = torch.zeros_like(value)
        self.ranks.add(value.grad for value in self.parameters.values() if value.grad is not None)

    def _batch(self) -> "list[Encoded]":
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
        import torch

        from retuned.retrain.training.batches import losses

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
        from retuned.retrain.training import checkpoints

        tensors = {f"adapter/{name}": value.detach() for name, value in self.parameters.items()}
        tensors |= {f"best/{name}": value for name, value in self.best.items()}
        if self.preferences is not None:
            tensors["reference"] = self.preferences.reference
        for number, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{number}/{key}": value for key, value in state.items()}
        numbers = {name: getattr(self, name) for name in self._NUMBERS}
        checkpoints.save(self.folder, self.step, numbers, tensors)

    def resume(self) -> None:
        """Go on from the newest checkpoint that is whole, if there is one; else what there is now is the reference."""
        from retuned.retrain.training import checkpoints

        found = checkpoints.newest(self.folder)
        if found is None:
            if self.preferences is not None:
                self.preferences.measure(self.model, self.pad, self.packed, self.ranks)
            return
        import torch

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

    def keep_best(self) -> None:
        """Put the adapter of the best epoch into the model; without validation the last one stays."""
        import torch

        with torch.no_grad():
            for name, value in self.best.items():
                self.parameters[name].copy_(value)

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


if __name__ == "__main__":
    child_main(work)
