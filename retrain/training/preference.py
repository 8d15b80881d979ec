"""Learning which of two answers is better, or which are good, beside learning what the answer is.

Preferences alone unlearn more than they teach: their loss is added, with a weight, to that of the completions. The
reference is the model as training found it. Runs in child processes alone.
"""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.nn import functional

from retuned.retrain.data.passages import same_text
from retuned.retrain.kernels.packing import Encoded
from retuned.retrain.settings import TrainSettings
from retuned.retrain.training.batches import TooLong, encode, log_probabilities
from retuned.retrain.training.ranks import Ranks

_SHUFFLE = 1  # beside the epoch in the seed: another order than that of the rows


def dpo(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """The loss of each pair from the log-ratios (policy over reference) of its two answers: Rafailov et al. 2023."""
    return -functional.logsigmoid(beta * (chosen - rejected))


def kto(ratios: Tensor, desirable: Tensor, divergence: Tensor, beta: float) -> Tensor:
    """The loss of each answer from its log-ratio, Ethayarajh et al. 2024, equation 7.

    Args:
        desirable: bool, of each answer.
        divergence: of policy from reference, estimated on prompts with other prompts' answers; no gradient, at least 0.
    """
    signs = torch.where(desirable, 1.0, -1.0)
    return 1 - torch.sigmoid(beta * signs * (ratios - divergence))


@dataclass
class Preferences:
    """What is preferred to what, in pairs.

    Attributes:
        method: dpo or kto.
        pairs: dpo: a chosen and a rejected answer; kto: an answer, and the same prompt with another prompt's answer,
            on which the divergence is estimated, as TRL does.
        desirable: kto: of each pair's first answer.
        reference: log-probabilities of all answers before the first step, shape (pairs, 2).
    """

    method: Literal["dpo", "kto"]
    pairs: list[tuple[Encoded, Encoded]]
    desirable: list[bool]
    reference: Tensor

    def measure(self, model: Any, pad: int, packing: bool, ranks: Ranks) -> None:
        """Let the model as it is be the reference."""
        own = ranks.part(range(len(self.pairs)))
        rows = [row for i in own for row in self.pairs[i]]
        reference = torch.zeros(len(self.pairs), 2, device=model.device)
        with torch.no_grad():
            reference[own] = _joined(model, log_probabilities(model, rows, pad, packing, together=2)).view(-1, 2)
        ranks.add([reference])
        self.reference = reference.cpu()

    def losses(
        self, model: Any, step: int, pad: int, packing: bool, settings: TrainSettings, ranks: Ranks
    ) -> Iterator[Tensor]:
        """This process's share of the mean loss over the pairs of a step, in parts to add up: memory stays bounded."""
        pairs = self._chosen(step, settings)
        chosen = ranks.part(pairs)
        reference = self.reference[chosen].to(model.device)
        if self.method == "dpo":
            rows, together = [row for i in chosen for row in self.pairs[i]], 2
        else:
            rows, together = [self.pairs[i][0] for i in chosen], 1
            others = [self.pairs[i][1] for i in chosen]
            with torch.no_grad():
                other = _joined(model, log_probabilities(model, others, pad, packing))
            divergence = (other - reference[:, 1]).sum()
            ranks.add([divergence])
            divergence = (divergence / len(pairs)).clamp(min=0)
            desirable = torch.tensor([self.desirable[i] for i in chosen], device=model.device)
            weights = self._weights().to(model.device)[desirable.long()]
        done = 0
        for part in log_probabilities(model, rows, pad, packing, together):
            count = len(part) // together
            those = slice(done, done + count)
            if self.method == "dpo":
                ratios = part.view(-1, 2) - reference[those]
                loss = dpo(ratios[:, 0], ratios[:, 1], settings.preference_beta)
            else:
                ratios = part - reference[those, 0]
                loss = weights[those] * kto(ratios, desirable[those], divergence, settings.preference_beta)
            yield loss.sum() / len(pairs)
            done += count

    def _chosen(self, step: int, settings: TrainSettings) -> list[int]:
        """The pairs of a step: all of them in turn, in another order each time."""
        size = min(settings.batch_size, len(self.pairs))
        epoch, index = divmod(step, len(self.pairs) // size)
        order = np.random.default_rng([settings.seed, epoch, _SHUFFLE]).permutation(len(self.pairs))
        found: list[int] = order[index * size : (index + 1) * size].tolist()
        return sorted(found, key=lambda i: self.pairs[i][0].ids)

    def _weights(self) -> Tensor:
        """Of undesirable and of desirable answers: the rarer kind counts as much as the other."""
        good = sum(self.desirable)
        bad = len(self.desirable) - good
        most = max(good, bad)
        return torch.tensor([most / max(1, bad), most / max(1, good)])


def _joined(model: Any, parts: Iterable[Tensor]) -> Tensor:
    return torch.cat([torch.empty(0, device=model.device), *parts])


def load(tokenizer: Any, dataset: Path, settings: TrainSettings) -> Preferences | None:
    """What a dataset holds of the preferences that the settings ask for, not measured yet; None: nothing, or one pair.

    dpo: the corrections in `train.parquet` over what they replaced. kto: the answers in `thumbs.parquet`, which older
    datasets do not have.
    """

    def encoded(row: dict[str, Any], **changes: str | None) -> Encoded:
        return encode(tokenizer, row | changes, **settings.encoding)

    def add(row: dict[str, Any], **changes: str | None) -> bool:
        """A row with its answer and with another; those that are too long, alone or together, are left out."""
        with suppress(TooLong):
            one, other = encoded(row), encoded(row, **changes)
            if one.prompt == other.prompt:
                pairs.append((one, other))
                return True
        return False

    pairs: list[tuple[Encoded, Encoded]] = []
    desirable: list[bool] = []
    if settings.preference == "none":
        return None
    if settings.preference == "dpo":
        for row in pq.read_table(dataset / "train.parquet").to_pylist():
            rejected = (row.get("rejected") or "").strip()
            if rejected and not same_text(rejected, row["completion"]):
                add(row, completion=rejected, reasoning=None)
    elif (dataset / "thumbs.parquet").is_file():
        rows = pq.read_table(dataset / "thumbs.parquet").to_pylist()
        others = rows[-1:] + rows[:-1]
        for row, other in zip(rows, others, strict=True):
            if add(row, completion=other["completion"], reasoning=other.get("reasoning")):
                desirable.append(row["desirable"])
    return Preferences(settings.preference, pairs, desirable, torch.empty(0, 2)) if len(pairs) > 1 else None
