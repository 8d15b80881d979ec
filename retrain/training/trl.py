"""Trains with TRL and accelerate: SFTTrainer, or DPOTrainer and KTOTrainer together with the loss of completions.

It trains on the same token ids in the same batches as `packed.py`, with the same learning rate and optimizer.
Checkpoints are the Trainer's; a complete one has a file `whole`. Used in child processes only.
"""

import math
import shutil
from collections.abc import Callable, Sequence
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from peft.tuners.lora.layer import LoraLayer
from transformers import TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from retuned.consumers.common.process import Emit
from retuned.consumers.errors import Cancelled
from retuned.retrain.kernels.packing import Encoded
from retuned.retrain.settings import TrainSettings
from retuned.retrain.training.checkpoints import Times
from retuned.retrain.training.engine import ways
from retuned.retrain.training.preferences import Preferences
from retuned.retrain.training.steps import BETAS, CLIP, order
from retuned.retrain.training.trainers import WHOLE, columns, trainer

_FLASH = "flash_attention_2"
_ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
_TIMEOUT = timedelta(minutes=30)


def join() -> PartialState:
    """Joins the processes of this training that the launcher started, if any."""
    return PartialState(cpu=not torch.cuda.is_available(), timeout=_TIMEOUT)


def attention() -> str:
    """Returns transformers' name of the attention implementation for this machine."""
    return _FLASH if torch.cuda.is_available() and find_spec("flash_attn") else "sdpa"


class Training:
    """A training with the same interface and figures as `packed.Training`."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        train: Sequence[Encoded],
        preferences: Preferences | None,
        dtype: torch.dtype,
        settings: TrainSettings,
        folder: Path,
        halved: int,
    ) -> None:
        """
        Args:
            halved: the number of `ways` that ran out of memory before.
        """
        gpus, self.state = torch.cuda.is_available(), PartialState()
        possible = ways(settings, self.state.num_processes)
        size, checkpointing = possible[min(halved, len(possible) - 1)]
        self.can_halve = halved < len(possible) - 1
        flash = model.config._attn_implementation == _FLASH
        self.about = {
            "micro_batch_size": size,
            "gradient_checkpointing": checkpointing,
            "attention": model.config._attn_implementation,
        }
        self.settings, self.folder, self.rows, self.preferences = settings, folder, train, preferences
        self.steps_per_epoch = math.ceil(len(train) / settings.batch_size)
        arguments: dict[str, Any] = {
            "output_dir": str(folder),
            "per_device_train_batch_size": size,
            "gradient_accumulation_steps": settings.batch_size // (size * self.state.num_processes),
            "num_train_epochs": settings.epochs,
            "learning_rate": settings.learning_rate,
            "adam_beta1": BETAS[0],
            "adam_beta2": BETAS[1],
            "weight_decay": 0.0,
            "max_grad_norm": CLIP,
            "bf16": dtype is torch.bfloat16,
            "gradient_checkpointing": checkpointing,
            "max_length": None,  # `encode` has limited the rows already
            "remove_unused_columns": False,
            "save_strategy": "no",  # `_Course` decides
            "save_total_limit": 2,
            "logging_steps": 1,
            "logging_nan_inf_filter": False,
            "seed": settings.seed,
            "use_cpu": not gpus,
            "dataloader_pin_memory": gpus,
            "disable_tqdm": True,
            "report_to": "none",
        }
        trained = [(value, value.data) for value in model.parameters() if value.requires_grad]
        kind, config, collate = trainer(preferences, arguments, settings, flash, tokenizer.pad_token_id)
        beside = preferences.beside(len(train), settings.seed) if preferences else [{}] * len(train)
        self.trainer = kind(
            model=model,
            args=config,
            processing_class=tokenizer,
            data_collator=collate,
            train_dataset=columns(train, beside),
        )
        if settings.method == "qlora":
            # TRL rounds the adapters of a quantized model to bfloat16, in which most updates would be lost.
            for value, exact in trained:
                value.data = exact
        for module in model.modules():
            if isinstance(module, LoraLayer) and "ref" in module.lora_dropout:
                module.lora_dropout["ref"] = torch.nn.Identity()  # the reference model has no dropout, as in use
        self.trainer.settings = settings
        self.checkpoint: Path | None = None

    def resume(self) -> None:
        """Selects the newest complete checkpoint, if there is one, and removes incomplete ones."""
        checkpoints = sorted(self.folder.glob("checkpoint-*"), key=lambda path: int(path.name.rsplit("-", 1)[-1]))
        whole = [path for path in checkpoints if (path / WHOLE).is_file()]
        self.checkpoint = whole[-1] if whole else None
        self.state.wait_for_everyone()  # all processes have looked before one removes any
        if self.state.is_main_process:
            for path in set(checkpoints) - set(whole):
                shutil.rmtree(path)

    def run(self, emit: Emit, stopped: Callable[[], bool]) -> None:
        """Trains to the end, or writes a checkpoint when stopped.

        Raises:
            Cancelled: `stopped` returned true.
            RetunedError: the training diverged.
        """
        if self.checkpoint is not None:
            state = TrainerState.load_from_json(str(self.checkpoint / TRAINER_STATE_NAME))
            if state.global_step >= state.max_steps:
                self.trainer.state = state  # it was interrupted after the last step
                return
        course = _Course(self.settings, self.rows, emit, stopped)
        self.trainer.course = course
        self.trainer.add_callback(course)
        self.trainer.train(resume_from_checkpoint=str(self.checkpoint) if self.checkpoint else None)
        if course.cancelled:
            raise Cancelled("train: stopped before it was done")

    def write(self, folder: Path) -> None:
        """Copies the adapter of the last step into a folder."""
        for name in _ADAPTER:
            shutil.copy(self.folder / f"checkpoint-{self.trainer.state.global_step}" / name, folder / name)

    def result(self) -> dict[str, Any]:
        """Returns the figures of the whole training, including the time before interruptions."""
        history, step = self.trainer.state.log_history, self.trainer.state.global_step
        steps = [line for line in history if "loss" in line]
        last = [line["loss"] for line in steps if line["step"] > step - self.steps_per_epoch]
        seconds = sum(line["seconds"] for line in steps)
        epochs = step / self.steps_per_epoch
        tokens = round(epochs * sum(map(len, self.rows)))
        figures = {
            "steps": step,
            "epochs": epochs,
            "train_loss": sum(last) / len(last),
            "tokens": tokens,
            "seconds": seconds,
            "tokens_per_second": tokens / seconds if seconds else 0.0,
        }
        if self.preferences is not None:
            preferred = [line["preference_loss"] for line in steps if line["step"] > step - self.steps_per_epoch]
            figures |= {
                "preference_pairs": len(self.preferences.columns),
                "preference_loss": sum(preferred) / len(preferred),
            }
        return figures


class _Course(TrainerCallback):  # type: ignore[misc]
    """Reports progress, and decides when to write a checkpoint and to stop."""

    def __init__(
        self, settings: TrainSettings, rows: Sequence[Encoded], emit: Emit, stopped: Callable[[], bool]
    ) -> None:
        self.settings, self.rows, self.emit = settings, rows, emit
        self.steps_per_epoch = math.ceil(len(rows) / settings.batch_size)
        self.stopped, self.times, self.cancelled = stopped, Times(settings), False
        self.started = self.seconds = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Starts the clock of an optimizer step, not of an accumulation step."""
        self.started = perf_counter()

    def on_step_end(self, _: Any, state: TrainerState, control: Any, **__: Any) -> None:
        """Makes all processes stop and save after the same step."""
        self.seconds = perf_counter() - self.started
        if _any(self.stopped()):
            self.cancelled = control.should_training_stop = True
        due = PartialState().is_main_process and self.times.due(state.global_step)
        last = self.cancelled or state.global_step == state.max_steps
        control.should_save = control.should_save or _any(due) or last

    def on_log(self, _: Any, state: TrainerState, *__: Any, logs: dict[str, float], **___: Any) -> None:
        """Reports a step."""
        if "loss" not in logs:
            return
        epoch, index = divmod(state.global_step - 1, self.steps_per_epoch)
        size = self.settings.batch_size
        batch = order(len(self.rows), epoch, self.settings)[index * size : (index + 1) * size]
        self.emit(
            {
                "step": state.global_step,
                "steps": state.max_steps,
                "epoch": (state.global_step - 1) / self.steps_per_epoch,
                "loss": logs["loss"],
                "tokens_per_second": sum(len(self.rows[i]) for i in batch) / self.seconds,
                "learning_rate": logs["learning_rate"],
            }
            | {name: logs[name] for name in ("preference_loss",) if name in logs}
        )


def _any(flag: bool) -> bool:
    """Whether the flag is set in any of the processes."""
    return bool(reduce(torch.tensor(float(flag), device=PartialState().device), "sum"))
