"""Finds the training rows that weighed most in an answer: those whose gradients are most similar to the answer's.

As TracIn (Pruthi et al. 2020, "Estimating Training Data Influence by Tracing Gradient Descent") the gradients are those
of the loss, here by the weights that were trained: a step on a row changes the answer's loss by their product. They are
taken at the final weights alone, the one checkpoint that is kept, and compared by their cosine, as in LESS (Xia et al.
2024), because products favour long and badly learned rows. Rows are first chosen by their wording.
"""

import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from retuned.consumers.child import child_main
from retuned.consumers.common.process import Emit
from retuned.consumers.errors import RetunedError
from retuned.retrain import versions
from retuned.retrain.runners.local import LocalRunner
from retuned.retrain.runners.runner import Work
from retuned.retrain.settings import Settings, TrainSettings
from retuned.retrain.training.base_model import choose_dtype, load_model, load_tokenizer
from retuned.retrain.versions import Version

if TYPE_CHECKING:
    import torch

MODULE = "retuned.retrain.training.influence"
_COLUMNS = ("row_id", "messages", "completion", "context", "tools", "reasoning")
_SECONDS = 0.5


def similar(asked: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], most: int) -> list[Mapping[str, Any]]:
    """Returns the rows whose wording is closest to a question and its answer, closest first.

    By the cosines of TF-IDF on runs of 2 to 4 characters, which need no words: of the questions, plus of the answers.

    Args:
        asked: a row with `question` and `completion`, as those of a dataset.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    if len(rows) <= most:
        return list(rows)
    closeness = [0.0] * len(rows)
    for column in ("question", "completion"):
        grams = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4)).fit_transform(
            [str(row[column]) for row in (asked, *rows)]
        )
        closeness = [sum(pair) for pair in zip(closeness, (grams[1:] @ grams[0].T).toarray()[:, 0], strict=True)]
    order = sorted(range(len(rows)), key=lambda number: -closeness[number])
    return [rows[number] for number in order[:most]]


def influence(
    asked: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    version: Version,
    settings: Settings,
    stop: threading.Event,
) -> Iterator[dict[str, Any]]:
    """Yields the progress, each with `done` and `of`, and then `influence`: the cosine of each row's gradient with the
    answer's, by row_id, -1 to 1. Rows that do not fit train.max_length are missing.

    Args:
        asked: the answer to explain, as a row of a dataset.
        stop: ends the work.

    Raises:
        RetunedError: the base model is gone, files were changed, or the answer does not fit train.max_length.
        Cancelled: stop was set.
        OutOfMemory, ChildFailed: as `Runner.run`.
    """
    base = versions.base_folder(version, versions.need_base(settings.base))
    versions.check_base_files(version, base)
    versions.check_intact(version)
    train = settings.train
    if train.gpu_servers:  # they serve, and an explanation is no reason to put them to sleep
        train = train.model_copy(update={"devices": ()})
    job = {
        "base": str(base),
        "adapter": str(version.path.resolve()),
        "settings": train.model_dump(mode="json"),
        "asked": _sent(asked),
        "rows": [_sent(row) for row in rows],
    }
    with TemporaryDirectory(prefix="retuned-explain-") as folder:
        work = Work(
            MODULE,
            job,
            Path(folder),
            timeout_seconds=settings.evaluate.timeout_seconds,
            to_need_less="set train.method to qlora, or lower train.max_length",
        )
        yield from _run(LocalRunner(train), work, stop)


def _sent(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the columns that the child needs, as JSON holds them."""
    asked_at = row.get("timestamp")
    return {name: row.get(name) for name in _COLUMNS} | {"timestamp": asked_at and str(asked_at)}


def _run(runner: LocalRunner, work: Work, stop: threading.Event) -> Iterator[dict[str, Any]]:
    """Runs the work in a thread, and yields its progress and its result. It ends when the caller does."""
    lines: queue.Queue[dict[str, Any] | BaseException] = queue.Queue()
    own = threading.Event()

    def run() -> None:
        try:
            lines.put(runner.run(work, own, lines.put))
        except BaseException as error:  # noqa: BLE001  (raised in the thread of the caller)
            lines.put(error)

    thread = threading.Thread(target=run, name="explain")
    thread.start()
    try:
        while True:
            if stop.is_set():
                own.set()
            try:
                line = lines.get(timeout=_SECONDS)
            except queue.Empty:
                continue
            if isinstance(line, BaseException):
                raise line
            yield line
            if "influence" in line:
                return
    finally:
        own.set()
        thread.join()


def work(job: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """Runs in the child: loads the model, and compares gradients row by row, of which only one is kept."""
    import torch

    from retuned.retrain.training import adapter as lora
    from retuned.retrain.training.batches import encode_all

    settings = TrainSettings.model_validate(job["settings"])
    if settings.threads:
        torch.set_num_threads(settings.threads)
    base = Path(job["base"])
    tokenizer = load_tokenizer(base)
    quantized = settings.method == "qlora"
    model = load_model(base, choose_dtype(settings.dtype), quantized=quantized)
    model = lora.load_adapter(model, Path(job["adapter"]), trainable=True)
    asked = encode_all(tokenizer, [job["asked"]], **settings.encoding)
    if not asked:
        raise RetunedError(f"the answer does not fit train.max_length ({settings.max_length} tokens)")
    rows = encode_all(tokenizer, job["rows"], **settings.encoding)
    direction = _gradient(model, asked[0], tokenizer.pad_token_id)
    found = {}
    for number, row in enumerate(rows, 1):
        own = _gradient(model, row, tokenizer.pad_token_id)
        found[row.row_id] = float(torch.nn.functional.cosine_similarity(own, direction, dim=0))
        emit({"done": number, "of": len(rows)})
    return {"influence": found}


def _gradient(model: Any, row: Any, pad: int) -> "torch.Tensor":
    """Returns the gradient of a row's mean loss by all trained weights, as one vector."""
    import torch

    from retuned.retrain.training.batches import padded_losses

    weights = [value for value in model.parameters() if value.requires_grad]
    loss = padded_losses(model, [row], pad).mean()
    parts = torch.autograd.grad(loss, weights, materialize_grads=True, allow_unused=True)
    return torch.cat([part.flatten().float() for part in parts])


if __name__ == "__main__":
    child_main(work)
