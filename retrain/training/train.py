"""Trains an adapter on a runner: the daemon's function, and the work of the processes on the runner.

Only completion tokens are learned, including the end of the turn. The engine, `packed.py` or `trl.py`, runs the loop.
The data order, the learning rate, the dropout masks and the initial adapter depend on the settings and the step alone,
so an interrupted training has the same result as an uninterrupted one.
"""

import json
import logging
import shutil
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from retuned.consumers.child import child_main
from retuned.consumers.common import durable as files
from retuned.consumers.common.lead import Lead, alone
from retuned.consumers.common.process import Emit
from retuned.consumers.errors import OutOfMemory
from retuned.retrain import versions
from retuned.retrain.data.dataset import Dataset, TooLongRows
from retuned.retrain.runners.build import runner
from retuned.retrain.runners.runner import Runner, Work
from retuned.retrain.settings import Settings, TrainSettings
from retuned.retrain.training import engine, shared_gpu
from retuned.retrain.training.base_model import choose_dtype, load_model, load_tokenizer, model_type
from retuned.retrain.training.launch import launcher
from retuned.retrain.versions import Version

log = logging.getLogger(__name__)

MODULE = "retuned.retrain.training.train"
_RESULT = "training.json"
_HALVED = "halved"
"""In the folder of a training: how often it ran out of memory."""


def train(
    dataset: Dataset,
    parent: Version | None,
    settings: Settings,
    folder: Path,
    stop: threading.Event | None = None,
    on_progress: Emit | None = None,
    lead: Lead = alone,
) -> dict[str, Any]:
    """Trains an adapter on a dataset, starting from the parent's adapter or from the base model.

    A training in the folder is resumed: a checkpoint is continued, a finished training is returned. If memory runs
    out, the training continues with half as many rows computed at once, down to one; the result of a step is the same.

    Args:
        folder: used by this training only; the result is `adapter/` in it, in PEFT's format.
        on_progress: receives `{"step", "steps", "epoch", "loss", "tokens_per_second", "learning_rate"}` after each step
            (with preferences also `"preference_loss"`); before them the engine and its reason, `{"started_anew": why}`
            if a checkpoint could not be continued, and `{"halved": times, "reason"}` if memory ran out.

    Returns:
        `adapter` (path), `steps`, `epochs`, `train_loss` (nats per token, last epoch), `tokens`, `seconds`,
        `tokens_per_second`, `engine`, `engine_reason`, `learning_rate` (its peak), `dtype`, `processes`, `threads` (of
        each), `load_seconds`; `rows_cut` (rows that lost turns or passages) and `rows_too_long` (rows that were left
        out); `coverage` and `not_covered` (see `targets.Coverage`; None if all weights train); for packed also `packed`
        (whether it packs), for trl `micro_batch_size` (rows), `gradient_checkpointing` and `attention`.
        With preferences: `preference_pairs`, `preference_loss` (last epoch).

    Raises:
        RetunedError: no base model, the parent was trained on another one or its files were changed, or a server on
            the same GPU could not restart during the training.
        TooLongRows: more rows than train.maximum_too_long_share do not fit train.max_length.
        Cancelled: stop was set; a checkpoint was written.
        OutOfMemory: the model does not fit into memory, or not with a single row at once.
        ChildFailed: the child failed or died.
    """
    base = versions.need_base(settings.base)
    versions.base_hash(base)
    if parent is not None:
        versions.check_base(parent, base)
        versions.check_base_files(parent, base)
        versions.check_intact(parent)
    finished = folder / "adapter" / _RESULT
    if finished.is_file():
        done: dict[str, Any] = json.loads(finished.read_text(encoding="utf-8"))
        return done | {"adapter": str(finished.parent)}
    job = {
        "base": str(base),
        "parent": str(parent.path) if parent else None,
        "dataset": str(dataset.path),
        "settings": settings.train.model_dump(mode="json"),
    }
    request = Work(
        MODULE,
        job,
        folder,
        timeout_seconds=settings.train.timeout_seconds,
        outputs=(finished.parent.name,),
        to_need_less="lower train.batch_size, train.max_length or train.rank, set train.method to qlora, or choose a "
        "smaller base model",
    )
    stop, on_progress = stop or threading.Event(), on_progress or (lambda _: None)
    with shared_gpu.shared(settings, lead) as budget:
        result = _halving(runner(settings, lead), replace(request, job=job | {"gpu_bytes": budget}), stop, on_progress)
    if "too_long" in result:
        raise TooLongRows(f"workload {dataset.workload}: {result['too_long']}")
    return result | {"adapter": str(finished.parent)}


def _halving(on: Runner, request: Work, stop: threading.Event, on_progress: Emit) -> dict[str, Any]:
    """Repeats the work with fewer rows at once after each attempt that ran out of memory. Each attempt is a process
    of its own, so its memory is unaffected by the one before, even one that the kernel killed."""
    file, can_halve = request.folder / _HALVED, False
    halved = int(file.read_text(encoding="utf-8")) if file.is_file() else 0

    def report(line: dict[str, Any]) -> None:
        nonlocal can_halve
        can_halve = line.pop("can_halve", can_halve)
        on_progress(line)

    while True:
        can_halve = False
        try:
            return on.run(replace(request, job=request.job | {"halved": halved}), stop, report)
        except OutOfMemory as error:
            if not can_halve:
                raise
            halved += 1
            files.replace_text(file, str(halved))
            log.warning("training continues with fewer rows at once: %s", error)
            on_progress({"halved": halved, "reason": str(error)})


def work(job: dict[str, Any], emit: Emit) -> dict[str, Any] | None:
    """Trains in the child process. Of several processes, only the first one returns a result."""
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    started = time.perf_counter()
    settings = TrainSettings.model_validate(job["settings"])
    folder, base = Path(job["folder"]), Path(job["base"])

    import pyarrow.parquet as pq
    import torch

    from retuned.retrain.training import adapter as lora
    from retuned.retrain.training import checkpoints, gpu, packed, preferences, targets
    from retuned.retrain.training.batches import encode_all, too_long

    chosen = engine.choose(model_type(base), settings, torch.cuda.device_count())
    on_trl = chosen.name == "trl"
    if on_trl:
        from retuned.retrain.training import trl  # an optional dependency

        together = trl.join()
        emit = emit if together.is_main_process else (lambda _: None)
    gpu.reserve(job.get("gpu_bytes"), settings.gpu_wait_seconds, emit, stopped.is_set)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    tokenizer = load_tokenizer(base)
    dtype = choose_dtype(settings.dtype)
    model = load_model(
        base,
        # Most updates are too small to change a weight in bfloat16, so trained weights are held in float32.
        torch.float32 if settings.method == "full" else dtype,
        quantized=settings.method == "qlora",
        attention=trl.attention() if on_trl else None,
        sharded=on_trl and settings.accelerate_file is not None and together.num_processes > 1,
    )
    settings = settings.for_model(model.num_parameters())
    parent = Path(job["parent"]) if job["parent"] else None
    model = lora.to_train(model, base, parent, settings)
    covered = targets.coverage(model) if settings.method != "full" else None
    if covered is not None and parent is None and not settings.target_modules:
        targets.check(covered, base)
    model.peft_config["default"].base_model_name_or_path = str(base)
    rows = pq.read_table(Path(job["dataset"]) / "train.parquet").to_pylist()
    encoded = encode_all(tokenizer, rows, **settings.encoding)
    if reason := too_long(len(rows), len(encoded), settings):
        return {"too_long": reason}
    about = {
        "engine": chosen.name,
        "engine_reason": chosen.reason,
        "learning_rate": settings.learning_rate,
        "dtype": str(dtype).removeprefix("torch."),
        "processes": together.num_processes if on_trl else 1,
        "threads": torch.get_num_threads(),
        "rows_cut": sum(row.cut for row in encoded),
        "rows_too_long": len(rows) - len(encoded),
        "coverage": covered and covered.share,
        "not_covered": covered and covered.missing,
    }
    first = not on_trl or together.is_main_process
    if first and (why := checkpoints.drop_unfit(folder, job, chosen.name, settings, encoded)):
        log.warning("training starts anew: %s", why)
        emit({"started_anew": why})
    halved = job.get("halved", 0)
    training: Any
    if on_trl:
        together.wait_for_everyone()  # the others see what the first one kept
        preferred = preferences.load(tokenizer, Path(job["dataset"]), settings)
        training = trl.Training(model, tokenizer, encoded, preferred, dtype, settings, folder, halved)
    else:
        training = packed.Training(model, encoded, tokenizer.pad_token_id, settings, folder, halved)
    about |= training.about | {"load_seconds": time.perf_counter() - started}
    emit(about | {"can_halve": training.can_halve})
    training.resume()
    training.run(emit, stopped.is_set)
    if not first:
        return None
    path = folder / "adapter"
    result: dict[str, Any] = {"adapter": str(path)} | training.result() | about
    with files.written_aside(path) as aside:
        training.write(aside)
        lora.sort_layer_names(aside)
        (aside / _RESULT).write_text(json.dumps(result), encoding="utf-8")
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    return result


if __name__ == "__main__":
    child_main(work, lambda job: launcher(MODULE, job))
