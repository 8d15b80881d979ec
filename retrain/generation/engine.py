"""The interface of engines, which generate the answers of an evaluation."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from retuned.retrain.settings import EvaluateSettings

if TYPE_CHECKING:
    from retuned.retrain.kernels.packing import Encoded

Row = dict[str, Any]

_LONGER = 1.5
_MORE_TOKENS = 8


@dataclass(frozen=True)
class Answer:
    """A model's answer to a prompt.

    Attributes:
        tokens: the number of tokens, including the end token.
        seconds: the number of tokens times the model's time per token.
        loss: the loss of the approved answer, nats per token; None if unknown.
        cut: the prompt lost turns or passages to fit train.max_length.
    """

    text: str
    tokens: int
    seconds: float
    loss: float | None
    cut: bool = False


class Engine(Protocol):
    """Models that answer the rows of a dataset. `close` releases them, and may be called repeatedly."""

    def answers(self, rows: Sequence[Row], models: Sequence[str]) -> Iterator[tuple[Row, dict[str, Answer]]]:
        """Yields each row that fits train.max_length, in any order, with the models' answers by greedy decoding.

        All models get the same prompt tokens as in a training on the row. An answer is cut at
        `evaluate.max_new_tokens`, and at 1.5 times the length of the longest approved one.

        Args:
            rows: columns of an `Example`.
            models: names that the engine knows. The base model comes first, and gets the time per token of the last:
                the cost of an adapter depends on serving, and is no argument against a candidate.

        Raises:
            RetunedError: a model cannot answer. The message states what to do.
        """

    def next_tokens(
        self, rows: Sequence[Row], models: Sequence[str]
    ) -> Iterator[tuple[list[int], dict[str, Mapping[int, float]]]]:
        """Yields the token ids of each row's prompt, with the likeliest next tokens of each model and their
        log-probabilities (nats); nothing if the engine has none."""

    def close(self) -> None:
        """Release the models."""


def paced(answers: Mapping[str, Answer], pace: Answer | None) -> dict[str, Answer]:
    """Sets the seconds of answers by the time per token of another one, if given."""
    if pace is None:
        return dict(answers)
    seconds = pace.seconds / max(pace.tokens, 1)
    return {name: replace(one, seconds=seconds * max(one.tokens, 1)) for name, one in answers.items()}


def prompts(
    tokenizer: Any, rows: Sequence[Row], settings: EvaluateSettings, encoding: Mapping[str, Any]
) -> "tuple[list[tuple[Row, Encoded]], int]":
    """Returns rows as token ids, the shortest prompt first, and the maximum number of tokens of an answer.

    Rows that are too long even when cut are left out. `encoding` is that of `TrainSettings`.
    """
    from retuned.retrain.training.batches import encode_all

    of = {row["row_id"]: row for row in rows}
    encoded = [(of[one.row_id], one) for one in encode_all(tokenizer, rows, **encoding)]
    longest = max((len(one.completion) for _, one in encoded), default=0)
    limit = min(settings.max_new_tokens, math.ceil(_LONGER * longest) + _MORE_TOKENS)
    return sorted(encoded, key=lambda pair: (len(pair[1].prompt), pair[1].row_id)), limit
