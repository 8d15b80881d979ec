"""Topics: what the prompts of two windows ask about, and whether that differs. Needs scikit-learn."""

from collections.abc import Sequence
from dataclasses import dataclass

from retuned.monitors.statistics import two_sample_chi_square, two_sample_kernel

# A cluster of fewer prompts than this says nothing.
ROWS_A_TOPIC = 50
# The kernel test takes so many prompts of a window; its memory grows with the square of that.
COMPARED = 1_000
WORDS = r"(?u)\b[^\W\d_][\w'’-]+\b"


@dataclass(frozen=True)
class Topics:
    """Topics of two windows.

    Attributes:
        reference: for each prompt of the reference the name of its topic: a number and its most telling words
            ("3 refund, order, days").
        current: the same of the current window.
        p_value: of the test whether both windows ask about the same.
        newest: the current prompt that is most like the others of its window and least like those of the reference.
    """

    reference: list[str]
    current: list[str]
    p_value: float
    newest: str


def find_topics(reference: Sequence[str], current: Sequence[str], topics: int, seed: int = 0) -> Topics | None:
    """Sort the prompts of both windows into topics, and test whether they ask about the same.

    A prompt is its set of words, each weighed by its squared inverse document frequency (log n/df): by the plain one,
    greetings and other phrases that many prompts share make the clusters. Clusters are k-means on a truncated SVD
    (Deerwester et al. 1990), of both windows together, in an order that does not tell them apart: a window that the
    centres were fitted to lies nearer to them than one that they were not, and the two would seem to differ. What is
    asked about only now makes a topic of its own.

    Two tests share the chance of a false alarm (the smaller p-value, doubled): chi-square finds a cluster that grows or
    shrinks, the kernel test of the prompts' similarities what is spread over many ways to ask, which no cluster holds.

    None when there are too few prompts or words for two topics.
    """
    import numpy as np
    from sklearn.cluster import KMeans
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.preprocessing import normalize

    prompts = sorted([*reference, *current])
    clusters = min(topics, len(prompts) // ROWS_A_TOPIC, len(set(prompts)))
    vectorizer = CountVectorizer(binary=True, min_df=2, token_pattern=WORDS, dtype=np.float64)
    try:
        weights = vectorizer.fit_transform(prompts)
    except ValueError:  # scikit-learn's word for "no word is left"
        return None
    components = min(50, weights.shape[1] - 1, weights.shape[0] - 1)
    if clusters < 2 or components < 2:
        return None
    inverse_frequency = np.log(len(prompts) / np.asarray(weights.sum(axis=0)).ravel()) ** 2
    weights = normalize(weights.multiply(inverse_frequency).tocsr())
    space = normalize(TruncatedSVD(components, random_state=seed).fit_transform(weights))
    assigned = KMeans(clusters, n_init=4, random_state=seed).fit_predict(space)
    words = vectorizer.get_feature_names_out()
    overall = np.asarray(weights.mean(axis=0)).ravel()
    names = {}
    for topic in set(assigned.tolist()):  # fewer than clusters where prompts repeat themselves
        # The words that set the topic apart, not those that all prompts share.
        distinctive = np.asarray(weights[assigned == topic].mean(axis=0)).ravel() - overall
        names[topic] = f"{topic + 1} {', '.join(words[distinctive.argsort()[::-1][:3]])}"
    named = dict(zip(prompts, (names[topic] for topic in assigned.tolist()), strict=True))

    topics_before, topics_now = [named[prompt] for prompt in reference], [named[prompt] for prompt in current]

    some = [window[:: -(-len(window) // COMPARED)] for window in (reference, current)]
    vectors = normalize(vectorizer.transform([*some[0], *some[1]]).multiply(inverse_frequency).tocsr())
    by_prompts, witness = two_sample_kernel((vectors @ vectors.T).toarray(), len(some[0]))
    by_clusters = two_sample_chi_square(topics_before, topics_now)
    newest = some[1][int(witness[len(some[0]) :].argmax())]
    return Topics(topics_before, topics_now, min(2 * min(by_prompts, by_clusters), 1.0), newest)
