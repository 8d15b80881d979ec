"""What generates the answers of an evaluation: one interface, over models in this process and models on a server."""

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
    """What a model answers to a prompt.

    Attributes:
        tokens: of the answer, its end included.
        seconds: that the answer takes at the model's pace.
        loss: of the approved answer, nats per token; None where it is not known.
        cut: the prompt lost turns or passages to fit train.max_length.
    """

    text: str
    tokens: int
    seconds: float
    loss: float | None
    cut: bool = False


class Engine(Protocol):
    """Models that answer the rows of a dataset. What it holds is released by `close`, which is safe to repeat."""

    def answers(self, rows: Sequence[Row], models: Sequence[str]) -> Iterator[tuple[Row, dict[str, Answer]]]:
        """Each row that fits train.max_length, in any order, with what each of the models answers: always the likeliest
        token.

        All models answer the very tokens that a training on the row begins with. An answer is cut at
        `evaluate.max_new_tokens`, and where it is half as long again as the longest approved one.

        Args:
            rows: columns of an `Example`.
            models: names that the engine knows. The bare base model comes first, and has the pace of the last: what any
                adapter costs is a matter of how it is served, and holds nothing against what it learned.

        Raises:
            RetunedError: a model cannot answer; the text says what to do.
        """

    def next_tokens(
        self, rows: Sequence[Row], models: Sequence[str]
    ) -> Iterator[tuple[list[int], dict[str, Mapping[int, float]]]]:
        """Token ids of each row's prompt, with the likeliest next tokens of each model and their log-probabilities
        (nats); nothing, where the engine gives none."""

    def close(self) -> None:
        """Release the models."""


def paced(answers: Mapping[str, Answer], pace: Answer | None) -> dict[str, Answer]:
    """With the seconds that the answers would take at the pace of another one, if there is one."""
    if pace is None:
        return dict(answers)
    seconds = pace.seconds / max(pace.tokens, 1)
    return {name: replace(one, seconds=seconds * max(one.tokens, 1)) for name, one in answers.items()}


def prompts(
    tokenizer: Any, rows: Sequence[Row], settings: EvaluateSettings, encoding: Mapping[str, Any]
) -> "tuple[list[tuple[Row, Encoded]], int]":
    """Rows as token ids, the shortest prompt first, and the most tokens that an answer to one of them may have.

    `encoding`: of `TrainSettings`. What is too long even when it is cut is left out.
    """
    from retuned.retrain.training.batches import encode_all

    of = {row["row_id"]: row for row in rows}
    encoded = [(of[one.row_id], one) for one in encode_all(tokenizer, rows, **encoding)]
    longest = max((len(one.completion) for _, one in encoded), default=0)
    limit = min(settings.max_new_tokens, math.ceil(_LONGER * longest) + _MORE_TOKENS)
    return sorted(encoded, key=lambda pair: (len(pair[1].prompt), pair[1].row_id)), limit
