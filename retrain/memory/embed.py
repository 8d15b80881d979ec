"""Vectors of questions, from the static embedding model that the package wordllama contains.

A static model has one vector for each token, and the vector of a text is their mean: a matter of microseconds on a CPU.
Only the package's files are used: its code may download files and configures the log.
"""

import importlib.util
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from retuned.retrain.data.identity import normalise

if TYPE_CHECKING:
    import numpy as np
    from tokenizers import Tokenizer

LONGEST = 1_000
"""The most characters of a question that is compared: the mean of a long text has little to do with what it asks."""
_BATCH = 64


class Embedding:
    """A static embedding model.

    Attributes:
        dimensions: of the vectors, a multiple of 64.
    """

    def __init__(self, tokenizer: "Tokenizer", table: "np.ndarray") -> None:
        """
        Args:
            table: the vectors of the tokens.
        """
        self._tokenizer, self._table = tokenizer, table
        self.dimensions: int = table.shape[1]

    def __call__(self, texts: Sequence[str]) -> "np.ndarray":
        """Returns unit vectors, one a row, of normalised texts; zeros for a text without tokens."""
        import numpy as np

        vectors = np.zeros((len(texts), self.dimensions), dtype=np.float32)
        for start in range(0, len(texts), _BATCH):
            batch = [normalise(text) for text in texts[start : start + _BATCH]]
            for place, found in enumerate(self._tokenizer.encode_batch(batch, add_special_tokens=False), start):
                if ids := [id for id in found.ids if id < len(self._table)]:
                    vectors[place] = self._table[ids].sum(axis=0, dtype=np.float32)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors / np.where(lengths > 0, lengths, 1.0)


@cache
def load() -> Embedding | None:
    """Returns the model, or None if the extra `memory` is not installed."""
    found = importlib.util.find_spec("wordllama")
    if found is None or found.origin is None:
        return None
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    folder = Path(found.origin).parent
    tokenizer = Tokenizer.from_file(str(folder / "tokenizers" / "l2_supercat_tokenizer_config.json"))
    tokenizer.no_padding()
    (table,) = load_file(folder / "weights" / "l2_supercat_256.safetensors").values()
    return Embedding(tokenizer, table)
