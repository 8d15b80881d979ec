"""The metric `text`: how near an answer's wording is to the approved one's, in any language.

ROUGE-L (Lin 2004, "ROUGE: a package for automatic evaluation of summaries"): F1 of the longest common subsequence of
words. With an embedding model, its mean with the cosine of the two texts' embeddings (sentence-transformers, Reimers
and Gurevych 2019). A number is no wording: the score is multiplied by the share of the approved answer's numbers that
the answer states.
"""

import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from rapidfuzz.distance import LCSseq

from retuned.consumers.errors import ConfigurationError
from retuned.retrain.scoring.score import Metric, Score
from retuned.retrain.scoring.words import numbers, token_f1, tokens

SAME = 0.8
"""Token F1 from which two texts with the same numbers say the same."""
_DENIAL = re.compile(
    r"\b(?:no|not|never|none|cannot|without|nicht|kein\w*|nie|niemals|ohne|ne|pas|jamais|aucune?|sans|nunca|sin|ningun\w*)\b"
    r"|n['’]t\b|\bn['’](?=\w)",
    re.IGNORECASE,
)


class Text(Metric):
    """The metric.

    Args:
        model: folder of a sentence-transformers model; None: ROUGE-L alone.
    """

    name = "text"
    meaning = "how near the wording is to the approved one's (ROUGE-L), times the share of its numbers that are stated"

    def __init__(self, model: Path | None = None) -> None:
        self._folder = model
        if model is not None:
            if not (model / "modules.json").is_file():
                raise ConfigurationError(
                    f"metric.embedding_model: {model} is no folder of a sentence-transformers model (modules.json)"
                )
            self.meaning = self.meaning.replace("(ROUGE-L)", "(mean of ROUGE-L and the cosine of embeddings)")

    def score(self, answer: str, approved: str, example: Mapping[str, Any]) -> Score:
        """The score, whose parts are named in the detail."""
        overlap, stated = rouge_l(answer, approved), _numbers_stated(answer, approved)
        parts, value = [f"ROUGE-L {overlap:.2f}"], overlap
        if self._folder is not None:
            likeness = self._likeness(answer, approved)
            parts.append(f"embeddings {likeness:.2f}")
            value = (overlap + likeness) / 2
        if stated < 1:
            parts.append(f"{stated:.0%} of the numbers")
        return Score(value * stated, ", ".join(parts))

    def same(self, one: str, other: str) -> bool:
        """See `same_text`."""
        return same_text(one, other)

    @cached_property
    def _model(self) -> Any:
        try:
            from sentence_transformers import SentenceTransformer

            return SentenceTransformer(str(self._folder), local_files_only=True)
        except ImportError as error:
            raise ConfigurationError(
                f"metric.embedding_model: {self._folder} needs pip install 'retuned[embeddings]'"
            ) from error

    def _likeness(self, one: str, other: str) -> float:
        first, second = self._model.encode([one, other], normalize_embeddings=True, show_progress_bar=False)
        return float(min(max(first @ second, 0.0), 1.0))


def rouge_l(answer: str, approved: str) -> float:
    """ROUGE-L, 0 to 1: F1 of the longest common subsequence of words."""
    said, meant = tokens(answer), tokens(approved)
    if not said or not meant:
        return float(said == meant)
    return 2 * LCSseq.similarity(said, meant) / (len(said) + len(meant))


def same_text(one: str, other: str) -> bool:
    """Two texts say the same: the same numbers, hardly another word, and both or neither deny.

    Denials are known in English, German, French and Spanish.
    """
    return (
        numbers(one) == numbers(other)
        and token_f1(one, other) >= SAME
        and bool(_DENIAL.search(one)) == bool(_DENIAL.search(other))
    )


def _numbers_stated(answer: str, approved: str) -> float:
    wanted = numbers(approved)
    return (wanted & numbers(answer)).total() / wanted.total() if wanted else 1.0
