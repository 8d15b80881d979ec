"""Evidence of what a model memorised: four scores of answers that it was taught, beside answers that it never saw.

- the loss (Yeom et al. 2018, "Privacy risk in machine learning");
- min-k% (Shi et al. 2023, arXiv 2310.16789): the mean log-probability of the least likely 20% of the tokens;
- exact memorisation (Tirumala et al. 2022, arXiv 2205.10770): the share of tokens that are the most likely one;
- extraction strength (Carlini et al. 2021, arXiv 2012.07805): the share of the answer that the model completes from the
  rest, token by token.

The last two are computed as open-unlearning (arXiv 2506.12618) does. All four support a claim about what a model
learned from. None proves it: a model may have learned a row and show nothing of it.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

LEAST_LIKELY = 0.2
DRAWS = 2_000


@dataclass(frozen=True)
class Scores:
    """The scores of one answer; the higher, the more of it the model has memorised.

    Attributes:
        loss: the negative loss, in nats per token.
        min_k: in nats per token.
        exact_memorisation, extraction_strength: 0 to 1.
    """

    loss: float
    min_k: float
    exact_memorisation: float
    extraction_strength: float


def scores(log_probs: Sequence[float], is_first: Sequence[bool]) -> Scores:
    """Returns the scores of an answer.

    Args:
        log_probs: of its tokens, each after those before it.
        is_first: whether each token was the most likely one.
    """
    least = sorted(log_probs)[: max(1, int(len(log_probs) * LEAST_LIKELY))]
    last_miss = max((place + 1 for place, first in enumerate(is_first) if not first), default=0)
    # A prefix is shorter than the answer, so the last token alone is always left.
    given = min(last_miss, len(is_first) - 1)
    return Scores(fmean(log_probs), fmean(least), fmean(map(float, is_first)), 1 - given / len(is_first))


def of_people(
    base: Path, adapter: Path, system: str, people: Sequence[Sequence[tuple[str, str]]]
) -> list[list[Scores]]:
    """Returns the scores of each person's questions and answers under a model."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter).eval()
    return [[_of_answer(model, tokenizer, system, *one) for one in person] for person in people]


@torch.no_grad()
def _of_answer(model: Any, tokenizer: Any, system: str, question: str, answer: str) -> Scores:
    turns = [{"role": "system", "content": system}, {"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    before = tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids.shape[1]
    whole = tokenizer(prompt + answer, add_special_tokens=False, return_tensors="pt").input_ids
    predicted = model(input_ids=whole).logits[0, before - 1 : -1].log_softmax(-1)
    tokens = whole[0, before:]
    chosen = predicted.gather(1, tokens[:, None])[:, 0]
    return scores(chosen.tolist(), (predicted.argmax(-1) == tokens).tolist())


def figures(members: Sequence[Sequence[Scores]], others: Sequence[Sequence[Scores]]) -> dict[str, float]:
    """Returns the areas under the curve of the two attacks, and the means of what is memorised of the members.

    An area of 0.5 is chance: the answers of members cannot be told from those of others. Each figure has the bounds of
    its 95% interval, by a bootstrap of people: answers of one person are not independent. With five people a side the
    interval is rough.
    """
    return {
        **_with_bounds("membership_auc", lambda ours, theirs: _area(ours, theirs, "loss"), members, others),
        **_with_bounds("min_k_auc", lambda ours, theirs: _area(ours, theirs, "min_k"), members, others),
        **_with_bounds("exact_memorisation", lambda ours, _: _mean(ours, "exact_memorisation"), members, others),
        **_with_bounds("extraction_strength", lambda ours, _: _mean(ours, "extraction_strength"), members, others),
    }


People = Sequence[Sequence[Scores]]


def _with_bounds(
    name: str, figure: Callable[[People, People], float], members: People, others: People
) -> dict[str, float]:
    drawn = random.Random(name)
    samples = sorted(
        figure(drawn.choices(members, k=len(members)), drawn.choices(others, k=len(others))) for _ in range(DRAWS)
    )
    low, high = samples[round(DRAWS * 0.025)], samples[round(DRAWS * 0.975) - 1]
    return {name: figure(members, others), f"{name}_low": low, f"{name}_high": high}


def _area(members: People, others: People, score: str) -> float:
    ours, theirs = _values(members, score), _values(others, score)
    wins = sum((one > other) + (one == other) / 2 for one in ours for other in theirs)
    return wins / (len(ours) * len(theirs))


def _mean(members: People, score: str) -> float:
    return fmean(_values(members, score))


def _values(people: People, score: str) -> list[float]:
    return [getattr(one, score) for person in people for one in person]
