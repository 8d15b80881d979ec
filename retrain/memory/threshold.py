"""The similarity from which an entry may help related questions, with a bound on the share of wrong help.

A look-up takes the nearest known question. Evidence are trials of just that: each question whose approved answer is
known looks up the nearest other one, and the answers either mean the same or not. Two that are each other's nearest are
one trial, because the test needs independent ones. The bound holds for questions like these. Thresholds for each entry,
and abstention without evidence, follow vCache (Schroeder et al. 2025, arXiv:2502.03771); its model of one entry is
replaced by a test on all trials of a workload, because entries are hours old and have hardly any of their own.
"""

from collections.abc import Iterable, Sequence

import numpy as np

CONFIDENCE = 0.95
STEPS = 20
"""The number of thresholds that are tested."""
ABOVE = 0.01
"""By how much a threshold is above the nearest question with another answer."""


def of_workload(trials: Iterable[tuple[float, bool]], error_rate: float) -> float | None:
    """Returns the least threshold above which the share of wrong look-ups is at most `error_rate`; None: no evidence.

    Thresholds are tested from the highest to the lowest, and the first that fails ends the test. So all that pass hold
    together with probability CONFIDENCE (fixed-sequence testing; Angelopoulos et al. 2021, "Learn then test"). Each
    test is exact (Clopper and Pearson 1934), and the first has as many trials as it needs if none of them is wrong.

    Args:
        trials: the similarity of each look-up, and whether the found answer means the same as the approved one.
    """
    from scipy.special import bdtrc

    values = np.array(sorted(trials, reverse=True), dtype=np.float64).reshape(-1, 2)
    similarity, total = values[:, 0], len(values)
    least = int(np.ceil(np.log(1 - CONFIDENCE) / np.log(1 - error_rate)))
    if total < least:
        return None
    wrong = np.cumsum(1 - values[:, 1])
    passed = None
    for start in np.linspace(max(least, total / 8), total, STEPS).astype(int):
        count = int((similarity >= similarity[start - 1]).sum())  # equal similarities stay together
        if 1 - bdtrc(wrong[count - 1], count, error_rate) > 1 - CONFIDENCE:
            break
        passed = float(similarity[count - 1])
    return passed


def of_entry(workload: float | None, others: Sequence[float]) -> float | None:
    """Returns the threshold of an entry; None: it helps the same question only.

    Args:
        workload: see `of_workload`.
        others: the similarities of questions whose approved answer is another one.
    """
    if workload is None:
        return None
    threshold = max(workload, max(others, default=-1.0) + ABOVE)
    return threshold if threshold < 1 else None
