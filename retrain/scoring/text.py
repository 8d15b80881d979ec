"""The metric `text`: the similarity of wording, in any language.

ROUGE-L (Lin 2004, "ROUGE: a package for automatic evaluation of summaries") is the F1 of the longest common subsequence
of words. With an embedding model, the score is its mean with the cosine of the texts' embeddings
(sentence-transformers, Reimers and Gurevych 2019). Wording does not cover numbers, so the score is multiplied by the
share of the approved answer's numbers that the answer states.
"""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from rapidfuzz.distance import LCSseq

from retuned.consumers.errors import ConfigurationError
from retuned.retrain.scoring.score import Metric, Score
from retuned.retrain.scoring.words import numbers, plain, tokens


class Text(Metric):
    """The metric.

    Args:
        model: folder of a sentence-transformers model; None uses ROUGE-L only.
    """

    name = "text"
    meaning = "how near the wording is to the approved one's (ROUGE-L), times the share of its numbers that are stated"
    right = 0.5

    def __init__(self, model: Path | None = None) -> None:
        self._folder = model
        if model is not None:
            if not (model / "modules.json").is_file():
                raise ConfigurationError(
                    f"metric.embedding_model: {model} is no folder of a sentence-transformers model (modules.json)"
                )
            self.meaning = self.meaning.replace("(ROUGE-L)", "(mean of ROUGE-L and the cosine of embeddings)")

    def score(self, answer: str, approved: str, example: Mapping[str, Any]) -> Score:
        overlap, stated = rouge_l(answer, approved), _numbers_stated(answer, approved)
        parts, value = [f"ROUGE-L {overlap:.2f}"], overlap
        if self._folder is not None:
            likeness = self._likeness(answer, approved)
            parts.append(f"embeddings {likeness:.2f}")
            value = (overlap + likeness) / 2
        if stated < 1:
            parts.append(f"{stated:.0%} of the numbers")
        return Score(value * stated, ", ".join(parts))

    def compare(self, one: str, other: str) -> bool | None:
        """Returns True for the same text, False if the numbers differ, else None: similar wording proves nothing."""
        if plain(one) == plain(other):
            return True
        return None if numbers(one) == numbers(other) else False

    @cached_property
    def _model(self) -> Any:
        try:
            from sentence_transformers import SentenceTransformer

            return SentenceTransformer(
                str(self._folder),
                local_files_only=True,
                trust_remote_code=False,
                model_kwargs={"use_safetensors": True},
            )
        except ImportError as error:
            raise ConfigurationError(
                f"metric.embedding_model: {self._folder} needs pip install 'retuned[embeddings]'"
            ) from error

    def _likeness(self, one: str, other: str) -> float:
        first, second = self._model.encode([one, other], normalize_embeddings=True, show_progress_bar=False)
        return float(min(max(first @ second, 0.0), 1.0))


def rouge_l(answer: str, approved: str) -> float:
    """Returns ROUGE-L, 0 to 1: the F1 of the longest common subsequence of words."""
    given, wanted = tokens(answer), tokens(approved)
    if not given or not wanted:
        return float(given == wanted)
    return 2 * LCSseq.similarity(given, wanted) / (len(given) + len(wanted))


def _numbers_stated(answer: str, approved: str) -> float:
    wanted = numbers(approved)
    return (wanted & numbers(answer)).total() / wanted.total() if wanted else 1.0
