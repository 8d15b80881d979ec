"""Topics of questions, and the names by which they keep them from dataset to dataset.

TF-IDF and k-means, on words alone. What was found is kept beside the dataset (`topics.json`), and the next one begins
with it: known topics stay as they are, and what belongs to none of them makes new ones.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

OTHER = "other"
ROWS_A_TOPIC = 25
"""A cluster of fewer questions says nothing."""
FILE = "topics.json"
_WORDS = r"(?u)\b[^\W\d_][\w'’-]+\b"
_NEAR = 0.15
_CENTRE_WORDS = 60


@dataclass(frozen=True)
class Topics:
    """Topics that are known.

    Attributes:
        weights: inverse document frequency of each word.
        centres: for each topic, by name, the weights of its words; Euclidean length 1.
    """

    weights: dict[str, float] = field(default_factory=dict)
    centres: dict[str, dict[str, float]] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path) -> "Topics":
        """Those of a dataset; none when it has no file of them."""
        try:
            return cls(**json.loads((folder / FILE).read_text(encoding="utf-8")))
        except FileNotFoundError:
            return cls()

    def save(self, folder: Path) -> None:
        """Write them into a dataset's folder."""
        (folder / FILE).write_text(json.dumps({"weights": self.weights, "centres": self.centres}), encoding="utf-8")

    def of(self, questions: Sequence[str]) -> list[str]:
        """The name of each question's topic; OTHER where none is near."""
        if not self.centres or not questions:
            return [OTHER] * len(questions)
        import numpy as np
        from scipy.sparse import csr_matrix

        place = {word: number for number, word in enumerate(self.weights)}
        entries = [
            (row, place[word], weight)
            for row, words in enumerate(self.centres.values())
            for word, weight in words.items()
        ]
        rows, columns, weights = zip(*entries, strict=True)
        centres = csr_matrix((weights, (rows, columns)), shape=(len(self.centres), len(place)))
        near = np.asarray((self._vectors(questions) @ centres.T).todense())
        names = list(self.centres)
        return [names[best] if near[row, best] >= _NEAR else OTHER for row, best in enumerate(near.argmax(axis=1))]

    def _vectors(self, questions: Sequence[str]) -> Any:
        """TF-IDF, of length 1 over all words: one that is not known counts as the rarest, and is near nothing."""
        import numpy as np
        from scipy.sparse import diags
        from sklearn.feature_extraction.text import CountVectorizer

        counter = CountVectorizer(vocabulary=list(self.weights), token_pattern=_WORDS, dtype=np.float64)
        words = counter.build_analyzer()
        vectors = counter.transform(questions)
        vectors.data = 1 + np.log(vectors.data)
        vectors = vectors.multiply(np.array(list(self.weights.values()))).tocsr()
        unknown = np.array(
            [len({word for word in words(question) if word not in self.weights}) for question in questions]
        )
        length = np.sqrt(
            np.asarray(vectors.multiply(vectors).sum(axis=1)).ravel() + unknown * max(self.weights.values()) ** 2
        )
        return diags(1 / np.maximum(length, 1e-9)) @ vectors

    def learned(self, questions: Sequence[str], most: int, seed: int = 0) -> "Topics":
        """These and those that the questions near none of them make, at most so many in all.

        A new topic needs ROWS_A_TOPIC questions, and it takes twice as many questions to tell two topics apart.
        """
        names = self.of(questions)
        homeless = [question for question, name in zip(questions, names, strict=True) if name == OTHER]
        clusters = min(most - len(self.centres), len(homeless) // ROWS_A_TOPIC)
        if clusters < (1 if self.centres else 2):
            return self
        found = _clusters(homeless, clusters, seed)
        return Topics(found.weights | self.weights, {**self.centres, **_renamed(found.centres, self.centres)})


def _clusters(questions: Sequence[str], clusters: int, seed: int) -> Topics:
    """TF-IDF and k-means (scikit-learn); a centre keeps its heaviest words."""
    import numpy as np
    from sklearn.cluster import KMeans
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(sublinear_tf=True, min_df=2, max_df=0.5 if clusters > 1 else 1.0, token_pattern=_WORDS)
    try:
        vectors = vectorizer.fit_transform(questions)
    except ValueError:  # scikit-learn's word for "no word is left"
        return Topics()
    rows = zip(vectors.indptr, vectors.indptr[1:], strict=False)
    clusters = min(clusters, len({vectors.indices[start:end].tobytes() for start, end in rows}))
    labels = KMeans(clusters, n_init=4, random_state=seed).fit_predict(vectors)
    words = vectorizer.get_feature_names_out()
    overall = np.asarray(vectors.mean(axis=0)).ravel()
    centres = {}
    for cluster in sorted(set(labels.tolist())):
        centre = np.asarray(vectors[labels == cluster].mean(axis=0)).ravel()
        heaviest = [place for place in centre.argsort()[::-1][:_CENTRE_WORDS] if centre[place] > 0]
        if not heaviest:  # questions of rare words alone
            continue
        # The words that set the topic apart, not those that all questions share.
        name = ", ".join(words[(centre - (overall if clusters > 1 else 0)).argsort()[::-1][:3]])
        length = float(np.sqrt((centre[heaviest] ** 2).sum()))
        centres[name] = {str(words[place]): round(float(centre[place]) / length, 6) for place in heaviest}
    weights = zip(words.tolist(), vectorizer.idf_.round(6).tolist(), strict=True)
    return Topics(dict(weights), centres)


def _renamed(found: dict[str, dict[str, float]], taken: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    names = {}
    for name, centre in found.items():
        number = 2
        unique = name
        while unique in taken or unique in names:
            unique, number = f"{name} ({number})", number + 1
        names[unique] = centre
    return names
