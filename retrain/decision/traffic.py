"""The guard of unrated traffic: how much a candidate changes where no feedback states what is right."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import takewhile
from statistics import NormalDist, fmean
from typing import TypeVar

import numpy as np

from retuned.retrain.data.identity import text_hash
from retuned.retrain.decision.harm import CHANCE, GUARD_ERROR, within
from retuned.retrain.decision.pairs import Check, Measured, cluster_means, not_measured
from retuned.retrain.settings import GateSettings

TRAFFIC_EXAMPLES = 20
"""With fewer answers to traffic the guard measures nothing."""

_DROPS = {"win": -1.0, "tie": 0.0, "loss": 1.0}

Row = TypeVar("Row", bound=Measured)


def in_random_order(rows: Iterable[Row]) -> list[Row]:
    """Returns answers to traffic in the order in which the judge compares them: random, and the same each time."""
    return sorted(rows, key=lambda row: text_hash(row.row_id))


def traffic(traffic: Sequence[Measured], holdout: Sequence[Measured], settings: GateSettings, before: str) -> Check:
    """Tests that the candidate is no worse on current requests, rated or not.

    People rate what is wrong, so the holdout consists mostly of the champion's failures, and does not show what a
    candidate breaks elsewhere. No feedback states what is right on unrated traffic, and an answer that differs from the
    champion's may be the better one, so agreement is no score. What can be tested:

    - Where the two agree, nothing is lost. So the loss is at most the share that differs.
    - Where they differ and a judge is configured, the judge decides. Losses minus wins, over all traffic that was
      compared, are tested against the limit like the other guards (see `harm`). Equal answers are ties, which need no
      judge. So verdicts count only up to the first pair, in random order, on which the judge failed: beyond it ties
      would be too frequent.
    - Without a judge, or with too few verdicts of one, the holdout is the reference. The candidate differs there, too,
      and is known to gain by it (or the gate refuses it). Traffic contains fewer of the champion's failures, so fewer
      of its answers should change. A candidate that changes more of the traffic than of the holdout, by more than the
      limit and beyond chance, is refused. This guard cannot see what the candidate breaks within the share that it may
      change.

    The unit is the conversation. To each of the two independent samples of agreements one agreement and one difference
    are added (Agresti and Caffo 2000). The excess is tested by its normal approximation at GUARD_ERROR.

    Args:
        before: the source of the answers that the candidate's are compared with.
    """
    changes = _changes(traffic)
    figures = {"traffic_examples": float(len(changes))}
    if len(changes) < TRAFFIC_EXAMPLES:
        reason = (
            f"Of recent traffic that nobody rated {len(changes)} answers could be compared; {TRAFFIC_EXAMPLES} are "
            "needed."
        )
        return not_measured(reason, len(traffic), figures)
    differing = fmean(changes)
    text = (
        f"Of {len(changes)} recent questions whose answers nobody rated, the candidate answers {differing:.1%} "
        f"differently than the {before}"
    )
    compared = in_random_order(row for row in traffic if row.agreement is not None)
    judged = list(takewhile(lambda row: row.verdict is not None, compared))
    check = _by_judge(judged, settings.maximum_traffic_drop) or _by_holdout(
        changes, _changes(holdout), settings.maximum_traffic_drop
    )
    return replace(
        check,
        reasons=[f"{text}{reason}" for reason in check.reasons],
        figures=figures | {"traffic_differing": differing} | check.figures,
        limit=settings.maximum_traffic_drop,
        takes="answers that are as good on this traffic, or a higher gate.maximum_traffic_drop",
    )


def _by_judge(rows: Sequence[Measured], limit: float) -> Check | None:
    """Tests losses minus wins; None if too few answers were compared, or the judge compared none of them."""
    verdicts = [row.verdict for row in rows if row.verdict is not None]
    drops = list(cluster_means((row, _DROPS[row.verdict or "tie"]) for row in rows).values())
    if len(drops) < TRAFFIC_EXAMPLES or all(row.agreement == 1 for row in rows):
        return None
    test = within(drops, limit)
    found = (
        f"it loses {verdicts.count('loss')} and wins {verdicts.count('win')} of {len(verdicts)}: a drop of "
        f"{fmean(drops):+.1%}, {test} the allowed {limit:.1%}"
    )
    figures = {"traffic_judged": float(len(verdicts)), "traffic_drop": fmean(drops)}
    reasons, figures = [f". By the judge {found}. {test.power('A drop')}"], figures | test.figures("traffic")
    return Check(test.passed, reasons, figures, len(drops), because=f"on unrated traffic, by the judge, {found}")


def _by_holdout(changes: Sequence[float], holdout: Sequence[float], limit: float) -> Check:
    """Tests whether more of the traffic changes than of the holdout."""
    if not holdout:
        because = "the holdout has nothing to compare the changes of unrated traffic with"
        return Check(None, ["; the holdout has nothing to compare that with."], {}, len(changes), because=because)
    excess, chance, unseen = _excess(changes, holdout, limit)
    passed = excess <= limit or chance > GUARD_ERROR
    compared = "within" if excess <= limit else CHANCE if passed else "surely above"
    found = f"{excess:+.1%}, {compared} the allowed excess of {limit:.1%}"
    reason = (
        f", and {fmean(holdout):.1%} of the holdout, where it is known what is right: {found}. "
        f"An excess of up to {100 * unseen:.2g} points would pass unseen half of the time. Which of the two is right "
        "on traffic is not known without a judge's verdicts (evaluate.judge_url): what the candidate breaks within the "
        "share that it may change passes unseen."
    )
    figures = {"traffic_differing_holdout": fmean(holdout), "traffic_excess": excess, "unseen[traffic]": unseen}
    because = f"it changes more of unrated traffic ({fmean(changes):.1%}) than of the holdout: {found}"
    return Check(passed, [reason], figures, len(changes), because=because)


def _changes(rows: Sequence[Measured]) -> list[float]:
    """Returns the share of answers that differ, for each cluster whose agreement is known."""
    return list(cluster_means((row, 1 - row.agreement) for row in rows if row.agreement is not None).values())


def _excess(traffic: Sequence[float], holdout: Sequence[float], limit: float) -> tuple[float, float, float]:
    """Returns the excess of the first mean over the second, the probability of such an excess if the true one is the
    limit, and the excess that the test detects half of the time."""
    first, second = (np.concatenate([values, [0.0, 1.0]]) for values in (traffic, holdout))
    scatter = math.sqrt(first.var() / len(first) + second.var() / len(second))
    chance = 1 - NormalDist(limit, scatter).cdf(float(first.mean() - second.mean()))
    return fmean(traffic) - fmean(holdout), chance, limit + NormalDist().inv_cdf(1 - GUARD_ERROR) * scatter
