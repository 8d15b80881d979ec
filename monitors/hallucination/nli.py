"""A model from a folder that tells what passages bear out, in a child process: of entailment, or of tokens.

Either a model of natural language inference (transformers, sequence classification with a label entailment): each
sentence of an answer beside each passage. Or one that marks the tokens that the passages do not bear out (token
classification with two labels, as those of LettuceDetect, Kovács and Recski 2025): the answer beside all passages.
"""

import logging
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from retuned.consumers.child import child_main
from retuned.consumers.common.process import Emit, run_child
from retuned.consumers.errors import ChildFailed, ConfigurationError
from retuned.monitors.hallucination.claims import claims
from retuned.monitors.hallucination.scorer import Answer, Judgement, ScorerFailed

_BATCH = 16
_PAIR_TOKENS = 512
_ANSWER_TOKENS = 4_096
"""Of a passage and a sentence, and of passages and an answer, so many tokens go into the model at once, or its most."""
_OVERLAP = 0.2
_SURE = 0.5


class Entailment:
    """The scorer `nli`."""

    source, threshold = "nli", _SURE

    def __init__(self, model: Path, seconds: float, stop: threading.Event) -> None:
        self.model, self.seconds, self.stop = model, seconds, stop

    def judge(self, answers: Sequence[Answer]) -> list[tuple[Answer, Judgement]]:
        """A sentence is as certain as the passage that entails it best makes it, an answer as its least certain one.

        Of a model of tokens, what is marked is the less certain. Source: SummaC (Laban et al. 2022), but for the least.

        Raises:
            Cancelled: it was stopped.
            ScorerFailed: the model cannot be used, or it took longer.
        """
        shown = [
            {
                "question": one.question,
                "response": one.response,
                "passages": one.passages,
                "claims": [*claims(one.response)],
            }
            for one in answers
        ]
        with tempfile.TemporaryDirectory(prefix="retuned-nli-") as folder:  # what it is shown does not stay
            job = {"model": str(self.model), "answers": shown}
            module = "retuned.monitors.hallucination.nli"
            try:
                result = run_child(module, job, Path(folder), timeout_seconds=self.seconds, stop=self.stop)
            except ChildFailed as error:
                raise ScorerFailed(str(error)) from error
        found = [Judgement(score, tuple(spans)) for score, spans in result["judged"]]
        return list(zip(answers, found, strict=True))


# The child's side from here on.


def classify(job: dict[str, Any], _emit: Emit) -> dict[str, Any]:
    """Score and spans of each answer of a job."""
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoModelForTokenClassification

    logging.getLogger("transformers.tokenization_utils_base").setLevel(logging.ERROR)  # of texts that are cut here
    try:
        config = AutoConfig.from_pretrained(job["model"], local_files_only=True)
        of_tokens = any("TokenClassification" in name for name in config.architectures or ())
        kind = AutoModelForTokenClassification if of_tokens else AutoModelForSequenceClassification
        model = kind.from_pretrained(job["model"], local_files_only=True).eval()
        windows = _Windows(job["model"], config, _ANSWER_TOKENS if of_tokens else _PAIR_TOKENS)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"quality.nli_model: {job['model']} cannot be loaded ({error})") from error
    judge = _marked if of_tokens else _entailed
    return {"judged": judge(model, windows, job["answers"])}


def _entailed(model: Any, windows: "_Windows", answers: list[dict[str, Any]]) -> list[tuple[float, list[str]]]:
    labels = {label.casefold(): index for index, label in model.config.id2label.items()}
    entailed = next((index for label, index in labels.items() if label.startswith("entail")), None)
    if entailed is None:
        raise ConfigurationError(f"quality.nli_model: none of its labels is entailment ({', '.join(labels)})")
    certain = [[0.0] * len(one["claims"]) for one in answers]
    pairs = [
        ((number, at), passage, windows.cut(claim))
        for number, one in enumerate(answers)
        for at, claim in enumerate(one["claims"])
        for passage in one["passages"]
    ]
    for (number, at), logits, _ in windows.run(model, pairs):
        certain[number][at] = max(certain[number][at], float(logits.softmax(-1)[entailed]))
    return [
        (
            min(of_claims, default=1.0),
            [claim for claim, sure in zip(one["claims"], of_claims, strict=True) if sure < _SURE],
        )
        for one, of_claims in zip(answers, certain, strict=True)
    ]


def _marked(model: Any, windows: "_Windows", answers: list[dict[str, Any]]) -> list[tuple[float, list[str]]]:
    labels = {index: label.casefold() for index, label in model.config.id2label.items()}
    if len(labels) != 2:
        raise ConfigurationError(
            f"quality.nli_model: a model of tokens has two labels, not {', '.join(labels.values())}"
        )
    # "LABEL_1", or what says it.
    marked = next((i for i, label in labels.items() if "halluc" in label and not label.startswith(("no", "not"))), 1)
    doubt: list[dict[tuple[int, int], float]] = [{} for _ in answers]
    pairs = []
    for number, one in enumerate(answers):
        given = [f"passage {at}: {passage}" for at, passage in enumerate(one["passages"], 1)]
        pairs.append(
            (number, "\n".join([*([one["question"]] if one["question"] else []), *given]), windows.cut(one["response"]))
        )
    for number, logits, spans in windows.run(model, pairs):
        for at, span in spans:
            sure = float(logits[at].softmax(-1)[marked])
            doubt[number][span] = min(doubt[number].get(span, 1.0), sure)  # one window bears it out: enough
    return [
        (1.0 - max(of_tokens.values(), default=0.0), _spans(one["response"], of_tokens))
        for one, of_tokens in zip(answers, doubt, strict=True)
    ]


def _spans(text: str, doubt: dict[tuple[int, int], float]) -> list[str]:
    """The stretches of a text whose tokens are all in doubt."""
    found: list[list[int]] = []
    goes_on = False
    for (start, end), sure in sorted(doubt.items()):
        in_doubt = sure > 1 - _SURE
        if in_doubt and goes_on:
            found[-1][1] = end
        elif in_doubt:
            found.append([start, end])
        goes_on = in_doubt
    return [text[start:end].strip() for start, end in found]


class _Windows:
    """Pairs of texts as a model reads them: the first in windows that overlap, the second whole in each of them."""

    def __init__(self, folder: str, config: Any, most: int) -> None:
        from transformers import AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.most = min(most, getattr(config, "max_position_embeddings", most), self.tokenizer.model_max_length)

    def cut(self, text: str) -> str:
        """A text that leaves half of a window to the other one."""
        offsets = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        return text if len(offsets) <= self.most // 2 else text[: offsets[self.most // 2 - 1][1]]

    def run(
        self, model: Any, pairs: Sequence[tuple[Any, str, str]]
    ) -> Iterator[tuple[Any, Any, list[tuple[int, Any]]]]:
        """For each window of each pair its key, its logits, and the tokens of the second text with where they stand."""
        import torch

        for first in range(0, len(pairs), _BATCH):
            batch = pairs[first : first + _BATCH]
            read = self.tokenizer(
                [one for _, one, _ in batch],
                [other for _, _, other in batch],
                truncation="only_first",
                max_length=self.most,
                stride=int(self.most * _OVERLAP),
                padding=True,
                return_overflowing_tokens=True,
                return_offsets_mapping=True,
                return_tensors="pt",
            )
            owners, offsets = read.pop("overflow_to_sample_mapping").tolist(), read.pop("offset_mapping").tolist()
            for start in range(0, len(owners), _BATCH):
                part = slice(start, start + _BATCH)
                with torch.inference_mode():
                    found = model(**{name: values[part] for name, values in read.items()}).logits.float()
                for at, logits in enumerate(found, start):
                    of_second = [
                        (token, tuple(span))
                        for token, (text, span) in enumerate(zip(read.sequence_ids(at), offsets[at], strict=True))
                        if text == 1 and span[0] < span[1]
                    ]
                    yield batch[owners[at]][0], logits, of_second


if __name__ == "__main__":
    child_main(classify)
