"""Natural language inference: does a passage entail a sentence? By a model from a folder, in a child process."""

import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from retuned.consumers.child import child_main
from retuned.consumers.common.process import Emit, run_child
from retuned.consumers.errors import ConfigurationError

_BATCH = 16
_TOKENS = 512


def entailments(
    model: Path, answers: Sequence[tuple[list[str], list[str]]], seconds: float, stop: threading.Event
) -> list[float]:
    """For each answer, given as its sentences and its passages, how surely its least certain sentence is entailed.

    A sentence is as certain as the passage that entails it best makes it, 0 to 1. Source: SummaC (Laban et al. 2022).

    Raises:
        Cancelled: stop was set.
        ChildFailed: the model cannot be used, or it took longer.
    """
    with tempfile.TemporaryDirectory(prefix="retuned-nli-") as folder:  # what it is shown does not stay
        job = {"model": str(model), "answers": [list(answer) for answer in answers]}
        result = run_child("retuned.monitors.hallucination.nli", job, Path(folder), timeout_seconds=seconds, stop=stop)
    certainties: list[float] = result["certainties"]
    return certainties


# The child's side from here on.


def classify(job: dict[str, Any], _emit: Emit) -> dict[str, Any]:
    """The certainty of each answer of a job (see `entailments`)."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(job["model"], local_files_only=True)
        model = AutoModelForSequenceClassification.from_pretrained(job["model"], local_files_only=True).eval()
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"quality.nli_model: {job['model']} cannot be loaded ({error})") from error
    labels = {label.casefold(): index for index, label in model.config.id2label.items()}
    entailed = next((index for label, index in labels.items() if label.startswith("entail")), None)
    if entailed is None:
        raise ConfigurationError(f"quality.nli_model: none of its labels is entailment ({', '.join(labels)})")
    pairs = [
        (number, sentence, passage)
        for number, (sentences, passages) in enumerate(job["answers"])
        for sentence in range(len(sentences))
        for passage in range(len(passages))
    ]
    certain: dict[tuple[int, int], float] = {}
    for start in range(0, len(pairs), _BATCH):
        batch = pairs[start : start + _BATCH]
        inputs = tokenizer(
            [job["answers"][number][1][passage] for number, _, passage in batch],
            [job["answers"][number][0][sentence] for number, sentence, _ in batch],
            truncation="only_first",
            max_length=min(_TOKENS, getattr(model.config, "max_position_embeddings", _TOKENS)),
            padding=True,
            return_tensors="pt",
        )
        with torch.inference_mode():
            found = model(**inputs).logits.float().softmax(-1)[:, entailed].tolist()
        for (number, sentence, _), certainty in zip(batch, found, strict=True):
            certain[number, sentence] = max(certain.get((number, sentence), 0.0), certainty)
    return {
        "certainties": [
            min((certain[number, sentence] for sentence in range(len(sentences))), default=1.0)
            for number, (sentences, _) in enumerate(job["answers"])
        ]
    }


if __name__ == "__main__":
    child_main(classify)
