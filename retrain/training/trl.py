"""Training by TRL's SFTTrainer with accelerate: gradient checkpointing, flash attention, a model sharded over GPUs.

It learns the same token ids in the same batches as `packed.py`, with the same learning rate and optimizer. Checkpoints
are the Trainer's; one is whole when it holds `whole`. Runs in child processes alone.
"""

import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from datasets import Dataset
from torch.utils.data import Sampler
from transformers import TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from trl import SFTConfig, SFTTrainer

from retuned.consumers.common import durable as files
from retuned.consumers.common.memory import available_bytes, gibibytes
from retuned.consumers.common.process import Emit
from retuned.consumers.errors import Cancelled, RetunedError
from retuned.retrain.kernels.packing import Encoded
from retuned.retrain.settings import TrainSettings
from retuned.retrain.training.batches import IGNORED
from retuned.retrain.training.checkpoints import Times
from retuned.retrain.training.plan import Shape, plan
from retuned.retrain.training.ranks import Ranks
from retuned.retrain.training.steps import BETAS, CLIP, check_finite, learning_rate, order

log = logging.getLogger(__name__)

_FLASH = "flash_attention_2"
_WHOLE = "whole"
_SHARDED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"}
_ADAPTER = ("adapter_config.json", "adapter_model.safetensors")


def prepare(settings: TrainSettings) -> None:
    """Let accelerate find what `train.accelerate_file` says, in this process and in those that it starts.

    Raises:
        RetunedError: it cannot be read, or says something else than FSDP version 2.
    """
    if settings.accelerate_file is None:
        return
    if settings.method == "qlora":
        raise RetunedError("train.accelerate_file: with train.method qlora, each GPU holds the whole model; unset one")
    arguments = ["--config_file", str(settings.accelerate_file), "training"]
    try:
        parsed, _, _ = _validate_launch_command(launch_command_parser().parse_args(arguments))
        environment = prepare_multi_gpu_env(parsed)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise RetunedError(f"train.accelerate_file {settings.accelerate_file}: {error}") from error
    wrong = [name for name, value in _SHARDED.items() if environment.get(name) != value]
    if wrong:
        raise RetunedError(
            f"train.accelerate_file {settings.accelerate_file}: expected FSDP version 2 with full state dicts, as in "
            f"deploy/fsdp2.yaml; not so here: {', '.join(wrong)}"
        )
    os.environ |= {name: value for name, value in environment.items() if name.startswith(("ACCELERATE_", "FSDP_"))}


def attention() -> str:
    """The implementation of attention that fits this machine, by transformers' name."""
    return _FLASH if torch.cuda.is_available() and find_spec("flash_attn") else "sdpa"


class Training:
    """One training, with the figures and the ends that `packed.Training` has."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        train: Sequence[Encoded],
        validation: Sequence[Encoded],
        base: Path,
        dtype: torch.dtype,
        settings: TrainSettings,
        folder: Path,
        ranks: Ranks,
    ) -> None:
        gpus = torch.cuda.device_count()
        size, checkpointing = _sizes(base, settings, gpus, max(map(len, (*train, *validation))))
        # Free memory differs between devices, and all must compute alike.
        size = int(ranks.total(size if ranks.first else 0))
        checkpointing = bool(ranks.total(checkpointing and ranks.first))
        flash = model.config._attn_implementation == _FLASH
        self.about = {
            "micro_batch_size": size,
            "gradient_checkpointing": checkpointing,
            "attention": model.config._attn_implementation,
        }
        self.settings, self.folder, self.ranks, self.rows = settings, folder, ranks, train
        per_epoch = self.steps_per_epoch = math.ceil(len(train) / settings.batch_size)
        arguments = SFTConfig(
            output_dir=str(folder),
            per_device_train_batch_size=size,
            # Rows are not padded then, and the Trainer takes what it evaluates on for one row.
            per_device_eval_batch_size=1 if flash else size,
            gradient_accumulation_steps=max(1, settings.batch_size // (size * ranks.count)),
            num_train_epochs=settings.epochs,
            learning_rate=settings.learning_rate,
            adam_beta1=BETAS[0],
            adam_beta2=BETAS[1],
            weight_decay=0.0,
            max_grad_norm=CLIP,
            bf16=dtype is torch.bfloat16,
            gradient_checkpointing=checkpointing,
            padding_free=flash,
            use_liger_kernel=gpus > 0 and find_spec("liger_kernel") is not None,
            max_length=None,  # rows are as long as `encode` let them be
            dataset_kwargs={"skip_prepare_dataset": True},
            eval_strategy="steps" if validation else "no",
            eval_steps=per_epoch,
            save_strategy="steps" if validation else "no",
            save_steps=per_epoch,
            metric_for_best_model="eval_loss" if validation else None,
            greater_is_better=False,
            save_total_limit=2,
            logging_steps=1,
            logging_nan_inf_filter=False,
            seed=settings.seed,
            use_cpu=not gpus,
            dataloader_pin_memory=gpus > 0,
            disable_tqdm=True,
            report_to="none",
        )
        trained = [(value, value.data) for value in model.parameters() if value.requires_grad]
        self.trainer = _Trainer(
            model=model,
            args=arguments,
            processing_class=tokenizer,
            train_dataset=_dataset(train),
            eval_dataset=_dataset(validation) if validation else None,
        )
        if settings.method == "qlora":
            # SFTTrainer rounds the adapters of a quantized model to bfloat16, in which most steps would change nothing.
            for value, exact in trained:
                value.data = exact
        self.trainer.settings = settings
        self.trainer.tokens_per_row = sum(len(row.completion) for row in validation) / max(1, len(validation))
        self.checkpoint: Path | None = None

    def resume(self) -> None:
        """Go on from the newest checkpoint that is whole, if there is one."""
        found = sorted(self.folder.glob("checkpoint-*"), key=lambda path: int(path.name.rsplit("-", 1)[-1]))
        whole = [path for path in found if (path / _WHOLE).is_file()]
        self.checkpoint = whole[-1] if whole else None
        self.ranks.total(0)  # all have looked before one removes what is not whole
        if self.ranks.first:
            for path in set(found) - set(whole):
                shutil.rmtree(path)

    def run(self, emit: Emit, stopped: Callable[[], bool]) -> None:
        """Train to the end, or until stopped: then a checkpoint is written.

        Raises:
            Cancelled: it was stopped.
            RetunedError: it diverged.
        """
        if self.checkpoint is not None:
            file = self.checkpoint / TRAINER_STATE_NAME
            state = TrainerState.load_from_json(str(file))
            best = Path(state.best_model_checkpoint or self.folder / "none")
            if self.ranks.total(best.parent != self.folder):  # all have read it
                # Another attempt wrote it, in a folder of its own; by that path the Trainer would not keep the best.
                state.best_model_checkpoint = str(self.folder / best.name)
                if self.ranks.first:
                    with files.replaced(file) as aside:
                        state.save_to_json(str(aside))
                self.ranks.total(0)
            if state.global_step >= state.max_steps or _without_gain(state) >= self.settings.patience:
                self.trainer.state = state  # it was interrupted when it was done
                return
        course = _Course(self.settings, self.steps_per_epoch, self.ranks, emit, stopped)
        self.trainer.course = course
        self.trainer.add_callback(course)
        self.trainer.train(resume_from_checkpoint=str(self.checkpoint) if self.checkpoint else None)
        if course.cancelled:
            raise Cancelled("train: stopped before it was done")

    def write(self, folder: Path) -> None:
        """Put the adapter of the best epoch, without validation that of the last one, into a folder."""
        state = self.trainer.state
        best = Path(state.best_model_checkpoint or f"checkpoint-{state.global_step}").name
        for name in _ADAPTER:
            shutil.copy(self.folder / best / name, folder / name)

    def result(self) -> dict[str, Any]:
        """The figures of the whole training, over all interruptions."""
        history, step = self.trainer.state.log_history, self.trainer.state.global_step
        steps = [line for line in history if "loss" in line]
        judged = _validation_losses(self.trainer.state)
        last = [line["loss"] for line in steps if line["step"] > step - self.steps_per_epoch]
        learned = sum(last) / len(last)
        seconds = sum(line["seconds"] for line in steps)
        epochs = step / self.steps_per_epoch
        tokens = round(epochs * sum(map(len, self.rows)))
        best_epoch = judged.index(min(judged)) + 1 if judged else round(epochs)
        return {
            "steps": step,
            "epochs": epochs,
            "train_loss": learned,
            "validation_loss": min(judged, default=None),
            "best_epoch": best_epoch,
            "epochs_after_best": round(epochs) - best_epoch,
            "validation_gap": judged[-1] - learned if judged else None,
            "tokens": tokens,
            "seconds": seconds,
            "tokens_per_second": tokens / seconds if seconds else 0.0,
        }


class _Trainer(SFTTrainer):  # type: ignore[misc]
    """SFTTrainer with this package's order of rows, learning rate, validation loss and checkpoints."""

    settings: TrainSettings
    tokens_per_row: float
    course: "_Course"

    def _get_train_sampler(self, train_dataset: Any = None) -> "_Order":
        return _Order(len(train_dataset if train_dataset is not None else self.train_dataset), self.settings)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The learning rate of each step, as a share of its peak."""
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer or self.optimizer,
            lambda step: learning_rate(step, num_training_steps, self.settings) / self.args.learning_rate,
        )
        return self.lr_scheduler

    def compute_loss(self, model: Any, inputs: Any, *more: Any, num_items_in_batch: Any = None, **named: Any) -> Any:
        """The mean over tokens; in validation as a mean over rows, of which the Trainer takes the mean."""
        if not model.training:
            num_items_in_batch = len(inputs["labels"]) * self.tokens_per_row * self.args.world_size
        return super().compute_loss(model, inputs, *more, num_items_in_batch=num_items_in_batch, **named)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """What is kept of a step, also over interruptions."""
        if "loss" in logs:
            check_finite(self.state.global_step, logs["loss"], logs.get("grad_norm", 0.0), self.settings)
            logs = logs | {"seconds": self.course.seconds}
        super().log(logs, start_time)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        with self.course.times.writing():
            super()._save_checkpoint(model, trial)
            if self.args.should_save:
                folder = Path(self.args.output_dir, f"checkpoint-{self.state.global_step}")
                for file in folder.iterdir():
                    files.fsync(file)
                files.replace_text(folder / _WHOLE, "")


class _Order(Sampler[int]):
    """The rows of an epoch as `order` has them."""

    def __init__(self, rows: int, settings: TrainSettings) -> None:
        self.rows, self.settings, self.epoch = rows, settings, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        return iter(order(self.rows, self.epoch, self.settings))

    def __len__(self) -> int:
        return self.rows


class _Course(TrainerCallback):  # type: ignore[misc]
    """Progress, patience, when to write a checkpoint, and the stop."""

    def __init__(
        self, settings: TrainSettings, steps_per_epoch: int, ranks: Ranks, emit: Emit, stopped: Callable[[], bool]
    ) -> None:
        self.settings, self.steps_per_epoch, self.ranks, self.emit = settings, steps_per_epoch, ranks, emit
        self.stopped, self.times, self.cancelled = stopped, Times(settings), False
        self.started = self.seconds = self.tokens = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """A step of the optimizer, not of the accumulation."""
        self.started = perf_counter()

    def on_step_end(self, _: Any, state: TrainerState, control: Any, **__: Any) -> None:
        """All processes stop, and save, after the same step."""
        self.seconds = perf_counter() - self.started
        if self.ranks.total(self.stopped()):
            self.cancelled = control.should_training_stop = True
        due = self.ranks.first and self.times.due(state.global_step)
        last = self.cancelled or state.global_step == state.max_steps
        control.should_save = control.should_save or bool(self.ranks.total(due)) or last

    def on_log(self, _: Any, state: TrainerState, *__: Any, logs: dict[str, float], **___: Any) -> None:
        """A line for each step."""
        if "loss" not in logs:
            return
        tokens, self.tokens = logs["num_tokens"] - self.tokens, logs["num_tokens"]
        self.emit(
            {
                "step": state.global_step,
                "steps": state.max_steps,
                "epoch": (state.global_step - 1) / self.steps_per_epoch,
                "loss": logs["loss"],
                "tokens_per_second": tokens / self.seconds,
                "learning_rate": logs["learning_rate"],
            }
        )

    def on_evaluate(self, _: Any, state: TrainerState, control: Any, **__: Any) -> None:
        """A line for each epoch."""
        found = _without_gain(state)
        loss = _validation_losses(state)[-1]
        self.emit({"epoch": state.global_step // self.steps_per_epoch, "validation_loss": loss, "best": not found})
        if found >= self.settings.patience:
            control.should_training_stop = True


def _sizes(base: Path, settings: TrainSettings, gpus: int, longest: int) -> tuple[int, bool]:
    """Examples at once on a device, and whether with gradient checkpointing: by the plan, or what needs least."""
    try:
        Shape.of(base)
    except RetunedError as error:
        log.warning("one example at once is computed: %s", error)
        return 1, gpus > 0
    available = torch.cuda.mem_get_info()[0] + torch.cuda.memory_allocated() if gpus else available_bytes()
    planned = plan(base, settings, gpus, available, longest)
    if not planned.fits:
        log.warning("training may run out of memory: it needs some %s on each device", gibibytes(planned.memory.total))
    return planned.micro_batch_size, planned.gradient_checkpointing


def _validation_losses(state: TrainerState) -> list[float]:
    return [line["eval_loss"] for line in state.log_history if "eval_loss" in line]


def _without_gain(state: TrainerState) -> int:
    """Epochs since the best one."""
    found = _validation_losses(state)
    return len(found) - 1 - found.index(min(found)) if found else 0


def _dataset(rows: Sequence[Encoded]) -> Any:
    return Dataset.from_list(
        [{"input_ids": row.ids, "labels": [IGNORED] * len(row.prompt) + row.completion} for row in rows]
    )
