"""Topics: what the prompts of two windows ask about, and whether that differs. Needs scikit-learn."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

from retuned.monitors.drift.days import design_effects
from retuned.monitors.drift.two_samples import Difference, Sample, categories
from retuned.monitors.drift.vectors import Embed, Embeddings, Vectors, WordVectors
from retuned.monitors.statistics import Z95, chi_square_sum_tail, two_sample_kernel

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

# A cluster of fewer prompts than this says nothing.
ROWS_A_TOPIC = 50
# The kernel test takes so many prompts of a window; its memory grows with the square of that.
COMPARED = 1_000


@dataclass(frozen=True)
class Topics:
    """Topics of two windows.

    Attributes:
        reference: for each prompt of the reference the name of its topic: a number and its most telling words
            ("3 refund, order, days"), where there are words.
        current: the same of the current window.
        others: the same of further prompts.
        difference: whether both windows ask about the same, and the share of the current prompts that is new.
        newest: the current prompt that is most like the others of its window and least like those of the reference.
    """

    reference: list[str]
    current: list[str]
    others: list[str]
    difference: Difference
    newest: str


def find_topics(
    reference: Sample,
    current: Sample,
    topics: int,
    others: Sequence[str] = (),
    seed: int = 0,
    embed: Embed | None = None,
) -> Topics | None:
    """Sort the prompts of both windows into topics, and test whether they ask about the same.

    Clusters are k-means on the vectors of the prompts (`vectors`), of both windows together, in an order that does not
    tell them apart: a window that the centres were fitted to lies nearer to them than one that they were not, and the
    two would seem to differ. What is asked about only now makes a topic of its own. The topics of other prompts are
    those of the nearest centres.

    Two tests share the chance of a false alarm (the smaller p-value, doubled): one finds a cluster that grows or
    shrinks, that of the prompts' similarities what is spread over many ways to ask, which no cluster holds.

    Args:
        embed: the vectors of prompts; None: those of their words.

    Returns:
        None when there are too few prompts, or words that are known, for two topics.
    """
    import numpy as np
    from sklearn.cluster import KMeans

    prompts = sorted([*reference.values, *current.values])
    clusters = min(topics, len(prompts) // ROWS_A_TOPIC, len(set(prompts)))
    try:
        words = WordVectors(prompts, seed)
    except ValueError:  # scikit-learn's word for "no word is left"
        words = None
    vectors: Vectors | None = words if embed is None else Embeddings(prompts, embed)
    if vectors is None or clusters < 2 or vectors.dimensions < 2:
        return None
    clusters = min(clusters, len(np.unique(vectors.prompts, axis=0)))
    if clusters < 2:  # to a model all of them are alike, or unknown
        return None
    centres = KMeans(clusters, n_init=4, random_state=seed).fit(vectors.prompts)
    assigned = centres.labels_
    names = {}
    for topic in set(assigned.tolist()):  # fewer than clusters where prompts repeat themselves
        names[topic] = f"{topic + 1} {words.telling(assigned == topic)}" if words else str(topic + 1)
    named = dict(zip(prompts, (names[topic] for topic in assigned.tolist()), strict=True))
    if new := [prompt for prompt in others if prompt not in named]:
        nearest = centres.predict(vectors.project(new))
        named |= dict(zip(new, (names[topic] for topic in nearest.tolist()), strict=True))

    before, now = (
        Sample(np.asarray([named[prompt] for prompt in window.values], dtype=object), window.days)
        for window in (reference, current)
    )
    some = [_thinned(window) for window in (reference, current)]
    by_prompts, share, newest = _compare_prompts(vectors.similarity([*some[0].values, *some[1].values]), *some)
    by_clusters = categories(before, now)
    difference = Difference(min(2 * min(by_prompts, by_clusters.p_value), 1.0), *share, by_clusters.score)
    return Topics(before.values.tolist(), now.values.tolist(), [named[prompt] for prompt in others], difference, newest)


def _thinned(window: Sample) -> Sample:
    step = -(-len(window.values) // COMPARED)
    return Sample(window.values[::step], window.days[::step])


def _compare_prompts(
    similarity: "Array", reference: Sample, current: Sample
) -> tuple[float, tuple[float, float, float], str]:
    """The p-value of two tests (the smaller one, doubled), the share of new prompts with its interval, and the newest.

    The kernel test finds any difference. Where days differ in one respect it takes them to differ in all, so that it
    finds less; the cross U-statistic then finds more: how much newer the rows of one half are than those of the
    reference, by what is new in the other half (Kim and Ramdas, "Dimension-agnostic inference using cross
    U-statistics", Bernoulli 30, 2024). It is that of both halves, in the mean, as it is nearly the same.
    """
    import numpy as np

    rows = len(reference.values)
    statistic, weights, witness = two_sample_kernel(similarity, rows)
    effects = design_effects((witness[:rows], reference.days), (witness[rows:], current.days))
    by_kernel = effects.p_value(lambda effect: chi_square_sum_tail(statistic / effect, weights))
    newness, half = _newness(similarity, rows)
    scores = []
    for own in range(2):
        before, now = (part[of == own] for part, of in ((newness[:rows], half[:rows]), (newness[rows:], half[rows:])))
        error = math.sqrt(before.var() / len(before) + now.var() / len(now))
        scores.append(float(now.mean() - before.mean()) / error if error else 0.0)
    effects = design_effects((newness[:rows], reference.days), (newness[rows:], current.days))
    by_halves = effects.p_value(lambda effect: NormalDist().cdf(-sum(scores) / 2 / math.sqrt(effect)))
    newest = str(current.values[int(np.argmax(witness[rows:]))])
    return min(2 * by_kernel, 2 * by_halves, 1.0), _new_share(newness, rows, effects.mean), newest


def _newness(similarity: "Array", reference: int) -> tuple["Array", "NDArray[np.int64]"]:
    """By how much a row of one half is more similar to the other half of the current window than to that of the
    reference; and the half (0 or 1) that each row is of."""
    import numpy as np

    n = len(similarity)
    current = np.arange(n) >= reference
    half = np.where(current, np.arange(n) - reference, np.arange(n)) % 2
    newness = np.empty(n)
    for own in range(2):
        seen, others = half == own, half != own
        to_current, to_reference = (similarity[np.ix_(seen, others & of)].mean(axis=1) for of in (current, ~current))
        newness[seen] = to_current - to_reference
    return newness, half


def _new_share(newness: "Array", reference: int, design_effect: float) -> tuple[float, float, float]:
    """The share of the current rows that are not of the reference's kind, and its 95% interval.

    Where the current window is the reference's mix and a share of something new, no set of rows shrinks by more than
    that share, and a set without anything new shrinks by just that (Blanchard, Lee and Scott, "Semi-supervised novelty
    detection", JMLR 11, 2010). The sets tried are those of the rows that are least new; the one whose lower end is
    highest is reported.
    """
    import numpy as np

    n, before_rows, now_rows = len(newness), newness[:reference], newness[reference:]
    ends = []
    for level in np.linspace(0.3, 0.7, 9):
        cut = np.quantile(before_rows, level)
        before, after = float((before_rows <= cut).mean()), float((now_rows <= cut).mean())
        ratio = after / before
        variance = (1 - before) / (before * reference) + (1 - after) / (max(after, 1 / n) * (n - reference))
        error = Z95 * ratio * math.sqrt(variance)
        ends.append((1 - ratio - error, 1 - ratio, error))
    _, share, error = max(ends)
    error *= math.sqrt(design_effect)
    return max(share, 0.0), max(share - error, 0.0), min(max(share, 0.0) + error, 1.0)
