"""What the gate's statistics promise a small shop, over its whole life: see `small_shop`."""

import numpy as np
import pytest
from small_shop import Policy, World, promoted_at_first_try, waits

FOLDS = Policy("folds", lacking=True)


@pytest.mark.parametrize("equal", ["rows", "facts"])
def test_a_year_of_weekly_tries_promotes_hardly_ever_what_is_no_better(equal: str) -> None:
    """An error of 5% for each holdout, which is drawn anew after four tries, promotes one in five."""
    promoted = np.isfinite(waits(World(equal=equal), Policy(), weeks=52, runs=80)).mean()
    halved = np.isfinite(waits(World(equal=equal), Policy(halved=True), weeks=52, runs=80)).mean()
    assert promoted <= 0.05
    assert halved > 0.1


def test_folds_show_a_clear_gain_in_weeks_that_a_holdout_alone_shows_in_months() -> None:
    alone, folds = (waits(World(0.3), policy, weeks=26, runs=60) for policy in (Policy(), FOLDS))
    assert np.median(folds) <= 5
    assert (folds <= 12).mean() >= 0.85
    assert np.median(alone) >= 9
    assert (alone <= 12).mean() <= 0.65


def test_a_company_of_which_five_facts_changed_shows_its_gain_by_folds() -> None:
    asked = {"gain": 0.21, "rows": 110, "holdout": 34, "runs": 200}
    assert promoted_at_first_try(5, Policy(), **asked) <= 0.7  # type: ignore[arg-type]
    assert promoted_at_first_try(5, FOLDS, **asked) >= 0.85  # type: ignore[arg-type]
