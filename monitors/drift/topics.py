"""Topics of the prompts of two windows, and whether the windows differ in them. Needs scikit-learn."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

from retuned.monitors.drift.two_samples import Difference, Sample, categories, changed_share, grown_side
from retuned.monitors.drift.vectors import Embed, Embeddings, Vectors, WordVectors
from retuned.monitors.rates.days import DesignEffects, design_effects
from retuned.monitors.statistics import Z95, chi_square_sum_tail, two_sample_kernel

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

# Each topic needs this many prompts on average.
ROWS_A_TOPIC = 50
# The kernel test uses at most this many prompts of a window: its memory grows with the square of their number.
COMPARED = 1_000
# Cross-validation folds and inverse regularisation (C) of the classifier of the two windows.
FOLDS, STRENGTH = 10, 0.1


@dataclass(frozen=True)
class Topics:
    """Topics of two windows.

    Attributes:
        reference: the topic of each prompt of the reference: a number and its most distinctive words, if there are
            any ("3 refund, order, days").
        current: the topic of each prompt of the current window.
        others: the topic of each further prompt.
        difference: the test of whether both windows ask about the same, and the share of current prompts that changed.
        newest: the current prompt that is most similar to its own window and least similar to the reference.
        vectors: projects prompts into the space of these windows.
    """

    reference: list[str]
    current: list[str]
    others: list[str]
    difference: Difference
    newest: str
    vectors: Vectors


def find_topics(
    reference: Sample,
    current: Sample,
    topics: int,
    others: Sequence[str] = (),
    seed: int = 0,
    embed: Embed | None = None,
) -> Topics | None:
    """Sorts the prompts of both windows into topics, and tests whether the windows differ.

    The topics are k-means clusters of the vectors of all prompts of both windows, sorted so that the order does not
    depend on the window: centres fitted to one window alone lie nearer to it, and identical windows would seem to
    differ. New subjects get topics of their own. Other prompts belong to the nearest centre.

    Two tests share the chance of a false alarm (the smaller p-value, doubled). The test of clusters finds one that
    grows or shrinks; the test of similarities finds changes that are spread over many phrasings and clusters.

    Args:
        embed: returns the vectors of prompts; None: use their words.

    Returns:
        None: there are too few prompts, or too few known words, for two topics.
    """
    import numpy as np
    from sklearn.cluster import KMeans

    prompts = sorted([*reference.values, *current.values])
    clusters = min(topics, len(prompts) // ROWS_A_TOPIC, len(set(prompts)))
    try:
        words = WordVectors(prompts, seed)
    except ValueError:  # no word is in two prompts
        words = None
    vectors: Vectors | None = words if embed is None else Embeddings(prompts, embed)
    if vectors is None or clusters < 2 or vectors.dimensions < 2:
        return None
    clusters = min(clusters, len(np.unique(vectors.prompts, axis=0)))
    if clusters < 2:  # the model embeds all prompts alike, or knows none of their words
        return None
    centres = KMeans(clusters, n_init=4, random_state=seed).fit(vectors.prompts)
    assigned = centres.labels_
    names = {}
    for topic in set(assigned.tolist()):  # repeated prompts may leave clusters empty
        names[topic] = f"{topic + 1} {words.distinctive(assigned == topic)}" if words else str(topic + 1)
    named = dict(zip(prompts, (names[topic] for topic in assigned.tolist()), strict=True))
    if new := [prompt for prompt in others if prompt not in named]:
        nearest = centres.predict(vectors.project(new))
        named |= dict(zip(new, (names[topic] for topic in nearest.tolist()), strict=True))

    before, now = (
        Sample(np.asarray([named[prompt] for prompt in window.values], dtype=object), window.days)
        for window in (reference, current)
    )
    some_before, some_now = _thinned(reference), _thinned(current)
    texts = [*some_before.values, *some_now.values]
    by_prompts, effects, newest = _compare_prompts(vectors.similarity(texts), some_before, some_now)
    share = _changed_share(vectors.project(texts), some_before, some_now, effects)
    by_clusters = categories(before, now)
    return Topics(
        reference=before.values.tolist(),
        current=now.values.tolist(),
        others=[named[prompt] for prompt in others],
        difference=Difference(min(2 * min(by_prompts, by_clusters.p_value), 1.0), *share, by_clusters.score),
        newest=newest,
        vectors=vectors,
    )


def _thinned(window: Sample) -> Sample:
    step = -(-len(window.values) // COMPARED)
    return Sample(window.values[::step], window.days[::step])


def _compare_prompts(similarity: "Array", reference: Sample, current: Sample) -> tuple[float, DesignEffects, str]:
    """Returns the p-value of two tests (the smaller one, doubled), the design effects of days, and the newest prompt.

    The kernel test finds any difference, but loses power where days differ: it treats a difference in one respect as a
    difference in all. The cross U-statistic has more power then. It measures how much newer the rows of one half are
    than those of the reference, by what is new in the other half (Kim and Ramdas, "Dimension-agnostic inference using
    cross U-statistics", Bernoulli 30, 2024). It is computed for both halves and averaged; the two are nearly equal.
    """
    import numpy as np

    rows = len(reference.values)
    statistic, weights, witness = two_sample_kernel(similarity, rows)
    effects = design_effects((witness[:rows], reference.days, None), (witness[rows:], current.days, None))
    by_kernel = effects.p_value(lambda effect: chi_square_sum_tail(statistic / effect, weights))
    newness, half = _newness(similarity, rows)
    scores = []
    for own in range(2):
        before, now = (
            part[halves == own] for part, halves in ((newness[:rows], half[:rows]), (newness[rows:], half[rows:]))
        )
        error = math.sqrt(before.var() / len(before) + now.var() / len(now))
        scores.append(float(now.mean() - before.mean()) / error if error else 0.0)
    effects = design_effects((newness[:rows], reference.days, None), (newness[rows:], current.days, None))
    by_halves = effects.p_value(lambda effect: NormalDist().cdf(-sum(scores) / 2 / math.sqrt(effect)))
    newest = str(current.values[int(np.argmax(witness[rows:]))])
    return min(2 * by_kernel, 2 * by_halves, 1.0), effects, newest


def _newness(similarity: "Array", reference: int) -> tuple["Array", "NDArray[np.int64]"]:
    """Returns the newness of each row and its half (0 or 1).

    The newness is the similarity to the current rows of the other half less that to its reference rows.
    """
    import numpy as np

    n = len(similarity)
    current = np.arange(n) >= reference
    half = np.where(current, np.arange(n) - reference, np.arange(n)) % 2
    newness = np.empty(n)
    for own in range(2):
        seen, others = half == own, half != own
        to_current, to_reference = (
            similarity[np.ix_(seen, others & window)].mean(axis=1) for window in (current, ~current)
        )
        newness[seen] = to_current - to_reference
    return newness, half


def _changed_share(
    vectors: "Array", reference: Sample, current: Sample, effects: DesignEffects
) -> tuple[float, float, float]:
    """Returns the share of the current prompts that must differ from those of the reference, and its 95% interval.

    A classifier separates the prompts of the two windows. The share is the excess of the current window on one side of
    a cut of its scores (see `two_samples`), on held-out prompts. That underestimates the share, since the classifier
    has to learn the topics; on training prompts it would be overestimated (Efron, "How biased is the apparent error
    rate of a prediction rule?", JASA 81, 1986). So the interval extends to the upper end of the latter.
    """
    import numpy as np
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    rows = len(reference.values)
    window = np.arange(len(vectors)) >= rows
    model = LogisticRegression(C=STRENGTH)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    unseen = cross_val_predict(model, vectors, window, cv=folds, method="decision_function")
    share, low, high = changed_share(
        Sample(unseen[:rows], reference.days),
        Sample(unseen[rows:], current.days),
        lambda before, now: grown_side(before, now, Z95)[1],
        effects,
    )
    seen = model.fit(vectors, window).decision_function(vectors)
    grew = grown_side(seen[:rows], seen[rows:])[1]
    most = max(float(grew(seen[rows:]).mean() - grew(seen[:rows]).mean()), share)
    return share, low, min(most + high - share, 1.0)
