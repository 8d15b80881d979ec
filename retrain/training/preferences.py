"""Preferences between answers, in the columns of TRL's DPOTrainer and KTOTrainer. Used in child processes only."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq

from retuned.retrain.data.passages import same_text
from retuned.retrain.kernels.packing import Encoded
from retuned.retrain.settings import TrainSettings
from retuned.retrain.training.batches import TooLong, encode

_SHUFFLE = 1  # combined with the seed, for another order than that of the rows


@dataclass(frozen=True)
class Preferences:
    """The preferences of a dataset.

    Attributes:
        columns: token ids of each preference. dpo: `prompt_ids`, `chosen_ids` and `rejected_ids`. kto: `prompt_ids`,
            `completion_ids`, `label` (whether the answer was rated helpful) and `KL_completion_ids`, the answer to
            another prompt.
    """

    method: Literal["dpo", "kto"]
    columns: list[dict[str, Any]]

    @property
    def weights(self) -> dict[str, float]:
        """The weights of helpful and unhelpful answers for kto; the rarer kind gets the same total weight."""
        good = sum(row["label"] for row in self.columns)
        bad = len(self.columns) - good
        most = max(good, bad)
        return {"desirable_weight": most / max(1, good), "undesirable_weight": most / max(1, bad)}

    def beside(self, rows: int, seed: int) -> list[dict[str, Any]]:
        """Returns a preference for each of `rows` training rows: all in turn, or a sample if there are more,
        which is the same in each epoch."""
        order = np.random.default_rng([seed, _SHUFFLE]).permutation(len(self.columns))
        return [self.columns[order[i % len(order)]] for i in range(rows)]


def load(tokenizer: Any, dataset: Path, settings: TrainSettings) -> Preferences | None:
    """Returns the preferences of a dataset for the configured method; None if there are fewer than two.

    dpo: the corrections in `train.parquet` over the answers they replaced. kto: the answers in `thumbs.parquet`, which
    older datasets lack. Pairs with an answer that is too long are left out.
    """

    def pair(row: dict[str, Any], **changes: str | None) -> Iterator[tuple[Encoded, Encoded]]:
        """Yields a row with its answer and with another one."""
        with suppress(TooLong):
            own, other = (encode(tokenizer, row | change, **settings.encoding) for change in ({}, changes))
            if own.prompt == other.prompt:
                yield own, other

    columns: list[dict[str, Any]] = []
    if settings.preference == "none":
        return None
    if settings.preference == "dpo":
        for row in pq.read_table(dataset / "train.parquet").to_pylist():
            rejected = (row.get("rejected") or "").strip()
            if rejected and not same_text(rejected, row["completion"]):
                for own, other in pair(row, completion=rejected, reasoning=None):
                    columns.append(
                        {"prompt_ids": own.prompt, "chosen_ids": own.completion, "rejected_ids": other.completion}
                    )
    elif (dataset / "thumbs.parquet").is_file():
        rows = pq.read_table(dataset / "thumbs.parquet").to_pylist()
        for before, row in pairwise(rows[-1:] + rows):
            for own, other in pair(row, completion=before["completion"], reasoning=before.get("reasoning")):
                columns.append(
                    {
                        "prompt_ids": own.prompt,
                        "completion_ids": own.completion,
                        "KL_completion_ids": other.completion,
                        "label": row["desirable"],
                    }
                )
    return Preferences(settings.preference, columns) if len(columns) > 1 else None
