"""Training of an adapter, on the runner: the daemon's function and the work of the process there.

Only completion tokens are learned, the end of the turn included. The engine, `packed.py` or `trl.py`, is the loop. The
data order, the learning rate, what dropout drops and the start of the adapter depend on the settings and the step
alone, so a training that was interrupted ends as one that was not.
"""

import json
import logging
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

from retuned.consumers.child import child_main
from retuned.consumers.common import durable as files
from retuned.consumers.common.lead import Lead, alone
from retuned.consumers.common.process import Emit
from retuned.retrain import versions
from retuned.retrain.data.dataset import Dataset, TooLongRows
from retuned.retrain.runners.build import runner
from retuned.retrain.runners.runner import Work
from retuned.retrain.settings import SECRETS, Settings, TrainSettings
from retuned.retrain.training import engine
from retuned.retrain.training.base_model import choose_dtype, load_model, load_tokenizer, model_type
from retuned.retrain.versions import Version

log = logging.getLogger(__name__)

_RESULT = "training.json"


def train(
    dataset: Dataset,
    parent: Version | None,
    settings: Settings,
    folder: Path,
    stop: threading.Event | None = None,
    on_progress: Emit | None = None,
    lead: Lead = alone,
) -> dict[str, Any]:
    """Train an adapter on a dataset, beginning from the parent's, or from the base model.

    What is in the folder is taken up again: a checkpoint is continued, a finished training is returned.

    Args:
        folder: of this training alone; `adapter/` in it is what comes out, as PEFT saves it.
        on_progress: gets `{"step", "steps", "epoch", "loss", "tokens_per_second", "learning_rate"}` after each step
            (with preferences also `"preference_loss"`) and `{"epoch", "validation_loss", "best"}` after each epoch;
            before them the engine and its reason, and `{"started_anew": why}` where a checkpoint could not be
            continued.

    Returns:
        `adapter` (path), `steps`, `epochs`, `train_loss` (nats per token, last epoch), `validation_loss` (of the
        adapter that is kept; None without validation rows), `tokens`, `seconds`, `tokens_per_second`, `engine`,
        `engine_reason`, `learning_rate` (its peak), `dtype`, `processes`, `threads` (of each), `load_seconds`; of the
        rows to train and to validate on, `rows_cut` (that lost turns or passages) and `rows_too_long` (that were left
        out); `coverage` and `not_covered` (see `targets.Coverage`; None where all weights train); of packed also
        `packed` and `fused` (adapted layers that compute in fewer operations), of trl `micro_batch_size`,
        `gradient_checkpointing` and `attention`. Signs of overfitting: `best_epoch` (the one that is kept),
        `epochs_after_best` (trained in vain), `validation_gap` (validation loss over train loss of the last epoch, nats
        per token). With preferences: `preference_pairs`, `preference_loss` (last epoch).

    Raises:
        RetunedError: no base model, or the parent was trained on another one.
        TooLongRows: more rows than train.maximum_too_long_share do not fit train.max_length.
        Cancelled: stop was set; a checkpoint was written.
        ChildFailed: the child failed or died.
    """
    base = versions.need_base(settings.base)
    versions.base_hash(base)
    if parent is not None:
        versions.check_base(parent, base)
    finished = folder / "adapter" / _RESULT
    if finished.is_file():
        done: dict[str, Any] = json.loads(finished.read_text(encoding="utf-8"))
        return done | {"adapter": str(finished.parent)}
    job = {
        "base": str(base),
        "parent": str(parent.path) if parent else None,
        "dataset": str(dataset.path),
        "settings": settings.train.model_dump(mode="json", exclude=SECRETS["train"]),
    }
    asked = Work(
        "retuned.retrain.training.train",
        job,
        folder,
        timeout_seconds=settings.train.timeout_seconds,
        outputs=(finished.parent.name,),
        to_need_less="lower train.batch_size, train.max_length or train.rank, set train.method to qlora, or take a "
        "smaller base model",
    )
    result = runner(settings, lead).run(asked, stop or threading.Event(), on_progress or (lambda _: None))
    if "too_long" in result:
        raise TooLongRows(f"workload {dataset.workload}: {result['too_long']}")
    return result | {"adapter": str(finished.parent)}


def work(job: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """The child's side."""
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    started = time.perf_counter()
    settings = TrainSettings.model_validate(job["settings"])
    folder, base = Path(job["folder"]), Path(job["base"])

    import pyarrow.parquet as pq
    import torch

    from retuned.retrain.training import adapter as lora
    from retuned.retrain.training import checkpoints, packed, preference, ranks, targets
    from retuned.retrain.training.batches import encode_all, too_long

    chosen = engine.choose(model_type(base), settings, torch.cuda.device_count())
    on_trl = chosen.name == "trl"
    if on_trl:
        from retuned.retrain.training import trl  # which not every installation can import

        trl.prepare(settings)
    together = ranks.join("retuned.retrain.training.train", settings.processes, emit)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    tokenizer = load_tokenizer(base)
    dtype = choose_dtype(settings.dtype)
    model = load_model(
        base,
        # A step is too small to move most weights in bfloat16: those that train are held in float32.
        torch.float32 if settings.method == "full" else dtype,
        quantized=settings.method == "qlora",
        attention=trl.attention() if on_trl else None,
        sharded=settings.accelerate_file is not None,
    )
    settings = settings.for_model(model.num_parameters())
    parent = Path(job["parent"]) if job["parent"] else None
    model = lora.to_train(model, base, parent, settings)
    covered = targets.coverage(model) if settings.method != "full" else None
    if covered is not None and parent is None and not settings.target_modules:
        targets.check(covered, base)
    model.peft_config["default"].base_model_name_or_path = str(base)
    tables = [pq.read_table(Path(job["dataset"]) / f"{split}.parquet").to_pylist() for split in ("train", "validation")]
    train, validation = (encode_all(tokenizer, table, **settings.encoding) for table in tables)
    tried, fitting = sum(map(len, tables)), len(train) + len(validation)
    if reason := too_long(tried, fitting, settings):
        return {"too_long": reason}
    about = {
        "engine": chosen.name,
        "engine_reason": chosen.reason,
        "learning_rate": settings.learning_rate,
        "dtype": str(dtype).removeprefix("torch."),
        "processes": together.count,
        "threads": torch.get_num_threads(),
        "rows_cut": sum(row.cut for row in (*train, *validation)),
        "rows_too_long": tried - fitting,
        "coverage": covered and covered.share,
        "not_covered": covered and covered.missing,
    }
    if together.first and (why := checkpoints.drop_unfit(folder, job, chosen.name, settings)):
        log.warning("training starts anew: %s", why)
        emit({"started_anew": why})
    together.total(0)  # the others wait here, and find what the first one left
    training: Any = (
        trl.Training(model, tokenizer, train, validation, base, dtype, settings, folder, together)
        if on_trl
        else packed.Training(
            model,
            train,
            validation,
            preference.load(tokenizer, Path(job["dataset"]), settings),
            tokenizer.pad_token_id,
            dtype,
            settings,
            folder,
            together,
        )
    )
    about |= training.about | {"load_seconds": time.perf_counter() - started}
    emit(about)
    training.resume()
    training.run(emit, stopped.is_set)
    if not together.first:
        return {}
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
    child_main(work)
