"""Prompts as vectors, of unit length: of their words (scikit-learn) or of a static embedding model (model2vec)."""

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from retuned.consumers.errors import ConfigurationError
from retuned.monitors.settings import DriftSettings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

Embed = Callable[[Sequence[str]], "Array"]
"""A row for each text, of any length."""
WORDS = r"(?u)\b[^\W\d_][\w'’-]+\b"
COMPONENTS = 50
NAMING_WORDS = 3
KERNEL_WIDTH = 0.2
"""Of the median distance. On Banking77's questions and vectors of multilingual-e5-small, 20% of them from new intents
had a median p-value of 0.005 by it, and of 0.06 by the cosine itself (12 windows of 500)."""


class Vectors(Protocol):
    """Vectors that both windows define together, so that neither is nearer to them than the other.

    Attributes:
        dimensions: how long `prompts` and `project` are.
        prompts: a row for each prompt that they were made from.
    """

    @property
    def dimensions(self) -> int: ...

    @property
    def prompts(self) -> "Array": ...

    def project(self, texts: Sequence[str]) -> "Array":
        """Other texts in the space of `prompts`."""

    def similarity(self, texts: Sequence[str]) -> "Array":
        """Of each text with each, 1 with itself: a positive semi-definite kernel, or 0 throughout of a text without
        words."""


class WordVectors:
    """A prompt is its set of words, each weighed by its squared inverse document frequency (log n/df).

    By the plain one, greetings and other phrases that many prompts share make the clusters. `prompts` and `project` are
    its truncated SVD (Deerwester et al. 1990), `similarity` is of the words themselves.
    """

    def __init__(self, prompts: Sequence[str], seed: int) -> None:
        """Learn the words.

        Raises:
            ValueError: no word is in two prompts.
        """
        import numpy as np
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import CountVectorizer

        self._vectorizer = CountVectorizer(binary=True, min_df=2, token_pattern=WORDS, dtype=np.float64)
        counts = self._vectorizer.fit_transform(prompts)
        self._inverse_frequency = np.log(len(prompts) / np.asarray(counts.sum(axis=0)).ravel()) ** 2
        self._weights = self._weighed(counts)
        self.dimensions = min(COMPONENTS, counts.shape[1] - 1, counts.shape[0] - 1)
        self._decomposition = TruncatedSVD(self.dimensions, random_state=seed)

    @cached_property
    def prompts(self) -> "Array":
        from sklearn.preprocessing import normalize

        found: Array = normalize(self._decomposition.fit_transform(self._weights))
        return found

    def project(self, texts: Sequence[str]) -> "Array":
        from sklearn.preprocessing import normalize

        found: Array = normalize(self._decomposition.transform(self._weighed(self._vectorizer.transform(texts))))
        return found

    def similarity(self, texts: Sequence[str]) -> "Array":
        weights = self._weighed(self._vectorizer.transform(texts))
        found: Array = (weights @ weights.T).toarray()
        return found

    def telling(self, those: "NDArray[np.bool_]") -> str:
        """The words that set some of the prompts apart, not those that all prompts share."""
        import numpy as np

        overall, of_those = (np.asarray(rows.mean(axis=0)).ravel() for rows in (self._weights, self._weights[those]))
        places = (of_those - overall).argsort()[::-1][:NAMING_WORDS]
        return ", ".join(self._vectorizer.get_feature_names_out()[places])

    def _weighed(self, counts: Any) -> Any:
        from sklearn.preprocessing import normalize

        return normalize(counts.multiply(self._inverse_frequency).tocsr())


class Embeddings:
    """A prompt is its embedding less the mean one: what all texts of a model share tells none apart.

    `similarity` is a Gaussian kernel: on unit vectors the squared distance is twice the cosine distance. Its width is a
    part of the median distance (all of it in Gretton et al., "A kernel two-sample test", JMLR 13, 2012): a topic is
    narrower than all that is asked.
    """

    def __init__(self, prompts: Sequence[str], embed: Embed) -> None:
        from sklearn.preprocessing import normalize

        self._embed = embed
        embedded = embed(prompts)
        self._mean = embedded.mean(axis=0)
        self.prompts: Array = normalize(embedded - self._mean)
        self.dimensions = self.prompts.shape[1]

    def project(self, texts: Sequence[str]) -> "Array":
        from sklearn.preprocessing import normalize

        found: Array = normalize(self._embed(texts) - self._mean)
        return found

    def similarity(self, texts: Sequence[str]) -> "Array":
        import numpy as np

        vectors = self.project(texts)
        distance = 1 - vectors @ vectors.T
        found: Array = np.exp(-distance / (KERNEL_WIDTH * float(np.median(distance)) or 1.0))
        return found


def load_embedding(folder: Path) -> Embed:
    """A static embedding model, in model2vec's format (Tulkens and van Dongen 2024, Model2Vec). Nothing is downloaded.

    Raises:
        ConfigurationError: there is none, or model2vec is not installed.
    """
    key = f"drift.embedding_model: {folder}"
    if not (folder / "model.safetensors").is_file():
        raise ConfigurationError(f"{key} is no folder of a model of model2vec (model.safetensors)")
    try:
        from model2vec import StaticModel
    except ImportError as error:
        raise ConfigurationError(f"{key} needs pip install 'retuned[static-embeddings]'") from error
    try:
        model = StaticModel.from_pretrained(str(folder))
    except Exception as error:
        raise ConfigurationError(f"{key} cannot be loaded ({type(error).__name__}: {error})") from error

    def embed(texts: Sequence[str]) -> "Array":
        found: Array = model.encode(list(texts), use_multiprocessing=False).astype("float64")
        return found

    return embed


def check(settings: DriftSettings) -> str | None:
    """Load the embedding model; None where none is configured.

    Raises:
        ConfigurationError: see `load_embedding`.
    """
    if settings.embedding_model is None:
        return None
    load_embedding(settings.embedding_model)(["Where is my parcel?"])
    return f"prompts are compared by the model in {settings.embedding_model}"
