"""Whole rollouts, simulated (rollouts.py of the benchmarks; canary.py has all sizes), and one through the checks."""

from pathlib import Path

import numpy as np
import pytest
from rollouts import NEVER, draw, simulate, through_the_checks

from fixtures.feedback.votes import Service
from retuned.consumers.settings import RolloutSettings
from retuned.monitors.settings import WatchSettings

STEPS = RolloutSettings(steps=(0.05, 0.25, 1.0), holdback=0.05)
RUNS = 60


def test_hardly_a_version_that_uses_the_whole_margin_up_is_taken_back() -> None:
    """Rates and shares both change, and the angry vote first."""
    service = Service(100_000, fall=0.05, early=0.1)
    drawn = draw(service, STEPS, RUNS, np.random.default_rng(1))
    found = simulate(service, drawn, STEPS, WatchSettings())
    assert (found.taken_back < NEVER).mean() <= 0.05
    assert (found.steps[:, -1] < NEVER).all()


def test_a_version_that_is_worse_is_taken_back_before_it_has_answered_much() -> None:
    service = Service(100_000, fall=0.2)
    drawn = draw(service, STEPS, RUNS, np.random.default_rng(2))
    found = simulate(service, drawn, STEPS, WatchSettings())
    assert (found.taken_back < NEVER).all()
    at_once = RolloutSettings()
    compared = simulate(service, draw(service, at_once, RUNS, np.random.default_rng(2)), at_once, WatchSettings())
    assert found.exposed.mean() < compared.exposed.mean() / 2


@pytest.mark.parametrize(("size", "fall", "seed"), [(8_000, 0.3, 2), (20_000, 0.0, 4)])
def test_the_checks_decide_as_the_simulation_does(size: int, fall: float, seed: int, tmp_path: Path) -> None:
    went = through_the_checks(Service(size, fall=fall), STEPS, tmp_path, seed)
    assert went[0].startswith("roll_back" if fall else "advance")
