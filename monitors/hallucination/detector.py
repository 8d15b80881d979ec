"""The scorer `nli`: a model from a folder detects unsupported parts of answers, in a child process.

Each kind of model is used as its authors do:

- models that mark tokens (token classification with two labels, like LettuceDetect; Kovács and Recski 2025): the score
  of an answer is that of its least certain token, and one marked token makes an alarm;
- HHEM-2.1-Open (Vectara 2024): the score is the probability that the passages support the whole answer;
- models of natural language inference (sequence classification with a label entailment): each sentence has the
  probability of the passage that entails it best, the answer has the mean of its sentences (SummaC-ZS; Laban et al.
  2022).
"""

import json
import logging
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from retuned.consumers.child import child_main
from retuned.consumers.common.process import Emit, run_child
from retuned.consumers.errors import ChildFailed, ConfigurationError
from retuned.monitors.hallucination.scorer import Abstention, Answer, Judgement, ScorerFailed
from retuned.monitors.hallucination.values import readable, sentences

_BATCH = 16
_PAIR_TOKENS = 512
_ANSWER_TOKENS = 4_096
"""The most tokens of a passage with a sentence, and of all passages with an answer, that the model reads at once."""
_OVERLAP = 0.2
_SURE = 0.5
_QUESTION = (
    "Briefly answer the following question:\n{question}\nBear in mind that your response should be strictly based on "
    "the following {count} passages:\n{passages}\nIn case the passages do not contain the necessary information to "
    'answer the question, please reply with: "Unable to answer based on given passages."\noutput:\n'
)
_SUMMARY = "Summarize the following text:\n{passages}\noutput:\n"
"""The prompts that LettuceDetect's models were trained on."""
_HHEM = "<pad> Determine if the hypothesis is true given the premise?\n\nPremise: {premise}\n\nHypothesis: {hypothesis}"
"""The prompt that HHEM-2.1-Open was trained on."""


class Detector:
    """The scorer `nli`."""

    source, threshold = "nli", _SURE

    def __init__(self, model: Path, seconds: float, stop: threading.Event) -> None:
        self.model, self.seconds, self.stop = model, seconds, stop

    def judge(self, answers: Sequence[Answer]) -> list[tuple[Answer, Judgement | Abstention]]:
        """Judges answers one after the other, and returns those that it had time for.

        The answer at which the child stopped has an abstention, so that a later call does not stop at it again: it
        `failed` if it was the first, which had all the time, and was `interrupted` otherwise.

        Raises:
            Cancelled: `stop` was set.
            ScorerFailed: the model cannot be used.
        """
        inputs = [
            {"question": answer.question, "response": answer.response, "passages": answer.passages}
            for answer in map(readable, answers)
        ]
        lines: list[dict[str, Any]] = []
        failure: ChildFailed | None = None
        with tempfile.TemporaryDirectory(prefix="retuned-detector-") as folder:  # deletes the texts afterwards
            job = {"model": str(self.model), "answers": inputs}
            module = "retuned.monitors.hallucination.detector"
            try:
                run_child(
                    module, job, Path(folder), timeout_seconds=self.seconds, stop=self.stop, on_progress=lines.append
                )
            except ChildFailed as error:
                if not lines:
                    raise ScorerFailed(str(error)) from error
                failure = error
        scores = [line["judged"] for line in lines if "judged" in line]
        results: list[Judgement | Abstention] = [Judgement(score, tuple(why)) for score, why in scores]
        if failure:
            results.append(Abstention("interrupted" if scores else "failed", str(failure)))
        return list(zip(answers, results, strict=False))  # in order; there may be no time for all


# Below runs in the child process.

_Score = tuple[float, list[str]]
"""The score of an answer, and its unsupported parts."""


def classify(job: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """Emits a line when the model is loaded, and the score of each answer of a job with its unsupported parts."""
    judge = _loaded(job["model"])
    emit({"loaded": job["model"]})
    for answer in job["answers"]:
        emit({"judged": judge(answer)})
    return {}


def _loaded(folder: str) -> Callable[[dict[str, Any]], _Score]:
    """Loads a model, and returns the function that scores an answer."""
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoModelForTokenClassification

    # It warns of long texts, which are truncated here.
    logging.getLogger("transformers.tokenization_utils_base").setLevel(logging.ERROR)
    try:
        if _is_hhem(Path(folder)):
            return partial(_whole, _hhem(Path(folder)), _Windows(folder, None, _ANSWER_TOKENS))
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        marks_tokens = any("TokenClassification" in name for name in config.architectures or ())
        kind = AutoModelForTokenClassification if marks_tokens else AutoModelForSequenceClassification
        model = kind.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, trust_remote_code=False
        ).eval()
        windows = _Windows(folder, config, _ANSWER_TOKENS if marks_tokens else _PAIR_TOKENS)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigurationError(f"quality.detector: {folder} cannot be loaded ({error})") from error
    labels = {index: label.casefold() for index, label in model.config.id2label.items()}
    if marks_tokens:
        return partial(_marked, model, windows, _marking(labels))
    return partial(_entailed, model, windows, _entailing(labels))


def _entailing(labels: Mapping[int, str]) -> int:
    """Returns the label entailment."""
    entailing = next((index for index, label in labels.items() if label.startswith("entail")), None)
    if entailing is None:
        raise ConfigurationError(f"quality.detector: none of its labels is entailment ({', '.join(labels.values())})")
    return entailing


def _marking(labels: Mapping[int, str]) -> int:
    """Returns the label of unsupported tokens: 1 unless a label is called something like "hallucinated"."""
    if len(labels) != 2:
        raise ConfigurationError(
            f"quality.detector: a model that marks tokens has two labels, not {', '.join(labels.values())}"
        )
    return next((i for i, label in labels.items() if "halluc" in label and not label.startswith(("no", "not"))), 1)


def _entailed(model: Any, windows: "_Windows", entailed: int, answer: dict[str, Any]) -> _Score:
    claims = [sentence.text.strip() for sentence in sentences(answer["response"])]
    support = [0.0] * len(claims)
    pairs = [(at, passage, windows.cut(claim)) for at, claim in enumerate(claims) for passage in answer["passages"]]
    for at, logits, _ in windows.run(model, pairs):
        support[at] = max(support[at], float(logits.softmax(-1)[entailed]))
    return (
        fmean(support) if support else 1.0,
        [claim for claim, probability in zip(claims, support, strict=True) if probability < _SURE],
    )


def _marked(model: Any, windows: "_Windows", marked: int, answer: dict[str, Any]) -> _Score:
    doubt: dict[tuple[int, int], float] = {}
    passages = "\n".join(f"passage {at}: {passage}" for at, passage in enumerate(answer["passages"], 1))
    template = _QUESTION if answer["question"] else _SUMMARY
    prompt = template.format(question=answer["question"], count=len(answer["passages"]), passages=passages)
    for _, logits, spans in windows.run(model, [(None, prompt, windows.cut(answer["response"]))]):
        for at, span in spans:
            probability = float(logits[at].softmax(-1)[marked])
            doubt[span] = min(doubt.get(span, 1.0), probability)  # support in one window is enough
    return 1.0 - max(doubt.values(), default=0.0), _marked_spans(answer["response"], doubt)


def _marked_spans(text: str, doubt: dict[tuple[int, int], float]) -> list[str]:
    """Returns the runs of marked tokens of a text.

    Args:
        doubt: by the start and end of each token, the probability that it is not supported.
    """
    spans: list[list[int]] = []
    continues = False
    for (start, end), probability in sorted(doubt.items()):
        is_marked = probability > 1 - _SURE
        if is_marked and continues:
            spans[-1][1] = end
        elif is_marked:
            spans.append([start, end])
        continues = is_marked
    return [text[start:end].strip() for start, end in spans]


def _is_hhem(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type") == "HHEMv2")
    except (OSError, ValueError):
        return False


def _hhem(folder: Path) -> Any:
    """Loads the encoder of HHEM-2.1-Open without running the code in its folder.

    The folder has no configuration of the encoder; it follows from the shapes of the weights.
    """
    from safetensors.torch import load_file
    from transformers import T5Config, T5ForTokenClassification

    weights = {name.removeprefix("t5."): tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    words, shared = "transformer.encoder.embed_tokens.weight", "transformer.shared.weight"  # tied; one may be absent
    if words in weights or shared in weights:
        weights |= {words: weights.get(words, weights.get(shared)), shared: weights.get(shared, weights.get(words))}
    block = "transformer.encoder.block"
    vocabulary, width = weights[shared].shape
    heads = weights[f"{block}.0.layer.0.SelfAttention.relative_attention_bias.weight"].shape[1]
    config = T5Config(
        vocab_size=vocabulary,
        d_model=width,
        d_kv=weights[f"{block}.0.layer.0.SelfAttention.q.weight"].shape[0] // heads,
        d_ff=weights[f"{block}.0.layer.1.DenseReluDense.wi_0.weight"].shape[0],
        num_layers=len({name.split(".")[3] for name in weights if name.startswith(f"{block}.")}),
        num_heads=heads,
        feed_forward_proj="gated-gelu",
        num_labels=2,
    )
    model = T5ForTokenClassification(config)
    if missing := model.load_state_dict(weights, strict=False).missing_keys:
        raise KeyError(", ".join(missing[:3]))
    return model.eval()


def _whole(model: Any, windows: "_Windows", answer: dict[str, Any]) -> _Score:
    import torch

    premise = windows.cut("\n".join(answer["passages"]), share=0.7)
    text = _HHEM.format(premise=premise, hypothesis=windows.cut(answer["response"], share=0.25))
    with torch.inference_mode():
        logits = model(**windows.tokenizer(text, return_tensors="pt")).logits
    return float(logits[0, 0].float().softmax(-1)[1]), []


class _Windows:
    """Tokenizes pairs of texts: the first in overlapping windows, the second whole in each window."""

    def __init__(self, folder: str, config: Any, most: int) -> None:
        from transformers import AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        self.most = most  # no limit of its own without config: T5 has relative positions
        if config is not None:
            self.most = min(most, getattr(config, "max_position_embeddings", most), self.tokenizer.model_max_length)

    def cut(self, text: str, share: float = 0.5) -> str:
        """Truncates a text to a share of a window."""
        most = int(self.most * share)
        offsets = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        return text if len(offsets) <= most else text[: offsets[most - 1][1]]

    def run(
        self, model: Any, pairs: Sequence[tuple[Any, str, str]]
    ) -> Iterator[tuple[Any, Any, list[tuple[int, Any]]]]:
        """Yields for each window of each pair: the key, the logits, and the tokens of the second text with their
        positions."""
        import torch

        for first in range(0, len(pairs), _BATCH):
            batch = pairs[first : first + _BATCH]
            tokens = self.tokenizer(
                [first_text for _, first_text, _ in batch],
                [second_text for _, _, second_text in batch],
                truncation="only_first",
                max_length=self.most,
                stride=int(self.most * _OVERLAP),
                padding=True,
                return_overflowing_tokens=True,
                return_offsets_mapping=True,
                return_tensors="pt",
            )
            owners, offsets = tokens.pop("overflow_to_sample_mapping").tolist(), tokens.pop("offset_mapping").tolist()
            for start in range(0, len(owners), _BATCH):
                part = slice(start, start + _BATCH)
                with torch.inference_mode():
                    outputs = model(**{name: values[part] for name, values in tokens.items()}).logits.float()
                for at, logits in enumerate(outputs, start):
                    second_tokens = [
                        (token, tuple(span))
                        for token, (text, span) in enumerate(zip(tokens.sequence_ids(at), offsets[at], strict=True))
                        if text == 1 and span[0] < span[1]
                    ]
                    yield batch[owners[at]][0], logits, second_tokens


if __name__ == "__main__":
    child_main(classify)
