"""Static embedding models in model2vec's format, made here: the words of a group have nearly one vector."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from model2vec import StaticModel
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

DIMENSIONS = 32


def static_model(folder: Path, groups: Mapping[str, Sequence[str]], spread: float = 0.5) -> Path:
    """A model that knows the words (or characters, of languages that write no spaces) of the groups; the folder.

    Args:
        spread: standard deviation of a word around its group, in each dimension; that of the groups is 1.
    """
    rng = np.random.default_rng(0)
    vectors, vocabulary = [np.zeros(DIMENSIONS)], {"[UNK]": 0}
    for words in groups.values():
        centre = rng.normal(size=DIMENSIONS)
        for word in words:
            vocabulary[word] = len(vectors)
            vectors.append(centre + rng.normal(scale=spread, size=DIMENSIONS))
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True, handle_chinese_chars=True)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    StaticModel(np.asarray(vectors, dtype=np.float32), tokenizer, normalize=True).save_pretrained(str(folder))
    return folder
