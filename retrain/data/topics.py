"""Topics of questions, with names that stay the same from dataset to dataset.

By TF-IDF and k-means on words. Topics are stored with a dataset (`topics.json`). The next dataset keeps them and adds
new ones for questions that belong to none of them.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path
from typing import Any

OTHER = "other"
ROWS_A_TOPIC = 25
"""The minimum number of questions per new topic."""
FILE = "topics.json"
_WORDS = r"(?u)\b[^\W\d_][\w'’-]+\b"
_NEAR = 0.15
_CENTRE_WORDS = 60


@dataclass(frozen=True)
class Topics:
    """Known topics.

    Attributes:
        weights: the inverse document frequency of each word.
        centres: the weights of each topic's words, by name; Euclidean length 1.
    """

    weights: dict[str, float] = field(default_factory=dict)
    centres: dict[str, dict[str, float]] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path) -> "Topics":
        """Reads the topics of a dataset; none if it has no file of topics."""
        try:
            return cls(**json.loads((folder / FILE).read_text(encoding="utf-8")))
        except FileNotFoundError:
            return cls()

    def save(self, folder: Path) -> None:
        """Writes the topics into a dataset's folder."""
        (folder / FILE).write_text(json.dumps({"weights": self.weights, "centres": self.centres}), encoding="utf-8")

    def only(self, questions: Iterable[str]) -> "Topics":
        """Returns these topics without the words that none of the questions has.

        A topic goes if it has no other words, or if its name has such a word.
        """
        pattern = re.compile(_WORDS)
        words = {word for question in questions for word in pattern.findall(question.lower())}
        centres = {
            name: {word: weight for word, weight in centre.items() if word in words}
            for name, centre in self.centres.items()
            if words.issuperset(pattern.findall(name))
        }
        return Topics(
            {word: weight for word, weight in self.weights.items() if word in words},
            {name: centre for name, centre in centres.items() if centre},
        )

    def of(self, questions: Sequence[str]) -> list[str]:
        """Returns the name of each question's topic; OTHER if none is near."""
        place = {word: number for number, word in enumerate(self.weights)}
        entries = [
            (row, place[word], weight)
            for row, words in enumerate(self.centres.values())
            for word, weight in words.items()
        ]
        if not entries or not questions:
            return [OTHER] * len(questions)
        import numpy as np
        from scipy.sparse import csr_matrix

        rows, columns, weights = zip(*entries, strict=True)
        centres = csr_matrix((weights, (rows, columns)), shape=(len(self.centres), len(place)))
        near = np.asarray((self._vectors(questions) @ centres.T).todense())
        names = list(self.centres)
        return [names[best] if near[row, best] >= _NEAR else OTHER for row, best in enumerate(near.argmax(axis=1))]

    def _vectors(self, questions: Sequence[str]) -> Any:
        """Returns TF-IDF vectors with length 1 over all words. An unknown word counts as the rarest."""
        import numpy as np
        from scipy.sparse import diags
        from sklearn.feature_extraction.text import TfidfVectorizer

        vectorizer = TfidfVectorizer(vocabulary=list(self.weights), token_pattern=_WORDS, sublinear_tf=True, norm=None)
        vectorizer.idf_ = np.array(list(self.weights.values()))
        words, vectors = vectorizer.build_analyzer(), vectorizer.transform(questions)
        unknown = np.array(
            [len({word for word in words(question) if word not in self.weights}) for question in questions]
        )
        length = np.sqrt(
            np.asarray(vectors.multiply(vectors).sum(axis=1)).ravel() + unknown * max(self.weights.values()) ** 2
        )
        return diags(1 / np.maximum(length, 1e-9)) @ vectors

    def learned(self, questions: Sequence[str], most: int, seed: int = 0) -> "Topics":
        """Returns these topics and new ones for questions that are near none of them, at most `most` in all.

        A new topic needs ROWS_A_TOPIC questions. The first topics are found only if there are at least two.
        """
        names = self.of(questions)
        others = [question for question, name in zip(questions, names, strict=True) if name == OTHER]
        clusters = min(most - len(self.centres), len(others) // ROWS_A_TOPIC)
        if clusters < (1 if self.centres else 2):
            return self
        new = _clusters(others, clusters, seed)
        return Topics(new.weights | self.weights, {**self.centres, **_renamed(new.centres, self.centres)})


def _clusters(questions: Sequence[str], clusters: int, seed: int) -> Topics:
    """Clusters questions by TF-IDF and k-means (scikit-learn). A centre keeps its heaviest words."""
    import numpy as np
    from sklearn.cluster import KMeans
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(sublinear_tf=True, min_df=2, max_df=0.5 if clusters > 1 else 1.0, token_pattern=_WORDS)
    try:
        vectors = vectorizer.fit_transform(questions)
    except ValueError:  # scikit-learn raises this if no word is left
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
        if not heaviest:  # the questions have rare words only
            continue
        # Name the topic by the words that distinguish it, not by those that all questions share.
        name = ", ".join(words[(centre - (overall if clusters > 1 else 0)).argsort()[::-1][:3]])
        length = float(np.sqrt((centre[heaviest] ** 2).sum()))
        centres[name] = {str(words[place]): round(float(centre[place]) / length, 6) for place in heaviest}
    weights = zip(words.tolist(), vectorizer.idf_.round(6).tolist(), strict=True)
    return Topics(dict(weights), centres)


def _renamed(centres: dict[str, dict[str, float]], taken: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    names: dict[str, dict[str, float]] = {}
    for name, centre in centres.items():
        numbered = chain([name], (f"{name} ({number})" for number in count(2)))
        names[next(unique for unique in numbered if unique not in taken and unique not in names)] = centre
    return names
